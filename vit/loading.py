"""From a name to what fills a model: the checkpoint, in whatever form it is, and how it fits the arguments.

What is no canonical checkpoint (transformers' TensorFlow and Flax files, the file of a training) is opened by the
conversion, which is imported for it alone, and read like one: a tensor at a time, in no other file.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import hub
from .checkpoint import Checkpoint, Fit, Tensor, check_family, dtype_of, fit, in_order
from .config import PreTrainedConfig, check_config, config_in
from .errors import CheckpointError, ConfigError, MissingCheckpointError, NoStateDictError, shown, summary
from .files import ADAPTER, ADAPTER_REMEDY, CONFIG, FOREIGN, INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS
from .folders import Find, at_one_moment

if TYPE_CHECKING:
    from conversion.rules import Source

CANONICAL = (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX)
TRAININGS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
"""How the names of files end that trainings write, of which a folder may have one beside its config.json."""
_OTHERS = r"(optimizer|scheduler|scaler|rng_state.*|training_args|random_states.*)\.(pt|pth|bin)"
"""What Trainer and Accelerate keep beside the weights."""


def plan(
    name_or_folder: str | os.PathLike[str],
    head: str | None,
    dtype: Any = None,
    attn_implementation: str | None = None,
    ignore_mismatched_sizes: bool = False,
    config_class: type[PreTrainedConfig] = PreTrainedConfig,
    **kwargs: Any,
) -> Fit:
    """What every from_pretrained does before it builds a model: find the checkpoint and fit it to the arguments.

    Args:
        name_or_folder: a checkpoint's folder or file, or the name of a model on the hub.
        head: one of the family's.
        dtype: a dtype or its name; None or "auto" for the checkpoint's.
        attn_implementation: None for the configuration's.
        ignore_mismatched_sizes: let mis-shaped parameters start fresh.
        config_class: the family's; a checkpoint of any family when it is left out.
        **kwargs: options of the hub, `from_tf` and the like, options of a model without a head, and overrides of the
            configuration.

    Raises:
        CheckpointError: no checkpoint there, a broken one, or one that does not fit.
        ConfigError: impossible values in its config.json or the overrides.
    """
    hub_options, overrides = hub.split_options(kwargs)
    wanted = None if dtype is None or (isinstance(dtype, str) and dtype == "auto") else dtype_of(dtype)
    if attn_implementation is not None:
        overrides["attn_implementation"] = attn_implementation
    given = overrides.pop("config", None)
    if isinstance(given, str | os.PathLike):
        given = PreTrainedConfig.from_pretrained(given, **hub_options)
    if given is not None:
        check_config(given)
        given = given.as_family(config_class.model_type)
    sources = {source: overrides.pop(f"from_{source}", None) for source in ("pt", "tf", "flax")}
    checkpoint = open_checkpoint(name_or_folder, _one_of(sources), given, **hub_options)
    if checkpoint.said:
        print(checkpoint.said, file=sys.stderr)
    checkpoint.config = checkpoint.config.as_family(config_class.model_type)
    check_family(checkpoint, config_class, head)
    parts = dict(checkpoint.config.heads[head].parts)
    model_options = {part: overrides.pop(part) for part in parts if head is None and part in overrides}
    wanted = wanted or checkpoint.dtype
    base = checkpoint.config if given is None else given
    if type(base) is not type(checkpoint.config):
        raise ConfigError(
            f"config is a {type(base).__name__}; the checkpoint has a {type(checkpoint.config).__name__}."
        )
    config = base.replace(**overrides, dtype=wanted.name)
    config.came_from(name_or_folder, hub.commit_of(checkpoint.folder))
    stored, fresh, resampled = fit(checkpoint, config, head, ignore_mismatched_sizes, **{**parts, **model_options})
    return Fit(checkpoint, config, stored, fresh, resampled, wanted, model_options)


def open_checkpoint(
    name_or_folder: str | os.PathLike[str],
    source: str | None = None,
    config: PreTrainedConfig | None = None,
    **hub_options: Any,
) -> Checkpoint:
    """A checkpoint of any form, opened.

    Args:
        name_or_folder: its folder or file, or the name of a model on the hub.
        source: "pt", "tf" or "flax" for the file of that framework's classes before a canonical one.
        config: its configuration, where there is no config.json.
        **hub_options: those of `hub.resolve`.

    Raises:
        CheckpointError: none there, or a broken one.
        ConfigError: impossible values in its config.json.
    """
    file = os.path.expanduser(name_or_folder)
    if os.path.isfile(file) and not hub_options.get("subfolder"):
        return _open_file(Path(os.path.abspath(file)), config)
    folder = hub.resolve(name_or_folder, source=source, **hub_options)
    name = _weights(folder, source)
    if name not in CANONICAL:
        return _open_file(folder / name, config)
    try:
        opened = Checkpoint(folder, config)
    except NoStateDictError:
        return _open_file(folder / name, config)
    if opened.config.parameter_shapes().keys().isdisjoint(opened.config.canonical_names(opened.tensors).values()):
        with suppress(CheckpointError):  # a training's prefix before every name, or it is what it is
            return _open_file(folder / name, config)
    return opened


def _one_of(sources: dict[str, Any]) -> str | None:
    asked = [name for name, wanted in sources.items() if wanted]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(f'from_{name}' for name in asked)} exclude each other; give one of them.")
    return asked[0] if asked else None


def _weights(folder: Path, source: str | None) -> str:
    """The name of the file of a folder's weights, or of their index: of the source asked for, else a canonical one.

    Raises:
        CheckpointError: neither, or several that a training may have written.
    """
    known = {"pt": CANONICAL, **FOREIGN}
    names = (*known[source], *CANONICAL) if source else tuple(chain(*known.values()))
    if found := at_one_moment(folder, lambda find: next(filter(find, names), None)):
        return found
    held = sorted(path.name for path in folder.iterdir() if path.is_file())
    if ADAPTER in held:
        raise MissingCheckpointError(f"{shown(folder)} is an adapter: {ADAPTER_REMEDY}.")
    trained = [name for name in held if name.endswith(TRAININGS) and not re.fullmatch(_OTHERS, name)]
    if source in (None, "pt") and len(trained) == 1:
        return trained[0]
    foreign = [name for kind in FOREIGN.values() for name in kind if name in held]
    remedy = f" It has {foreign[0]}: leave from_{source} out." if foreign else ""
    inside = sorted(path.parent.name for path in folder.glob(f"[!.]*/{CONFIG}"))
    if inside:
        remedy = f" Checkpoints are in its folders {summary(inside)}: give the path of one of them."
    if len(trained) > 1:
        remedy = f" It has {', '.join(map(shown, trained[:8]))}: give the path of one of them."
    listed = ", ".join(name for name in names if not name.endswith(".index.json"))
    raise MissingCheckpointError(f"{shown(folder)} has no {listed}: there are no weights to load.{remedy}")


class Converted(Checkpoint):
    """A file of another form, seen as the checkpoint that a conversion would make of it."""

    def __init__(self, path: Path, source: Source, config: PreTrainedConfig) -> None:
        self.folder, self.config = path, config
        self.pages, self.buffers = {}, {}
        stored = {config.model_name(name, source.head): name for name in source.shapes}
        self.tensors = {name: Tensor(path, 0, source.dtype(full), source.shapes[full]) for name, full in stored.items()}
        self.pickled = {name: partial(_read, source, full) for name, full in stored.items()}
        self.said = (
            f"{shown(path)} is converted while it is read ({source.format.what}); 'vit convert' does it once for all."
        )


def _read(source: Source, name: str) -> np.ndarray:
    return in_order(source.read(name), source.dtype(name))


def _open_file(path: Path, config: PreTrainedConfig | None) -> Converted:
    def read(find: Find) -> Converted:
        from conversion.engine import open_as

        beside = find(CONFIG)
        if beside is None and config is None:
            raise MissingCheckpointError(
                f"{shown(path.parent)} has no {CONFIG} beside {shown(path.name)}: put it there, or pass config=. "
                "'vit convert' finds sizes in the weights."
            )
        own: Any = config if beside is None else config_in(beside)
        try:
            return Converted(path, open_as(path, find, own), own)
        except CheckpointError as error:
            raise CheckpointError(f"{error} (It was read as 'vit convert' reads it.)") from None

    try:
        return at_one_moment(path.parent, read)
    except MissingCheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read: {error.strerror or shown(error)}.") from None
