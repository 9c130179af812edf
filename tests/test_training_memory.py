"""The memory of training: the same after every epoch, and less of it where layers are recomputed."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTImageProcessor, checkpoint, families
from vit.errors import FRAMEWORKS
from vit.training import Recipe
from vit.training.run import train

from .equivalence import random_checkpoint, tiny_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(16):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return folder


def held(framework: str) -> int:
    """Bytes that Python's allocator and the arrays of a framework take."""
    gc.collect()
    if framework == "flax":
        arrays: Any = sys.modules["jax"].live_arrays()
    else:
        torch, tf = sys.modules.get("torch"), sys.modules.get("tensorflow")
        kinds = (torch.Tensor,) if framework == "pt" and torch else (tf.Variable, tf.Tensor) if tf else ()
        arrays = [each for each in gc.get_objects() if isinstance(each, kinds)]
    sizes = (int(np.prod(each.shape)) * np.dtype(str(getattr(each.dtype, "name", each.dtype)).removeprefix("torch."))
             .itemsize for each in arrays if each.shape is not None)  # fmt: skip
    return tracemalloc.get_traced_memory()[0] + sum(sizes)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_memory_is_flat_over_epochs(framework: str, photos: Path, tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "model", tiny_config(hidden_size=64, intermediate_size=256), "classifier")
    ViTImageProcessor(size=16).save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    recipe = Recipe(batch_size=4, epochs=12, ema=0.5, mixup=0.2, validation=0.25, log_every=100)
    after: list[int] = []
    tracemalloc.start()
    try:
        train(photos, tmp_path / "model", tmp_path / "run", framework, recipe, workers=1,
              report=lambda row: after.append(held(framework)))  # fmt: skip
    finally:
        tracemalloc.stop()
    assert len(after) == 12
    assert max(after[-3:]) - min(after[2:5]) < weights / 2  # and nothing that is kept of each epoch


# === Gradient checkpointing ===


def trainer_of(framework: str, folder: Path, recomputes: bool) -> tuple[Any, dict[str, np.ndarray]]:
    """A trainer of a deep and narrow model, and a batch for it."""
    config = tiny_config(num_hidden_layers=8, hidden_size=32, num_labels=2, image_size=64, patch_size=8,
                         encoder_stride=8, problem_type="single_label_classification")  # fmt: skip
    random_checkpoint(folder, config, "classifier")
    model = families.model_class(framework, "vit", "classifier").from_pretrained(folder)
    recipe = Recipe(batch_size=16, gradient_checkpointing=recomputes)
    rng = np.random.default_rng(0)
    batch = {"pixel_values": rng.standard_normal((16, 3, 64, 64), np.float32), "targets": np.eye(2)[[0, 1] * 8]}
    batch["targets"] = batch["targets"].astype(np.float32)
    assert checkpoint.read_config(folder).num_hidden_layers == 8
    return import_module(f"vit.{framework}.training").Trainer(model, recipe), batch


def peak_pt(trainer: Any, batch: dict[str, np.ndarray], folder: Path) -> int:
    """The most bytes that a second step holds, beyond those that it begins with."""
    from torch.profiler import ProfilerActivity, profile

    trainer.step(batch, 0, 1e-3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer.step(batch, 1, 1e-3)
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((each["ts"], each["args"]["Bytes"]) for each in events if each["name"] == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())


def peak_flax(trainer: Any, batch: dict[str, np.ndarray], folder: Path) -> int:
    """What the compiler gives a step beside its arguments and results."""
    import jax

    arguments = (trainer.state, trainer.averages, batch, 1e-3, jax.random.key(0), 0.0)
    return int(trainer._compiled.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize("framework", ["pt", "flax"])
def test_gradient_checkpointing_holds_less(framework: str, tmp_path: Path) -> None:
    measure = {"pt": peak_pt, "flax": peak_flax}[framework]
    kept, recomputed = (measure(*trainer_of(framework, tmp_path / str(r), r), tmp_path) for r in (False, True))
    assert recomputed < 0.6 * kept, (kept, recomputed)
