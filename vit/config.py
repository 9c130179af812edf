"""What the configurations of all families share: the published keys of config.json, their checks and the round trip."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from . import budgets, families
from .errors import ConfigError, MissingCheckpointError, quoted, shown
from .weights import Shape, initial_value, layer_norm_shapes, linear_shapes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "selu", "silu", "tanh")
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_MOST = 2**31 - 1  # what sizes may be: more is no size of an array
DTYPES = ("float16", "bfloat16", "float32", "float64")
NEUTRAL: Mapping[str, Any] = {
    "is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False,
    "tie_word_embeddings": True, "torchscript": False, "use_bfloat16": False, "chunk_size_feed_forward": 0,
    "pruned_heads": {}, "finetuning_task": None, "task_specific_params": None, "transformers_version": None,
}  # fmt: skip
"""Keys of transformers' configurations that mean nothing here: what reading one gives that was never set."""


class Head(NamedTuple):
    """One of a family's classes.

    Attributes:
        name: of the class in PyTorch; TensorFlow's and Flax's have a prefix.
        output: the main one, which losses and metrics see.
        parts: optional parts of the base model -> whether the class has them; a base model takes them as arguments.
    """

    name: str
    output: str
    parts: Mapping[str, bool] = {}


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one int or as that pair."""
    return (size, size) if isinstance(size, int) else size


class _ConfigType(type):
    """Takes what no field has a name for as a key of `extra`, as config.json may hold it."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        known, unknown = _sorted_out(cls, values)
        if unknown:
            known["extra"] = {**(known.get("extra") or {}), **unknown}
        return super().__call__(*args, **known)


