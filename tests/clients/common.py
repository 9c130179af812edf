"""What the tests of the users' libraries share: a small checkpoint, a folder of images, which libraries there are."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..tiny import tiny_checkpoint

CLIENTS = ("accelerate", "captum", "datasets", "keras_tuner", "lightning", "onnx", "onnxruntime", "onnxscript",
           "peft", "tensorboard", "torchao")  # fmt: skip
"""What `pip install 'trivit[clients]'` brings."""

LABELS = ("blue", "green", "red")
SIZE = 16
BATCH = 4


def needs(*names: str) -> Any:
    """A mark: skipped where one of the libraries is absent. `make test` installs them all, and a test sees to that."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"without {', '.join(absent)}: pip install 'trivit[clients]'")


def small_checkpoint(folder: Path, head: str | None = "classifier", **overrides: Any) -> Path:
    """A checkpoint with its image processor, all of whose parameters are random."""
    labels = {"id2label": dict(enumerate(LABELS)), "num_labels": len(LABELS)} if head == "classifier" else {}
    tiny_checkpoint(folder, "vit", head, **{"image_size": SIZE, **labels, **overrides})
    size = {"height": SIZE, "width": SIZE}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_rescale": True, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def image_folder(folder: Path, count: int = 6) -> Path:
    """`count` images of each label, each in the label's folder: noise with much of one colour."""
    rng = np.random.default_rng(0)
    for label, channel in zip(LABELS, (2, 1, 0), strict=True):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 180
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def pixels(batch: int = BATCH, seed: int = 0) -> np.ndarray:
    """(batch, 3, 16, 16) random values."""
    return np.random.default_rng(seed).standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)


def targets(batch: int = BATCH) -> np.ndarray:
    """(batch,) labels."""
    return np.arange(batch) % len(LABELS)


def run(*command: Any, cwd: Path, **environment: str) -> str:
    """What a new process printed that ran Python with these arguments, without a network; it has to succeed."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
