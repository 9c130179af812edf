"""PyTorch's own program, a .pt2 file: run without this package, compiled, or lowered further."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..budgets import JSON
from ..errors import CheckpointError, quoted, shown
from .formats import NAME, Artifact, Job, parse


def write(job: Job, path: Path) -> None:
    """Write what `torch.export.export` makes of the model."""
    import torch

    from ..pt.export import exported

    text = json.dumps(job.metadata(torch=torch.__version__))
    torch.export.save(exported(job), path, extra_files={NAME: text})


def load(path: Path) -> Artifact:
    """Load it with `torch.export.load`, on the CPU; what is more than tensors and a graph of `CALLS` is refused.

    PyTorch runs what a file says in more places than that: pickles, functions of any name, formulas of sizes that SymPy
    evaluates as Python, and guards that are Python.
    """
    metadata = _checked(path)
    import torch

    program = torch.export.load(path).module(check_guards=False)  # which would be Python made of the file

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = program(
            **{name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in inputs.items()}
        )
        return {name: value.numpy() for name, value in found.items()}

    return Artifact("torch", path, metadata, run)


# === What a file may hold ===

FILES = re.compile(
    r"(\.data/(version|serialization_id)|version|byteorder|archive_(format|version)|models/model\.json|extra/trivit"
    r"|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|data/sample_inputs/model\.pt)"
)
"""What lies in an archive."""

ATEN = """
    _assert_tensor_metadata abs add addcmul addmm alias amax arange argmax argsort bmm cat clamp clone
    constant_pad_nd contiguous conv2d convolution copy cos cumsum detach detach_ div dropout eq erf exp expand
    flatten floor floor_divide full full_like gather ge gelu gt index_select layer_norm le lift_fresh_copy linear
    log lt mT masked_fill matmul mean meshgrid minimum maximum mm mul native_layer_norm ne neg numpy_T ones
    ones_like pad permute pow promote_types reciprocal relu remainder repeat reshape roll round rsqrt rsub
    scaled_dot_product_attention select selu sigmoid sign silu sin slice softmax split sqrt squeeze stack sub sum
    sym_size t tanh to transpose unbind unflatten unsqueeze view where zeros zeros_like __and__ __or__ bitwise_and
    bitwise_not bitwise_or logical_and logical_not logical_or
"""
SYMBOLIC = "sym_min sym_max sym_not sym_float sym_int"
OPERATOR = "add sub mul floordiv mod neg pow truediv getitem eq ne lt le gt ge and_ or_"
CALLS = {"torch.ops.aten.": {*ATEN.split()}, "torch.": {*SYMBOLIC.split()}, "_operator.": {*OPERATOR.split()}}
"""Beginning of a name -> the functions that a graph may call."""

WORDS = "Symbol Integer Add Mul Max Min Mod PythonMod FloorDiv Pow True False positive integer nonnegative"
FORMULA = {*WORDS.split()}
"""The words of a formula of sizes."""
TREE = {"builtins.dict", "builtins.list", "builtins.tuple", None}
"""What inputs and outputs may be made of."""
KINDS = """
    tensor tensors int ints float floats bool bools none string name expr sym_int sym_ints sym_float sym_floats sym_bool
    sym_bools scalar_type device layout memory_format optional_tensors
"""
ARGUMENTS = {f"as_{kind}" for kind in KINDS.split()}
"""The kinds of arguments."""


def _checked(path: Path) -> dict[str, Any]:
    """The metadata of a file that holds nothing but what `write` puts in one.

    Raises:
        CheckpointError: another file, or one that holds more.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if len(names) < len(archive.namelist()) or "models/model.json" not in names:
                raise CheckpointError(f"{shown(path)} is no exported program of PyTorch.")
            for inner, name in names.items():
                if inner.startswith("data/aotinductor/"):
                    raise CheckpointError(f"{shown(path)} holds machine code; nothing of it was loaded.")
                if not FILES.fullmatch(inner):
                    what = "pickled weights" if inner.endswith(".pt") else quoted(inner, 60)
                    raise CheckpointError(f"{shown(path)} holds {what}; nothing of it was loaded.")
                if inner.endswith(".json") and archive.getinfo(name).file_size > JSON:
                    raise CheckpointError(f"{shown(path)} has more than {JSON:,} bytes of {inner}.")
                if inner.endswith("_config.json"):  # of weights and constants, which says how each is stored
                    entries = json.loads(archive.read(name))["config"].values()
                    if any(each["use_pickle"] for each in entries):
                        raise CheckpointError(f"{shown(path)} holds pickled objects; nothing of it was loaded.")
                elif inner.endswith(".json"):
                    _check_graph(json.loads(archive.read(name)), "", path)
                elif inner.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            extra = names.get(f"extra/{NAME}")
            if extra is not None and archive.getinfo(extra).file_size > JSON:
                raise CheckpointError(f"{shown(path)} says more about itself than {JSON:,} bytes hold.")
            text = None if extra is None else archive.read(extra)
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{shown(path)} is no exported program of PyTorch: {shown(error)}.") from None
    return parse(text, path)


def _check_graph(value: Any, key: str, path: Path) -> None:
    """Refuse whatever in the JSON of a graph is evaluated or called when it is loaded or run, but for what is known.

    Raises:
        CheckpointError: there is more.
    """
    if isinstance(value, dict):
        for each, inner in value.items():
            if each.startswith("as_") and each not in ARGUMENTS:
                raise _refused(path, each)
            if each != "metadata":  # of nodes: from where in the source they come
                _check_graph(inner, each, path)
    elif isinstance(value, list):
        if key == "guards_code" and value:
            raise _refused(path, value[0])
        for inner in value:
            _check_graph(inner, key, path)
    elif isinstance(value, str) and not _is_known(key, value):
        raise _refused(path, value)


def _is_known(key: str, text: str) -> bool:
    if key == "target":
        begin = next((each for each in CALLS if text.startswith(each)), "")
        name, _, overload = text[len(begin) :].partition(".")
        return name in CALLS.get(begin, ()) and re.fullmatch(r"\w*", overload, re.ASCII) is not None
    if key == "expr_str":
        plain = re.sub(r"'[a-z]+\d+'", "", text)
        return (
            re.fullmatch(r"[\w(),= -]*", plain, re.ASCII) is not None
            and set(re.findall(r"[^\W\d]\w*", plain)) <= FORMULA
        )
    if key in ("in_spec", "out_spec"):
        return set(_types(json.loads(text))) <= TREE
    return re.fullmatch(r"[\w.+]*", text, re.ASCII) is not None


def _types(tree: Any) -> Iterator[Any]:
    """The types that the description of nested inputs or outputs names."""
    if isinstance(tree, list):
        for each in tree:
            yield from _types(each)
    elif isinstance(tree, dict):
        yield tree["type"]
        yield from _types(tree["children_spec"])


def _refused(path: Path, what: Any) -> CheckpointError:
    return CheckpointError(f"{shown(path)} holds {quoted(what, 60)}, which no export has; nothing of it was loaded.")
