"""Fine-tuning, from JPEG files to changed weights: `python -m benchmarks finetune`.

Each call trains on the photographs of a folder once, from the files on: they are read, cropped, flipped and computed
with as the recipe of each library's example does, by as many threads or processes as there are CPUs.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit.measure import WorkerError

from .harness import Bar, Options, Ratio, bars, color, process, ratio, say, table, take_turns
from .peers import Peer, Runner, read_config

SETTINGS: dict[bool, dict[str, Any]] = {
    True: {"batch_size": 8, "images": 32, "seconds": 1.0},
    False: {"batch_size": 16, "images": 128, "seconds": 60.0},
}
"""What is measured unless the command line says otherwise, quick or not."""

EXPLANATION = """A call trains on {images} photographs of 640 x 480 pixels, from JPEG files to changed weights, in
batches of {batch_size}, with AdamW, random crops and flips: trivit as `vit train` does, transformers in PyTorch by its
`Trainer`, in TensorFlow by Keras's `fit` on a `tf.data` pipeline, in Flax by a loop of optax. "Data" is trivit's
pipeline alone, "step" its steps alone on batches that lie ready, in the same turns; their slower is what both together
cannot surpass."""

PIXELS = (640, 480)
CROP = 0.08  # the least part of a photograph, of the examples of transformers and torchvision
LEARNING_RATE = 1e-4
PARTS = ("whole", "data", "step")


class Cell(NamedTuple):
    """What was measured of a peer, or of a part of what trivit does."""

    speed: float  # images a second
    times: Ratio | None = None  # trivit's whole speed over this
    share: Ratio | None = None  # of trivit's whole: its speed over that of its slower part


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    settings = {**SETTINGS[options.quick], "seconds": options.seconds or SETTINGS[options.quick]["seconds"]}
    if options.batch_sizes:
        settings["batch_size"] = options.batch_sizes[-1]
    folder = photographs(options.folder / "photographs", settings["images"])
    found = measure(options, folder, **settings)
    rows: list[list[object]] = []
    for name, cell in found.items():
        share = "" if cell.share is None else cell.share
        rows.append([name, f"{cell.speed:#.3g}", "" if cell.times is None else cell.times, share])
    header = ["", "images a second", "trivit's speed over its", "its speed over its slower part's"]
    title = f"ViT-{options.variant}: fine-tuning from JPEG files, images a second"
    panel = [
        Bar(name, [(cell.speed, color("trivit" if name.startswith("trivit") else "peer"))], f"{cell.speed:#.3g}")
        for name, cell in found.items()
    ]
    picture = bars(options.plot("finetune"), title, {"images a second": panel})
    explanation = EXPLANATION.format(**settings)
    return "\n\n".join(["## Fine-tuning", explanation, table(header, rows), picture]).strip()


def photographs(folder: Path, count: int, classes: int = 4) -> Path:
    """Write JPEG files of smooth noise, a folder a class, unless they are there."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class {i % classes}" / f"{i:04}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
            coarse.resize(PIXELS, Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def measure(options: Options, folder: Path, batch_size: int, images: int, seconds: float) -> dict[str, Cell]:
    """The cells of trivit, of its parts, and of its peers; those of a framework take turns."""
    found: dict[str, Cell] = {}
    everyone = [peer for peer in options.present() if peer.library in ("trivit", "transformers")]
    for framework in ("pt", "tf", "flax"):
        group = [peer for peer in everyone if peer.framework == framework]
        runs = [(peer, part) for peer in group for part in (PARTS if peer.library == "trivit" else PARTS[:1])]
        if not runs:
            continue
        say(f"batch {batch_size}: {', '.join(peer.name for peer in group)}")
        with ExitStack() as stack:
            calls: dict[tuple[Peer, str], Callable[[], float]] = {}
            for peer, part in runs:
                worker = stack.enter_context(process(peer))
                arguments = {"checkpoint": options.checkpoint, "folder": str(folder), "batch_size": batch_size}
                try:
                    worker.prepare("benchmarks.finetune:" + (part if peer.library == "trivit" else "theirs"),
                                   framework=framework, **arguments)  # fmt: skip
                except (WorkerError, ValueError, ImportError, OSError) as error:
                    options.absent[f"{peer.name}, finetune: {error}"] = None
                    continue
                calls[peer, part] = partial(_once, worker)
            times = take_turns(calls, seconds, least=3, most=20, absent=options.absent)
        ours = next((time for (peer, part), time in times.items() if (peer.library, part) == ("trivit", "whole")), None)
        parts = [times[key] for key in times if key[0].library == "trivit" and key[1] != "whole"]
        for (peer, part), each in times.items():
            name = peer.name if part == "whole" else f"{peer.name}, {part} alone"
            speed = images / statistics.median(each)
            if peer.library == "trivit" and part == "whole":
                slower = [max(several) for several in zip(*parts, strict=True)]
                found[name] = Cell(speed, None, ratio(slower, each) if len(parts) == 2 else None)
            else:
                found[name] = Cell(speed, ratio(each, ours) if ours and part == "whole" else None)
    return found


def _once(worker: Any) -> float:
    (seconds,) = worker.run()
    return seconds


# === In the process: trivit ===


def _prepared(framework: str, checkpoint: str, folder: str, batch_size: int) -> tuple[Any, Any]:
    """(data, trainer) as `vit train` makes them."""
    import importlib
    import tempfile

    from vit.checkpoint import Checkpoint, head_of
    from vit.image_processing import ViTImageProcessor
    from vit.image_processing.processor import available_cpus
    from vit.training import Recipe
    from vit.training.data import Data
    from vit.training.examples import read
    from vit.training.run import load
    from vit.training.start import begin

    if not Path(checkpoint, "preprocessor_config.json").exists():
        ViTImageProcessor(size=read_config(checkpoint).image_size).save_pretrained(checkpoint)
    recipe = Recipe(batch_size=batch_size, crop_scale=CROP, learning_rate=LEARNING_RATE, label_smoothing=0.0)
    split = read(folder, 0.0, 0)
    with tempfile.TemporaryDirectory() as begun:
        begin(checkpoint, split.training, recipe).write(Path(begun))
        opened = Checkpoint(Path(begun))
        model = load(Path(begun), framework, recipe, head_of(opened) or "", opened.config)
        trainer = importlib.import_module(f"vit.{framework}.training").Trainer(model, recipe)
        processor = ViTImageProcessor.from_pretrained(begun)
    return Data(split.training, recipe, processor, model.config, available_cpus()), trainer


def _epoch(data: Any, number: int) -> Iterator[Any]:
    """The batches of one pass over the images; those that follow are not read."""
    size = data.recipe.batch_size
    steps = math.ceil(len(data.training) / size)
    batches = data.batches({"next_index": number * steps * size})
    try:
        for _ in range(steps):
            yield next(batches)
    finally:
        batches.close()


def whole(framework: str, checkpoint: str, folder: str, batch_size: int) -> Runner:
    """Trains on all images once."""
    data, trainer = _prepared(framework, checkpoint, folder, batch_size)
    epochs, step = iter(range(10**6)), iter(range(10**9))

    def run() -> float:
        losses = [trainer.step(batch, next(step), LEARNING_RATE) for batch in _epoch(data, next(epochs))]
        return float(losses[-1])

    return run, [run(), run()]


def data(framework: str, checkpoint: str, folder: str, batch_size: int) -> Runner:
    """Reads all images once, into batches."""
    source, _ = _prepared(framework, checkpoint, folder, batch_size)
    epochs = iter(range(10**6))
    return lambda: len([None for _ in _epoch(source, next(epochs))]), 0


def step(framework: str, checkpoint: str, folder: str, batch_size: int) -> Runner:
    """Takes the steps of one pass over the images, with a batch that lies ready."""
    source, trainer = _prepared(framework, checkpoint, folder, batch_size)
    batches = list(_epoch(source, 0))

    def run() -> float:
        return float([trainer.step(batch, i, LEARNING_RATE) for i, batch in enumerate(batches)][-1])

    return run, [run(), run()]


# === In the process: transformers ===


def theirs(framework: str, checkpoint: str, folder: str, batch_size: int) -> Runner:
    """Trains on all images once, as transformers' users do."""
    paths = sorted(Path(folder).rglob("*.jpg"))
    names = sorted({path.parent.name for path in paths})
    labels = [names.index(path.parent.name) for path in paths]
    run = {"pt": _theirs_pt, "tf": _theirs_tf, "flax": _theirs_flax}[framework](
        checkpoint, [str(path) for path in paths], labels, len(names), batch_size
    )
    return run, [run(), run()]


def example(path: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """(3, size, size) float32 of a random part of a photograph: RandomResizedCrop, flip and Normalize on Pillow."""
    from PIL import Image

    from vit.training.augment import random_crop_box

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=random_crop_box(*image.size, CROP, rng))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def _theirs_pt(
    checkpoint: str, paths: list[str], labels: list[int], classes: int, batch_size: int
) -> Callable[[], float]:
    import tempfile

    import torch
    from transformers import Trainer, TrainingArguments, ViTForImageClassification

    class Photographs(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> dict[str, Any]:
            rng = np.random.default_rng(int(torch.randint(2**31, ()).item()))
            return {"pixel_values": torch.from_numpy(example(paths[index], size, rng)), "labels": labels[index]}

    size = read_config(checkpoint).image_size
    model = ViTForImageClassification.from_pretrained(checkpoint, num_labels=classes, ignore_mismatched_sizes=True)
    folder = tempfile.mkdtemp()
    arguments = TrainingArguments(
        folder, num_train_epochs=1, per_device_train_batch_size=batch_size, learning_rate=LEARNING_RATE,
        dataloader_num_workers=os.cpu_count() or 1, save_strategy="no", report_to=[], remove_unused_columns=False,
        disable_tqdm=True, logging_strategy="no", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Photographs())
    return lambda: trainer.train().training_loss


def _theirs_tf(
    checkpoint: str, paths: list[str], labels: list[int], classes: int, batch_size: int
) -> Callable[[], float]:
    import tensorflow as tf
    import tf_keras
    from transformers import TFViTForImageClassification

    size = read_config(checkpoint).image_size
    model = TFViTForImageClassification.from_pretrained(
        checkpoint, from_pt=True, num_labels=classes, ignore_mismatched_sizes=True
    )
    model.compile(tf_keras.optimizers.AdamW(LEARNING_RATE, weight_decay=0.05))

    def load(path: Any, label: Any) -> Any:
        data = tf.io.read_file(path)
        box = tf.zeros((1, 0, 4))
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data), box, area_range=(CROP, 1.0), aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        image = tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], extent[:2]], 0), channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (size, size)))
        return {"pixel_values": tf.transpose((image / 255 - 0.5) / 0.5, (2, 0, 1)), "labels": label}

    data = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths))
    data = data.map(load, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)
    return lambda: model.fit(data, epochs=1, verbose=0).history["loss"][-1]


