"""Against transformers: the same numbers from the same checkpoint, in each framework, and checkpoints both ways.

The oracle is transformers 4.57.6, the last release with all three frameworks; it is used by tests alone. What it
recorded in tests/reference is checked too, and a transformers 5 that `make test` keeps beside it reads our files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
TRANSFORMERS_5 = Path(sys.prefix) / "transformers5"

CASES = {  # name: (head, configuration, arguments of the call, image size)
    "base": (None, {}, EVERYTHING, None),
    "interpolated": (None, {}, {"interpolate_pos_encoding": True}, (24, 36)),
    "pooler of another size": (None, {"pooler_output_size": 24, "pooler_act": "relu"}, {}, None),
    "no query, key and value biases": (None, {"qkv_bias": False, "hidden_act": "gelu_new"}, {}, None),
    "one channel, non-square": (None, {"num_channels": 1, "image_size": (16, 24)}, {}, None),
    "classification": ("classifier", {}, EVERYTHING, None),
    "single label": ("classifier", {}, {"labels": np.array([1, 4])}, None),
    "multi label": (
        "classifier",
        {"problem_type": "multi_label_classification"},
        {"labels": np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1]], np.float32)},
        None,
    ),
    "regression": ("classifier", {"num_labels": 1}, {"labels": np.array([0.3, -1.2], np.float32)}, None),
    "masked image": ("decoder", {}, EVERYTHING, None),
}
CLASSES = {None: "ViTModel", "classifier": "ViTForImageClassification", "decoder": "ViTForMaskedImageModeling"}


def inputs_of(config: vit.ViTConfig, head: str | None, call: dict[str, Any], size: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    height, width = size or vit.config.to_pair(config.image_size)
    inputs = {"pixel_values": rng.standard_normal((2, config.num_channels, height, width), np.float32)}
    if head == "decoder":
        inputs["bool_masked_pos"] = rng.random((2, config.num_patches)) < 0.5
    return inputs | call


def compare(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Our output and theirs, name by name; what either computed, the other did."""
    expected = {name: value for name, value in expected.items() if value is not None}
    assert list(actual) == list(expected)
    for name, value in expected.items():
        for ours, theirs in zip(*[v if isinstance(v, tuple) else (v,) for v in (actual[name], value)], strict=True):
            ours, theirs = (np.asarray(v.detach() if hasattr(v, "detach") else v) for v in (ours, theirs))
            assert ours.shape == theirs.shape, name
            assert np.abs(ours - theirs).max() <= tolerance, f"{name}: {np.abs(ours - theirs).max():.3g}"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_pytorch_equals_transformers_with_gradients(
    name: str, attention: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    import torch
    import transformers

    head, overrides, call, size = CASES[name]
    config = tiny_config(**overrides)
    random_checkpoint(tmp_path, config, head)
    inputs = inputs_of(config, head, call, size)
    inputs = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in inputs.items()}
    if attention == "sdpa":
        inputs.pop("output_attentions", None)  # transformers' sdpa gives none
    ours = getattr(vit, CLASSES[head]).from_pretrained(tmp_path, attn_implementation=attention)
    theirs = getattr(transformers, CLASSES[head]).from_pretrained(tmp_path, attn_implementation=attention).eval()
    outputs = ours(**inputs), theirs(**inputs)
    compare(*outputs)
    for output in outputs:
        value = output["loss"] if "loss" in output else sum(output[i].square().mean() for i in range(2 - bool(head)))
        value.backward()
    gradients = [
        {name: value.grad for name, value in sorted(model.named_parameters()) if value.grad is not None}
        for model in (ours, theirs)
    ]
    compare(*gradients)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (head, overrides, call, _) in CASES.items()
        # it has no masked image modelling, takes one int as a size, and interpolates with another cubic (a = -0.5)
        if head != "decoder" and "image_size" not in overrides and "interpolate_pos_encoding" not in call
    ],
)
def test_tensorflow_equals_transformers(name: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path):
    import tensorflow as tf
    import transformers

    head, overrides, call, size = CASES[name]
    config = tiny_config(**overrides)
    random_checkpoint(tmp_path, config, head)
    inputs = inputs_of(config, head, call, size)
    ours = getattr(vit, "TF" + CLASSES[head]).from_pretrained(tmp_path)
    theirs = getattr(transformers, "TF" + CLASSES[head]).from_pretrained(tmp_path, from_pt=True)
    if "labels" in call:  # its TensorFlow losses differ: one value a row, and none for several labels
        inputs.pop("labels")
    tensors = {key: tf.constant(value) if isinstance(value, np.ndarray) else value for key, value in inputs.items()}
    compare(ours(**tensors), theirs(**tensors))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (head, overrides, call, _) in CASES.items()
        # its Flax class takes no labels, interpolates nothing, and has a square grid and a pooler of one size
        if head != "decoder" and not {"labels", "interpolate_pos_encoding"} & call.keys()
        and not {"image_size", "pooler_output_size"} & overrides.keys()
    ],
)  # fmt: skip
def test_flax_equals_transformers(name: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path):
    import jax.numpy as jnp
    import transformers

    head, overrides, call, size = CASES[name]
    config = tiny_config(**overrides)
    random_checkpoint(tmp_path, config, head)
    inputs = inputs_of(config, head, call, size)
    ours = getattr(vit, "Flax" + CLASSES[head]).from_pretrained(tmp_path)
    theirs = getattr(transformers, "Flax" + CLASSES[head]).from_pretrained(tmp_path)
    inputs["pixel_values"] = jnp.asarray(inputs["pixel_values"])
    compare(ours(**inputs), theirs(**inputs))


