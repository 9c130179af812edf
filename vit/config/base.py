"""What the configurations of all families share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from .. import budgets
from ..errors import ConfigError, quoted
from ..weights import Shape, initial_value, layer_norm_shapes, linear_shapes
from .assignment import Assignable
from .checks import ACTIVATIONS, ATTENTION_IMPLEMENTATIONS, DTYPES, PROBLEM_TYPES, Checked
from .files import Storable
from .keys import NEUTRAL, ConfigType, check_keys, keys_of

if TYPE_CHECKING:
    import numpy as np


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


@dataclass(eq=False)
class PreTrainedConfig(Checked, Assignable, Storable, metaclass=ConfigType):
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
        check_keys(cls, overrides)
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
        check_keys(type(self), overrides)
        values = {name: getattr(self, name) for name in keys_of(type(self))}
        labels = {"num_labels", "id2label", "label2id"} & overrides.keys()
        if labels and not (labels == {"num_labels"} and overrides["num_labels"] == self.num_labels):
            values.update(num_labels=None, id2label=None, label2id=None)
        for key, other in self.follows.items():
            if other in overrides and getattr(self, key) == getattr(self, other):
                values[key] = None
        return type(self)(**{**values, **overrides})

    # === What models and their layers ask ===

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
    def gives_numbers(self) -> bool:
        """Whether logits are the numbers of a regression and no scores of labels; so is one logit alone, but of labels
        of which an image may have several."""
        return self.problem_type == "regression" or (
            self.num_labels == 1 and self.problem_type != "multi_label_classification"
        )

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

    def as_family(self, model_type: str) -> PreTrainedConfig:
        """As a configuration of another family whose classes read these checkpoints, too; itself where none does."""
        return self

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
        from ..posemb import interpolate  # NumPy's import would double that of this file

        return interpolate(array, old_grid, self.grid_size, **self.interpolation)


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
