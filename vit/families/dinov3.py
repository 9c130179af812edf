"""DINOv3's ViT (Simeoni et al. 2025): its configuration and its parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ..config import Head, PreTrainedConfig, to_pair
from ..errors import ConfigError
from ..weights import Shape, layer_norm_shapes, linear_shapes

# name: (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size); of the published checkpoints
VARIANTS = {
    "S": (384, 12, 6, 1536),
    "S+": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H+": (1280, 32, 20, 5120),
    "7B": (4096, 40, 32, 8192),
}
GATED = ("S+", "H+", "7B")


@dataclass(eq=False)
class DINOv3ViTConfig(PreTrainedConfig):
    """The configuration of DINOv3's ViT, compared and hashed by value.

    Keys and defaults are those of the published checkpoints (transformers' DINOv3ViTConfig). Keys that are not listed
    are those of `ViTConfig`.

    Args:
        attention_dropout: dropout of the attention probabilities.
        rope_theta: longest period of the rotations of queries and keys over the shortest, which is half an image.
        query_bias: whether the queries have a bias.
        key_bias: whether the keys have one, which changes what is computed, since they are rotated.
        value_bias: whether the values have one.
        proj_bias: whether the output projection of an attention has one.
        mlp_bias: whether the layers of an MLP have one.
        layerscale_value: initial value of the factors of each branch of an encoder layer.
        drop_path_rate: how often each branch of an encoder layer is dropped in training.
        use_gated_mlp: whether the MLPs are gated by `hidden_act` (SwiGLU where that is "silu").
        num_register_tokens: tokens without positions between CLS and the patches.
        pos_embed_shift: in training, the positions of a batch are moved by at most so much of half an image; not if
            None.
        pos_embed_jitter: in training, its two axes are stretched by factors of 1 / jitter to jitter; not if None.
        pos_embed_rescale: in training, both are stretched by one factor of 1 / rescale to rescale; not if None.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "dinov3_vit"
    heads: ClassVar[Mapping[str | None, Head]] = {None: Head("DINOv3ViTModel", "last_hidden_state")}
    optional: ClassVar[tuple[str, ...]] = ("dinov3_vit.embeddings.mask_token",)
    grid_parameters: ClassVar[tuple[str, ...]] = ()
    layers: ClassVar[str] = "layer"
    patch_projection: ClassVar[str] = "embeddings.patch_embeddings"
    variants: ClassVar[Mapping[str, tuple[int, int, int, int]]] = VARIANTS
    prefix_name: ClassVar[str] = "register"
    any_size: ClassVar[bool] = True
    has_positions: ClassVar[bool] = False  # they are in the rotations
    use_mask_token: ClassVar[bool] = True
    nullable: ClassVar[frozenset[str]] = frozenset({"pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"})
    assignable: ClassVar[frozenset[str]] = PreTrainedConfig.assignable | nullable | {"attention_dropout"}

    hidden_size: int = 384
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = dataclasses.field(init=False, default=0.0)
    attention_probs_dropout_prob: float = dataclasses.field(init=False, default=0.0)
    qkv_bias: bool = dataclasses.field(init=False, default=True)
    attention_dropout: float = 0.0
    rope_theta: float = 100.0
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True  # type: ignore[misc]  # a key here
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_gated_mlp: bool = False
    num_register_tokens: int = 0
    pos_embed_shift: float | None = None
    pos_embed_jitter: float | None = None
    pos_embed_rescale: float | None = 2.0
    model_type: str = "dinov3_vit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_probabilities("attention_dropout", "drop_path_rate")
        self._check_numbers("layerscale_value", "rope_theta")
        self._check("rope_theta", self.rope_theta > 0, "a finite number above 0")
        self._check_bools("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp")
        self._check_ints("num_register_tokens", least=0)
        for name, least in (("pos_embed_shift", 0), ("pos_embed_jitter", 1), ("pos_embed_rescale", 1)):
            if getattr(self, name) is not None:
                self._check_numbers(name)
                self._check(name, getattr(self, name) >= least, f"a number of at least {least}, or None")
        if self.head_dim % 4:
            raise ConfigError(
                f"hidden_size {self.hidden_size} leaves each of {self.num_attention_heads} heads {self.head_dim} "
                "numbers; expected a multiple of 4, since they are rotated in pairs along two axes."
            )

    @classmethod
    def variant(cls, name: str, **overrides: Any) -> Self:
        """As that of every configuration, with the registers of the published ones; "+" and 7B have gated MLPs."""
        size = name.partition("/")[0]
        published: dict[str, Any] = {"num_register_tokens": 4}
        if size in GATED:
            published |= {"use_gated_mlp": True, "hidden_act": "silu"}
        if size == "7B":
            published |= {"query_bias": False, "value_bias": False}
        return super().variant(name, **{**published, **overrides})

    @property
    def prefix_tokens(self) -> int:  # type: ignore[override]
        """Tokens before the patches: CLS and the registers."""
        return 1 + self.num_register_tokens

    @property
    def projection_biases(self) -> tuple[bool, bool, bool]:
        return self.query_bias, self.key_bias, self.value_bias

    @property
    def gated_mlp(self) -> bool:
        return self.use_gated_mlp

    @property
    def layer_scale(self) -> float:
        return self.layerscale_value

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        return (self.drop_path_rate,) * self.num_hidden_layers

    def attention_stacks(self, head: str | None) -> tuple[tuple[str, int, int, int], ...]:
        return ((".layer.", self.num_hidden_layers, self.prefix_tokens + self.num_patches, self.hidden_size),)

    def moved(self, centres: Any, draw: Callable[[tuple[int, ...], float], Any], exp: Callable[[Any], Any]) -> Any:
        """Where patches are taken to be in training, in the arrays of any framework.

        Args:
            centres: (N, 2) of y and x in [-1, 1].
            draw: a shape and a bound -> numbers between minus the bound and the bound.
            exp: of each number.
        """
        if self.pos_embed_shift is not None:
            centres = centres + draw((1, 2), self.pos_embed_shift)
        for factor, shape in ((self.pos_embed_jitter, (1, 2)), (self.pos_embed_rescale, (1, 1))):
            if factor is not None:
                centres = centres * exp(draw(shape, math.log(factor)))
        return centres

    # === Parameters ===

    @classmethod
    def canonical_names(cls, stored: Iterable[str]) -> dict[str, str]:
        """As that of every configuration; the models of transformers 5 keep their layers at model.layer."""
        found = super().canonical_names(stored)
        base = f"{cls.base_model_prefix}."
        return {name: full.replace(f"{base}model.layer.", f"{base}layer.") for name, full in found.items()}

    def parameter_shapes(self, head: str | None = None) -> dict[str, Shape]:
        """Every canonical parameter name of a model and its canonical shape, in the order of the computation.

        Args:
            head: None.
        """
        width = self.hidden_size
        shapes: dict[str, Shape] = {
            "dinov3_vit.embeddings.cls_token": (1, 1, width),
            "dinov3_vit.embeddings.mask_token": (1, 1, width),
            "dinov3_vit.embeddings.register_tokens": (1, self.num_register_tokens, width),
            "dinov3_vit.embeddings.patch_embeddings.weight": (width, self.num_channels, *to_pair(self.patch_size)),
            "dinov3_vit.embeddings.patch_embeddings.bias": (width,),
        }
        for i in range(self.num_hidden_layers):
            shapes |= self.encoder_layer_shapes(f"dinov3_vit.layer.{i}")
        return {**shapes, **layer_norm_shapes("dinov3_vit.norm", width)}

    def encoder_layer_shapes(self, name: str) -> dict[str, Shape]:
        width, mlp_width = self.hidden_size, self.intermediate_size
        shapes = layer_norm_shapes(f"{name}.norm1", width)
        biases = (*self.projection_biases, self.proj_bias)
        for part, bias in zip(("q_proj", "k_proj", "v_proj", "o_proj"), biases, strict=True):
            shapes |= linear_shapes(f"{name}.attention.{part}", width, width, bias)
        shapes[f"{name}.layer_scale1.lambda1"] = (width,)
        shapes |= layer_norm_shapes(f"{name}.norm2", width)
        for part in ("gate_proj", "up_proj") if self.use_gated_mlp else ("up_proj",):
            shapes |= linear_shapes(f"{name}.mlp.{part}", width, mlp_width, self.mlp_bias)
        shapes |= linear_shapes(f"{name}.mlp.down_proj", mlp_width, width, self.mlp_bias)
        return {**shapes, f"{name}.layer_scale2.lambda1": (width,)}

    def initial_value(self, name: str) -> Any:
        return self.layerscale_value if name.endswith(".lambda1") else super().initial_value(name)