# === Checkpoints both ways ===


@pytest.mark.parametrize("prefix", ["", "TF", "Flax"])
@pytest.mark.parametrize("head", CLASSES)
def test_transformers_reads_what_we_write(
    prefix: str, head: str | None, tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    import transformers

    random_checkpoint(tmp_path / "theirs", tiny_config(), head)
    expected = getattr(transformers, CLASSES[head]).from_pretrained(tmp_path / "theirs")
    getattr(vit, prefix + CLASSES[head]).from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    actual, info = getattr(transformers, CLASSES[head]).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert actual.config.to_dict() | {"_name_or_path": ""} == expected.config.to_dict() | {"_name_or_path": ""}
    for name, value in expected.state_dict().items():
        assert value.equal(actual.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "TF", "Flax"])
@pytest.mark.parametrize("head", CLASSES)
def test_we_read_what_transformers_writes(prefix: str, head: str | None, tiny_config: Any, tmp_path: Path):
    import torch
    import transformers

    options = {"use_mask_token": True} if head is None else {}
    config = transformers.ViTConfig(**tiny_config().to_dict())
    theirs = getattr(transformers, CLASSES[head])(config, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    ours = getattr(vit, prefix + CLASSES[head]).from_pretrained(tmp_path / "theirs", **options)
    ours.save_pretrained(tmp_path / "ours")
    back = vit.checkpoint.Checkpoint(tmp_path / "ours")
    assert back.tensors.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(back.read(name), value.numpy())


def test_transformers_5_reads_what_we_write_and_computes_the_same(
    tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    assert TRANSFORMERS_5.is_dir(), "make test installs transformers 5 there"
    random_checkpoint(tmp_path, tiny_config(), "classifier")
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
    np.save(tmp_path / "pixel_values.npy", pixel_values)
    code = """
import sys, json, numpy as np, torch, transformers
folder = sys.argv[1]
model, info = transformers.ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
with torch.no_grad():
    logits = model.eval()(torch.from_numpy(np.load(folder + "/pixel_values.npy"))).logits
np.save(folder + "/logits.npy", logits.numpy())
model.save_pretrained(folder + "/saved")
print(json.dumps([transformers.__version__, sorted(k for k, v in info.items() if v)]))
"""
    environment = {**os.environ, "PYTHONPATH": str(TRANSFORMERS_5)}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    version, problems = json.loads(run.stdout.strip().splitlines()[-1])
    assert version.startswith("5.")
    assert problems == []
    for folder in (tmp_path, tmp_path / "saved"):
        logits = vit.FlaxViTForImageClassification.from_pretrained(folder)(pixel_values).logits
        assert np.abs(np.asarray(logits) - np.load(tmp_path / "logits.npy")).max() <= 1e-5


# === What transformers recorded ===


@pytest.mark.parametrize("prefix", ["", "TF", "Flax"])
@pytest.mark.parametrize("folder", ["hf_torch", "hf_torch_bin", "hf_torch_sharded", "hf_torch_base", "hf_torch_mim"])
def test_recorded_outputs_are_reproduced(prefix: str, folder: str, reference: Path):
    import tensorflow as tf
    import torch

    record = np.load(reference / "expected.npz")
    expected = {key.partition("/")[2]: record[key] for key in record if key.startswith(folder + "/")}
    if not expected:  # the same weights in other files
        expected = {key.partition("/")[2]: record[key] for key in record if key.startswith("hf_torch/")}
    as_tensor = {"": torch.from_numpy, "TF": tf.constant, "Flax": np.asarray}[prefix]
    head = {"hf_torch_base": None, "hf_torch_mim": "decoder"}.get(folder, "classifier")
    model = getattr(vit, prefix + CLASSES[head]).from_pretrained(reference / folder)
    inputs: dict[str, Any] = {"pixel_values": as_tensor(record["pixel_values"])}
    if head == "decoder":
        inputs["bool_masked_pos"] = as_tensor(expected.pop("bool_masked_pos"))
    if head == "classifier":
        inputs["labels"] = as_tensor(np.array([1, 3]))
    output = model(**inputs, **EVERYTHING)
    if head is None:
        big = model(as_tensor(expected.pop("big_pixels")), interpolate_pos_encoding=True)
        output |= {f"big_{name}": value for name, value in big.items()}
    actual = {}
    for name, value in output.items():
        parts = {f"{name}_{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
        actual |= {key: np.asarray(part.detach() if prefix == "" else part) for key, part in parts.items()}
    assert expected
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        assert np.abs(actual[name] - value).max() <= 1e-5, name
