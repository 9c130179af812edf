"""How much faster than transformers' image processors ours are: python -m benchmarks.preprocess [--torchvision FOLDER]

The median time of a call, in one run: each is called for a while in turn. The first call of a turn is not timed; it
leaves memory and caches as the next finds them, and torch's threads of another call, which wait actively, come to rest.

"floor" is the resize alone, as transformers' processor calls it: Pillow's, of each image in turn, after the conversion
of an array; or torch's, of the images of one size, which one tensor holds already. "its ratio" is that of a processor
which does nothing else, with as many threads as transformers' has.

transformers' fast processor needs torchvision; where that does not import (beside a CPU build of torch), FOLDER may
hold an unpacked wheel whose Python part is then used, as tests/fixtures/image_processing/freeze_fast.py does. Without
it the same torch operators stand in for that processor.
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
from functools import partial
from typing import Any

import numpy as np
import PIL
import skimage.data
import torch
from PIL import Image

from vit.image_processing import ViTImageProcessor, ViTImageProcessorFast

SIZES = {"640x480": (640, 480), "4000x3000": (4000, 3000)}
PROCESSORS = {"ViTImageProcessor": ViTImageProcessor, "ViTImageProcessorFast": ViTImageProcessorFast}


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


SMOOTH = {"mode": "bilinear", "antialias": True, "align_corners": False}


def groups(images: list[Any]) -> list[torch.Tensor]:
    """The images of each size in one tensor (batch, channels, height, width), in the layout transformers gives them."""
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    tensors = [t if isinstance(i, Image.Image) else t.contiguous() for t, i in zip(tensors, images, strict=True)]
    return [torch.stack([t for t in tensors if t.shape == shape]) for shape in dict.fromkeys(t.shape for t in tensors)]


def fast_by_its_operators(images: list[Any], return_tensors: str) -> torch.Tensor:
    """What transformers' fast processor runs for `images` of one or several sizes, without its bookkeeping."""
    resized = [torch.nn.functional.interpolate(group, (224, 224), **SMOOTH) for group in groups(images)]
    together = torch.stack([image for group in resized for image in group])
    mean = std = torch.full((3, 1, 1), 127.5)
    return torch.stack(list(together.to(torch.float32).sub(mean).div_(std)))


def floor(name: str, images: list[Any]) -> Callable[[], Any]:
    """The resize alone of the slow or the fast processor."""
    if name.endswith("Fast"):
        stacked = groups(images)
        return lambda: [torch.nn.functional.interpolate(group, (224, 224), **SMOOTH) for group in stacked]
    to_pillow = Image.fromarray if isinstance(images[0], np.ndarray) else lambda image: image
    return lambda: [to_pillow(image).resize((224, 224), Image.Resampling.BILINEAR) for image in images]


def medians(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """The median seconds of each call, in turns of a call that is not timed and then some that are, at least three."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for call, found in zip(calls, times, strict=True):
            call()
            stop = time.perf_counter() + 0.05
            while True:
                start = time.perf_counter()
                call()
                found.append(time.perf_counter() - start)
                if time.perf_counter() > stop:
                    break
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchvision", metavar="FOLDER", help="an unpacked torchvision wheel")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line (default: %(default)s)")
    parser.add_argument("--cpus", type=int, help="use so many CPUs (default: all)")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES), help="of the photographs")
    parser.add_argument("--processor", nargs="+", choices=PROCESSORS, default=list(PROCESSORS))
    arguments = parser.parse_args()
    if arguments.cpus:  # steadier where the machine is shared, and what a worker of a data loader has
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cpus])
        torch.set_num_threads(arguments.cpus)
    warnings.simplefilter("ignore")
    has_torchvision = import_torchvision(arguments.torchvision)
    import transformers  # which looks for torchvision once

    theirs = {
        "ViTImageProcessor": transformers.ViTImageProcessor(),
        "ViTImageProcessorFast": transformers.ViTImageProcessorFast() if has_torchvision else fast_by_its_operators,
    }
    print(
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs ({platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}), load {os.getloadavg()[0]:.1f}; Pillow {PIL.__version__}, torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads, transformers {transformers.__version__}; its "
        "fast processor: " + ("itself" if has_torchvision else "the same torch operators")
    )
    photo = Image.fromarray(np.ascontiguousarray(skimage.data.retina()))
    print(f"{'':66}{'ours ms':>10}{'theirs ms':>11}{'ratio':>8}{'floor ms':>10}{'its ratio':>11}")
    for size in arguments.size:
        image = photo.resize(SIZES[size])
        array = np.asarray(image)
        mixed = [image.crop((0, 0, image.width - i, image.height)) for i in range(32)]
        batches = {"one Pillow image": [image], "one array": [array], "32 Pillow images": [image] * 32}
        batches |= {"32 arrays": [array] * 32, "32 Pillow images of 32 sizes": mixed}
        for name in arguments.processor:
            returned = {"return_tensors": "pt" if name.endswith("Fast") else "np"}
            for kind, batch in batches.items():
                calls = [partial(PROCESSORS[name](), batch, **returned), partial(theirs[name], batch, **returned)]
                mine, other, least = medians([*calls, floor(name, batch)], arguments.seconds)
                print(
                    f"{f'{name}, {kind}, {size}':66}{mine * 1e3:10.2f}{other * 1e3:11.2f}{other / mine:8.2f}"
                    f"{least * 1e3:10.2f}{other / least:11.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
