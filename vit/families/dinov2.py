"""DINOv2 (Oquab et al. 2024), and with registers (Darcet et al. 2024): their configurations and their parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ..config import Head, PreTrainedConfig
from ..weights import Shape, layer_norm_shapes, linear_shapes

# name: (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size); Oquab et al. 2024, Table 17
VARIANTS = {
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "g": (1536, 40, 24, 4096),
}


@dataclass(eq=False)
class Dinov2Config(PreTrainedConfig):
    """The configuration of DINOv2 without registers; immutable, compared and hashed by value.

    Keys and defaults are those of the published checkpoints (transformers' Dinov2Config). Keys that are not listed are
    those of `ViTConfig`.

    Args:
        mlp_ratio: width of the hidden layer of each MLP, as a multiple of `hidden_size`; with SwiGLU two thirds of it,
            rounded up to a multiple of 8.
        layerscale_value: initial value of the factors of each branch of an encoder layer.
        drop_path_rate: how often each branch of an encoder layer is dropped in training.
        use_swiglu_ffn: whether the MLPs are gated (SwiGLU, as in the giant); `hidden_act` is then unused.
        use_mask_token: whether there is a mask token.
        interpolate_offset: added to the sides of the grid that position embeddings are resampled to, where distances
            are computed: 0 as transformers does, 0.1 as facebookresearch/dinov2 does.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "dinov2"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("Dinov2Model", "last_hidden_state"),
        "classifier": Head("Dinov2ForImageClassification", "logits"),
    }
    optional: ClassVar[tuple[str, ...]] = ("dinov2.embeddings.mask_token", "classifier.")
    variants: ClassVar[Mapping[str, tuple[int, int, int, int]]] = VARIANTS
    any_size: ClassVar[bool] = True
    num_register_tokens: ClassVar[int] = 0

    intermediate_size: int = dataclasses.field(init=False, default=0)
    layer_norm_eps: float = 1e-6
    patch_size: int | tuple[int, int] = 14
    mlp_ratio: float = 4
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True
    interpolate_offset: float = 0.0
    model_type: str = "dinov2"

    def __post_init__(self) -> None:
        self._check_ints("hidden_size")
        self._check_numbers("mlp_ratio", "layerscale_value", "interpolate_offset")
        self._check_bools("use_swiglu_ffn", "use_mask_token")
        self._check_probabilities("drop_path_rate")
        width = int(self.hidden_size * self.mlp_ratio)
        if self.use_swiglu_ffn:
            width = (int(width * 2 / 3) + 7) // 8 * 8
        self._check("mlp_ratio", width > 0, "a number that leaves the MLP a width")
        object.__setattr__(self, "intermediate_size", width)
        super().__post_init__()

    @classmethod
    def variant(cls, name: str, **overrides: Any) -> Self:
        """As that of every configuration; the giant has gated MLPs."""
        return super().variant(name, **{"use_swiglu_ffn": name.startswith("g/"), **overrides})

    @property
    def layer_scale(self) -> float:
        return self.layerscale_value

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        return (self.drop_path_rate,) * self.num_hidden_layers

    @property
    def gated_mlp(self) -> bool:
        return self.use_swiglu_ffn

    @property
    def interpolation(self) -> Mapping[str, Any]:
        return {"offset": self.interpolate_offset}

    @property
    def classifier_size(self) -> int:
        return 2 * self.hidden_size  # CLS and the mean of the patches

    # === Parameters ===

    def parameter_shapes(self, head: str | None = None) -> dict[str, Shape]:
        """Every canonical parameter name of a model and its canonical shape, in the order of the computation.

        Args:
            head: None or "classifier".
        """
        width, base = self.hidden_size, self.base_model_prefix
        shapes: dict[str, Shape] = {f"{base}.embeddings.cls_token": (1, 1, width)}
        if self.use_mask_token:
            shapes[f"{base}.embeddings.mask_token"] = (1, width)
        if self.num_register_tokens:
            shapes[f"{base}.embeddings.register_tokens"] = (1, self.num_register_tokens, width)
        shapes[f"{base}.embeddings.position_embeddings"] = (1, self.num_patches + 1, width)
        shapes |= self.patch_embedding_shapes(f"{base}.embeddings.patch_embeddings")
        for i in range(self.num_hidden_layers):
            shapes |= self.encoder_layer_shapes(f"{base}.encoder.layer.{i}")
        shapes |= layer_norm_shapes(f"{base}.layernorm", width)
        if head == "classifier" and self.num_labels:
            shapes |= linear_shapes("classifier", self.classifier_size, self.num_labels)
        return shapes

    def encoder_layer_shapes(self, name: str) -> dict[str, Shape]:
        width, mlp_width = self.hidden_size, self.intermediate_size
        shapes = {
            part: shape
            for part, shape in super().encoder_layer_shapes(name).items()
            if part.startswith(f"{name}.attention.")
        }
        first, second, wide = ("weights_in", "weights_out", 2) if self.use_swiglu_ffn else ("fc1", "fc2", 1)
        return {
            **layer_norm_shapes(f"{name}.norm1", width),
            **shapes,
            f"{name}.layer_scale1.lambda1": (width,),
            **layer_norm_shapes(f"{name}.norm2", width),
            **linear_shapes(f"{name}.mlp.{first}", width, wide * mlp_width),
            **linear_shapes(f"{name}.mlp.{second}", mlp_width, width),
            f"{name}.layer_scale2.lambda1": (width,),
        }

    def initial_value(self, name: str) -> Any:
        return self.layerscale_value if name.endswith(".lambda1") else super().initial_value(name)


@dataclass(eq=False)
class Dinov2WithRegistersConfig(Dinov2Config):
    """The configuration of DINOv2 with registers; immutable, compared and hashed by value.

    Keys and defaults are those of the published checkpoints (transformers' Dinov2WithRegistersConfig): those of
    `Dinov2Config` less use_mask_token, which is always true, and interpolate_offset, as position embeddings are
    resampled with antialiasing.

    Args:
        num_register_tokens: tokens without positions between CLS and the patches.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "dinov2_with_registers"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("Dinov2WithRegistersModel", "last_hidden_state"),
        "classifier": Head("Dinov2WithRegistersForImageClassification", "logits"),
    }
    optional: ClassVar[tuple[str, ...]] = ("dinov2_with_registers.embeddings.mask_token", "classifier.")
    prefix_name: ClassVar[str] = "register"

    patch_size: int | tuple[int, int] = 16
    num_register_tokens: int = 4  # type: ignore[misc]  # none without registers
    use_mask_token: bool = dataclasses.field(init=False, default=True)
    interpolate_offset: float = dataclasses.field(init=False, default=0.0)
    model_type: str = "dinov2_with_registers"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ints("num_register_tokens", least=0)

    @property
    def prefix_tokens(self) -> int:  # type: ignore[override]
        """Tokens before the patches: CLS and the registers."""
        return 1 + self.num_register_tokens

    @property
    def interpolation(self) -> Mapping[str, Any]:
        return {"antialias": True}
