"""Plain ViT: its configuration, under the keys of the published config.json, and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..config import ACTIVATIONS, Head, PreTrainedConfig, to_pair
from ..errors import ConfigError
from ..weights import Shape, layer_norm_shapes, linear_shapes

# name: (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size)
# Dosovitskiy et al. 2021, Table 1 (B, L, H); Touvron et al. 2021, Table 1 (Ti, S); Zhai et al. 2022, Table 2 (g, G).
VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}


MASKED = {"add_pooling_layer": False, "use_mask_token": True}
"""The parts of a base model under a head for masked image modelling."""


@dataclass(eq=False)
class ViTConfig(PreTrainedConfig):
    """The configuration of a Vision Transformer, compared and hashed by value.

    Keys and defaults are those of the published checkpoints (transformers' ViTConfig), so the defaults are ViT-B/16 at
    224. `variant` knows the other published sizes. Dropout, outputs, label names, problem_type and unknown keys may be
    assigned; of what shapes the model, `replace` gives a changed copy.

    Args:
        hidden_size: width of a token.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each attention; divides `hidden_size`.
        intermediate_size: width of the hidden layer of each MLP.
        hidden_act: activation of the MLP, one of `ACTIVATIONS`; "gelu" is the exact one.
        hidden_dropout_prob: dropout after the embeddings, each attention and each MLP.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        initializer_range: standard deviation of the truncated normal of fresh weights.
        layer_norm_eps: epsilon of every LayerNorm.
        image_size: height and width of the input in pixels, one int or a (height, width) pair.
        patch_size: height and width of a patch in pixels, one int or a (height, width) pair.
        num_channels: channels of the input.
        qkv_bias: whether query, key and value have biases.
        encoder_stride: factor by which the masked-image decoder upsamples; equals `patch_size`.
        pooler_output_size: width of the pooler's output; `hidden_size` when None.
        pooler_act: activation of the pooler, one of `ACTIVATIONS`.
        num_labels: number of labels of the classification head; follows `id2label` when that is given.
        id2label: label index to name; "LABEL_0" and so on when None.
        label2id: label name to index; the inverse of `id2label` when None.
        problem_type: which loss `labels` select, one of `PROBLEM_TYPES`; chosen from the labels when None.
        output_hidden_states: default of the argument of that name of each call.
        output_attentions: default of the argument of that name of each call.
        return_dict: default of the argument of that name of each call.
        attn_implementation: "sdpa" (fused, in frameworks that have that) or "eager" (matmul, softmax, matmul).
        dtype: dtype of the checkpoint's parameters, one of `DTYPES`.
        architectures: class names that wrote the checkpoint.
        model_type: "vit".
        extra: keys of a config.json that are not listed here, kept for the round trip.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "vit"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("ViTModel", "last_hidden_state", {"add_pooling_layer": True, "use_mask_token": False}),
        "classifier": Head("ViTForImageClassification", "logits", {"add_pooling_layer": False}),
        "decoder": Head("ViTForMaskedImageModeling", "reconstruction", MASKED),
    }
    optional: ClassVar[tuple[str, ...]] = ("vit.pooler.", "vit.embeddings.mask_token", "classifier.", "decoder.")
    follows: ClassVar[Mapping[str, str]] = {"pooler_output_size": "hidden_size"}
    variants: ClassVar[Mapping[str, tuple[int, int, int, int]]] = VARIANTS

    encoder_stride: int | tuple[int, int] = 16
    pooler_output_size: int = None  # type: ignore[assignment]  # hidden_size
    pooler_act: str = "tanh"
    model_type: str = "vit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes("encoder_stride")
        self._check_ints("pooler_output_size")
        self._check_choice("pooler_act", ACTIVATIONS)

    def check_head(self, head: str | None) -> None:
        if head == "decoder" and to_pair(self.encoder_stride) != to_pair(self.patch_size):
            raise ConfigError(
                f"encoder_stride is {self.encoder_stride} and patch_size {self.patch_size}; masked image modelling "
                "needs them to be equal, so that the reconstruction has the size of the image."
            )

    def parameter_shapes(
        self, head: str | None = None, add_pooling_layer: bool = False, use_mask_token: bool = False
    ) -> dict[str, Shape]:
        """Every canonical parameter name of a model and its canonical shape, in the order of the computation.

        Args:
            head: None, "classifier" or "decoder".
            add_pooling_layer: whether the model has a pooler.
            use_mask_token: whether the model has a mask token.

        Returns:
            {name: shape}; linear weights are (out, in), convolutions (out, in, height, width).
        """
        width, base = self.hidden_size, self.base_model_prefix
        shapes: dict[str, Shape] = {f"{base}.embeddings.cls_token": (1, 1, width)}
        if use_mask_token:
            shapes[f"{base}.embeddings.mask_token"] = (1, 1, width)
        shapes[f"{base}.embeddings.position_embeddings"] = (1, self.num_patches + self.prefix_tokens, width)
        shapes |= self.patch_embedding_shapes(f"{base}.embeddings.patch_embeddings")
        for i in range(self.num_hidden_layers):
            shapes |= self.encoder_layer_shapes(f"{base}.encoder.layer.{i}")
        shapes |= layer_norm_shapes(f"{base}.layernorm", width)
        if add_pooling_layer:
            shapes |= linear_shapes(f"{base}.pooler.dense", width, self.pooler_output_size)
        if head == "classifier" and self.num_labels:
            shapes |= linear_shapes("classifier", width, self.num_labels)
        if head == "decoder":
            height, stride_width = to_pair(self.encoder_stride)
            pixels = height * stride_width * self.num_channels
            shapes |= {"decoder.0.weight": (pixels, width, 1, 1), "decoder.0.bias": (pixels,)}
        return shapes