@dataclass(eq=False)
class PreTrainedConfig(metaclass=_ConfigType):
    """The configuration of a family, compared and hashed by value.

    What the model does (`assignable`) may be assigned: it is checked then, and holds at once for every model that has
    this object as its configuration. What the model is made of may not: `replace` gives a changed copy.

    Each family's is a dataclass that inherits from this one, gives `model_type` its own default, adds its own keys and
    checks, and fills in what stands first. A shared key that a family has not, or computes from its own, is
    `dataclasses.field(init=False)` there: then config.json has none of that name.

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
        model_type: which family; each has its own.
        extra: keys of a config.json that are not listed here, kept for the round trip.

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str]
    """What precedes a base model's parameter names in a checkpoint that also has a head, without the dot."""
    heads: ClassVar[Mapping[str | None, Head]]
    """The family's classes; None is the base model's."""
    parameter_shapes: ClassVar[Callable[..., dict[str, Shape]]]
    """A method: (head, **parts) -> every canonical parameter name and its shape, in the order of the computation."""
    optional: ClassVar[tuple[str, ...]] = ()
    """How the names of parameters begin that a checkpoint may lack, or have without the model using them."""
    label_parameters: ClassVar[tuple[str, ...]] = ("classifier.",)
    """How the names of parameters begin that start fresh under another number of labels."""
    grid_parameters: ClassVar[tuple[str, ...]] = ("position_embeddings",)
    """How the names of parameters end that `resample` fits to another grid of patches."""
    buffers: ClassVar[tuple[str, ...]] = ()
    """How the names of integers end that files hold beside the parameters; `check_buffer` sees them, no model does."""
    layers: ClassVar[str] = "encoder.layer"
    """What the names of the layers' parameters have between the prefix and the number."""
    patch_projection: ClassVar[str] = "embeddings.patch_embeddings.projection"
    """What the names of the patch embedding's parameters have behind the prefix."""
    prefix_tokens: ClassVar[int] = 1
    """Tokens before the patches; CLS is the first."""
    prefix_name: ClassVar[str] = ""
    """What the tokens between CLS and the patches are called."""
    any_size: ClassVar[bool] = False
    """Whether the models take images of any size, `interpolate_pos_encoding` or not."""
    nullable: ClassVar[frozenset[str]] = frozenset()
    """Keys whose null, in a config.json, is a value and not their default."""
    mlp_bias: ClassVar[bool] = True
    """Whether the layers of an MLP have a bias."""
    seeing_all: ClassVar[Mapping[str, Any]] = {}
    """Keys and the values under which the base model sees every patch, where it otherwise would not."""
    follows: ClassVar[Mapping[str, str]] = {}
    """Key -> the key whose value it takes when it is None."""
    variants: ClassVar[Mapping[str, tuple[int, int, int, int]]] = {}
    """Size -> (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size)."""
    assignable: ClassVar[frozenset[str]] = frozenset({
        "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "num_labels", "id2label",
        "label2id", "problem_type", "output_hidden_states", "output_attentions", "return_dict", "attn_implementation",
        "architectures", "extra",
    })  # fmt: skip
    """The keys that may be assigned: a model looks at them in every call, and is not built by them."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    _: dataclasses.KW_ONLY
    num_labels: int = None  # type: ignore[assignment]  # these three follow from any of them
    id2label: Mapping[int, str] = None  # type: ignore[assignment]
    label2id: Mapping[str, int] = None  # type: ignore[assignment]
    problem_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    attn_implementation: str = "sdpa"
    dtype: str | None = None
    architectures: tuple[str, ...] | None = None
    model_type: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, other in self.follows.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, getattr(self, other))
        self._check_ints("hidden_size", "num_attention_heads", "intermediate_size", "num_channels")
        self._check_ints("num_hidden_layers", least=0, most=budgets.LAYERS)
        self._check_sizes("image_size", "patch_size")
        self._check_probabilities("hidden_dropout_prob", "attention_probs_dropout_prob")
        self._check_numbers("initializer_range", "layer_norm_eps")
        self._check_bools("qkv_bias", "output_hidden_states", "output_attentions", "return_dict")
        self._check_choice("hidden_act", ACTIVATIONS)
        self._check_choice("attn_implementation", ATTENTION_IMPLEMENTATIONS)
        self._check_choice("problem_type", (None, *PROBLEM_TYPES))
        self._check_choice("dtype", (None, *DTYPES))
        self._check_choice("model_type", (type(self).model_type,))
        named = isinstance(self.extra, Mapping) and all(isinstance(key, str) for key in self.extra)
        self._check("extra", named, "a mapping of keys that are not listed here")
        if self.architectures is not None:
            valid = isinstance(self.architectures, list | tuple) and all(isinstance(n, str) for n in self.architectures)
            self._check("architectures", valid, "a list of class names")
            object.__setattr__(self, "architectures", tuple(self.architectures))
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}."
            )
        (height, width), (patch_height, patch_width) = to_pair(self.image_size), to_pair(self.patch_size)
        if patch_height > height or patch_width > width:
            raise ConfigError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}.")
        self._reconcile_labels()

    def _reconcile_labels(self) -> None:
        """Make num_labels, id2label and label2id agree, whichever of them were given."""
        for name in ("id2label", "label2id"):
            value = getattr(self, name)
            self._check(name, value is None or isinstance(value, Mapping), "a mapping between label indices and names")
        if self.num_labels is not None:
            self._check_ints("num_labels", least=0)
            if self.id2label is None and self.label2id is None and self.num_labels > budgets.LABELS:
                expected = f"at most {budgets.LABELS:,}, or id2label with the names of so many"
                self._check("num_labels", False, expected)
        given = "id2label" if self.id2label is not None else "label2id"
        default = {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
        try:
            label2id = {str(label): label_index(index) for label, index in (self.label2id or {}).items()}
            id2label = {index: label for label, index in label2id.items()} if self.label2id is not None else default
            if self.id2label is not None:
                id2label = {label_index(index): str(label) for index, label in self.id2label.items()}
        except (TypeError, ValueError):
            raise ConfigError(
                f"id2label is {quoted(self.id2label)} and label2id {quoted(self.label2id)}; expected ints as label "
                "indices."
            ) from None
        names = self.label2id if self.id2label is None else self.id2label
        if sorted(id2label) != list(range(len(id2label))) or len(id2label) != len(id2label if names is None else names):
            raise ConfigError(
                f"{given} has the indices {quoted(sorted(id2label)[:10])}; expected 0 to {len(names or ()) - 1}."
            )
        if self.num_labels not in (None, len(id2label)):
            raise ConfigError(
                f"num_labels is {self.num_labels} but {given} names {len(id2label)} labels. Give one of them, or "
                "both with the same length."
            )
        id2label = dict(sorted(id2label.items()))
        object.__setattr__(self, "num_labels", len(id2label))
        object.__setattr__(self, "id2label", id2label)
        object.__setattr__(self, "label2id", label2id or {label: index for index, label in id2label.items()})

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ConfigError(f"{name} is {quoted(getattr(self, name))}; expected {expected}.")

    def _check_ints(self, *names: str, least: int = 1, most: int = _MOST) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, _is_int(value, least), f"an int of at least {least}")
            self._check(name, value <= most, f"an int of at most {most:,}")

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            size = getattr(self, name)
            if isinstance(size, list):
                object.__setattr__(self, name, size := tuple(size))
            pair = size if isinstance(size, tuple) else (size, size)
            valid = len(pair) == 2 and all(_is_int(length, 1) and length <= _MOST for length in pair)
            self._check(name, valid, "a positive int, or a (height, width) pair of them")

    def _check_probabilities(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, _is_number(value) and 0 <= value < 1, "a probability of at least 0 and less than 1")

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, _is_number(value) and 0 <= value <= _MOST, "a finite number of at least 0")

    def _check_bools(self, *names: str) -> None:
        for name in names:
            self._check(name, isinstance(getattr(self, name), bool), "true or false")

    def _check_choice(self, name: str, allowed: Iterable[Any]) -> None:
        allowed = tuple(allowed)
        self._check(name, getattr(self, name) in allowed, "one of " + ", ".join(map(repr, allowed)))

    # === Copies ===

    @classmethod
    def variant(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size.

        Args:
            name: size and patch size in pixels, such as "B/16": one of `variants`, a slash and an int.
            **overrides: any other argument, such as `image_size=384`.

        Raises:
            ConfigError: an unknown size or key, or an impossible value.
        """
        size, _, patch = name.partition("/")
        if size not in cls.variants or not patch.isdecimal():
            raise ConfigError(
                f"Unknown variant {quoted(name)}; expected one of {', '.join(cls.variants)}, then '/' and a patch size."
            )
        _check_keys(cls, overrides)
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        values = dict(zip(keys, cls.variants[size], strict=True))
        values |= dict.fromkeys({"patch_size", "encoder_stride"} & set(keys_of(cls)), int(patch))
        return cls(**{**values, **overrides})

    def replace(self, **overrides: Any) -> Self:
        """A copy with some values changed; a new number of labels or new names make the other label keys follow.

        Keys of transformers that mean nothing here are kept, as those of a config.json are.

        Raises:
            ConfigError: an unknown key (the nearest known one is named), or an impossible value.
        """
        if neutral := {name: value for name, value in overrides.items() if name in NEUTRAL}:
            extra = {**overrides.get("extra", self.extra), **neutral}
            overrides = {**{name: value for name, value in overrides.items() if name not in neutral}, "extra": extra}
        _check_keys(type(self), overrides)
        values = {name: getattr(self, name) for name in keys_of(type(self))}
        labels = {"num_labels", "id2label", "label2id"} & overrides.keys()
        if labels and not (labels == {"num_labels"} and overrides["num_labels"] == self.num_labels):
            values.update(num_labels=None, id2label=None, label2id=None)
        for key, other in self.follows.items():
            if other in overrides and getattr(self, key) == getattr(self, other):
                values[key] = None
        return type(self)(**{**values, **overrides})

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches of an image of `image_size`."""
        (height, width), (patch_height, patch_width) = to_pair(self.image_size), to_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return self.grid_size[0] * self.grid_size[1]

    def fixed_inputs(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """What calls with images of a shape are given too, for nothing to be left to chance: {argument: array}."""
        return {}

    def attention_stacks(self, head: str | None) -> tuple[tuple[str, int, int, int], ...]:
        """For each stack of layers: what is in the names of its parameters, its layers, its tokens and their width."""
        return ((".encoder.", self.num_hidden_layers, self.prefix_tokens + self.num_patches, self.hidden_size),)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def key_bias(self) -> bool:
        """Whether the keys have a bias, which changes no output; queries and values have one if `qkv_bias`."""
        return self.qkv_bias

    @property
    def projection_biases(self) -> tuple[bool, bool, bool]:
        """Whether queries, keys and values have a bias."""
        return self.qkv_bias, self.key_bias, self.qkv_bias

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLPs are gated."""
        return False

    @property
    def has_positions(self) -> bool:
        """Whether position embeddings are added to the tokens."""
        return True

    @property
    def interpolation(self) -> Mapping[str, Any]:
        """How position embeddings are resampled: the options of `posemb.bicubic_matrix`."""
        return {}

    @property
    def layer_scale(self) -> float:
        """Initial value of the factors of each branch of an encoder layer; 0 where there are none."""
        return 0.0

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """For each encoder layer, how often each of its branches is dropped in training."""
        return (0.0,) * self.num_hidden_layers

    @property
    def pooler_output_size(self) -> int:
        """Width of a base model's pooler_output; 0 of a family that has none."""
        return self.hidden_size

    @property
    def classifier_size(self) -> int:
        """Width of what a linear classifier is applied to."""
        return self.hidden_size

    def wanted(self, hidden_states: bool | None, attentions: bool | None) -> tuple[bool, bool]:
        """Whether a call returns hidden states, and attentions: as its arguments say, or these keys for a None."""
        return (
            self.output_hidden_states if hidden_states is None else hidden_states,
            self.output_attentions if attentions is None else attentions,
        )

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
            taken, unused = _split(cls, overrides)
            return cls.from_dict(values, **taken), unused
        keys = frozenset(keys_of(cls)) - cls.nullable
        values = {key: value for key, value in values.items() if value is not None or key not in keys}
        extra = {"extra": values.pop("extra")} if "extra" in values else {}
        known, unknown = _sorted_out(cls, values)
        return cls(**known, extra={**unknown, **extra}).replace(**overrides)

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
        from . import hub  # what reads and writes files is imported by who does: a configuration is made in less time

        hub_options, overrides = hub.split_options(kwargs)
        path = _find_file(name_or_folder, **hub_options)
        with_unused = overrides.pop("return_unused_kwargs", False)
        config = _read(path)
        overrides, unused = _split(type(config), overrides) if with_unused else (overrides, {})
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
        from .files import CONFIG
        from .folders import replace_files, write_text
        from .keywords import file_keywords

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
        from . import hub
        from .keywords import file_keywords

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

        from .files import read_json

        return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of a checkpoint's config.json, and those of `kwargs` that are no options of the hub."""
        from . import hub
        from .files import read_json

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
        from .folders import replace_files, write_text

        folder, name = os.path.split(os.path.abspath(json_file_path))
        with replace_files(folder) as staging:
            write_text(staging / name, self.to_json_string(use_diff))

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is type(self) and all(getattr(self, n) == getattr(other, n) for n in keys_of(type(self)))
        )

    def __hash__(self) -> int:
        # Of every value that can change what a model computes; names and unknown keys are left to __eq__.
        if self._hash is None:
            values = (getattr(self, name) for name in keys_of(type(self)))
            hashed = hash(tuple(value for value in values if not isinstance(value, Mapping | list)))
            object.__setattr__(self, "_hash", hashed)
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_hash", "_snapshot", "_in_use")}

    # === Assignment ===

    _hash: ClassVar[Any] = None  # known until the next assignment
    _snapshot: ClassVar[Any] = None
    _in_use: ClassVar[Any] = False
    _name_or_path: ClassVar[Any] = ""
    _commit_hash: ClassVar[Any] = None

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if name.startswith("_") or isinstance(getattr(cls, name, None), property):  # no key of config.json
            object.__setattr__(self, name, value)
            return
        if name not in self.__dict__ and name in keys_of(cls):  # the constructor, whose __post_init__ checks
            object.__setattr__(self, name, value)
            return
        if name in _keys(cls)[1] and name not in self.assignable:
            raise ConfigError(
                f"{name} is part of what a model is made of, and cannot be assigned: config.replace({name}=...) gives "
                "a changed copy, to build or load a model with."
            )
        if name not in _keys(cls)[1]:
            changed = {"extra": {**self.extra, name: value}}
        elif name in ("num_labels", "id2label", "label2id"):
            changed = self._renamed(name, value)
        else:
            changed = {name: getattr(self.replace(**{name: value}), name)}
        self.__dict__.update(changed, _hash=None, _snapshot=None)

    def __getattr__(self, name: str) -> Any:  # of what is no field
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        if name in NEUTRAL and "extra" in self.__dict__:
            return NEUTRAL[name]
        if name.startswith("_"):  # Python's own questions, which come often
            raise AttributeError(name)
        near = difflib.get_close_matches(name, (*keys_of(type(self)), *extra), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise AttributeError(f"{type(self).__name__} has no attribute {quoted(name)}{hint}")

    def _renamed(self, name: str, value: Any) -> dict[str, Any]:
        """The label keys after one of them was assigned: other names for the same number of labels."""
        if name == "label2id" and isinstance(value, Mapping) and len(value) < self.num_labels:
            # Two labels may have one name, as in ImageNet: then id2label stays.
            renamed = self.replace(id2label=self.id2label, label2id=value)
        else:
            renamed = self.replace(**{name: value})
        if renamed.num_labels != self.num_labels:
            raise ConfigError(
                f"{name} has {renamed.num_labels} labels, but there are {self.num_labels}. Another number needs "
                f"another head: config.replace({name}=...), or from_pretrained(..., {name}=...)."
            )
        return {key: getattr(renamed, key) for key in ("num_labels", "id2label", "label2id")}

    def update(self, values: Mapping[str, Any]) -> None:
        """Assign several keys; what shapes a model, too, until a model has this configuration.

        Raises:
            ConfigError: an impossible value, or another shape than that of a model that is there.
        """
        fixed = {*_keys(type(self))[1] - self.assignable, "num_labels"}
        shapes = {name: value for name, value in values.items() if name in fixed}
        before = dict(self.__dict__)
        try:
            if shapes:
                changed = self.replace(**shapes)
                if not self._in_use:
                    self.__dict__.update(vars(changed), _hash=None, _snapshot=None)
                elif changed == self:
                    values = {name: value for name, value in values.items() if name not in shapes}
            for name, value in values.items():
                if self._in_use or name not in shapes:
                    setattr(self, name, value)
        except ConfigError:  # all of them, or none
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def update_from_string(self, update_str: str) -> None:
        """`update` with "key=value,key=value"; each value is read as one of the kind that its key has.

        Raises:
            ConfigError: an unknown key, no "key=value", or an impossible value.
        """
        values: dict[str, Any] = {}
        for part in update_str.split(","):
            name, sign, text = (each.strip() for each in part.partition("="))
            if not sign:
                raise ConfigError(f"{quoted(part)} is no key=value.")
            _check_keys(type(self), [name])
            if isinstance(getattr(self, name), bool) and text.lower() in ("1", "y", "yes", "0", "n", "no"):
                text = "true" if text.lower() in ("1", "y", "yes") else "false"
            try:
                values[name] = json.loads(text.lower() if text.lower() in ("true", "false") else text)
            except ValueError:
                values[name] = text
        self.update(values)

    def mark_in_use(self) -> None:
        """Say that a model has this configuration: from then on `update` takes no other shape."""
        object.__setattr__(self, "_in_use", True)

    def check_assignable(self, other: object) -> None:
        """Check that a model of this configuration may have another instead.

        Raises:
            ConfigError: it is none, or shapes another model; the first difference is named.
        """
        if type(other) is not type(self):
            raise ConfigError(f"config is a {type(other).__name__}; expected a {type(self).__name__}.")
        for name in keys_of(type(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs and (name == "num_labels" or name not in (*self.assignable, "dtype")):
                raise ConfigError(
                    f"The model has {name} {quoted(ours)}, and the configuration assigned to it {quoted(theirs)}: "
                    "build or load a model with that configuration."
                )

    def snapshot(self) -> Snapshot:
        """Its values as they are now, the same object until one changes."""
        if self._snapshot is None:
            object.__setattr__(self, "_snapshot", Snapshot(copy.copy(self)))
        return self._snapshot

    # === Other names ===

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """Itself, as the only part there is."""
        return self

    @property
    def use_return_dict(self) -> bool:
        """`return_dict`."""
        return self.return_dict

    @property
    def torch_dtype(self) -> str | None:
        """`dtype`, by its older name."""
        return self.dtype

    @property
    def _attn_implementation(self) -> str:
        return self.attn_implementation

    @_attn_implementation.setter
    def _attn_implementation(self, value: str) -> None:
        self.attn_implementation = value

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

    # === Parameters ===

    @classmethod
    def canonical_names(cls, stored: Iterable[str]) -> dict[str, str]:
        """{stored name: canonical name}: a base model's checkpoint may leave `base_model_prefix` out."""
        base = f"{cls.base_model_prefix}."
        known = (base, *(part for part in cls.optional if not part.startswith(base)))
        return {name: name if name.startswith(known) else base + name for name in stored}

    @classmethod
    def model_name(cls, name: str, head: str | None) -> str:
        """The name of a canonical parameter in a model and its checkpoint: without prefix where there is no head."""
        return name if head else name.removeprefix(f"{cls.base_model_prefix}.")

    def patch_embedding_shapes(self, name: str) -> dict[str, Shape]:
        """The parameters of the patch embedding `name`, in the order of the computation."""
        weight = (self.hidden_size, self.num_channels, *to_pair(self.patch_size))
        return {f"{name}.projection.weight": weight, f"{name}.projection.bias": (self.hidden_size,)}

    def encoder_layer_shapes(self, name: str) -> dict[str, Shape]:
        """The parameters of the encoder layer `name`, in the order of the computation."""
        width, mlp_width = self.hidden_size, self.intermediate_size
        shapes = layer_norm_shapes(f"{name}.layernorm_before", width)
        for part, bias in zip(("query", "key", "value"), self.projection_biases, strict=True):
            shapes |= linear_shapes(f"{name}.attention.attention.{part}", width, width, bias)
        return {
            **shapes,
            **linear_shapes(f"{name}.attention.output.dense", width, width),
            **layer_norm_shapes(f"{name}.layernorm_after", width),
            **linear_shapes(f"{name}.intermediate.dense", width, mlp_width),
            **linear_shapes(f"{name}.output.dense", mlp_width, width),
        }

    def initial_value(self, name: str) -> float | np.ndarray | str | None:
        """What a fresh parameter starts from: a number, an array, numbers drawn as "xavier_uniform" says, or None for a
        truncated normal of `initializer_range`."""
        return initial_value(name)

    def check_head(self, head: str | None) -> None:
        """Check that a model with the head, one of `heads`, can have this configuration.

        Raises:
            ConfigError: it cannot.
        """

    def check_buffer(self, name: str, array: np.ndarray) -> None:
        """Check a stored tensor, one of `buffers`, against this configuration, its checkpoint's.

        Raises:
            CheckpointError: they disagree.
        """

    def resample(self, name: str, array: np.ndarray, old_grid: tuple[int, int]) -> np.ndarray:
        """A stored parameter, one of `grid_parameters`, for this configuration's grid of patches."""
        from .posemb import interpolate  # NumPy's import would double that of this file

        return interpolate(array, old_grid, self.grid_size, **self.interpolation)


@dataclass(frozen=True)
class Snapshot:
    """The values of a configuration, as those who keep something for them need it: hashable, and never assigned to."""

    config: PreTrainedConfig

    def restored(self) -> Any:
        """A configuration of its own with these values, in use by a model, whose copy is what it is made for."""
        restored = copy.copy(self.config)
        restored.__dict__.update(_snapshot=self, _in_use=True)
        return restored


def check_config(config: object) -> None:
    """Check that it is a configuration, and not transformers' of the same name.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(config, PreTrainedConfig):
        kind, root = type(config).__name__, type(config).__module__.partition(".")[0]
        remedy = "a configuration, such as AutoConfig gives"
        if hasattr(config, "to_dict"):
            remedy = f"one of vit: import {kind} from vit, or pass vit.{kind}.from_dict(config.to_dict())"
        raise ConfigError(f"config is a {kind if root == 'builtins' else f'{root}.{kind}'}; expected {remedy}.")


def read_config(folder: Path, **overrides: Any) -> Any:
    """The configuration, of whichever family, in `folder`/config.json, with `overrides`.

    Raises:
        CheckpointError: no such file, or no JSON.
        ConfigError: impossible values, or those of no family here; the file is named.
    """
    from .files import CONFIG

    config = _read(folder / CONFIG)
    return config.replace(**overrides) if overrides else config


def _find_file(name_or_folder: str | os.PathLike[str], **hub_options: Any) -> Path:
    """The config.json of a checkpoint, or the file itself that was named."""
    from pathlib import Path

    from . import hub
    from .files import CONFIG

    file = Path(os.path.expanduser(name_or_folder))
    if os.path.isfile(file) and not hub_options.get("subfolder"):
        return file
    return hub.resolve(name_or_folder, config_only=True, **hub_options) / CONFIG


def _read(path: Path) -> Any:
    from .files import ADAPTER, ADAPTER_REMEDY
    from .folders import read_current

    try:
        return read_current(path, config_in)
    except MissingCheckpointError:
        if (path.parent / ADAPTER).exists():
            raise MissingCheckpointError(f"{shown(path.parent)} is an adapter: {ADAPTER_REMEDY}.") from None
        raise


def config_in(path: Path) -> Any:
    """As `read_config`, of the file itself."""
    from .files import read_json

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
    from .folders import COMPLETE

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
        if _is_int(count, 0) and count > most:
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


@cache
def _keys(cls: type) -> tuple[tuple[str, ...], frozenset[str]]:
    fields = dataclasses.fields(cls)
    return tuple(field.name for field in fields if field.init), frozenset(field.name for field in fields)


def keys_of(cls: type) -> tuple[str, ...]:
    """The keys that the config.json of a configuration class may have."""
    return _keys(cls)[0]


def _sorted_out(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values of the keys that a class knows, values of others); `torch_dtype` is the older name of `dtype`."""
    known = {key: value for key, value in values.items() if key in keys_of(cls)}
    unknown = {key: value for key, value in values.items() if key not in known}
    torch_dtype = unknown.pop("torch_dtype", None)
    if torch_dtype is not None:
        known.setdefault("dtype", str(torch_dtype).removeprefix("torch."))
    return known, unknown


def _split(cls: type, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(overrides of a configuration's keys, the others), as transformers' `return_unused_kwargs` has them."""
    known, unknown = _sorted_out(cls, overrides)
    neutral = {name: value for name, value in unknown.items() if name in NEUTRAL}
    return {**known, **neutral}, {name: value for name, value in unknown.items()
                                  if name not in NEUTRAL and name not in ("_from_auto", "_from_pipeline")}  # fmt: skip


def _check_keys(cls: type[PreTrainedConfig], keys: Iterable[str]) -> None:
    known = keys_of(cls)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"Unknown configuration key {quoted(key)}{hint}")


def label_index(value: Any) -> int:
    """The index of a label: an int, or its decimal digits, as JSON's keys are.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if not isinstance(value, str):
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    if len(value) > 20 or not (value.isascii() and value.isdecimal()) or value != str(int(value)):
        raise ValueError
    return int(value)


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
