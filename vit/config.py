"""ViTConfig: the shape and behaviour of a Vision Transformer, under the keys of the published config.json."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "selu", "silu", "tanh")
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# name: (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size)
# Dosovitskiy et al. 2021, Table 1 (B, L, H); Touvron et al. 2021, Table 1 (Ti, S); Zhai et al. 2022, Table 2 (g, G).
VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one int or as that pair."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, eq=False)
class ViTConfig:
    """The configuration of a Vision Transformer; immutable, compared and hashed by value.

    Keys and defaults are those of the published checkpoints (transformers' ViTConfig), so the defaults are ViT-B/16 at
    224. Use `replace` for a changed copy and `variant` for the other published sizes.

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
        encoder_stride: factor by which the masked-image decoder upsamples; equals `patch_size`.
        pooler_output_size: width of the pooler's output; `hidden_size` when None.
        pooler_act: activation of the pooler, one of `ACTIVATIONS`.
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
        model_type: "vit".
        extra: keys of a config.json that are not listed here, kept for the round trip.

    Raises:
        ConfigError: a value that no model can have.
    """

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
    encoder_stride: int | tuple[int, int] = 16
    pooler_output_size: int = None  # type: ignore[assignment]  # hidden_size
    pooler_act: str = "tanh"
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
    model_type: str = "vit"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels"):
            self._check(name, _is_int(getattr(self, name), 1), "an int of at least 1")
        self._check("num_hidden_layers", _is_int(self.num_hidden_layers, 0), "an int of at least 0")
        for name in ("image_size", "patch_size", "encoder_stride"):
            size = getattr(self, name)
            if isinstance(size, list):
                object.__setattr__(self, name, size := tuple(size))
            pair = size if isinstance(size, tuple) else (size, size)
            valid = len(pair) == 2 and all(_is_int(length, 1) for length in pair)
            self._check(name, valid, "a positive int, or a (height, width) pair of them")
        if self.pooler_output_size is None:
            object.__setattr__(self, "pooler_output_size", self.hidden_size)
        self._check("pooler_output_size", _is_int(self.pooler_output_size, 1), "an int of at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            self._check(name, _is_number(value) and 0 <= value < 1, "a probability of at least 0 and less than 1")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            self._check(name, _is_number(value) and 0 <= value < float("inf"), "a finite number of at least 0")
        for name in ("qkv_bias", "output_hidden_states", "output_attentions", "return_dict"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")
        for name, allowed in (
            ("hidden_act", ACTIVATIONS),
            ("pooler_act", ACTIVATIONS),
            ("attn_implementation", ATTENTION_IMPLEMENTATIONS),
            ("problem_type", (None, *PROBLEM_TYPES)),
            ("dtype", (None, *DTYPES)),
            ("model_type", ("vit",)),
        ):
            self._check(name, getattr(self, name) in allowed, "one of " + ", ".join(map(repr, allowed)))
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
            self._check("num_labels", _is_int(self.num_labels, 0), "an int of at least 0")
        given = "id2label" if self.id2label is not None else "label2id"
        default = {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
        try:
            label2id = {str(label): int(index) for label, index in (self.label2id or {}).items()}
            id2label = {index: label for label, index in label2id.items()} if self.label2id is not None else default
            if self.id2label is not None:
                id2label = {int(index): str(label) for index, label in self.id2label.items()}
        except (TypeError, ValueError):
            raise ConfigError(
                f"id2label is {self.id2label!r} and label2id {self.label2id!r}; expected ints as label indices."
            ) from None
        if sorted(id2label) != list(range(len(id2label))):
            raise ConfigError(f"{given} has the indices {sorted(id2label)[:10]}; expected 0 to {len(id2label) - 1}.")
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
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    @classmethod
    def variant(cls, name: str, **overrides: Any) -> ViTConfig:
        """The configuration of a published size.

        Args:
            name: size and patch size in pixels, such as "B/16": one of `VARIANTS`, a slash and an int.
            **overrides: any other argument, such as `image_size=384`.

        Raises:
            ConfigError: an unknown size or key, or an impossible value.
        """
        size, _, patch = name.partition("/")
        if size not in VARIANTS or not patch.isdecimal():
            raise ConfigError(
                f"Unknown variant {name!r}; expected one of {', '.join(VARIANTS)}, then '/' and a patch size."
            )
        _check_keys(overrides)
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        values = dict(zip(keys, VARIANTS[size], strict=True), patch_size=int(patch), encoder_stride=int(patch))
        return cls(**{**values, **overrides})

    def replace(self, **overrides: Any) -> ViTConfig:
        """A copy with some values changed; a new number of labels or new names make the other label keys follow.

        Raises:
            ConfigError: an unknown key (the nearest known one is named), or an impossible value.
        """
        _check_keys(overrides)
        values = {name: getattr(self, name) for name in _FIELDS}
        labels = {"num_labels", "id2label", "label2id"} & overrides.keys()
        if labels and not (labels == {"num_labels"} and overrides["num_labels"] == self.num_labels):
            values.update(num_labels=None, id2label=None, label2id=None)
        if "hidden_size" in overrides and self.pooler_output_size == self.hidden_size:
            values["pooler_output_size"] = None
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

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """The keys and values of config.json; `ViTConfig.from_dict` reads them back."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        extra = values.pop("extra")
        del values["num_labels"]  # it is the length of id2label
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        defaults = {"problem_type": None, "dtype": None, "architectures": None, "attn_implementation": "sdpa",
                    "output_hidden_states": False, "output_attentions": False, "return_dict": True}  # fmt: skip
        values = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {**extra, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> ViTConfig:
        """The configuration that `values`, the content of a config.json, describes.

        Keys that this class does not know go to `extra`. A null of a key it knows counts as not given.
        """
        values = {key: value for key, value in values.items() if value is not None or key not in _FIELDS}
        if isinstance(torch_dtype := values.pop("torch_dtype", None), str):  # the older name of the key
            values.setdefault("dtype", torch_dtype)
        extra = {key: values.pop(key) for key in list(values) if key not in _FIELDS or key == "extra"}
        return cls(**values, extra=extra).replace(**overrides)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **kwargs: Any) -> ViTConfig:
        """Read the configuration of a checkpoint.

        Args:
            name_or_folder: a checkpoint folder, or the name of a model on the hub.
            **kwargs: `revision`, `token`, `cache_dir` and `local_files_only` of the hub; anything else overrides a key.

        Raises:
            CheckpointError: no config.json there, or one that is no JSON.
            ConfigError: impossible values; the file is named.
        """
        from . import checkpoint, hub

        hub_options, overrides = hub.split_options(kwargs)
        folder = hub.resolve(name_or_folder, config_only=True, **hub_options)
        return checkpoint.read_config(folder, **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json into `folder`, which is made if needed."""
        from .checkpoint import replace_files

        with replace_files(folder) as staging:
            (staging / "config.json").write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ViTConfig) and all(getattr(self, n) == getattr(other, n) for n in _FIELDS)

    def __hash__(self) -> int:
        # Enough to tell models apart; dicts are left to __eq__.
        return hash((self.hidden_size, self.num_hidden_layers, self.image_size, self.patch_size, self.num_labels))


_FIELDS = tuple(field.name for field in dataclasses.fields(ViTConfig))


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, n=1)
            raise ConfigError(f"Unknown configuration key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "."))


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
