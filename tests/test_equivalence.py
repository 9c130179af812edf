"""The proof: PyTorch, TensorFlow and Flax compute one function, from one checkpoint.

Every parameter is random, biases, LayerNorm, tokens and heads included. In float64 with eager attention the three agree
to 1e-10, outputs and gradients: no rounding to hide behind. In float32, with the attention users get, to 1e-5.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit import families

from .equivalence import CASES, INTERPOLATED, RUN, Results, inputs_of, run_pt


def compare(results: dict[str, tuple[Results, Results]], tolerance: float) -> None:
    """Every output and every gradient of every framework, against PyTorch's."""
    outputs, gradients = results["pt"]
    for framework, (other_outputs, other_gradients) in results.items():
        assert list(other_outputs) == list(outputs), framework
        for name, expected in outputs.items():
            actual = other_outputs[name]
            assert actual.shape == expected.shape, f"{framework} {name}"
            same = actual.dtype == expected.dtype or {actual.dtype.kind, expected.dtype.kind} == {"i"}  # ids: their own
            assert same, f"{framework} {name}"
            difference = np.abs(actual - expected).max(initial=0)
            assert difference <= tolerance, f"{framework} {name}: {difference:.3g}"
        for name in gradients.keys() | other_gradients.keys():
            actual, expected = other_gradients.get(name, 0.0), gradients.get(name, 0.0)  # a missing one is zero
            difference = np.abs(actual - expected).max(initial=0)
            assert difference <= tolerance, f"{framework} gradient of {name}: {difference:.3g}"


def test_every_class_of_every_family_is_in_the_table():
    held = {(case.config.get("model_type", "vit"), case.head) for case in CASES.values()}
    assert held == {(kind, head) for kind in families.CONFIGS for head in families.config_class(kind).heads}


@pytest.mark.parametrize("name", CASES)
def test_frameworks_agree_in_float64_to_1e_10(name: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path):
    import jax

    case = CASES[name]
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config, case.head, **case.parts, dtype="float64")
    inputs = inputs_of(case, config, "float64")
    results = {}
    for framework, run in RUN.items():
        with jax.enable_x64(True) if framework == "flax" else nullcontext():
            results[framework] = run(tmp_path, case, inputs, attn_implementation="eager")
    compare(results, 1e-10)
    gradients = results["pt"][1]
    assert all(np.abs(value).max() > 0 for value in gradients.values() if value.size), (
        "a gradient of zero compares nothing"
    )


@pytest.mark.parametrize("name", CASES)
def test_frameworks_agree_in_float32_to_1e_5(name: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path):
    case = CASES[name]
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config, case.head, **case.parts)
    inputs = inputs_of(case, config, "float32")
    compare({framework: run(tmp_path, case, inputs) for framework, run in RUN.items()}, 1e-5)


@pytest.mark.parametrize("framework", ["pt", "flax"])  # TensorFlow has one way for both
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_sdpa_equals_eager_in_float64_to_1e_10(
    model_type: str, framework: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    import jax

    case = CASES["base"]._replace(config={"model_type": model_type}, call={})
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config, dtype="float64")
    inputs = inputs_of(case, config, "float64")
    with jax.enable_x64(True):
        eager, sdpa = (RUN[framework](tmp_path, case, inputs, attn_implementation=name) for name in ("eager", "sdpa"))
    for ours, theirs in zip(eager, sdpa, strict=True):
        for name in ours:
            difference = np.abs(ours[name] - theirs[name]).max()
            assert difference <= 1e-10, f"{name}: {difference:.3g}"


# The largest error of an output of order one: 2 layers round some 20 times to 8 (bfloat16) or 11 (float16) bits.
HALF_PRECISION = {"bfloat16": 8e-2, "float16": 1e-2}


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_half_precision_of_every_framework_is_near_the_float32_result(
    model_type: str, dtype: str, attention: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    flag = {} if model_type.startswith("dinov2") else INTERPOLATED
    call = {"output_hidden_states": True, **flag}
    case = CASES["base"]._replace(config={"model_type": model_type}, call=call, image_size=(20, 24))
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config)
    inputs = inputs_of(case, config, "float32")
    expected, _ = run_pt(tmp_path, case, inputs, attn_implementation=attention)
    for framework, run in RUN.items():
        outputs, gradients = run(tmp_path, case, inputs, dtype=dtype, attn_implementation=attention)
        for name, value in expected.items():
            difference = np.abs(outputs[name].astype(np.float32) - value).max()
            assert difference <= HALF_PRECISION[dtype], f"{framework} {name}: {difference:.3g}"
            assert difference > 0 or name in ("mask", "ids_restore"), f"{framework} {name}"
        assert all(np.isfinite(value.astype(np.float32)).all() for value in gradients.values()), framework
