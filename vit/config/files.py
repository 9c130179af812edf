"""A configuration in a config.json: read, written, and found on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .. import budgets, families
from ..errors import ConfigError, MissingCheckpointError, quoted, shown
from .checks import is_int
from .keys import keys_of, sorted_out, split

if TYPE_CHECKING:
    from pathlib import Path


class Storable:
    """A configuration that config.json holds."""

    model_type: Any
    nullable: ClassVar[frozenset[str]]
    id2label: Any
    replace: Any
    _name_or_path: ClassVar[Any] = ""
    _commit_hash: ClassVar[Any] = None

    def to_dict(self) -> dict[str, Any]:
        """The keys and values of config.json; `from_dict` reads them back."""
        values: dict[str, Any] = {name: getattr(self, name) for name in keys_of(type(self))}
        extra = values.pop("extra")
        del values["num_labels"]  # it is the length of id2label
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        defaults = {"problem_type": None, "dtype": None, "architectures": None, "attn_implementation": "sdpa",
                    "output_hidden_states": False, "output_attentions": False, "return_dict": True}  # fmt: skip
        values = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {**extra, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Any:
        """The configuration that `values`, the content of a config.json, describes.

        Keys that this class does not know go to `extra`. A null of a key it knows counts as not given, but for those
        that are `nullable`. With `return_unused_kwargs`, (configuration, the overrides that are none of its keys).
        """
        if overrides.pop("return_unused_kwargs", False):
            taken, unused = split(cls, overrides)
            return cls.from_dict(values, **taken), unused
        keys = frozenset(keys_of(cls)) - cls.nullable
        values = {key: value for key, value in values.items() if value is not None or key not in keys}
        extra = {"extra": values.pop("extra")} if "extra" in values else {}
        known, unknown = sorted_out(cls, values)
        make: Any = cls
        return make(**known, extra={**unknown, **extra}).replace(**overrides)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read the configuration of a checkpoint.

        Args:
            name_or_folder: a checkpoint folder, its config.json, or the name of a model on the hub.
            **kwargs: `revision`, `token`, `cache_dir` and `local_files_only` of the hub; anything else overrides a key.
                With `return_unused_kwargs`, (configuration, those of them that are none of its keys) is returned.

        Raises:
            CheckpointError: no config.json there, or one that is no JSON.
            ConfigError: impossible values, or those of another family; the file is named.
        """
        from .. import hub  # what reads and writes files is imported by who does: a configuration is made in less time

        hub_options, overrides = hub.split_options(kwargs)
        path = _find_file(name_or_folder, **hub_options)
        with_unused = overrides.pop("return_unused_kwargs", False)
        config = _read(path).as_family(cls.model_type)
        overrides, unused = split(type(config), overrides) if with_unused else (overrides, {})
        config = config.replace(**overrides) if overrides else config
        config.came_from(name_or_folder, hub.commit_of(path.parent))
        if cls.model_type not in ("", config.model_type):
            raise ConfigError(
                f"{path}: model_type is {config.model_type!r}, which {type(config).__name__} reads; "
                f"{cls.__name__} reads {cls.model_type!r}."
            )
        return (config, unused) if with_unused else config

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Write config.json into a folder, which is made if needed.

        Args:
            save_directory: the folder.
            push_to_hub: whether to upload it as well, as `push_to_hub` does, to `repo_id` or the folder's name.
            **options: those of `push_to_hub`.
        """
        from ..files import CONFIG
        from ..folders import replace_files, write_text
        from ..keywords import file_keywords

        options = file_keywords(options)
        with replace_files(save_directory) as staging:
            write_text(staging / CONFIG, self.to_json())
        if push_to_hub:
            self.push_to_hub(**{"repo_id": os.path.basename(os.path.realpath(save_directory)), **options})

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload config.json to a model on the hub, which is made if needed; gives the address of the commit.

        Args:
            repo_id: the name of the model, "user/model".
            **options: `commit_message`, `commit_description`, `private`, `token`, `revision` and `create_pr`;
                transformers' others change nothing or are refused.

        Raises:
            CheckpointError: it cannot be uploaded; the reason is named.
            InputError: an option that nobody knows, or that cannot be honoured.
        """
        from .. import hub
        from ..keywords import file_keywords

        options = file_keywords(options, "push_to_hub")
        return hub.push({"config.json": self.to_json().encode()}, repo_id, **options)

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """The configuration in a JSON file of any name.

        Raises:
            CheckpointError: no such file, or no JSON.
            ConfigError: impossible values.
        """
        from pathlib import Path

        from ..files import read_json

        return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of a checkpoint's config.json, and those of `kwargs` that are no options of the hub."""
        from .. import hub
        from ..files import read_json

        hub_options, others = hub.split_options(kwargs)
        return read_json(_find_file(pretrained_model_name_or_path, **hub_options)), others

    def to_diff_dict(self) -> dict[str, Any]:
        """The keys of `to_dict` that differ from the family's defaults, and its model_type."""
        defaults = type(self)().to_dict()
        changed = {key: value for key, value in self.to_dict().items() if key not in defaults or value != defaults[key]}
        return {**changed, "model_type": self.model_type}

    def to_json_string(self, use_diff: bool = False) -> str:
        """The text of config.json; of `to_diff_dict` if `use_diff`."""
        return json.dumps(self.to_diff_dict(), indent=2, sort_keys=True) + "\n" if use_diff else self.to_json()

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = False) -> None:
        """Write `to_json_string` into a file of any name."""
        from ..folders import replace_files, write_text

        folder, name = os.path.split(os.path.abspath(json_file_path))
        with replace_files(folder) as staging:
            write_text(staging / name, self.to_json_string(use_diff))

    @property
    def name_or_path(self) -> str:
        """Where it was loaded from."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: object) -> None:
        object.__setattr__(self, "_name_or_path", str(value))

    def came_from(self, name_or_folder: str | os.PathLike[str], commit: str | None) -> None:
        """Note where it was loaded from: the name or folder, and the commit on the hub; config.json holds neither."""
        self.__dict__.update(_name_or_path=os.fspath(name_or_folder), _commit_hash=commit)


def read_config(folder: Path, **overrides: Any) -> Any:
    """The configuration, of whichever family, in `folder`/config.json, with `overrides`.

    Raises:
        CheckpointError: no such file, or no JSON.
        ConfigError: impossible values, or those of no family here; the file is named.
    """
    from ..files import CONFIG

    config = _read(folder / CONFIG)
    return config.replace(**overrides) if overrides else config


def _find_file(name_or_folder: str | os.PathLike[str], **hub_options: Any) -> Path:
    """The config.json of a checkpoint, or the file itself that was named."""
    from pathlib import Path

    from .. import hub
    from ..files import CONFIG

    file = Path(os.path.expanduser(name_or_folder))
    if os.path.isfile(file) and not hub_options.get("subfolder"):
        return file
    return hub.resolve(name_or_folder, config_only=True, **hub_options) / CONFIG


def _read(path: Path) -> Any:
    from ..files import ADAPTER, ADAPTER_REMEDY
    from ..folders import read_current

    try:
        return read_current(path, config_in)
    except MissingCheckpointError:
        if (path.parent / ADAPTER).exists():
            raise MissingCheckpointError(f"{shown(path.parent)} is an adapter: {ADAPTER_REMEDY}.") from None
        raise


def config_in(path: Path) -> Any:
    """As `read_config`, of the file itself."""
    from ..files import read_json

    try:
        values = read_json(path)
        _check_counts(values, path)
        return config_from_dict(values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{shown(path)}: {error}") from None


_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx")


def _bytes_of_weights(folder: Path) -> int:
    """The bytes of a folder's files of weights, those that are moved or removed meanwhile left out."""
    size = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                size += os.stat(folder / name).st_size if name.endswith(_WEIGHTS) else 0
    return size


def _check_counts(values: Mapping[str, Any], path: Path) -> None:
    """Compare what a config.json counts without naming it with the bytes of the weights beside it, if there are any."""
    from ..folders import COMPLETE

    folder = path.parent.parent if path.parent.name == COMPLETE else path.parent
    size = _bytes_of_weights(folder) + _bytes_of_weights(folder / COMPLETE)  # where a save has what is not yet moved
    if not size:
        return
    named = values.get("id2label") is not None or values.get("label2id") is not None
    for key, most in (
        *(() if named else [("num_labels", budgets.most_labels(size))]),
        ("num_hidden_layers", budgets.most_layers(size)),
        ("decoder_num_hidden_layers", budgets.most_layers(size)),
    ):
        count = values.get(key, 0)
        if is_int(count, 0) and count > most:
            raise ConfigError(
                f"{key} is {quoted(count)}; the {size:,} bytes of weights beside it hold at most {most:,}."
            )


def config_from_dict(values: Mapping[str, Any]) -> Any:
    """The configuration, of whichever family, that the content of a config.json describes; a ViT's if it names none.

    Raises:
        ConfigError: impossible values, or those of no family here.
    """
    model_type = values.get("model_type")
    return families.config_class("vit" if model_type is None else model_type).from_dict(values)
