"""What users of transformers and timm ask of a PyTorch model, by the names they know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import to_pair
from ..errors import ConfigError, InputError, quoted
from ..flops import training_flops
from ..names import ModelNames
from ..weights import is_matrix


class TorchNames(ModelNames, nn.Module):
    """Base of every PyTorch model: its parts and its size under the names of transformers and timm."""

    framework = "pt"
    head: ClassVar[str | None] = None
    _require_grads_hook: Any = None

    # === transformers ===

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers its parameters hold.

        Args:
            only_trainable: those that are trained.
            exclude_embeddings: changes nothing, as for any model of images: there is no vocabulary.
        """
        return sum(each.numel() for each in self.parameters() if each.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of its parameters, and its buffers if `return_buffers`."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(each.numel() * each.element_size() for each in held)

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Tokens that the first layer sees of a batch of images of `config.image_size`."""
        return len(input_dict[self.main_input_name]) * self.config.attention_stacks(self.head)[0][2]

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Floating-point operations of training on a batch of images of `config.image_size`, as a Trainer adds them up;
        see `vit.flops`."""
        return len(input_dict[self.main_input_name]) * training_flops(self.config, self.head)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """What the model can be called with: one black image."""
        height, width = to_pair(self.config.image_size)
        pixel_values = torch.zeros(1, self.config.num_channels, height, width, device=self.device)
        return {self.main_input_name: pixel_values}

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another module where tokens are made of pixels."""
        self._base().embeddings.patch_embeddings = value

    def enable_input_require_grads(self) -> None:
        """Give what the layers see a gradient, which recomputed layers need where all before them is frozen."""
        self.disable_input_require_grads()
        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._require_grads_hook is not None:
            self._require_grads_hook.remove()
            self._require_grads_hook = None

    def tie_weights(self) -> None:
        """Nothing: no two parameters are one."""

    # === timm ===

    @property
    def num_features(self) -> int:
        """Width of a token."""
        return self.config.hidden_size

    @property
    def num_classes(self) -> int:
        """Number of labels of the classifier; 0 where there is none."""
        return self.config.num_labels if self._classifiers() else 0

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How names of parameters tell the layers apart, as timm's optimisers take it: the embeddings, each encoder
        layer, the last LayerNorm with the last of them, and the rest.

        Args:
            coarse: changes nothing.
        """
        base = rf"^(?:{re.escape(self.base_model_prefix)}\.)?"
        return {
            "stem": rf"{base}(?:embeddings\.|encoder\.relative_position_bias\.)",
            "blocks": [(rf"{base}(?:\w+\.)?layer\.(\d+)\.", None), (rf"{base}(?:layernorm|norm)\.", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves out, besides biases and all of one axis: tokens, positions
        and tables of biases."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim > 1 and not is_matrix(name)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """`gradient_checkpointing_enable`, or `gradient_checkpointing_disable`."""
        (self.gradient_checkpointing_enable if enable else self.gradient_checkpointing_disable)()

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """The last_hidden_state of the model without its head: (batch, tokens, hidden_size)."""
        return self._base()(pixel_values, return_dict=True)["last_hidden_state"]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What follows `forward_features`.

        Args:
            x: (batch, tokens, hidden_size).
            pre_logits: give what is classified.

        Returns:
            (batch, num_labels), or of a model without classifier and with `pre_logits` (batch, classifier_size).
        """
        pooler = getattr(self._base(), "pooler", None)
        outputs = {"last_hidden_state": x, "pooler_output": x[:, 0] if pooler is None else pooler(x)}
        heads = self._classifiers()
        if len(heads) > 1:  # of CLS and of the distillation token
            tokens = [x[:, i] for i in range(len(heads))]
            found = tokens if pre_logits else [head(token) for head, token in zip(heads.values(), tokens, strict=True)]
            return sum(found[1:], found[0]) / len(found)
        if not heads:
            return outputs["pooler_output"]
        pooled = self.pooled(outputs)
        return pooled if pre_logits else heads["classifier"](pooled)

    def get_classifier(self) -> Any:
        """The classifier; both of them where there are two.

        Raises:
            ConfigError: a model without one.
        """
        heads = tuple(self._classifiers().values())
        if not heads:
            raise ConfigError(f"{type(self).__name__} has no classifier; load its checkpoint into a class that has.")
        return heads if len(heads) > 1 else heads[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier of another number of labels in the place of the old one.

        Args:
            num_classes: number of labels; 0 for none, and what is classified in the place of logits.
            global_pool: None; what is classified stays as it is.

        Raises:
            ConfigError: a model without a classifier.
            InputError: a `global_pool`.
        """
        self.get_classifier()
        if global_pool is not None:
            raise InputError(
                f"global_pool is {quoted(global_pool)}, but what is classified stays as it is: leave it out."
            )
        old, config = self.config, self.config.replace(num_labels=num_classes)
        config.mark_in_use()
        for module in self.modules():
            if module.__dict__.get("config") is old:
                module.__dict__["config"] = config
        for name in self._classifiers():
            options: Any = {"device": self.device, "dtype": self.dtype}
            setattr(
                self, name, nn.Linear(config.classifier_size, num_classes, **options) if num_classes else nn.Identity()
            )
            self.init_weights(getattr(self, name), name)

    def _classifiers(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.named_children() if name.endswith("classifier")}


def _require_grad(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)
