"""A checkpoint folder: config.json and model.safetensors (one file, or shards and their index), read and written.

Reading is one tensor at a time and checks everything first: what `fit` returns can be loaded without a surprise.
Writing goes beside the old files, which are replaced only when the new ones are complete.
"""

from __future__ import annotations

import gc
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from . import budgets, hub, posemb, torchfile
from .config import ViTConfig
from .errors import CheckpointError, ConfigError, quoted, shown
from .torchfile import Special, TorchFile
from .weights import BASE, OPTIONAL, Shape, parameter_shapes, to_local

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def dtype_of(dtype: Any) -> np.dtype:
    """The NumPy dtype of a name or of any framework's dtype.

    Raises:
        CheckpointError: not one that parameters can have.
    """
    name = dtype if isinstance(dtype, str) else str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    for known in DTYPES.values():
        if name == known.name or dtype is known.type:
            return known
    with suppress(TypeError, ValueError, SyntaxError):  # NumPy parses some strings
        if dtype is not None and (found := np.dtype(dtype)) in _CODES:  # jax.numpy.float32 and the like
            return found
    expected = ", ".join(known.name for known in DTYPES.values())
    raise CheckpointError(f"dtype is {name!r}; expected one of {expected}.")


# === Reading ===


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: the file is missing, or holds something else.
    """
    try:
        values = json.loads(budgets.read_whole(path))
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; expected a folder that save_pretrained wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # a broken encoding, too
        raise CheckpointError(f"{path} is not JSON: {error}. Write or download it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; expected an object.")
    return values


def read_config(folder: Path, **overrides: Any) -> ViTConfig:
    """The configuration in `folder`/config.json, with `overrides`.

    Raises:
        CheckpointError: no such file, or no JSON.
        ConfigError: impossible values; the file is named.
    """
    path = folder / CONFIG
    try:
        config = ViTConfig.from_dict(read_json(path))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return config.replace(**overrides) if overrides else config


class Tensor(NamedTuple):
    """Where a stored tensor lies: its file, the byte at which it begins, its dtype and shape."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: Shape


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: the file is truncated, or not what its name says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"), open(path, "rb") as file:  # safe_open checks the header and the size
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        reason = f"{path} is not a whole safetensors file ({error}); write or download it again."
        raise CheckpointError(reason) from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        if info["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has the dtype {info['dtype']}; expected one of {', '.join(DTYPES)}.")
        offset = 8 + length + info["data_offsets"][0]
        tensors[name] = Tensor(path, offset, DTYPES[info["dtype"]], tuple(info["shape"]))
    return tensors


