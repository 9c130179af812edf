"""What every format shares: a table of names, three layout rules, and the way a file becomes canonical through them.

A format is data (`Format`): which canonical module is called what, whether matrices are (in, out), how the patch
convolution lies, and what the format's own code computes with. `Source` applies one to an opened file and gives
canonical tensors one at a time; `foreign_tensors` goes the other way.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from vit import budgets, families
from vit.checkpoint import DTYPES, fill
from vit.config import PreTrainedConfig, keys_of, to_pair
from vit.errors import CheckpointError, ConfigError, quoted, shown
from vit.families.vit import VARIANTS
from vit.weights import Shape, is_matrix, is_norm

from .containers import Store, summary

INDEX = r"(?<=layer\.)\d+|(?<=layers\.)\d+"
"""The number of a layer in a canonical name."""

LAYER = "vit.encoder.layer.{i}."
TOKENS = ("vit.embeddings.cls_token", "vit.embeddings.mask_token", "vit.embeddings.position_embeddings")
MODULES = (
    "vit.embeddings.patch_embeddings.projection",
    LAYER + "layernorm_before",
    LAYER + "attention.attention.query",
    LAYER + "attention.attention.key",
    LAYER + "attention.attention.value",
    LAYER + "attention.output.dense",
    LAYER + "layernorm_after",
    LAYER + "intermediate.dense",
    LAYER + "output.dense",
    "vit.layernorm",
    "vit.pooler.dense",
    "classifier",
    "decoder.0",
)
QKV = LAYER + "attention.attention.{query,key,value}"
"""The three projections as one module: their tensors lie one after the other along the first axis."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR, BICUBIC = 2, 3


_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "beit": (
        {"use_mask_token": True, "use_absolute_position_embeddings": True, "use_relative_position_bias": True,
         "use_shared_relative_position_bias": True},
        {"use_mean_pooling": False},
    ),
    "vit_mae": ({"decoder_num_hidden_layers": 1},),
    "dinov2": ({}, {"use_swiglu_ffn": True}),
    "dinov2_with_registers": ({}, {"use_swiglu_ffn": True}),
    "dinov3_vit": ({"key_bias": True}, {"use_gated_mlp": True}),
}  # fmt: skip
"""Family -> keys of configurations that together have all the parameters that its checkpoints may have."""


@cache
def samples(family: str) -> tuple[Any, ...]:
    """Configurations of one layer that together have every parameter that a checkpoint of the family may have."""
    return tuple(
        families.config_class(family)(num_hidden_layers=1, num_labels=1, **keys) for keys in _OPTIONS.get(family, ({},))
    )


@cache
def family_names(family: str) -> tuple[str, ...]:
    """The canonical names of all parameters of a family, with {i} for a layer and {leaf} for weight or bias."""
    names: dict[str, None] = {}
    for config in samples(family):
        for head, (_, _, parts) in config.heads.items():
            for name in config.parameter_shapes(head=head, **dict.fromkeys(parts, True)):
                path = re.sub(INDEX, "{i}", name)
                names[re.sub(r"\.(weight|bias)$", ".{leaf}", path)] = None
    return tuple(names)


VIT = (*TOKENS, *(module + ".{leaf}" for module in MODULES))


def patterns(separator: str, names: Iterable[str] = VIT, **renamed: str) -> dict[str, str]:
    """The table of a format that spells canonical paths with another separator and other names for some parts."""
    return {name: separator.join(renamed.get(part, part) for part in name.split(".")) for name in names}


