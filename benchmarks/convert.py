"""How fast a large .npz converts, beside copying the file, and what memory it takes.

Run: python -m benchmarks.convert [--variant L/16] [--rounds 5] [--folder DIR]
Copying and converting alternate, both up to the disk (fsync), each from memory that was just in use, and medians are
compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import conversion
from conversion.containers import write_npz
from conversion.rules import foreign_tensors
from vit.families.vit import ViTConfig
from vit.measure import peak_memory


def make(path: Path, variant: str) -> None:
    """A random checkpoint of the original JAX code's layout."""
    config = ViTConfig.variant(variant, num_labels=1000)
    shapes = config.parameter_shapes(head="classifier")
    canonical = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    tensors, _ = foreign_tensors(conversion.FORMATS["google"], config, "classifier", canonical)
    rng = np.random.default_rng(0)
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    write_npz(path, specs, lambda name: rng.standard_normal(specs[name][0], np.float32))


def copy(source: Path, target: Path) -> None:
    """Copy a file, up to the disk."""
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def touch_memory(size: int) -> None:
    """Use as many bytes and free them, in another process.

    A virtual machine may hand its free memory back to the host after a second or two, and fetching it again takes ten
    times as long as writing to it: without this, what is measured is how long ago the memory was freed.
    """
    subprocess.run([sys.executable, "-c", f"b'1' * {size}"], check=True)


def seconds(call: Callable[[], object], target: Path, size: int) -> float:
    """The time of a call that makes `target`, of about `size` bytes, which is removed afterwards."""
    touch_memory(size * 5 // 4)
    begin = time.perf_counter()
    call()
    taken = time.perf_counter() - begin
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return taken


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="L/16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where the files go; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, target = Path(folder, "source.npz"), Path(folder, "target")
        make(source, arguments.variant)
        calls: dict[str, Callable[[], object]] = {
            "copy": lambda: copy(source, target),
            "convert, not compared": lambda: conversion.convert(source, target, verify=False),
            "convert and compare": lambda: conversion.convert(source, target),
        }
        size = source.stat().st_size
        for call in calls.values():
            seconds(call, target, size)  # the first round warms the page cache
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                times[name].append(seconds(call, target, size))
    print(f"{arguments.variant}, {size / 1e9:.2f} GB, {arguments.rounds} rounds: median (best), speed beside copying")
    for name, taken in times.items():
        pairs = [(statistics.median(taken), statistics.median(times["copy"])), (min(taken), min(times["copy"]))]
        (middle, ratio), (best, best_ratio) = ((mine, copying / mine) for mine, copying in pairs)
        print(
            f"{name:<22} {middle:5.2f} s ({best:.2f})  {size / middle / 1e6:5.0f} MB/s  {ratio:.2f} ({best_ratio:.2f})"
        )
    print(f"peak memory of the process {peak_memory() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
