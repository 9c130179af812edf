"""How much faster than transformers' image processors ours are: python -m benchmarks.preprocess [--torchvision FOLDER]

Every ratio is of medians of one run in which the two alternate. transformers' fast processor needs torchvision; where
that does not import (beside a CPU build of torch), FOLDER may hold an unpacked wheel whose Python part is then used, as
tests/fixtures/image_processing/freeze_fast.py does. Without it the same torch operators stand in for that processor.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import skimage.data
import torch
from PIL import Image

from vit.image_processing import ViTImageProcessor, ViTImageProcessorFast


def import_torchvision(folder: str | None) -> bool:
    """Whether transformers' fast processor can be used; with `folder`, by torchvision's Python part."""
    if folder:
        sys.path.insert(0, folder)
        for name in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
            sys.modules[name] = types.ModuleType(name)  # they describe the compiled operators
    try:
        return importlib.util.find_spec("torchvision") is not None and bool(__import__("torchvision"))
    except RuntimeError:
        return False


def fast_by_its_operators(images: list[Any], return_tensors: str) -> torch.Tensor:
    """What transformers' fast processor runs for `images` of one or several sizes, without its bookkeeping."""
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    shapes = {tensor.shape for tensor in tensors}
    groups = [torch.stack([tensor for tensor in tensors if tensor.shape == shape]) for shape in shapes]
    smooth = {"mode": "bilinear", "antialias": True, "align_corners": False}
    resized = torch.stack([image for g in groups for image in torch.nn.functional.interpolate(g, (224, 224), **smooth)])
    mean = std = torch.full((3, 1, 1), 127.5)
    return torch.stack(list(resized.to(torch.float32).sub(mean).div_(std)))


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """(median seconds of ours, of theirs), taking turns for about `seconds`, at least three times."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), theirs()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for run, found in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchvision", metavar="FOLDER", help="an unpacked torchvision wheel")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line (default: %(default)s)")
    parser.add_argument("--cpus", type=int, help="use so many CPUs (default: all)")
    arguments = parser.parse_args()
    if arguments.cpus:  # steadier where the machine is shared, and what a worker of a data loader has
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cpus])
        torch.set_num_threads(arguments.cpus)
    warnings.simplefilter("ignore")
    has_torchvision = import_torchvision(arguments.torchvision)
    import transformers  # which looks for torchvision once

    theirs_fast = transformers.ViTImageProcessorFast() if has_torchvision else fast_by_its_operators
    print(
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs ({platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}), load {os.getloadavg()[0]:.1f}; Pillow {PIL.__version__}, torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads, transformers {transformers.__version__}; its "
        "fast processor: " + ("itself" if has_torchvision else "the same torch operators")
    )
    photo = Image.fromarray(np.ascontiguousarray(skimage.data.retina()))
    print(f"{'':66}{'ours ms':>10}{'theirs ms':>11}{'ratio':>8}")
    for size in ((640, 480), (4000, 3000)):
        image = photo.resize(size)
        array = np.asarray(image)
        for name, processor, theirs in (
            ("ViTImageProcessor", ViTImageProcessor(), transformers.ViTImageProcessor()),
            ("ViTImageProcessorFast", ViTImageProcessorFast(), theirs_fast),
        ):
            mixed = [image.crop((0, 0, size[0] - i, size[1])) for i in range(32)]
            batches = {"one Pillow image": [image], "one array": [array], "32 Pillow images": [image] * 32}
            batches |= {"32 arrays": [array] * 32, "32 Pillow images of 32 sizes": mixed}
            for kind, batch in batches.items():
                tensors = "pt" if name.endswith("Fast") else "np"
                mine, other = ratio(
                    lambda p=processor, b=batch, t=tensors: p(b, return_tensors=t),  # type: ignore[misc]
                    lambda p=theirs, b=batch, t=tensors: p(b, return_tensors=t),  # type: ignore[misc]
                    arguments.seconds,
                )
                label = f"{name}, {kind}, {size[0]} x {size[1]}"
                print(f"{label:66}{mine * 1e3:10.2f}{other * 1e3:11.2f}{other / mine:8.2f}", flush=True)


if __name__ == "__main__":
    main()
