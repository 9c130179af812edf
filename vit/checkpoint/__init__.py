"""A checkpoint folder: config.json and model.safetensors (one file, or shards and their index).

Reading is one tensor at a time and checks everything first: what `fit` returns can be loaded without a surprise.
Writing goes beside the old files, which are replaced in one step when the new ones are complete.
"""

from ..config import read_config
from ..files import CONFIG, INDEX, STALE_WEIGHTS, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS, read_json
from ..folders import replace_files
from .copying import aligned_copy, blocks, fill, in_order, near, tiles
from .fitting import Fit, check_family, fit, garbage_uncollected, head_of, parts_of
from .reading import CODES, DTYPES, Checkpoint, Tensor, dtype_of, read_header
from .writing import parse_size, write, write_files, write_safetensors

__all__ = [
    "CODES", "CONFIG", "DTYPES", "INDEX", "STALE_WEIGHTS", "TORCH_INDEX", "TORCH_WEIGHTS", "WEIGHTS",
    "Checkpoint", "Fit", "Tensor",
    "aligned_copy", "blocks", "check_family", "dtype_of", "fill", "fit", "garbage_uncollected", "head_of", "in_order",
    "near", "parse_size", "parts_of", "read_config", "read_header", "read_json", "replace_files", "tiles", "write",
    "write_files", "write_safetensors",
]  # fmt: skip
