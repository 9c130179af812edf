"""MAE, the masked autoencoder (He et al. 2022): its configuration and its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .. import budgets
from ..config import Head, PreTrainedConfig, keys_of, to_pair
from ..errors import ConfigError
from ..weights import Shape, layer_norm_shapes, linear_shapes
from .vit import VARIANTS, ViTConfig

if TYPE_CHECKING:
    import numpy as np

XAVIER = "xavier_uniform"


@dataclass(eq=False)
class ViTMAEConfig(PreTrainedConfig):
    """The configuration of a masked autoencoder; immutable, compared and hashed by value.

    Keys and defaults are those of the published checkpoints (transformers' ViTMAEConfig), so the defaults are
    facebook/vit-mae-base. The keys of the encoder are those of `ViTConfig`.

    Args:
        decoder_num_attention_heads: heads of each attention of the decoder; divides `decoder_hidden_size`.
        decoder_hidden_size: width of a token in the decoder.
        decoder_num_hidden_layers: number of decoder layers.
        decoder_intermediate_size: width of the hidden layer of each MLP of the decoder.
        mask_ratio: share of the patches that the encoder does not see.
        norm_pix_loss: whether the loss compares with pixels of mean 0 and variance 1 in each patch.
        decoder_interpolation: how the decoder's position embeddings follow an image of another size: "2d", as the
            encoder's, or "1d", along the one axis of all patches, as transformers stretches them.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "vit"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("ViTMAEModel", "last_hidden_state"),
        "decoder": Head("ViTMAEForPreTraining", "logits"),
    }
    optional: ClassVar[tuple[str, ...]] = ("decoder.",)
    grid_parameters: ClassVar[tuple[str, ...]] = ("position_embeddings", "decoder_pos_embed")
    seeing_all: ClassVar[Mapping[str, Any]] = {"mask_ratio": 0.0}
    variants: ClassVar[Mapping[str, tuple[int, int, int, int]]] = VARIANTS

    decoder_num_attention_heads: int = 16
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    decoder_interpolation: str = "2d"
    model_type: str = "vit_mae"

    def __post_init__(self) -> None:
        if self.norm_pix_loss in (0, 1):  # as some published files say it
            object.__setattr__(self, "norm_pix_loss", bool(self.norm_pix_loss))
        super().__post_init__()
        self._check_ints("decoder_num_attention_heads", "decoder_hidden_size", "decoder_intermediate_size")
        self._check_ints("decoder_num_hidden_layers", least=0, most=budgets.LAYERS)
        self._check_probabilities("mask_ratio")
        self._check_bools("norm_pix_loss")
        self._check_choice("decoder_interpolation", ("2d", "1d"))
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ConfigError(
                f"decoder_hidden_size {self.decoder_hidden_size} is not divisible by decoder_num_attention_heads "
                f"{self.decoder_num_attention_heads}."
            )
        for name in ("hidden_size", "decoder_hidden_size"):
            self._check(
                name, getattr(self, name) % 4 == 0, "a multiple of 4: positions are sines and cosines of two axes"
            )

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: its pixels in each channel."""
        height, width = to_pair(self.patch_size)
        return height * width * self.num_channels

    def kept(self, patches: int) -> int:
        """How many of an image's patches the encoder sees; rounded down as the original does, in double precision."""
        return math.floor(patches * (1 - self.mask_ratio))  # of a number that torch.export leaves open, too

    def fixed_inputs(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Noise that keeps every patch in its place, or takes the same patches away in every framework and image."""
        import numpy as np

        if len(shape) != 4:
            return {}  # the model says what is wrong with it
        (height, width), (batch, _, *sizes) = to_pair(self.patch_size), shape
        patches = (sizes[0] // height) * (sizes[1] // width)
        order = np.arange(patches) if self.kept(patches) == patches else np.random.default_rng(0).permutation(patches)
        return {"noise": np.tile(order.astype(np.float32), (batch, 1))}

    def as_family(self, model_type: str) -> PreTrainedConfig:
        """For "vit", the configuration of the plain ViT that the encoder is without masks, to fine-tune it as."""
        if model_type != ViTConfig.model_type:
            return self
        others = ("model_type", "architectures")
        shared = {key: getattr(self, key) for key in keys_of(ViTConfig) if key in keys_of(type(self))}
        shared = {key: value for key, value in shared.items() if key not in others}
        return ViTConfig(**shared, encoder_stride=self.patch_size)

    def attention_stacks(self, head: str | None) -> tuple[tuple[str, int, int, int], ...]:
        tokens = 1 + self.kept(self.num_patches)
        encoder = (".encoder.", self.num_hidden_layers, tokens, self.hidden_size)
        if head is None:
            return (encoder,)
        decoder = (".decoder_", self.decoder_num_hidden_layers, 1 + self.num_patches, self.decoder_hidden_size)
        return encoder, (".decoder_embed.", 0, tokens, self.hidden_size), decoder

    @property
    def pooler_output_size(self) -> int:
        return 0  # there is none

    def decoder_config(self) -> ViTMAEConfig:
        """The configuration of the decoder's layers, under the names that layers ask for."""
        return self.replace(
            hidden_size=self.decoder_hidden_size,
            num_hidden_layers=self.decoder_num_hidden_layers,
            num_attention_heads=self.decoder_num_attention_heads,
            intermediate_size=self.decoder_intermediate_size,
        )

    def decoder_grids(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The grid of the decoder's position embeddings, and the one they are resampled to for `grid`."""
        if self.decoder_interpolation == "1d":
            return (1, self.num_patches), (1, grid[0] * grid[1])
        return self.grid_size, grid

    # === Parameters ===

    def parameter_shapes(self, head: str | None = None) -> dict[str, Shape]:
        """Every canonical parameter name of a model and its canonical shape, in the order of the computation.

        Args:
            head: None or "decoder".
        """
        width, positions = self.hidden_size, self.num_patches + 1
        shapes: dict[str, Shape] = {
            "vit.embeddings.cls_token": (1, 1, width),
            "vit.embeddings.position_embeddings": (1, positions, width),
            **self.patch_embedding_shapes("vit.embeddings.patch_embeddings"),
        }
        for i in range(self.num_hidden_layers):
            shapes |= self.encoder_layer_shapes(f"vit.encoder.layer.{i}")
        shapes |= layer_norm_shapes("vit.layernorm", width)
        if head == "decoder":
            decoder = self.decoder_config()
            shapes |= linear_shapes("decoder.decoder_embed", width, decoder.hidden_size)
            shapes |= {"decoder.mask_token": (1, 1, decoder.hidden_size)}
            shapes |= {"decoder.decoder_pos_embed": (1, positions, decoder.hidden_size)}
            for i in range(decoder.num_hidden_layers):
                shapes |= decoder.encoder_layer_shapes(f"decoder.decoder_layers.{i}")
            shapes |= layer_norm_shapes("decoder.decoder_norm", decoder.hidden_size)
            shapes |= linear_shapes("decoder.decoder_pred", decoder.hidden_size, self.patch_values)
        return shapes

    @classmethod
    def canonical_names(cls, stored: Iterable[str]) -> dict[str, str]:
        """As that of every configuration; transformers 5 writes decoder_encoder.layer for decoder_layers."""
        theirs, ours = "decoder.decoder_encoder.layer.", "decoder.decoder_layers."
        spelled = {name: name.replace(theirs, ours, 1) for name in stored}
        canonical = super().canonical_names(spelled.values())
        return {name: canonical[other] for name, other in spelled.items()}

    def initial_value(self, name: str) -> Any:
        """As that of every configuration; positions start, and stay, as sines and cosines."""
        if name.endswith(self.grid_parameters):
            return self.positions(self.decoder_hidden_size if name.startswith("decoder.") else self.hidden_size)
        if name.endswith("patch_embeddings.projection.weight"):
            return XAVIER
        return None if name.endswith("mask_token") else super().initial_value(name)

    def positions(self, width: int) -> np.ndarray:
        """`posemb.sincos` for the grid of `image_size`, zeros for CLS first: (1, 1 + patches, width), float64."""
        import numpy as np  # whose import would double that of this file

        from ..posemb import sincos

        return np.concatenate([np.zeros((1, 1, width)), sincos(self.grid_size, width)], axis=1)

    def resample(self, name: str, array: np.ndarray, old_grid: tuple[int, int]) -> np.ndarray:
        if name.startswith("decoder.") and self.decoder_interpolation == "1d":
            from ..posemb import interpolate

            return interpolate(array, (1, old_grid[0] * old_grid[1]), (1, self.num_patches))
        return super().resample(name, array, old_grid)