@dataclass(frozen=True)
class Format:
    """One foreign format.

    Args:
        name: what `--from` and `--to` call it.
        what: one line for messages and help.
        kinds: the containers it comes in (`containers.KINDS`), the first being the one that is written.
        table: canonical name with {i} for a layer and {leaf} for weight or bias (`QKV` for a fused one) -> stored name.
        leaves: what it calls "weight" and "bias", and "norm.weight" and "norm.bias" of a LayerNorm.
        in_out: matrices are (in, out) rather than (out, in).
        conv: how the patch convolution lies: "OIHW", "HWIO", or "matrix", (in * height * width, out).
        heads: attention kernels keep their heads apart: query (hidden_size, heads, head_dim) and so on.
        config: what the format's code computes with, where its files do not say.
        image: mean, standard deviation and resampling of the images that its models expect.
        processor: keys of preprocessor_config.json that are not those of ViT's.
        wrappers: prefixes of a whole model inside a training checkpoint -> why it is taken; the first found wins.
        ignored: (pattern of a stored name, why leaving it out is right).
        refused: (pattern of a stored name, the family that it is a sign of).
        prefixes: a pattern of what may precede every name.
        aliases: (pattern of a stored name, what it stands for): older names of the same tensors.
        rename: {stored name: shape} -> {stored name: name of the table}, where a pattern cannot say it.
        stored_name: name of the table, head -> the name to write; the inverse of `rename`.
        family: the model_type of what it holds.
        families: the forms of the same name of other families.
        signs: patterns of stored names that all must be there for the family to be this one.
        gated: whether the MLPs are gated, where names do not tell.
        norm: what the first LayerNorm of a layer is called canonically; by it the format is known.
        marks: other names of that LayerNorm's weight in the first layer.
        infer: the shape of a canonical parameter, or None, and what is known -> more keys of the configuration.
        measure: a stored tensor of a name in the model, or None -> more keys of the configuration, which values tell.
        flat: how the names of tokens end that are stored as (1, hidden_size).
        zeros: canonical parameters that the format has no place for, and that are zero in what it holds.
        cls_position: how many position embeddings CLS has: 0 where that of CLS is part of its token.
        only: the heads of the family that it is the form of, if not of all; none where nothing is written in it.
        without: (pattern of a canonical name, why it can be left out): parts of stored tensors that change nothing.
        multiplied: how canonical names end -> the keys of the configuration by which the format's code multiplies them.
        pooler_feeds_head: the head reads the pooler's output, which no ViT head does.
        writes_pooler: the format's code of today has a place for the pooler.
    """

    name: str
    what: str
    kinds: tuple[str, ...]
    table: Mapping[str, str]
    leaves: Mapping[str, str] = field(default_factory=dict)
    in_out: bool = False
    conv: str = "OIHW"
    heads: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    prefixes: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    rename: Callable[[Mapping[str, Shape]], dict[str, str]] | None = None
    stored_name: Callable[[str, str | None], str] = lambda name, head: name
    family: str = "vit"
    families: tuple[Format, ...] = ()
    signs: tuple[str, ...] = ()
    gated: bool | None = None
    norm: str = "layernorm_before"
    marks: tuple[str, ...] = ()
    infer: Callable[[Callable[[str], Shape | None], Mapping[str, Any]], dict[str, Any]] = lambda shape, known: {}
    measure: Callable[[Callable[[str], np.ndarray | None]], dict[str, Any]] = lambda read: {}
    flat: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    cls_position: int = 1
    only: tuple[str | None, ...] | None = None
    without: tuple[tuple[str, str], ...] = ()
    multiplied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pooler_feeds_head: bool = False
    writes_pooler: bool = True

    # === Families ===

    @property
    def config_class(self) -> Any:
        """The configuration of the family."""
        return families.config_class(self.family)

    @property
    def mark(self) -> str:
        """What the format calls the parameter by which it is known: every Vision Transformer has it."""
        layers = f"{self.config_class.base_model_prefix}.{self.config_class.layers}"
        return self.foreign_name(f"{layers}.0.{self.norm}.weight") or ""

    def of(self, config: PreTrainedConfig, *heads: str | None) -> Format:
        """The form of a configuration's family, with a place for `heads`.

        Raises:
            CheckpointError: the format has none.
        """
        for each in (self, *self.families):
            has_place = each.only is None or all(head in each.only for head in heads)
            if each.family == config.model_type and each.gated in (None, config.gated_mlp) and has_place:
                return each
        kind = f"model_type {config.model_type!r}" + "".join(f" with {config.heads[head].name}" for head in heads)
        raise CheckpointError(f"{self.name} has no form for a checkpoint of {kind}.")

    def is_of(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether stored tensors of these shapes have all the signs of the family."""
        if self.gated is not None:
            widths = [shape for name, shape in shapes.items() if re.search(r"\.0\.mlp\.fc[12]\.weight$", name)]
            twice = len(widths) == 2 and {len(shape) for shape in widths} == {2} and widths[0][0] == 2 * widths[1][1]
            if twice != self.gated:
                return False
        if not self.cls_position:  # then the positions are those of a square grid alone
            positions = next((shape for name, shape in shapes.items() if name.endswith("pos_embed")), (0, 0, 0))
            if len(positions) != 3 or math.isqrt(positions[1]) ** 2 != positions[1]:
                return False
        return all(any(re.search(sign, name) for name in shapes) for sign in self.signs)

    # === Names ===

    def leaf(self, canonical: str, leaf: str) -> str:
        """What the format calls a "weight" or "bias" of a canonical module."""
        key = f"norm.{leaf}" if is_norm(f"{canonical.removesuffix('.{leaf}')}.{leaf}") else leaf
        return self.leaves.get(key, leaf)

    def foreign_name(self, name: str) -> str | None:
        """The table's name of a canonical parameter; None where the format has no place for it."""
        path, index = re.sub(INDEX, "{i}", name), re.search(INDEX, name)
        module, _, leaf = path.rpartition(".")
        fused = re.sub("(query|key|value)$", "{query,key,value}", module)
        fused = re.sub("[qkv]_proj$", "{q_proj,k_proj,v_proj}", fused)
        for key in (path, f"{fused}.{leaf}", f"{module}.{{leaf}}", f"{fused}.{{leaf}}"):
            if key in self.table:
                foreign = self.table[key].replace("{leaf}", self.leaf(module, leaf))
                return foreign.replace("{i}", index[0]) if index else foreign
        return None

    def canonical_names(self, foreign: str) -> tuple[str, ...]:
        """The canonical parameters that a stored tensor holds, in their order; none, if the table does not know it."""
        for key, regex, leaves in self._patterns:
            if match := regex.fullmatch(foreign):
                found = match.groupdict()
                name = key.replace("{i}", found.get("i") or "")
                if "leaf" in found:
                    name = name.replace("{leaf}", next(leaf for leaf in leaves if leaves[leaf] == found["leaf"]))
                parts = re.search(r"\{(.*)\}", name)
                return tuple(name.replace(parts[0], part) for part in parts[1].split(",")) if parts else (name,)
        return ()

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str], dict[str, str]]]:
        """The table's keys, what a stored name of each looks like, and what its leaves are called."""
        found = []
        for key, pattern in self.table.items():
            leaves = {leaf: self.leaf(key, leaf) for leaf in ("weight", "bias")}
            regex = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)")
            regex = regex.replace(r"\{leaf\}", f"(?P<leaf>{'|'.join(map(re.escape, leaves.values()))})")
            found.append((key, re.compile(regex), leaves))
        return found

    # === Layouts ===

    def foreign_shape(self, name: str, shape: Shape, config: PreTrainedConfig) -> Shape:
        """The shape in which the format stores a canonical parameter (its part of a fused one)."""
        if not self.cls_position and name.endswith(".position_embeddings"):
            return (1, shape[1] - 1, shape[2])
        if self.flat and name.endswith(self.flat):
            return (1, shape[-1])
        if len(shape) == 4:
            size_out, size_in, height, width = shape
            return {
                "OIHW": shape,
                "HWIO": (height, width, size_in, size_out),
                "matrix": (size_in * height * width, size_out),
            }[self.conv]
        if self.heads and ".attention." in name:
            heads, size = (config.num_attention_heads, config.head_dim), config.hidden_size
            if ".attention.attention." in name:
                return heads if len(shape) == 1 else (size, *heads)
            return shape if len(shape) == 1 else (*heads, size)
        return shape[::-1] if self.in_out and len(shape) == 2 and is_matrix(name) else shape

    def foreign_array(self, name: str, array: np.ndarray) -> np.ndarray:
        """A canonical parameter as `to_foreign` lays it out; tokens stay as they are."""
        if not self.cls_position and name.endswith(".position_embeddings"):
            return array[:, 1:]
        return self.to_foreign(array) if is_matrix(name) else array

    def canonical_array(self, name: str, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The inverse of `foreign_array`."""
        if not self.cls_position and name.endswith(".position_embeddings"):
            return np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)
        return self.to_canonical(array, shape) if is_matrix(name) else array.reshape(shape)

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """A view of a canonical array whose elements are in the order in which the format stores them.

        Its shape is the stored one but for attention kernels whose heads are apart: they are one matrix here.
        """
        if array.ndim == 4 and self.conv == "HWIO":
            return array.transpose(2, 3, 1, 0)
        if array.ndim == 4 and self.conv == "matrix":
            return array.reshape(len(array), -1).T
        return array.T if array.ndim == 2 and self.in_out else array

    def to_canonical(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """What the format stores as the canonical array, of the canonical `shape`; a view."""
        if len(shape) == 4 and self.conv == "HWIO":
            array = array.transpose(3, 2, 0, 1)
        elif len(shape) == 4 and self.conv == "matrix":
            array = array.T
        elif len(shape) == 2 and self.in_out:
            array = array.reshape(-1, shape[0]).T  # heads apart or not: the last axes are the output's
        return array.reshape(shape)


def unwrap(format: Format, names: Iterable[str], said: list[str] | None = None) -> dict[str, str]:
    """{stored name: its name in the model} of the tensors of the model that a training checkpoint holds, or is.

    Args:
        format: what it is.
        names: all that the file stores.
        said: told which model was taken, where there are several.
    """
    names = list(names)
    if format.rename is not None and not format.wrappers:
        return {name: name for name in names}
    roots = _roots(format, names)
    known = rf"(.*/)?({format.prefixes})*"
    if format.rename is not None:  # what a training calls its model may be any word
        known = rf"{known}|({'|'.join(map(re.escape, format.wrappers))})(\w+\.)+"
    found = sorted(root for root in roots if re.fullmatch(known, root, re.DOTALL)) or [""]
    order = [*format.wrappers, ""]  # every root starts with the last
    rank, _, root = min((next(i for i, w in enumerate(order) if root.startswith(w)), len(root), root) for root in found)
    wrapper = order[rank]
    rivals = [each for each in found if wrapper and each.startswith(wrapper)]
    if format.rename is not None and len(rivals) > 1:
        raise CheckpointError(
            f"The file holds several models ({summary(rivals)}): save the state dict of the one that is meant."
        )
    if wrapper and len(found) > 1 and said is not None:
        said.append(f"of the models in the file, {wrapper.rstrip('/')}: {format.wrappers[wrapper]}")
    inner = {}
    beside = format.rename is None or root == wrapper or root.endswith("backbone.")
    for name in names:
        if name.startswith(wrapper if beside else root):
            short = name.removeprefix(root)  # where it stays: the head of a training, beside its backbone
            short = re.sub(rf"^({format.prefixes})*", "", short.removeprefix(wrapper))
            for regex, standard in format.aliases:
                short = re.sub(regex, standard, short)
            inner[name] = short
    return inner


def _roots(format: Format, names: list[str]) -> set[str]:
    """What precedes the names of each model in a file."""
    if format.rename is None:
        return {name.removesuffix(m) for m in (format.mark, *format.marks) for name in names if name.endswith(m)}
    base = f"{format.config_class.base_model_prefix}."
    whole = {name.removesuffix(format.mark) for name in names if name.endswith(format.mark)}
    short = format.mark.removeprefix(base)
    bare = {name.removesuffix(short) for name in names if name.endswith(short)}
    for longer in format.marks:
        inner = {name.removesuffix(longer) for name in names if name.endswith(longer)}
        bare = bare - {root + longer.removesuffix(short) for root in inner} | inner
    return whole | (bare - {root + base for root in whole})


class Place(NamedTuple):
    """Where a canonical parameter lies: the stored tensor, and which part of how many along its first axis."""

    stored: str
    part: int
    parts: int


class Source:
    """A foreign file seen as a canonical checkpoint, read one tensor at a time.

    Args:
        store: the opened file.
        format: what it is.
        config: what the file says about itself, if it does.
        options: what the caller says, before everything else: num_attention_heads, hidden_act and the like.
        published_config: take activation and epsilon of the published configurations instead of the source code's.

    Raises:
        CheckpointError: not a plain Vision Transformer, or not a whole one; the tensors are named.
    """

    def __init__(
        self,
        store: Store,
        format: Format,
        config: PreTrainedConfig | None = None,
        options: Mapping[str, Any] | None = None,
        published_config: bool = False,
    ) -> None:
        self.store, self.format, self.where = store, format, shown(store.path)
        self.base = format.config_class.base_model_prefix + "."
        self.said: list[str] = []
        self.ignored: dict[str, str] = dict(store.others)
        self.places: dict[str, Place] = {}
        table_names = self._table_names()
        self._match(table_names)
        given = {key: value for key, value in (options or {}).items() if value is not None}
        self.config = self._configure(config, given, published_config)
        self.shapes = self._check()
        self._check_buffers(table_names)

    # === Names ===

    def _table_names(self) -> dict[str, str]:
        """{stored name: the table's name} of the model's tensors; the others are ignored with a reason, or refused."""
        format = self.format
        inner = unwrap(format, self.store.tensors, self.said)
        for name in self.store.tensors:
            if name not in inner:
                self.ignored[name] = "belongs to the training, not to the model that is converted"
        if format.rename is None:
            return inner
        renamed = format.rename({name: self.store.tensors[stored].shape for stored, name in inner.items()})
        return {stored: renamed[name] for stored, name in inner.items()}

    def _match(self, table_names: Mapping[str, str]) -> None:
        unknown, fights = [], []
        families: dict[str, list[str]] = {}
        for stored, name in table_names.items():
            for regex, family in self.format.refused:
                if re.search(regex, name):
                    families.setdefault(family, []).append(stored)
        if families:
            signs = "; ".join(f"{family} ({summary(names, 3)})" for family, names in families.items())
            raise CheckpointError(
                f"{self.where} is not a plain Vision Transformer: it has {signs}. Leaving these tensors out "
                "would change what the model computes, so it is not converted."
            )
        for stored, name in table_names.items():
            parts = self.format.canonical_names(name)
            reason = next((why for regex, why in self.format.ignored if re.search(regex, name)), None)
            if not parts and reason is not None:
                self.ignored[stored] = reason
            elif not parts:
                unknown.append(stored)
            for part, canonical in enumerate(parts):
                if without := next((why for regex, why in self.format.without if re.search(regex, canonical)), None):
                    self.ignored[f"{stored} ({part + 1} of {len(parts)})"] = without
                    continue
                if canonical in self.places:
                    fights.append(f"{self.places[canonical].stored} and {stored}")
                self.places[canonical] = Place(stored, part, len(parts))
        if fights:
            raise CheckpointError(
                f"{self.where}: two tensors fight for one name: {summary(sorted(set(fights)))}. Keep one of each."
            )
        if unknown:
            raise CheckpointError(
                f"{self.where} holds tensors that the format {self.format.name} does not know: "
                f"{summary(unknown)}. Is it another format, or another model than a plain Vision Transformer?"
            )
        if self.format.pooler_feeds_head and self.base + "pooler.dense.weight" in self.places:
            for name in [name for name in self.places if name.startswith("classifier.")]:
                self.ignored[self.places.pop(name).stored] = (
                    "this head reads the output of pre_logits, which became the pooler; the heads of the published "
                    "classes read the CLS token, so logits are pooler_output @ weight.T + bias"
                )

    # === Configuration ===

    def _shape(self, name: str) -> Shape | None:
        """The shape of the stored tensor that holds a canonical parameter, if there is one."""
        return self.store.tensors[self.places[name].stored].shape if name in self.places else None

    def _value(self, name: str) -> np.ndarray | None:
        """The tensor of a name in the model, if there is one."""
        names = unwrap(self.format, self.store.tensors)
        return next((self.store.read(stored) for stored, inner in names.items() if inner == name), None)

    def _need(self, name: str, axes: int = 1) -> Shape:
        """The shape of a stored tensor that there must be, with at least so many axes."""
        shape = self._shape(name)
        if shape is None and name == self.base + "embeddings.cls_token":
            raise CheckpointError(
                f"{self.where} is not a plain Vision Transformer: it has no class token "
                f"({self.format.foreign_name(name)}), so it pools by averaging, which no published ViT head does."
            )
        if shape is None:
            foreign = self.format.foreign_name(name)
            raise CheckpointError(f"{self.where} lacks {foreign}, which every {self.format.name} checkpoint has.")
        if len(shape) < axes:
            raise CheckpointError(
                f"{self.where}: {shown(self.places[name].stored)} is {shape}; expected {axes} axes or more."
            )
        return shape

    def _configure(self, config: PreTrainedConfig | None, given: dict[str, Any], published: bool) -> PreTrainedConfig:
        try:
            if config is None:
                config = self._infer(given, published)
            elif given:
                config = config.replace(**given)
            dtypes = {self.store.tensors[place.stored].dtype for place in self.places.values()}
            if not dtypes:
                raise CheckpointError(f"{self.where} holds no tensor of a {self.format.name} checkpoint.")
            if wrong := [d for d in dtypes if d not in DTYPES.values()]:
                raise CheckpointError(f"{self.where} stores parameters as {wrong[0]}; expected floats.")
            widest = max(dtypes, key=lambda dtype: (dtype.itemsize, dtype.str))
            return config.replace(dtype=widest.name, architectures=(self.architecture,))
        except ConfigError as error:
            raise CheckpointError(f"{self.where} fits no Vision Transformer: {error}") from None

    def _infer(self, given: dict[str, Any], published: bool) -> PreTrainedConfig:
        """The configuration that the shapes tell, completed by the format's conventions, all of which are said."""
        config: dict[str, Any] = dict(given)
        width = config["hidden_size"] = self._need(self.base + "embeddings.cls_token")[-1]
        layer = self.base + self.format.config_class.layers + "."
        layers = {int(match[0]) for name in self.places if (match := re.search(f"(?<=^{re.escape(layer)})\\d+", name))}
        depth = config["num_hidden_layers"] = max(layers, default=-1) + 1
        if depth > len(self.places):
            raise CheckpointError(f"{self.where} numbers a layer {depth - 1}, and has {len(self.places)} tensors.")
        if depth:
            first = f"{layer}0."
            gated = self._shape(first + "mlp.weights_in.bias")
            wide = [part for part in ("mlp.fc1.bias", "mlp.up_proj.weight") if first + part in self.places]
            part = wide[0] if wide else "intermediate.dense.bias"
            mlp_width = gated[0] // 2 if gated else self._need(first + part)[-1 if self.format.in_out else 0]
            config["intermediate_size"] = mlp_width
            config["qkv_bias"] = first + "attention.attention.query.bias" in self.places
            config["num_attention_heads"] = self._heads(given, width, depth, mlp_width)
        config["num_channels"], config["patch_size"] = self._patch(given)
        config["encoder_stride"] = config["patch_size"]
        if not self.format.config_class.grid_parameters:  # nothing that is stored depends on it
            config.setdefault("image_size", 224)
            self.said += [] if "image_size" in given else ["image_size 224: that of the published ones; it takes any"]
        patches = 0 if "image_size" in config else self._patches()
        if "image_size" not in config:
            side = math.isqrt(patches)
            if side * side != patches or side == 0:
                raise CheckpointError(
                    f"{self.where} has {patches} position embeddings besides the CLS token's, no square "
                    "grid. Say the size of the image: --image-size HEIGHTxWIDTH."
                )
            height, patch_width = (side * length for length in to_pair(config["patch_size"]))
            config["image_size"] = height if height == patch_width else (height, patch_width)
        if bias := self._shape(self.base + "pooler.dense.bias"):
            config["pooler_output_size"] = bias[0]
        if "id2label" not in config:
            heads = (self._shape(f"{name}bias") for name in self.format.config_class.label_parameters)
            labels = config["num_labels"] = next((shape[0] for shape in heads if shape), None) or None
            if labels and labels > budgets.LABELS:
                raise CheckpointError(
                    f"{self.where} has a head for {labels:,} labels; expected at most {budgets.LABELS:,}."
                )
        inferred = {**self.format.infer(self._shape, config), **self.format.measure(self._value)}
        for key, value in self.format.config.items():
            if key not in given and key not in inferred:
                if published and key in ("hidden_act", "layer_norm_eps"):
                    value = getattr(self.format.config_class(), key)
                config[key] = value
                origin = "the published configurations" if published else f"the code of {self.format.name}"
                self.said.append(f"{key} {value}: that of {origin}")
        config = {**inferred, **config}
        known = keys_of(self.format.config_class)
        return self.format.config_class(**{key: value for key, value in config.items() if key in known})

    def _patches(self) -> int:
        """How many patches the model was made for, by its positions, or else its table of relative ones."""
        bias = "relative_position_bias.relative_position_bias_table"
        tables = (self._shape(f"{self.base}encoder.{part}{bias}") for part in ("", "layer.0.attention.attention."))
        table = next((shape for shape in tables if shape), None)
        if table is None or self.base + "embeddings.position_embeddings" in self.places:
            tokens = self.format.cls_position + (self.base + "embeddings.distillation_token" in self.places)
            return self._need(self.base + "embeddings.position_embeddings", 2)[-2] - tokens
        side = math.isqrt(max(0, table[0] - 3))
        return ((side + 1) // 2) ** 2 if side % 2 and side * side == table[0] - 3 else table[0] - 3

    def _heads(self, given: Mapping[str, Any], width: int, depth: int, mlp_width: int) -> int:
        if "num_attention_heads" in given:
            return given["num_attention_heads"]
        if self.format.heads:
            return self._need(f"{self.base}encoder.layer.0.attention.attention.query.weight", 2)[1]
        for name, (*sizes, heads, mlp) in (self.format.config_class.variants or VARIANTS).items():
            if (*sizes, mlp) == (width, depth, mlp_width):
                self.said.append(f"num_attention_heads {heads}: that of ViT-{name}, whose other sizes these are")
                return heads
        if width % 64:
            raise CheckpointError(
                f"{self.where} does not tell its number of attention heads, and its width, {width}, is no "
                "multiple of 64, the usual width of a head. Say it: --num-attention-heads N."
            )
        self.said.append(f"num_attention_heads {width // 64}: heads are 64 wide by convention")
        return width // 64

    def _patch(self, given: Mapping[str, Any]) -> tuple[int, int | tuple[int, int]]:
        shape = self._need(f"{self.base}{self.format.config_class.patch_projection}.weight")
        channels = given.get("num_channels", 3)
        if self.format.conv != "matrix":
            if len(shape) != 4:
                raise CheckpointError(f"{self.where}: the patch projection has the shape {shape}; expected 4 axes.")
            _, channels, *size = shape if self.format.conv == "OIHW" else (shape[3], shape[2], shape[0], shape[1])
        elif "patch_size" in given:
            size = list(to_pair(given["patch_size"]))
        else:
            side = math.isqrt(shape[0] // channels)
            if side * side * channels != shape[0]:
                raise CheckpointError(
                    f"{self.where}: patches have {shape[0]} values, no square of {channels} channels. Say their "
                    "size: --patch-size HEIGHTxWIDTH, and --num-channels N."
                )
            self.said.append(f"patch_size {side}: the square that {channels} channels leave")
            size = [side, side]
        return channels, size[0] if size[0] == size[1] else (size[0], size[1])

    @property
    def head(self) -> str | None:
        """The family's head whose parameters are there, if any."""
        there = {name.partition(".")[0] for name in self.places}
        for head, (_, _, parts) in self.format.config_class.heads.items():
            names = samples(self.format.family)[0].parameter_shapes(head=head, **parts)
            own = {name.partition(".")[0] for name in names} - {self.base[:-1]}
            if own and own <= there:
                return head
        return None

    @property
    def architecture(self) -> str:
        """The published class of the checkpoint."""
        return self.format.config_class.heads[self.head].name

    # === Tensors ===

    def _check(self) -> dict[str, Shape]:
        """The canonical shapes, after comparing every stored one with what it must be."""
        config = self.config
        if self.head == "classifier" and (head := self._shape("classifier.bias")) and head != (config.num_labels,):
            raise CheckpointError(
                f"{self.where} has a head for {head[0]} labels, but {config.num_labels} label names were given."
            )
        if config.num_hidden_layers > len(self.places):
            raise CheckpointError(
                f"{self.where} is said to have {quoted(config.num_hidden_layers, 30)} layers, and has "
                f"{len(self.places)} tensors."
            )
        parts = {
            "add_pooling_layer": any(name.startswith(self.base + "pooler.") for name in self.places),
            "use_mask_token": self.base + "embeddings.mask_token" in self.places,
        }
        known = config.heads[None].parts
        expected = config.parameter_shapes(
            head=self.head, **{part: there for part, there in parts.items() if part in known}
        )
        absent = [name for name in expected if name not in self.places and 0 not in expected[name]]
        missing = [str(self.format.foreign_name(name)) for name in absent if name not in self.format.zeros]
        extra = [self.places[name].stored for name in self.places if name not in expected]
        wrong = []
        for name, place in self.places.items():
            if name in expected:
                shape = self.format.foreign_shape(name, expected[name], config)
                shape = (place.parts * shape[0], *shape[1:])
                if (stored := self.store.tensors[place.stored].shape) != shape:
                    wrong.append(f"{place.stored} is {stored}, expected {shape}")
        problems = {"missing": missing, "unexpected": extra, "mis-shaped": list(Counter(wrong))}
        if any(problems.values()):
            listed = "; ".join(f"{what}: {summary(names)}" for what, names in problems.items() if names)
            raise CheckpointError(
                f"{self.where} fits no Vision Transformer of {config.num_hidden_layers} layers, width "
                f"{config.hidden_size}, image {config.image_size} and patch {config.patch_size}. {listed}."
            )
        return expected

    def _check_buffers(self, table_names: Mapping[str, str]) -> None:
        """Compare integers that follow from the configuration with it."""
        known = {buffer.rpartition(".")[2] for buffer in self.config.buffers}
        for stored, name in table_names.items():
            if re.split(r"[./]", name)[-1] in known:
                self.config.check_buffer(stored, self.store.read(stored))

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype of a canonical parameter; that of the CLS token for one that is not stored."""
        name = name if name in self.places else self.base + "embeddings.cls_token"
        return self.store.tensors[self.places[name].stored].dtype

    def read_stored(self, name: str) -> np.ndarray:
        """What the file holds of a canonical parameter, in the file's own layout."""
        stored, part, parts = self.places[name]
        rows = self.store.tensors[stored].shape[0] // parts if parts > 1 else None
        return self.store.read(stored, None if rows is None else slice(part * rows, (part + 1) * rows))

    def part(self, name: str, whole: np.ndarray) -> np.ndarray:
        """What `read_stored` gives, of the whole stored tensor."""
        _, part, parts = self.places[name]
        rows = len(whole) // parts if parts > 1 else None
        return whole if rows is None else whole[part * rows : (part + 1) * rows]

    def read(self, name: str) -> np.ndarray:
        """A canonical parameter."""
        if name not in self.places:  # one of `zeros`
            return np.zeros(self.shapes[name], self.dtype(name))
        array = self.format.canonical_array(name, self.read_stored(name), self.shapes[name])
        for factor in self.factors(name):
            array = array * array.dtype.type(factor)
        return array

    def factors(self, name: str) -> list[float]:
        """By what the format's code multiplies a parameter, and `read` does, where that is not 1."""
        keys = next((keys for ending, keys in self.format.multiplied.items() if name.endswith(ending)), ())
        return [factor for key in keys if (factor := getattr(self.config, key)) != 1]


class Foreign(NamedTuple):
    """A tensor to write: its shape and dtype, and the canonical parameters that make it up."""

    shape: Shape
    dtype: np.dtype
    names: tuple[str, ...]


def foreign_tensors(
    format: Format, config: PreTrainedConfig, head: str | None, canonical: Mapping[str, tuple[Shape, np.dtype]]
) -> tuple[dict[str, Foreign], dict[str, str]]:
    """The tensors of a format that hold canonical ones, and the canonical ones for which it has no place, with why.

    Args:
        format: the target.
        config: the model's configuration.
        head: None, "classifier" or "decoder".
        canonical: {name: (shape, dtype)}, in order.
    """
    tensors: dict[str, Foreign] = {}
    dropped: dict[str, str] = {}
    for name, (shape, dtype) in canonical.items():
        foreign = format.foreign_name(name)
        if foreign is None or (".pooler." in name and not format.writes_pooler):
            dropped[name] = f"a {format.name} checkpoint has no place for it"
        elif format.pooler_feeds_head and head == "classifier" and ".pooler." in name:
            dropped[name] = f"the head of a {format.name} checkpoint would read it, and this one does not"
        else:
            foreign, part = format.stored_name(foreign, head), format.foreign_shape(name, shape, config)
            old = tensors.get(foreign, Foreign((0, *part[1:]), dtype, ()))
            tensors[foreign] = Foreign((old.shape[0] + part[0], *part[1:]), dtype, (*old.names, name))
    return tensors, dropped


def write_part(format: Format, foreign: Foreign, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """The array of a foreign tensor, from the canonical ones that make it up; of one alone, a view where that is it."""
    arrays = (format.foreign_array(name, read(name)) for name in foreign.names)
    first = next(arrays)
    if first.shape == foreign.shape:
        return first
    result = np.empty((len(foreign.names), *first.shape), foreign.dtype)
    for part, array in zip(result, chain([first], arrays), strict=True):
        fill(part, array)
    return result.reshape(foreign.shape)