class Checkpoint:
    """An open checkpoint folder: its configuration, and its tensors, read one at a time.

    Args:
        folder: holds config.json and safetensors files, or pytorch_model.bin files, of which nothing is unpickled.

    Raises:
        CheckpointError: a file is missing, truncated, or not what its name says.
        ConfigError: impossible values in config.json.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self.tensors: dict[str, Tensor] = {}
        self.pickled: dict[str, Callable[[], np.ndarray]] = {}  # name -> how to read it, of pytorch_model.bin
        safetensors, pickles = (WEIGHTS, INDEX, self._read_safetensors), (TORCH_WEIGHTS, TORCH_INDEX, self._read_torch)
        for name, index, read in (safetensors, pickles):
            if (self.folder / name).is_file():
                read(self.folder / name)
                return
            if (self.folder / index).is_file():
                self._read_shards(self.folder / index, read)
                return
        raise CheckpointError(
            f"{self.folder} has no {WEIGHTS}, {INDEX} or {TORCH_WEIGHTS}: there are no weights to load."
        )

    def _read_shards(self, index: Path, read: Callable[[Path], None]) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map of tensor names to files; write or download it again.")
        for file in sorted(set(weight_map.values())):
            if file != Path(file).name:
                raise CheckpointError(
                    f"{index} names the shard {quoted(file)}; expected a file name in the same folder."
                )
            if not os.path.isfile(self.folder / file):
                raise CheckpointError(
                    f"{self.folder} lacks the shard {shown(file)} that {index.name} names; copy it there."
                )
            read(self.folder / file)
        found = {name: tensor.file.name for name, tensor in self.tensors.items()}
        if lost := sorted(name for name, file in weight_map.items() if found.get(name) != file):
            raise CheckpointError(f"{index} names tensors that are not in the shards it gives: {_list(lost)}.")

    def _read_safetensors(self, path: Path) -> None:
        self.tensors.update(read_header(path))

    def _read_torch(self, path: Path) -> None:
        try:
            file = TorchFile(path)
        except Exception as error:  # zip archives and pickles each raise their own
            raise CheckpointError(
                f"{shown(path)} is damaged or holds more than tensors ({shown(error)}), and nothing else is "
                "unpickled. Download it again, or save its state dict as model.safetensors."
            ) from None
        if not file.is_state_dict:
            raise CheckpointError(f"{shown(path)} holds something else than a state dict of names and dense tensors.")
        sizes = 0
        for name, tensor in file.tensors.items():
            assert not isinstance(tensor, Special)
            try:
                self.tensors[name] = Tensor(path, 0, dtype_of(tensor.dtype), tensor.shape)
                sizes += file.check(tensor)
            except ValueError as error:
                raise CheckpointError(f"{shown(path)}: {shown(name)}: {error}") from None
            self.pickled[name] = partial(_read_stored, file, tensor)
        budgets.check_total(path, sizes, path.stat().st_size)

    def read(self, name: str) -> np.ndarray:
        """A stored tensor, mapped to its file until it is changed: in memory only while it is used."""
        file, offset, dtype, shape = self.tensors[name]
        if name in self.pickled:
            try:
                return self.pickled[name]()
            except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise CheckpointError(f"{shown(file)}: {shown(name)} cannot be read: {shown(error)}.") from None
        if 0 in shape:
            return np.empty(shape, dtype)
        try:
            return np.asarray(np.memmap(file, dtype, mode="c", offset=offset, shape=shape))
        except ValueError:
            raise CheckpointError(f"{file} ends before {name}: it was changed while it was being read.") from None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the stored parameters; the widest, where they differ."""
        dtypes = (tensor.dtype for tensor in self.tensors.values())
        return max(dtypes, key=lambda dtype: (dtype.itemsize, dtype.str), default=DTYPES["F32"])


def _read_stored(file: TorchFile, tensor: torchfile.Tensor) -> np.ndarray:
    """A tensor of a PyTorch file, mapped until it is changed where it lies there as it is."""
    offset = file.place(tensor)
    if offset is None or 0 in tensor.shape:
        return file.read(tensor)
    return np.asarray(np.memmap(file.path, tensor.dtype, mode="c", offset=offset, shape=tensor.shape or (1,))).reshape(
        tensor.shape
    )


# === Fitting a checkpoint to a model ===


@dataclass
class Fit:
    """How a checkpoint fills a model: for each parameter, under its canonical name, the tensor to load, or fresh."""

    checkpoint: Checkpoint
    config: ViTConfig
    stored: dict[str, str]  # parameter -> stored tensor
    fresh: dict[str, Shape]  # parameters that the checkpoint lacks, or holds in another shape -> shape
    resampled: set[str]  # parameters whose stored grid is not the model's
    dtype: np.dtype  # what the model is to hold and compute in
    model_options: dict[str, bool]  # arguments of the model besides the configuration

    def read(self, name: str) -> np.ndarray:
        """The canonical array of a parameter, position embeddings resampled if the image size was overridden."""
        array = self.checkpoint.read(self.stored[name])
        if name in self.resampled:
            array = posemb.interpolate(array, self.checkpoint.config.grid_size, self.config.grid_size)
        return array

    def start_reading(self, framework: str) -> dict[str, Future[np.ndarray]]:
        """Read every stored parameter as a framework stores it, in threads, while the caller builds the model.

        Returns:
            {parameter: future of its array}, each in memory of its own that TensorFlow and JAX take over as it is.
        """

        def read(name: str) -> np.ndarray:
            return aligned_copy(to_local(self.read(name), framework), self.dtype)

        pool = ThreadPoolExecutor(2)
        futures = {name: pool.submit(read, name) for name in self.stored}
        pool.shutdown(wait=False)
        return futures

    def warning(self) -> str | None:
        """What the user should know about fresh parameters, in one sentence."""
        if not self.fresh:
            return None
        return (
            f"{self.checkpoint.folder} holds no fitting {_list(sorted(self.fresh))}: freshly initialised. "
            "Train the model before relying on what depends on them."
        )


