"""convert: one checkpoint from one format into another, a few tensors at a time, compared before it appears."""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from vit import budgets, checkpoint, families, folders
from vit.config import PreTrainedConfig, config_from_dict, config_in, keys_of, to_pair
from vit.errors import CheckpointError, ConfigError, quoted, shown
from vit.weights import Shape

from . import keras, orbax
from .beit import BEIT, IN_TIMM, MEAN_POOLED
from .containers import Store, read_file, read_shards, summary, write_json, write_msgpack, write_npz, write_torch
from .deit import DEIT, DISTILLED
from .dino import DINO
from .dinov2 import DINOV2, TIMM, with_linear_head
from .dinov3 import DINOV3
from .dinov3 import IN_TIMM as DINOV3_IN_TIMM
from .google import GOOGLE
from .labels import label_names
from .mae import MAE
from .rules import Foreign, Format, Source, foreign_tensors, unwrap, write_part
from .target import OWN, PREPROCESSOR, TARGETS, WEIGHT_FILES, check_target, publish, staging, sync
from .timm import read_hub_config
from .torchvision import TORCHVISION
from .transformers import HF, TRANSFORMERS_FLAX, TRANSFORMERS_PT, TRANSFORMERS_TF, write_tf_h5

TIMM = replace(TIMM, families=(*TIMM.families, DISTILLED, DINOV3_IN_TIMM, IN_TIMM, MEAN_POOLED))
FORMATS = {
    format.name: format
    for format in (HF, TRANSFORMERS_PT, TRANSFORMERS_TF, TRANSFORMERS_FLAX, GOOGLE, MAE, DINOV3, DINOV2, BEIT,
                   TIMM, TORCHVISION, DINO, DEIT, keras.KERAS, orbax.ORBAX)
}  # fmt: skip
ALIASES = {"nnx": "orbax"}

_THREADS = 2
"""Each takes a tensor: two are in memory; in comparing, their sources, too."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do: each tensor counts once for writing and once for comparing."""


@dataclass
class Report:
    """What a conversion did.

    Args:
        source: the path read, and its format.
        target: the path written, and its format.
        config: the configuration.
        tensors: tensors of the source that were used.
        parameters: numbers in them.
        said: what shapes did not tell, and where it was taken from.
        ignored: tensors of the source that were left out -> why.
        verified: whether the result was read back and compared bit by bit.
    """

    source: Path
    source_format: str
    target: Path
    target_format: str
    config: PreTrainedConfig
    tensors: int
    parameters: int
    said: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    verified: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        values = {key: value for key, value in asdict(self).items() if key != "config"}
        return {**values, "source": str(self.source), "target": str(self.target), "config": self.config.to_dict()}


# === Opening ===


