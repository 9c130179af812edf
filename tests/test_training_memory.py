"""The memory of training: flat over epochs, and less of it where layers are recomputed."""

from __future__ import annotations

import json
import math
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit import checkpoint, families
from vit.errors import FRAMEWORKS
from vit.training import Recipe
from vit.training.examples import Examples
from vit.training.run import train

from .equivalence import random_checkpoint, tiny_config


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


def kept_flax(trainer: Any, batch: dict[str, np.ndarray], folder: Path) -> int:
    """What the forward pass leaves for the backward pass; XLA computes it twice on accelerators alone."""
    import jax
    from flax import nnx

    from vit.flax.training import loss_of

    graph, state = nnx.split(trainer.model)

    def loss(state: Any) -> Any:
        return loss_of(nnx.merge(graph, state), trainer.recipe, batch, nnx.Rngs(dropout=0))

    pulled = jax.eval_shape(lambda state: jax.vjp(loss, state)[1], state)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pulled))


@pytest.mark.parametrize("framework", ["pt", "flax"])
def test_gradient_checkpointing_holds_less(framework: str, tmp_path: Path) -> None:
    measure = {"pt": peak_pt, "flax": kept_flax}[framework]
    kept, recomputed = (measure(*trainer_of(framework, tmp_path / str(r), r), tmp_path) for r in (False, True))
    assert recomputed < 0.6 * kept, (kept, recomputed)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident size is read from Linux's /proc")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_memory_is_flat_over_epochs(framework: str, tmp_path: Path) -> None:
    """A step's batch is 0.8 MB, and an epoch has four, so that what is kept of each would be seen."""
    images = list(np.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), np.uint8))
    data = Examples(images, np.eye(2, dtype=np.float32)[np.arange(80) % 2], ("a", "b"))
    config = tiny_config(num_hidden_layers=1, image_size=64, patch_size=16)
    held: list[int] = []

    def note(row: dict[str, Any]) -> None:
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    recipe = Recipe(epochs=10, batch_size=16, validation=0.2, log_every=100, ema=0.9)
    train(data, config, tmp_path / "run", framework, recipe, report=note, workers=1)
    assert len(held) == 10
    early, late = np.median(held[2:5]), np.median(held[-3:])
    assert late - early < 8e6, [f"{each / 1e6:.1f}" for each in held]
