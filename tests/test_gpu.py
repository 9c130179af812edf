"""Every command on a GPU gives what it gives on the CPU. Skipped where no framework sees a GPU.

Each command is a process of its own, and so is the question whether there is a GPU: this process keeps JAX on the CPU.
`python -m benchmarks gpu` is the other half: models at full size, gradients, dtypes and speed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from vit import families
from vit.errors import installed_frameworks

from .served import process
from .tiny import HEADS, tiny_checkpoint

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "vit" / "demo"
OTHER_DEVICES = ("JAX_PLATFORMS", "XLA_FLAGS")  # what conftest.py sets for tests on the CPU
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OTHER_DEVICES} | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share it
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "NVIDIA_TF32_OVERRIDE": "0",  # float32 is float32
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # compiled sooner
}
SEES = {
    "pt": "import torch; print(torch.cuda.is_available())",
    "flax": "import jax; print(jax.default_backend() == 'gpu')",
    "tf": "import tensorflow as tf; print(bool(tf.config.list_physical_devices('GPU')))",
}


def sees(framework: str) -> bool:
    """Whether a framework has a GPU here; without a driver nobody is asked."""
    if not any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))):
        return False
    found = subprocess.run([sys.executable, "-c", SEES[framework]], env=ENVIRONMENT, capture_output=True, text=True)
    return found.stdout.split()[-1:] == ["True"]


FRAMEWORKS = [each for each in installed_frameworks() if sees(each)]
pytestmark = pytest.mark.skipif(not FRAMEWORKS, reason="no framework sees a GPU")
EACH = pytest.mark.parametrize("framework", FRAMEWORKS or ["none"])


def started(*arguments: Any) -> subprocess.Popen[str]:
    """A command as a process."""
    command = [sys.executable, "-m", "vit", *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def vit(*arguments: Any) -> str:
    """What a command prints, when it has ended well."""
    with started(*arguments) as process:
        out, error = process.communicate(timeout=300)
    assert process.returncode == 0, f"{process.args}\n{out[-2000:]}\n{error[-4000:]}"
    return out


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    """The demo's scans, one folder a digit."""
    folder = tmp_path_factory.mktemp("digits")
    for file in DIGITS.glob("digit-*.png"):
        place = folder / file.name.split("-")[1]
        place.mkdir(exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
    return folder


@EACH
def test_classify_embed_and_evaluate(framework: str, photos: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    for part in ("train", "val"):
        shutil.copytree(photos, split / part)
    found: dict[str, tuple[Any, ...]] = {}
    for device in ("gpu", "cpu"):
        of = ["-f", framework, "--device", device, "-q"]
        vit("classify", photos, "-k", 3, "-o", tmp_path / f"labels-{device}.jsonl", *of)
        vit("embed", photos, "-o", tmp_path / f"{device}.npy", *of)
        scores = json.loads(vit("evaluate", split, "-m", DIGITS, "--knn", 3, "--probe", "--json", *of))
        found[device] = rows(tmp_path / f"labels-{device}.jsonl"), np.load(tmp_path / f"{device}.npy"), scores
    for gpu, cpu in zip(found["gpu"][0], found["cpu"][0], strict=True):
        assert (gpu["path"], gpu["labels"]) == (cpu["path"], cpu["labels"])
        np.testing.assert_allclose(gpu["probabilities"], cpu["probabilities"], atol=1e-5)
    np.testing.assert_allclose(found["gpu"][1], found["cpu"][1], atol=1e-4)
    for name in ("top1", "top5", "loss", "calibration_error", "knn", "probe"):
        assert found["gpu"][2][name] == pytest.approx(found["cpu"][2][name], abs=1e-4), name


@EACH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_finds_the_same_digits(framework: str, dtype: str, photos: Path, tmp_path: Path) -> None:
    vit("classify", photos, "-o", tmp_path / "out.jsonl", "-f", framework, "--device", "gpu", "--dtype", dtype, "-q")
    right = [Path(row["path"]).parent.name == row["labels"][0] for row in rows(tmp_path / "out.jsonl")]
    assert sum(right) >= len(right) - 1


@EACH
def test_training_gives_the_losses_of_the_cpu_and_goes_on_elsewhere(
    framework: str, photos: Path, tmp_path: Path
) -> None:
    options = ["-f", framework, "-b", 9, "--epochs", 2, "--log-every", 1, "--flip", 0, "--crop-scale", 1, "-q"]
    losses = {}
    for device in ("gpu", "cpu"):
        vit("train", photos, "-o", tmp_path / device, "--from-scratch", "--device", device, *options)
        losses[device] = [row["loss"] for row in rows(tmp_path / device / "metrics.jsonl") if "loss" in row]
    assert len(losses["gpu"]) >= 4
    np.testing.assert_allclose(losses["gpu"], losses["cpu"], rtol=1e-3)
    run, other = tmp_path / "stopped", FRAMEWORKS[framework == FRAMEWORKS[0] and len(FRAMEWORKS) > 1]
    arguments = [photos, "-o", run, "--from-scratch", *options, "--epochs", 100, "--evaluate-every", 100]
    with started("train", *arguments, "--device", "gpu") as process:
        while not (run / "metrics.jsonl").exists() or len(rows(run / "metrics.jsonl")) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    steps = len(rows(run / "metrics.jsonl"))
    vit("train", photos, "-o", run, "--resume", "-f", other, "--device", "gpu", "-q")
    loss = [row["loss"] for row in rows(run / "metrics.jsonl") if "loss" in row]
    assert len(loss) > steps
    assert loss[-1] < 0.7 < loss[0]


@EACH
@pytest.mark.parametrize(
    "recipe",
    [
        "--dtype mixed_bfloat16 --gradient-checkpointing --ema 0.9 --mixup 0.2 --cutmix 0.5 --randaugment 2 "
        "--erasing 0.3 --dropout 0.1",
        "--objective distillation --teacher {digits} --distillation soft",
        "--objective reconstruction --family vit_mae --variant Ti/16 --image-size 32 --preset mae",
        "--optimizer sgd --accumulate 3 --freeze-backbone --dtype float64",
    ],
)
def test_every_recipe_trains(framework: str, recipe: str, photos: Path, tmp_path: Path) -> None:
    options = recipe.format(digits=DIGITS).split()
    vit("train", photos, "-o", tmp_path / "run", "-f", framework, "--device", "gpu", "-b", 9, "--steps", 4,
        "--log-every", 1, *options, "-q")  # fmt: skip
    losses = [row["loss"] for row in rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert np.isfinite(losses).all()


@EACH
def test_verify_bench_and_attention(framework: str, photos: Path, tmp_path: Path) -> None:
    if FRAMEWORKS[1:]:
        both = [part for each in FRAMEWORKS for part in ("-f", each)]
        assert json.loads(vit("verify", DIGITS, *both, "--device", "gpu", "--json"))
    assert json.loads(vit("bench", "-m", DIGITS, "-f", framework, "--device", "gpu", "-b", 2, "--seconds", 0.1,
                          "--dtype", "bfloat16", "--json"))  # fmt: skip
    picture = next(DIGITS.glob("digit-*.png"))
    vit("attention", picture, "-m", DIGITS, "-f", framework, "--device", "gpu", "-o", tmp_path / "map.png", "-q")
    with Image.open(tmp_path / "map.png") as image:
        assert image.width > 100


@EACH
def test_the_server_gives_the_answers_of_classify(framework: str, photos: Path, tmp_path: Path) -> None:
    vit("classify", photos, "-o", tmp_path / "out.jsonl", "-f", framework, "--device", "cpu", "-q")
    expected = {row["path"]: row["labels"][0] for row in rows(tmp_path / "out.jsonl")}
    with process("-m", str(DIGITS), "-f", framework, "--device", "gpu", **ENVIRONMENT, JAX_PLATFORMS="") as server:
        for file, label in expected.items():
            answer = httpx.post(f"{server.url}/classify", content=Path(file).read_bytes(), timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["results"][0]["labels"][0] == label


@EACH
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_every_class_of_every_family(framework: str, model_type: str, tmp_path: Path) -> None:
    heads = [head for each, head in HEADS if each == model_type]
    for head in heads:
        tiny_checkpoint(tmp_path / str(head), model_type, head)
    script = f"""
import json
from pathlib import Path
import numpy as np
from vit.config import to_pair
from vit.inference import Forward, device_name
worst = {{}}
for folder in sorted(Path({str(tmp_path)!r}).iterdir()):
    cpu, gpu = (Forward(folder, {framework!r}, device=device) for device in ("cpu", device_name("gpu", {framework!r})))
    shape = (2, cpu.config.num_channels, *to_pair(cpu.config.image_size))
    worst[folder.name] = 0.0
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal(shape, np.float32)
        found = gpu(x)
        for name, value in cpu(x).items():
            off = np.abs(np.asarray(found[name], np.float64) - value).max() / max(np.abs(value).max(), 1e-9)
            worst[folder.name] = max(worst[folder.name], float(off))
print(json.dumps(worst))
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == len(heads)
    assert {name: off for name, off in worst.items() if not off <= 2e-5} == {}
