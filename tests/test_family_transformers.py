"""Every class of every family against transformers' own, live: outputs, losses, hidden states, attentions, gradients.

The rows are those of the equivalence suite, so a class without one is found there; every parameter is random. What
transformers computes otherwise is named here with why. See tests/test_transformers.py for plain ViT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit import families

from .equivalence import CASES, Case, inputs_of, model_class, named, objective, random_checkpoint, tiny_config
from .test_transformers import TRANSFORMERS_5

TOLERANCE = 1e-5  # of the largest value, or of 1
ROWS = {name: case for name, case in CASES.items() if case.config.get("model_type", "vit") != "vit"}
BEYOND = {
    # Grids other than square ones, and the bias of a window that is not square: both releases take them for square.
    **dict.fromkeys((name for name, case in ROWS.items() if isinstance(case.config.get("image_size"), tuple)),
                    "a square grid"),
    "deit masked image, interpolated": "a square grid",
    "deit with teacher, no labels at all": "labels",
}  # fmt: skip
"""Row -> what the classes of transformers take for granted."""
IN_4 = dict.fromkeys(("deit masked image, square", "deit masked image, interpolated to a square"),
                     "tokens [1:-1] for the patches [2:]")  # fmt: skip
"""Row -> what transformers 4 computes otherwise, and 5 as we do."""
OF_OTHERS = {"mae pre-training, larger": {"decoder_interpolation": "1d"}}
"""Row -> the keys with which we do as they do."""
EXTRA = {
    "deit masked image, square": Case("decoder", {"model_type": "deit"}, masked=True),
    "deit masked image, interpolated to a square": Case(
        "decoder", {"model_type": "deit"}, {"interpolate_pos_encoding": True}, (24, 24)
    ),
    "deit, interpolated from a square": Case(
        config={"model_type": "deit"}, call={"interpolate_pos_encoding": True}, image_size=(24, 16)
    ),
}
COMPARED = {name: case for name, case in {**ROWS, **EXTRA}.items() if name not in BEYOND}


def known(oracle: Any, case: Case, prefix: str = "") -> Any:
    """The class of transformers, if it has one."""
    model_type = case.config["model_type"]
    return getattr(oracle, prefix + families.config_class(model_type).heads[case.head].name, None)


def written(folder: Path, name: str, case: Case) -> dict[str, np.ndarray]:
    """Write a row's checkpoint; gives the tensors of its call."""
    config = tiny_config(**{**case.config, **OF_OTHERS.get(name, {})})
    random_checkpoint(folder, config, case.head, **case.parts)
    return inputs_of(case, config, "float32")


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """What is further apart than it may be."""
    assert found.keys() == expected.keys()
    wrong = {}
    for name, value in expected.items():
        actual = np.asarray(found[name])
        value = np.asarray(value).reshape(actual.shape)
        error = np.abs(actual - value).max(initial=0) / max(1, np.abs(value).max(initial=0))
        if not error <= TOLERANCE:
            wrong[name] = float(error)
    return wrong


def arrays(output: Any) -> dict[str, np.ndarray]:
    values = {name: value for name, value in output.items() if value is not None}
    return {name: np.asarray(v.detach() if hasattr(v, "detach") else v) for name, v in named(values).items()}


def test_every_class_of_every_family_is_compared():
    held = {(case.config["model_type"], case.head) for name, case in COMPARED.items()}
    assert held == {(kind, head) for kind in families.CONFIGS if kind != "vit"
                    for head in families.config_class(kind).heads}  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [name for name in COMPARED if name not in IN_4])
def test_pytorch_equals_transformers_with_gradients(name: str, attention: str, tmp_path: Path):
    import torch
    import transformers

    case = COMPARED[name]
    call = {key: value for key, value in case.call.items() if attention == "eager" or key != "output_attentions"}
    tensors = {key: torch.from_numpy(value) for key, value in written(tmp_path, name, case).items()}
    theirs_options = case.parts if case.config["model_type"] in ("deit", "beit") else {}
    outputs, gradients = [], []
    for cls, options in ((model_class("pt", case), case.parts), (known(transformers, case), theirs_options)):
        model = cls.from_pretrained(tmp_path, attn_implementation=attention, **options).eval()
        output = model(**tensors, **call)
        outputs.append(arrays(output))
        objective(
            output, torch.sum, torch.tensor if False else lambda a: torch.from_numpy(a.astype(np.float32))
        ).backward()
        gradients.append({key: value.grad.numpy() for key, value in model.named_parameters() if value.grad is not None})
    assert not differences(*outputs)
    assert not differences(*gradients)


