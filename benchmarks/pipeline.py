"""How near whole folders come to the slower half of the work: `python -m benchmarks.pipeline`.

The halves are reading (JPEGs of 640 x 480, decoded and preprocessed by as many threads as there are CPUs) and the model
(on batches that lie ready in memory). `vit.predict` does both on the same cores. All take turns in one process.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit import ViTConfig, ViTImageProcessor, predict
from vit.config import to_pair
from vit.inference import Forward
from vit.measure import Worker
from vit.pipeline import CALLS, available_cpus, default_batch_size

from .harness import ENVIRONMENT, random_checkpoint, ratio, say, table, take_turns

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina")
TWO = "model, two batches at a time"
RUNS = ("reading", "model", TWO, "together")


def write_images(folder: Path, count: int) -> None:
    """JPEGs of 640 x 480 in quality 90: cuttings of scikit-image's photographs, no two the same."""
    import skimage.data
    from PIL import Image

    photos = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % len(photos)]
        height = int(min(photo.height, photo.width * 3 / 4) * rng.uniform(0.6, 1))
        width = height * 4 // 3
        left, top = (int(rng.integers(space + 1)) for space in (photo.width - width, photo.height - height))
        cutting = photo.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.BICUBIC)
        cutting.save(folder / f"{i:05}.jpg", quality=90)


@dataclass(frozen=True)
class Work:
    """What is done with `count` images."""

    files: Sequence[Path]
    count: int
    forward: Forward
    processor: ViTImageProcessor
    batch_size: int

    def reading(self) -> None:
        """Decode and preprocess, and throw away."""
        with ThreadPoolExecutor(available_cpus()) as pool:
            deque(pool.map(lambda file: self.processor(file, return_tensors="np", threads=1), self._files()), maxlen=0)

    def model(self, calls: int = 1) -> None:
        """Compute batches that are there, so many at a time."""
        config = self.forward.config
        shape = (self.batch_size, config.num_channels, *to_pair(config.image_size))
        pixel_values = np.random.default_rng(0).standard_normal(shape, np.float32)
        with ThreadPoolExecutor(calls) as pool:
            list(pool.map(self.forward, [pixel_values] * (self.count // self.batch_size)))

    def together(self) -> None:
        """`vit.predict`."""
        found = predict(self._files(), self.forward, processor=self.processor, batch_size=self.batch_size)
        failed = sum(prediction.error is not None for prediction in found)
        assert not failed

    def _files(self) -> list[Path]:
        return list(itertools.islice(itertools.cycle(self.files), self.count))


_work: Work | None = None


def prepare(run: str, **options: Any) -> tuple[Callable[[], Any], int]:
    """One of `RUNS`, ready in a worker's process, and the batch size; the first call loads what all of them need."""
    global _work
    if _work is None:
        forward = Forward(options["checkpoint"], options["framework"])
        batch_size = options["batch_size"] or default_batch_size(forward)
        files = sorted(Path(options["images"]).iterdir())
        count = max(options["count"] // batch_size, 1) * batch_size
        _work = Work(files, count, forward, ViTImageProcessor(), batch_size)
    calls = (_work.reading, _work.model, partial(_work.model, CALLS), _work.together)
    return dict(zip(RUNS, calls, strict=True))[run], _work.batch_size


def rates(options: dict[str, Any], rounds: int, count: int) -> tuple[int, dict[str, list[float]]]:
    """The batch size, and images/s of each run in each round."""
    with Worker(environment=ENVIRONMENT) as worker:
        batch_size = 0

        def one(run: str) -> float:
            nonlocal batch_size
            batch_size = worker.prepare("benchmarks.pipeline:prepare", run=run, **options, count=count)
            time.sleep(0.05)
            return max(count // batch_size, 1) * batch_size / worker.run()[0]

        found = take_turns({run: partial(one, run) for run in RUNS}, 0.0, least=rounds, most=rounds)
    return batch_size, found


def peak(options: dict[str, Any], count: int) -> float:
    """The most MiB that a process holds that runs `predict` over so many images."""
    with Worker(environment=ENVIRONMENT) as worker:
        worker.prepare("benchmarks.pipeline:prepare", run="together", **options, count=count)
        worker.run()
        return worker.peak_memory() / 2**20


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("pt", "tf", "flax"), action="append", help="default: all three")
    parser.add_argument("--variant", default="Ti/16", help="of the model, with random weights (default: %(default)s)")
    parser.add_argument("--images", type=int, default=500, help="of each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="default: what vit.predict chooses")
    parser.add_argument("--memory", action="store_true", help="measure peak memory at 500 and 2,000 images instead")
    parser.add_argument("--quick", action="store_true", help="128 images, 2 rounds")
    args = parser.parse_args()
    count, rounds = (128, 2) if args.quick else (args.images, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        images, checkpoint = Path(folder, "images"), Path(folder, "checkpoint")
        images.mkdir()
        write_images(images, 500)
        random_checkpoint(checkpoint, ViTConfig.variant(args.variant, num_labels=1000))
        rows = []
        for framework in args.framework or ("pt", "tf", "flax"):
            options = {"framework": framework, "checkpoint": str(checkpoint), "images": str(images),
                       "batch_size": args.batch_size}  # fmt: skip
            say(f"{framework} {args.variant}")
            if args.memory:
                few, many = (peak(options, each) for each in (500, 2000))
                rows.append([framework, f"{few:.0f}", f"{many:.0f}", f"{many / few:.3f}"])
                continue
            batch_size, found = rates(options, rounds, count)
            half = min(RUNS[:2], key=lambda run: statistics.median(found[run]))
            medians = [f"{statistics.median(found[run]):.1f}" for run in RUNS]
            best = TWO if half == "model" else half
            shares = (ratio(found["together"], found[name]) for name in (half, best))
            rows.append([framework, batch_size, *medians, *shares])
    if args.memory:
        header = ["", "500 images, MiB", "2,000 images, MiB", "ratio"]
    else:
        header = ["", "batch", *(f"{run}, images/s" for run in RUNS), "of the slower half",
                  "of that half, two batches at a time"]  # fmt: skip
    print(f"ViT-{args.variant}, {count} images a run, {rounds} rounds, {available_cpus()} CPUs\n")
    print(table(header, rows))


if __name__ == "__main__":
    main()
