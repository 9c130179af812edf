"""A conversion holds two tensors at a time, never the checkpoint: a process's peak, as the system measures it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import conversion
from vit.families.vit import ViTConfig

LARGEST = 3072 * 768 * 4  # bytes of an MLP matrix; the whole checkpoint is eleven times as much
SLACK = 6_000_000  # Python's own growth, and the buffers of files

CODE = """
import re, sys, conversion
# Not ru_maxrss: a process inherits that of the one that started it, which has loaded three frameworks.
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
source, small, target, format, ending = sys.argv[1:]
conversion.convert(small, target + "-small" + ending, target_format=format)  # imports what the format needs
before = peak()
conversion.convert(source, target + ending, target_format=format)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory, random_checkpoint) -> Path:
    """A checkpoint of 100 MB and one of a few kB in several formats, heads 64 wide."""
    folder = tmp_path_factory.mktemp("sources")
    random_checkpoint(folder / "hf", ViTConfig(num_hidden_layers=3, num_labels=10), "classifier")
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64, "image_size": 32}
    random_checkpoint(folder / "hf-small", ViTConfig(num_hidden_layers=1, num_labels=10, **sizes), "classifier")
    for format_, ending in (("google", ".npz"), ("timm", ".pth"), ("transformers-tf", ""), ("transformers-flax", "")):
        for size in ("", "-small"):
            conversion.convert(folder / f"hf{size}", folder / f"{format_}{size}{ending}", target_format=format_)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
@pytest.mark.parametrize(
    ("source", "target", "tensors"),
    [("google.npz", "hf", 4), ("timm.pth", "hf", 4), ("transformers-flax", "hf", 4), ("hf", "google", 4),
     # The allocator keeps what was the copy in another order, the fused projection of each thread, or HDF5's own.
     ("hf", "transformers-flax", 5), ("google.npz", "torchvision", 6), ("transformers-tf", "hf", 6),
     ("hf", "transformers-tf", 6)],
)  # fmt: skip
def test_a_conversion_holds_a_tensor_and_its_source_in_each_of_two_threads(source, target, tensors, sources, tmp_path):
    name, dot, ending = source.partition(".")
    small = sources / f"{name}-small{dot}{ending}"
    suffix = {"google": ".npz", "torchvision": ".safetensors"}.get(target, "")
    arguments = [str(sources / source), str(small), str(tmp_path / "out"), target, suffix]
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < tensors * LARGEST + SLACK