def open_source(
    source: str | os.PathLike[str],
    source_format: str = "auto",
    *,
    labels: str | os.PathLike[str] | Iterable[str] | None = None,
    published_config: bool = False,
    linear_head: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Source:
    """Open a checkpoint of any format as a canonical one.

    Args:
        source: a file or folder.
        source_format: a name of `FORMATS`; "auto" finds it from the file and its keys.
        labels: names of the labels: "imagenet-1k", a file, or the names; "none" for numbers alone; None keeps what
            the source says.
        published_config: take hidden_act and layer_norm_eps of the published configurations.
        linear_head: a file of facebookresearch/dinov2 with the linear head of a backbone.
        **options: keys of `PreTrainedConfig` that shapes do not tell, such as num_attention_heads, image_size or
            model_type.

    Raises:
        CheckpointError: no checkpoint, a damaged one, one of another family, or one that does not tell all it must.
        ConfigError: a model_type of no family.
    """
    path = Path(source)
    try:
        return folders.at_one_moment(
            path if path.is_dir() else path.parent,
            lambda find: _open_source(path, find, source_format, labels, published_config, linear_head, {**options}),
        )
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read: {error.strerror or shown(error)}.") from None


def _open_source(
    path: Path,
    find: folders.Find,
    source_format: str,
    labels: Any,
    published_config: bool,
    linear_head: Any,
    options: dict[str, Any],
) -> Source:
    if source_format != "auto":
        format_of(source_format)
    store = _open(path, find, source_format)
    if linear_head is not None:
        store = with_linear_head(store, read_file(Path(linear_head)))
    family = options.get("model_type") if store.config is None else None
    if family is not None:
        families.config_class(family)  # there is one
    format = _detect(store, family) if source_format == "auto" else _of_family(format_of(source_format), store, family)
    if store.kind not in format.kinds:
        kinds = " or ".join(format.kinds)
        raise CheckpointError(f"{shown(path)} is a {store.kind} file; {format.name} checkpoints are {kinds}.")
    config, said = None, []
    described = path.is_dir() or path.name in WEIGHT_FILES
    file = store.path / checkpoint.CONFIG if store.path.is_dir() else store.path.with_name(checkpoint.CONFIG)
    if described and not store.path.is_dir():
        file = find(checkpoint.CONFIG) or file
    if store.config is not None:
        try:
            config = config_from_dict(store.config)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{shown(path)} fits no Vision Transformer: {error}") from None
    elif described and os.path.lexists(file):
        budgets.open_file(file).close()
        values = checkpoint.read_json(file)
        if "architecture" in values or "pretrained_cfg" in values:
            hub_options, image = read_hub_config(values, store.tensors)
            options = {**hub_options, **{key: value for key, value in options.items() if value is not None}}
            said.append(f"the folder is timm's {shown(values.get('architecture'))}")
            format = replace(format, image={**format.image, **image})
        else:
            config = config_in(file)
            format = FORMATS[format.name].of(config)
    elif format is keras.KERAS and family is None and keras.may_be_mae(store.tensors):
        said.append("model_type vit: the encoder of a masked autoencoder has the same weights, which is vit_mae")
    elif format.name in ("hf", "transformers-pt", "transformers-tf", "transformers-flax"):
        said.append(f"there is no {checkpoint.CONFIG} beside it: sizes are read from shapes")
    if labels == "none":
        if config is not None:
            config = config.replace(id2label={i: f"LABEL_{i}" for i in range(config.num_labels or 0)})
    elif labels is not None:
        options["id2label"] = label_names(os.fspath(labels) if isinstance(labels, os.PathLike) else labels)
    try:
        opened = Source(store, format, config, options, published_config)
    except ConfigError as error:
        raise CheckpointError(f"{shown(path)}: {error}") from None
    opened.said[:0] = said
    return opened


def open_as(path: Path, find: folders.Find, config: PreTrainedConfig) -> Source:
    """A file of published names (transformers', or a training's), opened with the configuration of its model.

    Args:
        path: the file, or the index of its shards.
        find: where the files of its folder lie.
        config: the model's.

    Raises:
        CheckpointError: a damaged file, or one that does not fit.
    """
    file = find(path.name) or path
    store = read_shards(file, find) if path.name.endswith(".index.json") else read_file(file)
    written = {format.kinds[0]: format for format in (HF, TRANSFORMERS_PT, TRANSFORMERS_TF, TRANSFORMERS_FLAX)}
    if store.kind not in written:
        raise CheckpointError(f"{shown(path)} is a {store.kind} file; expected one of {', '.join(written)}.")
    format = written[store.kind].of(config)
    if not _has_mark(format, {name: tensor.shape for name, tensor in store.tensors.items()}):
        raise CheckpointError(f"{shown(path)} has the names of the format {_detect(store).name}, not of {format.name}.")
    return Source(store, format, config)


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        CheckpointError: there is none.
    """
    if ALIASES.get(name, name) not in FORMATS:
        raise CheckpointError(f"Unknown format {quoted(name)}; expected auto or one of {', '.join(FORMATS)}.")
    return FORMATS[ALIASES.get(name, name)]


def _open(path: Path, find: folders.Find, source_format: str) -> Store:
    if not path.is_dir() and (file := find(path.name)):
        return read_file(file)
    if not os.path.exists(path):
        raise CheckpointError(f"{shown(path)} does not exist; expected a checkpoint's file or folder.")
    if not path.is_dir():
        return read_file(path)
    if found := orbax.find(path):
        return orbax.read_orbax(found)
    names: Iterable[str] = WEIGHT_FILES
    if source_format != "auto":
        kinds = {"safetensors": "safetensors", "bin": "torch", "h5": "h5", "msgpack": "msgpack"}
        wanted = format_of(source_format).kinds
        names = [name for name in names if kinds[name.removesuffix(".index.json").rpartition(".")[2]] in wanted]
    file = next(filter(None, map(find, names)), None)
    if file is None:
        held = summary(sorted(item.name for item in path.iterdir())) or "nothing"
        raise CheckpointError(
            f"{shown(path)} holds no checkpoint that is known (it holds {held}); give the file itself."
        )
    return read_shards(file, find) if file.name.endswith(".index.json") else read_file(file)


def _detect(store: Store, family: Any = None) -> Format:
    names = list(store.tensors)
    for format in FORMATS.values():
        fitting = [each for each in (*format.families, format) if _fits(each, store, family)]
        if fitting and store.kind in format.kinds:
            format = fitting[0]
            break
    else:
        held = summary(names, 5) if names else "no tensors"
        if not names and store.others:
            held += f", but {summary([f'{name} ({what})' for name, what in store.others.items()], 3)}"
        raise CheckpointError(
            f"{shown(store.path)} is no Vision Transformer of a format that is known: it holds {held}. Formats: "
            f"{', '.join(FORMATS)}."
        )
    if format is DISTILLED and any(name.startswith("model/") for name in names):
        return DEIT.families[0]
    if format is TIMM:  # three formats share its names
        roots = {name.partition("/")[0] for name in names if "/" in name}
        if roots & {"teacher", "student"}:
            return DINO
        if "model" in roots:
            return DEIT
        if store.kind == "torch" and not any(re.search(r"(^|[./])(head|fc)\.", name) for name in names):
            return DINO
    return format


def _of_family(format: Format, store: Store, family: Any) -> Format:
    """The form of a format whose family the names are of, or which is said."""
    return next((each for each in format.families if _fits(each, store, family)), format)


def _fits(format: Format, store: Store, family: Any) -> bool:
    """Whether a file's tensors are those of a format's family, which is `family` if that is said."""
    shapes = {name: tensor.shape for name, tensor in store.tensors.items()}
    if store.config is not None:
        family = store.config.get("model_type", "vit")
    right = format.is_of(shapes) if family is None else family == format.family
    return right and _has_mark(format, shapes)


def _has_mark(format: Format, shapes: Mapping[str, Shape]) -> bool:
    """Whether among a file's names is that by which the format is known."""
    if format.rename is not None:
        inner = {name: shapes[stored] for stored, name in unwrap(format, shapes).items()}
        return format.mark in format.rename(inner).values()
    return any(name.endswith(mark) for name in shapes for mark in (format.mark, *format.marks))


# === Converting ===


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    source_format: str = "auto",
    target_format: str = "hf",
    *,
    dtype: Any = None,
    labels: str | os.PathLike[str] | Iterable[str] | None = None,
    published_config: bool = False,
    linear_head: str | os.PathLike[str] | None = None,
    verify: bool = True,
    force: bool = False,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Convert a checkpoint, a few tensors at a time; `target` appears when it is complete and compared.

    Args:
        source: a file or folder of any format of `FORMATS`.
        target: a folder, or for the formats of one file (see `TARGETS`) a file name.
        source_format: a name of `FORMATS`; "auto" finds it from the file and its keys.
        target_format: a name of `TARGETS`.
        dtype: float32, float16, bfloat16 or float64; None keeps each tensor's.
        labels: names of the labels: "imagenet-1k", a file, or the names; "none" for numbers alone; None keeps what
            the source says.
        published_config: take hidden_act and layer_norm_eps of the published configurations, rather than those that
            the source's code computes with.
        linear_head: a file of facebookresearch/dinov2 with the linear head of a backbone.
        verify: read the result back and compare it with the source, bit by bit, before it appears.
        force: replace a target that exists.
        max_shard_size: of the canonical folder's weight files.
        progress: told how far it is.
        **options: keys of `PreTrainedConfig` that shapes do not tell: num_attention_heads, image_size, patch_size,
            hidden_act, layer_norm_eps and so on.

    Returns:
        What was done, what was assumed, and which tensors were left out, why.

    Raises:
        CheckpointError: the source cannot be converted, the target exists or cannot be written, or the comparison
            failed; the target is as it was before.
    """
    target = Path(target)
    target_format = ALIASES.get(target_format, target_format)
    if target_format not in TARGETS:
        raise CheckpointError(f"Unknown target format {quoted(target_format)}; expected one of {', '.join(TARGETS)}.")
    check_target(target, target_format, force)
    opened = open_source(
        source, source_format, labels=labels, published_config=published_config, linear_head=linear_head, **options
    )
    wanted = None if dtype is None else checkpoint.dtype_of(dtype)
    canonical = {name: (shape, wanted or opened.dtype(name)) for name, shape in opened.shapes.items()}
    config = opened.config if wanted is None else opened.config.replace(dtype=wanted.name)
    format = FORMATS[target_format].of(config, opened.head)
    changed = {name: opened.read(name) for name in opened.shapes if opened.factors(name)}
    if not format.cls_position:
        changed |= _with_cls_position(opened)
    for key in {key for keys in format.multiplied.values() for key in keys if getattr(config, key) != 1}:
        opened.said.append(f"{key} 1.0 is written, as {target_format} multiplies by it, and not {getattr(config, key)}")
        config = config.replace(**{key: 1.0})
    tensors, dropped = foreign_tensors(format, config, opened.head, canonical)
    left_out = {opened.places[name].stored: reason for name, reason in dropped.items() if name in opened.places}
    ignored = {**opened.ignored, **left_out}
    kept = {name: spec for name, spec in canonical.items() if name not in dropped}
    if any(name.endswith(".mask_token") for name in dropped) and "use_mask_token" in keys_of(type(config)):
        config = config.replace(use_mask_token=False)
    size = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in kept.values())
    meter = _Meter(progress, size * (2 if verify else 1))

    with staging(target) as folder, ThreadPoolExecutor(1) as disk:
        staged = folder / target.name
        read = meter.reading(lambda name: changed[name] if name in changed else opened.read(name))
        _write(staged, target_format, format, config, opened, tensors, read, max_shard_size)
        on_disk = disk.submit(sync, staged)
        if verify:
            _verify(staged, format, config, opened, kept, changed, meter)
        on_disk.result()
        publish(staged, target, OWN.get(target_format, ""))
    said = [*opened.said, *_differences(format, config)]
    used = {opened.places[name].stored for name in kept if name in opened.places}
    parameters = sum(int(np.prod(shape)) for shape, _ in kept.values())
    return Report(Path(source), opened.format.name, target, target_format, config, len(used), parameters, said, ignored,
                  verify)  # fmt: skip


def _with_cls_position(opened: Source) -> dict[str, np.ndarray]:
    """{canonical name: array}: the token of CLS with its position, whose place is zero: it computes the same."""
    cls, positions = (f"{opened.base}embeddings.{name}" for name in ("cls_token", "position_embeddings"))
    token, places = opened.read(cls), np.array(opened.read(positions))
    if np.any(places[:, :1]):
        opened.said.append("the position of CLS is added to its token, from which it cannot be told apart again")
    token, places[:, :1] = token + places[:, :1], 0
    return {cls: token, positions: places}


def _differences(format: Format, config: PreTrainedConfig) -> list[str]:
    """What the target's own code computes otherwise than the configuration says."""
    if format.name in ("hf", "transformers-tf", "transformers-flax", "keras", "orbax"):
        return []
    same = {"gelu_pytorch_tanh": "gelu_new"}
    said = []
    for key, value in format.config.items():
        have = getattr(config, key)
        if same.get(have, have) != value:
            said.append(f"the code of {format.name} computes with {key} {value} by default; this checkpoint has {have}")
    return said


class _Meter:
    """Counts bytes for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self.lock = Lock()  # threads read

    def add(self, array: np.ndarray) -> None:
        with self.lock:
            self.done += array.nbytes
            if self.progress is not None:
                self.progress(min(self.done, self.total), self.total)

    def reading(self, read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
        def read_and_count(name: str) -> np.ndarray:
            array = read(name)
            self.add(array)
            return array

        return read_and_count


def _write(
    staged: Path,
    target_format: str,
    format: Format,
    config: PreTrainedConfig,
    opened: Source,
    tensors: Mapping[str, Foreign],
    read: Callable[[str], np.ndarray],
    max_shard_size: int | str,
) -> None:
    specs: dict[str, tuple[Shape, np.dtype]] = {name: (t.shape, t.dtype) for name, t in tensors.items()}

    def part(name: str) -> np.ndarray:
        return write_part(format, tensors[name], read)

    if target_format == "hf":
        staged.mkdir()
        checkpoint.write_files(staged, config, specs, part, max_shard_size, threads=_THREADS)
    elif target_format in ("transformers-tf", "transformers-flax"):
        staged.mkdir()
        (staged / checkpoint.CONFIG).write_text(config.to_json(), encoding="utf-8")
        if target_format == "transformers-tf":
            write_tf_h5(staged / "tf_model.h5", specs, part)
        else:
            write_msgpack(staged / "flax_model.msgpack", specs, part)
    elif target_format == "google":
        write_npz(staged, specs, part)
    elif target_format == "keras":
        keras.write_keras(staged, config, opened.head, specs, part)
    elif target_format == "orbax":
        orbax.write_orbax(staged, config, specs, part)
    elif staged.suffix == ".safetensors":
        checkpoint.write_safetensors(staged, specs, part, _THREADS)
    else:
        write_torch(staged, specs, part)
    if target_format in ("hf", "transformers-tf", "transformers-flax"):
        _write_preprocessor(staged, opened)


def _write_preprocessor(staged: Path, opened: Source) -> None:
    """How images are prepared: the source folder's own file, or what the source's models expect."""
    folder = opened.store.path if opened.store.path.is_dir() else opened.store.path.parent
    own = folders.find(folder.parent if folder.name == folders.COMPLETE else folder, PREPROCESSOR)
    if opened.format.image:
        image = opened.format.image
        height, width = to_pair(opened.config.image_size)
        values = {
            "do_normalize": True, "do_rescale": True, "do_resize": True, "image_processor_type": "ViTImageProcessor",
            "image_mean": list(image["mean"]), "image_std": list(image["std"]), "resample": image["resample"],
            "rescale_factor": 1 / 255, "size": {"height": height, "width": width}, **opened.format.processor,
        }  # fmt: skip
        write_json(staged / PREPROCESSOR, values)
        mean, std = (", ".join(f"{value:g}" for value in image[key]) for key in ("mean", "std"))
        opened.said.append(f"images are normalised with mean {mean} and std {std}: those of {opened.format.name}")
    elif own is not None:
        shutil.copyfile(own, staged / PREPROCESSOR)


def _verify(
    staged: Path,
    format: Format,
    config: PreTrainedConfig,
    opened: Source,
    kept: Mapping[str, tuple[Shape, np.dtype]],
    changed: Mapping[str, np.ndarray],
    meter: _Meter,
) -> None:
    """Read the result back and compare every tensor with the source's, bit by bit, in the source's layout.

    The way back takes the inverse of the rules that wrote it, so a wrong rule does not cancel itself out; and the
    source is read again by other means, so that a wrong reader does not.
    """
    beside = staged if staged.is_dir() else staged.parent
    store = folders.at_one_moment(beside, lambda find: _open(staged, find, format.name))
    result = Source(store, format, config)
    if lost := [name for name in kept if name not in result.places]:
        raise CheckpointError(f"The comparison failed: the result lacks {summary(lost)}. Nothing was written.")

    parts: dict[str, list[str]] = {}
    for name in kept:
        if name not in opened.places:  # zero, where the source's format has no place for it
            meter.add(result.read(name))
            continue
        parts.setdefault(opened.places[name].stored, []).append(name)

    def compare(stored: str) -> None:
        """As the source holds it; what is `changed` on the way, as it then is."""
        # By other means than those that it was converted with, which may have read the wrong bytes.
        whole = opened.store.read_again(stored)
        for name in parts[stored]:
            back, expected = result.read(name), changed.get(name)
            if expected is None:
                back, expected = opened.format.foreign_array(name, back), opened.part(name, whole)
            if back.dtype != kept[name][1] or back.size != expected.size or not _same_bits(expected, back):
                raise CheckpointError(
                    f"The comparison failed: {name} is not what the source holds. Nothing was written."
                )
            meter.add(back)

    with ThreadPoolExecutor(1) as pool:  # one at a time: what is read again is in memory, not mapped as before
        deque(pool.map(compare, parts), 0)  # raises what they raise


def _same_bits(expected: np.ndarray, back: np.ndarray) -> bool:
    """Whether two arrays hold the same bits in the same order, the first cast to the second's dtype."""
    expected, bits = expected.reshape(back.shape), f"u{back.itemsize}"
    return all(
        np.array_equal(expected[part].astype(back.dtype, copy=False).view(bits), checkpoint.near(back[part]).view(bits))
        for part in checkpoint.tiles(back.shape)
    )