def _theirs_flax(
    checkpoint: str, paths: list[str], labels: list[int], classes: int, batch_size: int
) -> Callable[[], float]:
    from concurrent.futures import ThreadPoolExecutor

    import jax
    import optax
    from transformers import FlaxViTForImageClassification

    size = read_config(checkpoint).image_size
    model = FlaxViTForImageClassification.from_pretrained(checkpoint, num_labels=classes, ignore_mismatched_sizes=True)
    optimizer, rng = optax.adamw(LEARNING_RATE, weight_decay=0.05), np.random.default_rng(0)

    def loss_of(params: Any, pixel_values: Any, labels: Any, key: Any) -> Any:
        logits = model(pixel_values, params=params, dropout_rng=key, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, moments: Any, pixel_values: Any, labels: Any, key: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, pixel_values, labels, key)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    state = [model.params, optimizer.init(model.params)]
    pool = ThreadPoolExecutor(os.cpu_count())

    def run() -> float:
        order = rng.permutation(len(paths))
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

        def read(part: np.ndarray) -> list[Any]:
            return [pool.submit(example, paths[i], size, np.random.default_rng(rng.integers(2**31))) for i in part]

        waiting = read(parts[0])
        for n, part in enumerate(parts):
            following = read(parts[n + 1]) if n + 1 < len(parts) else []  # the next is read while this is computed with
            pixel_values = np.stack([each.result() for each in waiting])
            *state[:], loss = update(*state, pixel_values, np.array(labels)[part], jax.random.key(n))
            waiting = following
        return float(loss)

    return run


if __name__ == "__main__":
    from .__main__ import main

    main(["finetune"])