@contextmanager
def garbage_uncollected() -> Iterator[None]:
    """Pause the garbage collector, which would go through all that a framework's import left, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def plan(
    name_or_folder: str | os.PathLike[str],
    head: str | None,
    dtype: Any,
    attn_implementation: str | None,
    ignore_mismatched_sizes: bool,
    **kwargs: Any,
) -> Fit:
    """What every from_pretrained does before it builds a model: find the checkpoint and fit it to the arguments.

    Args:
        name_or_folder: a checkpoint folder, or the name of a model on the hub.
        head: None, "classifier" or "decoder".
        dtype: a dtype or its name; None or "auto" for the checkpoint's.
        attn_implementation: None for the configuration's.
        ignore_mismatched_sizes: let mis-shaped parameters start fresh.
        **kwargs: options of the hub, of a model without a head, and overrides of the configuration.

    Raises:
        CheckpointError: no checkpoint there, a broken one, or one that does not fit.
        ConfigError: impossible values in its config.json or the overrides.
    """
    hub_options, overrides = hub.split_options(kwargs)
    parts = ("add_pooling_layer", "use_mask_token") if head is None else ()
    model_options = {part: overrides.pop(part) for part in parts if part in overrides}
    wanted = None if dtype is None or (isinstance(dtype, str) and dtype == "auto") else dtype_of(dtype)
    if attn_implementation is not None:
        overrides["attn_implementation"] = attn_implementation
    checkpoint = Checkpoint(hub.resolve(name_or_folder, **hub_options))
    wanted = wanted or checkpoint.dtype
    config = checkpoint.config.replace(**overrides, dtype=wanted.name)
    options = {"add_pooling_layer": head is None, "use_mask_token": head == "decoder", **model_options}
    shapes = parameter_shapes(config, head=head, **options)
    stored, fresh, resampled = fit(checkpoint, config, shapes, ignore_mismatched_sizes)
    return Fit(checkpoint, config, stored, fresh, resampled, wanted, model_options)


def fit(
    checkpoint: Checkpoint, config: ViTConfig, shapes: Mapping[str, Shape], ignore_mismatched_sizes: bool = False
) -> tuple[dict[str, str], dict[str, Shape], set[str]]:
    """Decide where each parameter of a model comes from.

    Args:
        checkpoint: the open checkpoint.
        config: the model's configuration: the checkpoint's, or one with overrides.
        shapes: the model's parameters (`weights.parameter_shapes`).
        ignore_mismatched_sizes: let mis-shaped parameters start fresh.

    Returns:
        {parameter: stored tensor}, {fresh parameter: shape}, and the parameters to resample to another grid.

    Raises:
        CheckpointError: parameters are missing, unexpected or mis-shaped; all of them are named.
    """
    prefixes = (BASE, *(part for part in OPTIONAL if not part.startswith(BASE)))
    available = {name if name.startswith(prefixes) else BASE + name: name for name in checkpoint.tensors}
    if len(available) < len(checkpoint.tensors):
        doubled = sorted(name for name in checkpoint.tensors if BASE + name in checkpoint.tensors)
        raise CheckpointError(
            f"{checkpoint.folder} stores parameters with and without 'vit.' before: {_list(doubled)}."
        )

    stored: dict[str, str] = {}
    fresh: dict[str, Shape] = {}
    resampled: set[str] = set()
    missing, mismatched = [], []
    old, new = checkpoint.config, config
    for name, shape in shapes.items():
        if name not in available:
            fresh[name] = shape
            if not name.startswith(OPTIONAL):
                missing.append(name)
            continue
        stored_shape = checkpoint.tensors[available[name]].shape
        is_positions = name.endswith("position_embeddings")
        if is_positions and old.grid_size != new.grid_size and stored_shape == (1, old.num_patches + 1, shape[-1]):
            stored[name] = available[name]
            resampled.add(name)
        elif stored_shape == shape:
            stored[name] = available[name]
        else:
            fresh[name] = shape
            new_head = name.startswith("classifier.") and old.num_labels != new.num_labels
            if not (ignore_mismatched_sizes or new_head):
                mismatched.append(f"{name} is {stored_shape}, expected {shape}")
    unexpected = [available[name] for name in available if name not in shapes and not name.startswith(OPTIONAL)]

    lists = {"missing": missing, "unexpected": unexpected, "mis-shaped": mismatched}
    if any(lists.values()):
        problems = "; ".join(f"{what}: {_list(names)}" for what, names in lists.items() if names)
        remedy = " Pass ignore_mismatched_sizes=True to start the mis-shaped ones fresh." if mismatched else ""
        raise CheckpointError(
            f"{checkpoint.folder} does not fit the model that {CONFIG} and the arguments describe. {problems}.{remedy}"
        )
    return stored, fresh, resampled


def _list(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


# === Writing ===


def write(
    folder: str | os.PathLike[str],
    config: ViTConfig,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    read: Callable[[str], np.ndarray],
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a checkpoint folder, one tensor at a time.

    Args:
        folder: made if needed; other files in it stay.
        config: becomes config.json.
        tensors: {canonical name: (canonical shape, dtype)}.
        read: gives the array of a name; called once for each, in the order they are written.
        max_shard_size: bytes of a weight file, an int or a number with KB, MB or GB; more go to several shards.

    Raises:
        CheckpointError: a path that is no folder, or an unreadable `max_shard_size`.
    """
    with replace_files(folder) as staging:
        names = write_files(staging, config, tensors, read, max_shard_size, taken=Path(folder))
    for path in Path(folder).iterdir():  # what an earlier save left, such as shards where there is one file now
        is_weights = re.fullmatch(r"model(-(\d+-)?\d+-of-\d+)?\.safetensors(\.index\.json)?", path.name)
        if is_weights and path.name not in names:
            path.unlink()


