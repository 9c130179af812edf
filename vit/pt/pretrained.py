"""What every PyTorch model inherits: fresh weights, from_pretrained, save_pretrained."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from .. import checkpoint
from ..config import PreTrainedConfig, check_config
from ..errors import ConfigError, InputError, quoted, warn
from ..inputs import check_torch_device
from ..keywords import loading_keywords, saving_keywords
from ..loading import plan
from ..outputs import ModelOutput, flatten, unflatten
from .names import TorchNames
from .saving import LOSS, gathered_elsewhere, parameters

_pytree.register_pytree_node(
    ModelOutput,
    flatten,
    lambda values, names: unflatten(names, values),
    serialized_type_name="vit.ModelOutput",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
)


class PreTrainedModel(TorchNames):
    """A model with a configuration, whose state_dict has the names and shapes of the published checkpoints."""

    config_class: ClassVar[type[PreTrainedConfig]]
    head: ClassVar[str | None] = None  # the key of the class in the configuration's `heads`
    accepts_loss_kwargs: ClassVar[bool] = False  # whether a Trainer may pass num_items_in_batch
    inference_only: str | None = None  # "quantised to int8" or "prepacked", once vit.pt.quantize or prepack made it so

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        config.mark_in_use()

    @property
    def __class__(self) -> Any:
        """The class; to transformers, one that is its PreTrainedModel, too.

        Its Trainer calls the `save_pretrained` of nothing else, and would leave the configuration out. That class is a
        plain one, which registers no virtual subclasses; and everybody else, such as pickle, compares this with type().
        """
        kind: Any = type(self)
        theirs = sys.modules.get("transformers.modeling_utils")
        if theirs and sys._getframe(1).f_globals.get("__name__", "").startswith("transformers."):
            return _in_transformers(kind, theirs.PreTrainedModel)
        return kind

    @__class__.setter
    def __class__(self, kind: type) -> None:  # of torch's fully_shard
        object.__dict__["__class__"].__set__(self, kind)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" and name in self.__dict__:  # what is assigned holds for the modules inside
            old = self.config
            old.check_assignable(value)
            value.mark_in_use()
            for module in self.modules():
                if module is not self and module.__dict__.get("config") is old:
                    module.config = value
        if name == LOSS:
            self._modules.pop(name, None)
        super().__setattr__(name, value)
        if name == LOSS and name in self._modules:
            self.__dict__[name] = value  # the class has one, too, which is found before a module's modules

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.config.mark_in_use()  # of a copy, that of a model, too

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self._base().embeddings.cls_token.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._base().embeddings.cls_token.device

    def init_weights(self, module: nn.Module | None = None, prefix: str = "") -> None:
        """Give every parameter of `module`, whose canonical names begin with `prefix`, its initial value.

        Without arguments, every parameter of the model anew.
        """
        if module is None:
            module, prefix = self, "" if self.head else self.config.base_model_prefix
        for name, parameter in module.named_parameters(prefix):
            _initialise(name, parameter, self.config)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute each encoder layer in the backward pass of training, instead of keeping its activations.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`, as a Trainer passes them.
        """
        self._stack().gradient_checkpointing = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self._stack().gradient_checkpointing = None

    def _base(self) -> Any:
        return self if self.head is None else getattr(self, self.config.base_model_prefix)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device: torch.device | str | None = None,
        ignore_mismatched_sizes: bool = False,
        **config_overrides: Any,
    ) -> Any:
        """Load a checkpoint, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a checkpoint folder, or the name of a model on the hub.
            dtype: of the parameters and the computation; None for the checkpoint's.
            attn_implementation: "sdpa" or "eager"; None for the configuration's.
            device: None for the CPU, where the weights stay mapped to the file until they are used.
            ignore_mismatched_sizes: let mis-shaped parameters start fresh, with a warning.
            **config_overrides: any key of the configuration (another number of labels gives a fresh head, another
                image_size resamples the position embeddings), the other arguments of a model without a head, such as
                `add_pooling_layer`, and `revision`, `token`, `cache_dir` and `local_files_only` of the hub.
                transformers' other keywords are taken, too: `torch_dtype`, `config`, `device_map` to one device, and
                `output_loading_info`, with which (model, information) is returned.

        Raises:
            CheckpointError: no checkpoint there, a broken one, or one that does not fit.
            ConfigError: impossible values in its config.json or the overrides.
            InputError: a device that is not there.
        """
        accelerator = "cuda" if torch.cuda.is_available() else None
        dtype, device, with_info = loading_keywords(config_overrides, dtype, device, accelerator)
        param_dtype = config_overrides.pop("param_dtype", None)
        named = [checkpoint.dtype_of(each) for each in (dtype, param_dtype) if each is not None and each != "auto"]
        if param_dtype is not None and named[1:] != named[:1]:
            raise ConfigError("param_dtype cannot be honoured; load in it, and compute under torch.autocast.")
        check_torch_device(torch, device)
        fit = plan(
            pretrained_model_name_or_path,
            cls.head,
            dtype,
            attn_implementation,
            ignore_mismatched_sizes,
            cls.config_class,
            **config_overrides,
        )
        target = {"dtype": getattr(torch, fit.dtype.name), "device": device}
        with checkpoint.garbage_uncollected():
            with torch.device("meta"):
                model = cls(fit.config, **fit.model_options)
            state = {name: _from_numpy(fit.read(name)).to(**target) for name in fit.stored}
            for name, shape in fit.fresh.items():
                state[name] = _initialise(name, torch.empty(shape, **target), fit.config)
            state = {fit.config.model_name(name, cls.head): value for name, value in state.items()}
            model.load_state_dict(state, assign=True)
        if message := fit.warning():
            warn(message)
        return (model.eval(), fit.loading_info()) if with_info else model.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *,
        max_shard_size: int | str = "5GB",
        push_to_hub: bool = False,
        dequantize: bool = False,
        **keywords: Any,
    ) -> None:
        """Write config.json and model.safetensors (or shards of at most `max_shard_size`) into a folder.

        The old files stay whole until the new ones are complete. transformers reads the result.

        Args:
            save_directory: the folder, made if needed.
            is_main_process: False in the processes that are to write nothing.
            state_dict: the model's, gathered elsewhere (Accelerate's `get_state_dict`), with torch.compile's and
                DataParallel's prefixes or without; None for its own.
            max_shard_size: bytes, or a number with KB, MB or GB.
            push_to_hub: whether to upload it as well, as `push_to_hub` does, to `repo_id` or the folder's name.
            dequantize: write the weights that quantised ones (torchao's) stand for, instead of refusing them.
            **keywords: those of `push_to_hub`; and transformers' others, which change nothing or are refused.

        Raises:
            InputError: a `state_dict` of other names or shapes than the model's, or without values; or a keyword that
                cannot be honoured.
        """
        options = saving_keywords(keywords)
        if not isinstance(is_main_process, bool):  # the size of a shard, say
            raise InputError(f"is_main_process is {quoted(is_main_process)}; expected True or False.")
        if state_dict is not None and not is_main_process:  # where it may be empty
            return
        if self.inference_only:
            raise InputError(f"The model is {self.inference_only}; save it before that.")
        state = parameters(self, dequantize) if state_dict is None else gathered_elsewhere(self, state_dict, dequantize)
        if not (state and is_main_process):  # of another process than the first, whose parameters were gathered there
            return
        cls_token = self.config.model_name(f"{self.config.base_model_prefix}.embeddings.cls_token", self.head)
        dtype = checkpoint.dtype_of(state[cls_token].dtype).name
        checkpoint.write(
            save_directory,
            self.config.replace(architectures=(type(self).__name__,), dtype=dtype),
            {name: (tuple(value.shape), checkpoint.dtype_of(value.dtype)) for name, value in state.items()},
            lambda name: _to_numpy(state[name]),
            max_shard_size,
        )
        if push_to_hub:
            self._push(save_directory, options)


@cache
def _in_transformers(kind: type, theirs: type) -> type:
    return type(kind.__name__, (kind, theirs), {"__module__": kind.__module__})


def _initialise(name: str, parameter: Tensor, config: PreTrainedConfig) -> Tensor:
    std, value = config.initializer_range, config.initial_value(name)
    if value is None and std > 0:
        return nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
    if isinstance(value, np.ndarray):
        return parameter.data.copy_(torch.from_numpy(value))
    if value == "xavier_uniform":  # of a convolution as of a matrix
        bound = (6 / (parameter.shape[0] + parameter[0].numel())) ** 0.5
        return nn.init.uniform_(parameter, -bound, bound)
    return nn.init.constant_(parameter, value or 0.0)


def _to_numpy(value: Tensor) -> np.ndarray:
    value = value.detach().cpu().contiguous()
    if value.dtype is torch.bfloat16:  # NumPy knows it through ml_dtypes alone
        return value.view(torch.int16).numpy().view(checkpoint.dtype_of(value.dtype))
    return value.numpy()


def _from_numpy(array: np.ndarray) -> Tensor:
    """A tensor in the memory of an array, which may be mapped to a file."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