NATIVE = [name for name, case in COMPARED.items() if case.image_size is None and name not in IN_4]


UNKNOWN = {  # to transformers' classes in TensorFlow, whose losses differ, and in Flax, which has none
    "tf": ("labels",),
    "flax": ("labels", "bool_masked_pos of dinov2"),
}


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_tensorflow_and_flax_equal_transformers_where_it_has_the_class(framework: str, tmp_path: Path):
    import transformers

    prefix, compared = families.PREFIXES[framework], []
    for i, name in enumerate(NATIVE):
        case = COMPARED[name]
        if known(transformers, case, prefix) is None or (framework == "tf" and case.config.get("norm_pix_loss")):
            continue  # its TensorFlow normalises pixels by another variance
        folder = tmp_path / str(i)
        tensors = written(folder, name, case)
        for unknown in UNKNOWN[framework]:
            tensor, _, of = unknown.partition(" of ")
            if of in ("", case.config["model_type"]):
                tensors.pop(tensor, None)
        options = {"from_pt": True} if framework == "tf" else {}
        theirs = known(transformers, case, prefix).from_pretrained(folder, **options, **case.parts)
        ours = model_class(framework, case).from_pretrained(folder, **case.parts)
        if framework == "tf":
            import tensorflow as tf

            given = {key: tf.constant(value) for key, value in tensors.items()}
        else:
            given = tensors
        expected = theirs(**given, **case.call)
        assert not differences(arrays(ours(**tensors, **case.call)), arrays(expected)), name
        compared.append((case.config["model_type"], case.head))
    wanted = {"tf": {("deit", None), ("deit", "classifier"), ("deit", "teacher"), ("vit_mae", None),
                     ("vit_mae", "decoder")},
              "flax": {("beit", None), ("beit", "classifier"), ("beit", "lm_head"), ("dinov2", None),
                       ("dinov2", "classifier")}}  # fmt: skip
    assert wanted[framework] <= {*compared}


SCRIPT = """
import json, sys, numpy as np, torch, transformers
from pathlib import Path
told = {"version": transformers.__version__}
for folder in map(Path, sys.argv[1:]):
    row = json.loads((folder / "row.json").read_text())
    cls = getattr(transformers, row["class"])
    model, info = cls.from_pretrained(folder, attn_implementation="eager", output_loading_info=True, **row["options"])
    told[folder.name] = sorted(key for key, value in info.items() if value)
    inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}
    output, found = model.eval()(**inputs, **row["call"]), {}
    for name, value in output.items():
        for i, part in enumerate(value if isinstance(value, tuple) else (value,)):
            found[f"{name}.{i}" if isinstance(value, tuple) else name] = part.detach().numpy()
    np.savez(folder / "outputs.npz", **found)
    model.save_pretrained(folder / "saved")
print(json.dumps(told))
"""


@pytest.mark.parametrize("model_type", [model_type for model_type in families.CONFIGS if model_type != "vit"])
def test_transformers_5_reads_what_we_write_computes_the_same_and_is_read(model_type: str, tmp_path: Path):
    assert TRANSFORMERS_5.is_dir(), "make test installs transformers 5 there"
    rows = {name: case for name, case in COMPARED.items() if case.config["model_type"] == model_type}
    folders = {name: tmp_path / str(i) for i, name in enumerate(rows)}
    given = {}
    for name, folder in folders.items():
        case = rows[name]
        given[name] = written(folder, name, case)
        np.savez(folder / "inputs.npz", **given[name])
        row = {"class": case_name(case), "call": dict(case.call),
               "options": dict(case.parts) if model_type in ("deit", "beit") else {}}  # fmt: skip
        (folder / "row.json").write_text(json.dumps(row))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders.values())],
        env={**os.environ, "PYTHONPATH": str(TRANSFORMERS_5)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told.pop("version").startswith("5.")
    assert not any(told.values()), told
    for name, folder in folders.items():
        import torch

        case = rows[name]
        model = model_class("pt", case).from_pretrained(folder, **case.parts)
        output = model(**{key: torch.from_numpy(value) for key, value in given[name].items()}, **case.call)
        assert not differences(arrays(output), dict(np.load(folder / "outputs.npz"))), name
        again = model_class("pt", case).from_pretrained(folder / "saved", **case.parts)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items()), name


def case_name(case: Case) -> str:
    return families.config_class(case.config["model_type"]).heads[case.head].name