def write_files(
    folder: Path,
    config: ViTConfig,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    read: Callable[[str], np.ndarray],
    max_shard_size: int | str = "5GB",
    taken: Path | None = None,
    threads: int = 1,
) -> list[str]:
    """Write the files of a checkpoint into a folder where nothing reads yet; the arguments are those of `write`.

    Args:
        taken: the folder that the files go to in the end: shards get names that are free there.
        threads: so many tensors at a time, by threads, which call `read`.

    Returns:
        The names of the weight files and their index.
    """
    shards = _shard(tensors, parse_size(max_shard_size))
    names = [WEIGHTS] if len(shards) == 1 else _shard_names(taken or folder, len(shards))
    for file, shard in zip(names, shards, strict=True):
        write_safetensors(folder / file, {name: tensors[name] for name in shard}, read, threads)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(_num_bytes(*tensors[name]) for name in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        names.append(INDEX)
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    return names


def _shard_names(folder: Path, shards: int) -> list[str]:
    # Names that are free: the shards of a checkpoint that is overwritten stay until the new index, in one step, takes
    # the old one's place. At no moment does an index name shards of two checkpoints.
    prefixes = (f"model-{again}-" if again else "model-" for again in count())
    names = ([f"{prefix}{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] for prefix in prefixes)
    return next(free for free in names if not any((folder / name).exists() for name in free))


@contextmanager
def replace_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a staging folder whose files move into `folder` when the block ends well, and vanish when it does not.

    Raises:
        CheckpointError: `folder` is a file, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; expected a folder to save into.")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder, ignore_cleanup_errors=True) as staging:
            yield Path(staging)
            # What names the others comes after them: an index after its shards, config.json last.
            files = sorted(
                Path(staging).iterdir(), key=lambda path: (path.name == CONFIG, path.name in (WEIGHTS, INDEX))
            )
            for path in files:
                if (folder / path.name).is_dir():
                    raise CheckpointError(
                        f"{folder / path.name} is a folder where a file is to be saved; move it away."
                    )
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            for path in files:
                os.replace(path, folder / path.name)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be saved into: {error.strerror or error}.") from error
    finally:
        for path in made:  # removes what is empty, that is, after a failure
            with suppress(OSError):
                path.rmdir()


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 5000000, "500MB" or "5GB"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)B?\s*", str(size), re.IGNORECASE)
    factor = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()] if match else 0
    bytes_ = int(float(match[1]) * factor) if match else 0
    if bytes_ < 1:
        raise CheckpointError(
            f"max_shard_size is {size!r}; expected a number of bytes, or a size such as '500MB' or '5GB'."
        )
    return bytes_


def _num_bytes(shape: Shape, dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _shard(tensors: Mapping[str, tuple[Shape, np.dtype]], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in tensors.items():
        num_bytes = _num_bytes(shape, dtype)
        if shards[-1] and size + num_bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    read: Callable[[str], np.ndarray],
    threads: int = 1,
) -> None:
    """Write one safetensors file, `threads` tensors at a time; the arguments are those of `write_files`."""
    # The safetensors library writes from a dict of all tensors, which would be a second copy of a model whose layout
    # differs. The format: the header's length in 8 bytes, the header in JSON padded to 8, the tensors' bytes.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    names = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))  # keeps every tensor aligned
    for name in names:
        shape, dtype = tensors[name]
        begin, end = end, end + _num_bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write_tensor(name: str) -> None:
        shape, dtype = tensors[name]
        array = np.asarray(read(name))
        if array.shape != shape:
            raise CheckpointError(f"{name} has the shape {array.shape}; expected {shape}.")
        with open(path, "r+b") as file:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            array = np.atleast_1d(array)
            for rows in blocks(array):
                file.write(in_order(array[rows], dtype).reshape(-1).view(np.uint8).data)

    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with ThreadPoolExecutor(threads) as pool:
        deque((pool.map if threads > 1 else map)(write_tensor, names), 0)  # raises what they raise


# === Copying ===

_BLOCK = 2**20  # bytes that are copied before they are used: they stay in the cache of a core
_TILE = 1024, 128  # of a matrix: stays in the cache, too, and has some lines of it in every row and column


def blocks(array: np.ndarray) -> list[slice]:
    """The rows of an array in blocks of about 1 MB."""
    rows = max(1, _BLOCK * len(array) // max(1, array.nbytes))
    return [slice(begin, begin + rows) for begin in range(0, len(array), rows)]


def tiles(shape: Shape) -> list[tuple[Any, ...]]:
    """The parts of a matrix that `near` brings into the cache; of another array, all of it."""
    if len(shape) != 2:
        return [(...,)]
    height, width = _TILE
    begins = product(range(0, shape[0], height), range(0, shape[1], width))
    return [(slice(i, i + height), slice(j, j + width)) for i, j in begins]


def near(tile: np.ndarray) -> np.ndarray:
    """The tile itself, or of a transposed matrix a copy, in which going along a row is as fast as along a column.

    It is copied as it lies, and with a gap after each column: at the distance of a power of two, what is in one row
    would have the same few places of the cache.
    """
    if tile.ndim != 2 or tile.strides[0] != tile.itemsize:
        return tile
    height, width = tile.shape
    columns = np.empty((width, height + 16), tile.dtype)[:, :height]
    columns[:] = tile.T
    return columns.T


def fill(target: np.ndarray, array: np.ndarray) -> None:
    """Copy into an array of the same shape, cast to its dtype."""
    for part in tiles(array.shape):
        np.copyto(target[part], near(array[part]), casting="unsafe")


def aligned_copy(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy that begins at a multiple of 64 bytes: TensorFlow and JAX take such memory over as it is."""
    num_bytes = array.size * dtype.itemsize
    memory = np.empty(num_bytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    copy = memory[begin : begin + num_bytes].view(dtype).reshape(array.shape)
    fill(copy, array)
    return copy


def in_order(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array of a dtype with its elements in the order of their indices: itself, or a copy, made by two threads."""
    if array.flags.c_contiguous:
        return array.astype(dtype, copy=False)
    result = np.empty(array.shape, dtype)
    if array.nbytes <= _BLOCK:
        fill(result, array)
    else:
        with ThreadPoolExecutor(2) as pool:
            deque(pool.map(lambda rows: fill(result[rows], array[rows]), blocks(array)), 0)  # raises what they raise
    return result
