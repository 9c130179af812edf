"""BEiT v1 and v2: their configuration, under the keys of the published config.json, and their parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from ..config import Head, PreTrainedConfig
from ..errors import CheckpointError
from ..weights import Shape, layer_norm_shapes, linear_shapes

if TYPE_CHECKING:
    import numpy as np

TABLE = "relative_position_bias.relative_position_bias_table"
INDEX = "relative_position_bias.relative_position_index"


@dataclass(eq=False)
class BeitConfig(PreTrainedConfig):
    """The configuration of a BEiT (Bao et al. 2022; v2: Peng et al. 2022); immutable, compared by value.

    Keys and defaults are those of the published checkpoints (transformers' BeitConfig); those of segmentation heads and
    backbones go to `extra`. Images of any size are taken: tables and positions are fitted to them.

    Args:
        vocab_size: number of the visual tokens that masked image modelling predicts.
        use_mask_token: whether there is a mask token.
        use_absolute_position_embeddings: whether position embeddings are added to the tokens.
        use_relative_position_bias: whether each attention adds biases of its own to its scores.
        use_shared_relative_position_bias: whether all attentions add the same biases to their scores.
        layer_scale_init_value: initial value of the factors of each branch; 0 for none.
        drop_path_rate: how often the branches of the last layer are dropped in training; less before, linearly.
        use_mean_pooling: pool by the normalised mean of the patches, and let the encoder end without LayerNorm;
            otherwise pool by the CLS token.
        model_type: "beit". The other arguments are those of `PreTrainedConfig`.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "beit"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("BeitModel", "last_hidden_state", {"add_pooling_layer": True}),
        "classifier": Head("BeitForImageClassification", "logits", {"add_pooling_layer": True}),
        "lm_head": Head("BeitForMaskedImageModeling", "logits", {"add_pooling_layer": False}),
    }
    optional: ClassVar[tuple[str, ...]] = (
        "beit.pooler.", "beit.embeddings.mask_token", "classifier.", "lm_head.", "layernorm.",
    )  # fmt: skip
    grid_parameters: ClassVar[tuple[str, ...]] = ("position_embeddings", TABLE)
    buffers: ClassVar[tuple[str, ...]] = (INDEX,)
    any_size: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, tuple[int, int, int, int]]] = {
        "B": (768, 12, 12, 3072),
        "L": (1024, 24, 16, 4096),
    }

    qkv_bias: bool = dataclasses.field(init=False, default=True)
    vocab_size: int = 8192
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float = 0.1
    drop_path_rate: float = 0.1
    use_mean_pooling: bool = True
    model_type: str = "beit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ints("vocab_size")
        self._check_numbers("layer_scale_init_value")
        self._check_probabilities("drop_path_rate")
        self._check_bools(
            "use_mask_token",
            "use_absolute_position_embeddings",
            "use_relative_position_bias",
            "use_shared_relative_position_bias",
            "use_mean_pooling",
        )
        # transformers 5 takes no int here.
        object.__setattr__(self, "layer_scale_init_value", float(self.layer_scale_init_value))

    @property
    def key_bias(self) -> bool:
        return False

    @property
    def has_positions(self) -> bool:
        return self.use_absolute_position_embeddings

    @property
    def layer_scale(self) -> float:
        return self.layer_scale_init_value

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        last = max(1, self.num_hidden_layers - 1)
        return tuple(self.drop_path_rate * i / last for i in range(self.num_hidden_layers))

    @classmethod
    def canonical_names(cls, stored: Iterable[str]) -> dict[str, str]:
        """{stored name: canonical name}: a base model's checkpoint leaves "beit." out."""
        names = list(stored)
        if any(name.startswith("beit.") for name in names):  # then "layernorm." is that of masked image modelling
            return super().canonical_names(names)
        return {name: f"beit.{name}" for name in names}

    def parameter_shapes(self, head: str | None = None, add_pooling_layer: bool = False) -> dict[str, Shape]:
        """Every canonical parameter name of a model and its canonical shape, in the order of the computation.

        Args:
            head: None, "classifier" or "lm_head".
            add_pooling_layer: whether the model has a pooler.

        Returns:
            {name: shape}; linear weights are (out, in), convolutions (out, in, height, width), tables (distances,
            heads).
        """
        width = self.hidden_size
        shapes: dict[str, Shape] = {"beit.embeddings.cls_token": (1, 1, width)}
        if self.use_mask_token:
            shapes["beit.embeddings.mask_token"] = (1, 1, width)
        if self.use_absolute_position_embeddings:
            shapes["beit.embeddings.position_embeddings"] = (1, self.num_patches + 1, width)
        shapes |= self.patch_embedding_shapes("beit.embeddings.patch_embeddings")
        if self.use_shared_relative_position_bias:
            shapes[f"beit.encoder.{TABLE}"] = self.table_shape
        for i in range(self.num_hidden_layers):
            shapes |= self.encoder_layer_shapes(f"beit.encoder.layer.{i}")
        if not self.use_mean_pooling:
            shapes |= layer_norm_shapes("beit.layernorm", width)
        if add_pooling_layer and self.use_mean_pooling:
            shapes |= layer_norm_shapes("beit.pooler.layernorm", width)
        if head == "classifier" and self.num_labels:
            shapes |= linear_shapes("classifier", width, self.num_labels)
        if head == "lm_head":
            shapes |= layer_norm_shapes("layernorm", width) | linear_shapes("lm_head", width, self.vocab_size)
        return shapes

    def encoder_layer_shapes(self, name: str) -> dict[str, Shape]:
        shapes = super().encoder_layer_shapes(name)
        if self.use_relative_position_bias:
            shapes[f"{name}.attention.attention.{TABLE}"] = self.table_shape
        if self.layer_scale:
            shapes |= dict.fromkeys((f"{name}.lambda_1", f"{name}.lambda_2"), (self.hidden_size,))
        return shapes

    @property
    def table_shape(self) -> Shape:
        """(distances between two patches of the grid, and CLS to patch, patch to CLS and CLS to CLS; heads)."""
        rows, columns = self.grid_size
        return (2 * rows - 1) * (2 * columns - 1) + 3, self.num_attention_heads

    def initial_value(self, name: str) -> Any:
        if name.endswith(("lambda_1", "lambda_2")):
            return self.layer_scale_init_value
        return 0.0 if name.endswith(TABLE) else super().initial_value(name)

    def check_buffer(self, name: str, array: np.ndarray) -> None:
        import numpy as np

        if not np.array_equal(array, relative_position_index(self.grid_size)):
            rows, columns = self.grid_size
            raise CheckpointError(
                f"{name}, of the shape {array.shape}, is not the index of a window of {rows} x {columns} patches, "
                f"which image_size {self.image_size} and patch_size {self.patch_size} make: correct the configuration."
            )

    def resample(self, name: str, array: np.ndarray, old_grid: tuple[int, int]) -> np.ndarray:
        if not name.endswith(TABLE):
            return super().resample(name, array, old_grid)
        from ..posemb import interpolate_table

        return interpolate_table(array, old_grid, self.grid_size)


@lru_cache(maxsize=4)
def relative_position_index(grid: tuple[int, int]) -> np.ndarray:
    """Which row of a table holds the bias of each pair of tokens: (T, T) int32, the query's first.

    Args:
        grid: (rows, columns) of patches, which the table is of.
    """
    import numpy as np

    rows, columns = grid
    y, x = (axis.reshape(-1) for axis in np.indices(grid))
    index = np.empty((1 + rows * columns,) * 2, np.int32)
    distances = (2 * rows - 1) * (2 * columns - 1)
    index[1:, 1:] = (y[:, None] - y + rows - 1) * (2 * columns - 1) + (x[:, None] - x + columns - 1)
    index[0, :] = distances  # CLS to patch
    index[:, 0] = distances + 1  # patch to CLS
    index[0, 0] = distances + 2
    index.flags.writeable = False  # the cache hands the same array to everyone
    return index
