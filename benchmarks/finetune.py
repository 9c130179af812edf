"""Fine-tuning, from JPEG files to changed weights: `python -m benchmarks finetune`.

Whoever is measured trains without end in a thread of its process, as its users do, and stands still between turns; a
turn is some steps more.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from PIL import Image

from vit import ViTImageProcessor
from vit.cli.train import large_pages
from vit.image_processing.processor import available_cpus
from vit.measure import WorkerError
from vit.training import Recipe
from vit.training.augment import random_crop_box
from vit.training.data import Data
from vit.training.examples import read
from vit.training.run import train
from vit.training.start import begin

from .harness import Bar, Options, Ratio, bars, color, process, random_checkpoint, ratio, say, table, take_turns
from .peers import Peer, Runner, read_config
from .pipeline import write_images

BATCH_SIZE, IMAGES, ROUNDS, SECONDS = 8, 128, 3, 12.0
STEPS = {"Ti/16": 6}
"""Steps of a turn, at sizes whose steps are short; one at the others. At these the parts are measured, too."""

EXPLANATION = """Photographs of 640 x 480 pixels, from JPEG files to weights that AdamW has changed, in batches of
{batch_size} and float32. Everybody cuts random parts out (8% of the area at least), mirrors half of them and goes
through a long epoch; a turn is {steps}, the last with its loss read. trivit is the whole of `vit train`, which asks
Linux for large pages of memory. transformers in PyTorch is the `Trainer` as its example calls it, whose default is no
worker to read beside it, and with a worker a CPU; in TensorFlow Keras' `fit` with the example's optimizer, fed by
`tf.data`, which decodes no more of a file than is cut out; in Flax a loop of optax with a worker a CPU. All but the
last clip the gradients, as their examples do. "Data alone" are trivit's batches without the steps, "steps alone" is
`vit train` on a batch that lies ready. Both are computed by the same cores, so that the whole is slower than the slower
one by the work of the other."""

CROP, LEARNING_RATE, WEIGHT_DECAY, CLASSES = 0.08, 5e-5, 0.05, 4
ENDLESS = 10**7  # steps


class Row(NamedTuple):
    """Somebody to measure.

    Attributes:
        peer: who.
        how: what is said behind the name.
        function: of this module, which prepares it.
        workers: that read images beside it, where it lets choose.
    """

    peer: Peer
    how: str
    function: str
    workers: int | None = None

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.peer.name}{self.how}"

    @property
    def variables(self) -> dict[str, str]:
        """Those of its process, which `vit train` sets itself."""
        return large_pages() if self.peer.library == "trivit" else {}


class Cell(NamedTuple):
    """What was measured of a row."""

    speed: float  # images a second
    faster: Ratio | None = None  # trivit's speed over this
    share: Ratio | None = None  # this over the slower of its parts

    @property
    def text(self) -> str:
        """The speed, as the table has it."""
        return f"{self.speed:,.0f}" if self.speed >= 100 else f"{self.speed:#.3g}"


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    batch_size = (options.batch_sizes or [BATCH_SIZE])[-1]
    steps = STEPS.get(options.variant, 1)
    found = measure(options, batch_size, steps, 1 if options.quick else ROUNDS, options.seconds or SECONDS)
    rows = [[name, cell.text, cell.faster or "", cell.share or ""] for name, cell in found.items()]
    header = ["", "images a second", "trivit's speed over it", "its speed over its slower part's"]
    panel = [Bar(name, [(cell.speed, color(name.split()[0]))], cell.text) for name, cell in found.items()
             if "data alone" not in name]  # fmt: skip
    title = f"ViT-{options.variant}: fine-tuning from JPEG files"
    picture = bars(options.plot("finetune"), title, {"images a second": panel})
    explanation = EXPLANATION.format(batch_size=batch_size, steps="one step" if steps == 1 else f"{steps} steps")
    return "\n\n".join(["## Fine-tuning", explanation, table(header, rows), picture]).strip()


def rows_of(peer: Peer, with_parts: bool, workers: int) -> list[Row]:
    """The rows of a peer; none where it has no training of its own."""
    if peer.library == "trivit":
        parts = [Row(peer, ", data alone", "data"), Row(peer, ", steps alone", "steps_alone")]
        return [Row(peer, "", "whole"), *(parts if with_parts else [])]
    if peer.library != "transformers":
        return []
    if peer.framework == "pt":
        return [Row(peer, "", "trainer", 0), Row(peer, f", {workers} workers", "trainer", workers)]
    return [Row(peer, "", "fit") if peer.framework == "tf" else Row(peer, "", "loop", workers)]


def measure(options: Options, batch_size: int, steps: int, rounds: int, seconds: float) -> dict[str, Cell]:
    """The cells of trivit, of its parts, and of its peers; those of a framework take turns."""
    photographs = options.folder / "photographs"
    if not photographs.exists():
        photographs.mkdir()
        write_images(photographs, IMAGES)
        label(photographs)
    checkpoint = options.folder / f"{options.variant.replace('/', '-')}-of-{CLASSES}"  # a head that fits all
    config = options.config.replace(id2label={i: str(i) for i in range(CLASSES)})
    random_checkpoint(checkpoint, config)
    ViTImageProcessor(size=config.image_size).save_pretrained(checkpoint)
    settings = {
        "checkpoint": str(checkpoint),
        "photographs": str(photographs),
        "batch_size": batch_size,
        "steps": steps,
    }
    found: dict[str, Cell] = {}
    everyone = options.present()
    for framework in ("pt", "tf", "flax"):
        group = [row for peer in everyone if peer.framework == framework
                 for row in rows_of(peer, options.variant in STEPS, available_cpus())]  # fmt: skip
        if not group:
            continue
        say(f"batch {batch_size}: {', '.join(row.name for row in group)}")
        with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            workers = {row: stack.enter_context(process(row.peer, row.variables)) for row in group}
            ready = list(pool.map(lambda row: _prepare(options, row, workers[row], settings), group))  # noqa: B023
            runs = {row: partial(_turn, workers[row]) for row, is_ready in zip(group, ready, strict=True) if is_ready}
            times = take_turns(runs, seconds, least=rounds, warm=False, absent=options.absent)
        found |= cells(times, batch_size * steps)
    return found


def cells(times: dict[Row, list[float]], images: int) -> dict[str, Cell]:
    """What the seconds of the turns of a framework, of so many images, say of each row."""
    of = {row.function: each for row, each in times.items() if row.peer.library == "trivit"}
    whole, parts = of.get("whole"), [of[name] for name in ("data", "steps_alone") if name in of]
    found = {}
    for row, each in times.items():
        faster = share = None
        if row.peer.library != "trivit" and whole is not None:
            faster = ratio(each, whole)
        if row.function == "whole" and parts:
            share = ratio([max(several) for several in zip(*parts, strict=True)], each)
        found[row.name] = Cell(images / statistics.median(each), faster, share)
    return found


def label(folder: Path) -> None:
    """Write the table of the images in a folder, which `vit train` takes."""
    lines = [f"{path.name},{i % CLASSES}" for i, path in enumerate(sorted(folder.glob("*.jpg")))]
    (folder / "table.csv").write_text("\n".join(["path,label", *lines]) + "\n")


def _prepare(options: Options, row: Row, worker: Any, settings: dict[str, Any]) -> bool:
    """Whether a row can be measured; why not is noted."""
    workers = {} if row.workers is None else {"workers": row.workers}
    try:
        worker.prepare(f"benchmarks.finetune:{row.function}", framework=row.peer.framework, **settings, **workers)
        return True
    except (WorkerError, ValueError, ImportError, OSError) as error:
        options.absent[f"{row.name}, fine-tuning: {error}"] = None
        return False


def _turn(worker: Any) -> float:
    (seconds,) = worker.run()
    return seconds


# === In the process ===


class Paused:
    """A training run in a thread of its own, which stands still between turns.

    Args:
        run: trains without end, and calls what it is given whenever it has taken the steps of a turn.

    Attributes:
        left: those that have not been ended.
    """

    left: list[Paused] = []  # noqa: RUF012

    def __init__(self, run: Callable[[Callable[[], None]], Any]) -> None:
        self._go, self._turns = Semaphore(0), SimpleQueue[BaseException | None]()
        self._is_over = False
        self._thread = Thread(target=self._train, args=(run,), daemon=True)
        self._thread.start()
        self.left.append(self)
        self._wait()

    def __call__(self) -> None:
        """Let it take a turn; raises what it raises."""
        self._go.release()
        self._wait()

    def end(self) -> None:
        """End the thread."""
        self.left.remove(self)
        self._is_over = True
        self._go.release()
        self._thread.join()

    def _train(self, run: Callable[[Callable[[], None]], Any]) -> None:
        try:
            run(self._pause)
        except SystemExit:
            return
        except BaseException as error:
            self._turns.put(error)

    def _pause(self) -> None:
        self._turns.put(None)
        self._go.acquire()
        if self._is_over:
            raise SystemExit

    def _wait(self) -> None:
        if (error := self._turns.get()) is not None:
            raise error


def recipe_of(batch_size: int, steps: int) -> Recipe:
    """What trivit does, as its peers' examples do; each turn ends with a row of metrics."""
    return Recipe(batch_size=batch_size, steps=ENDLESS, log_every=steps, evaluate_every=ENDLESS, validation=0.0,
                  crop_scale=CROP, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)  # fmt: skip


def whole(framework: str, checkpoint: str, photographs: str, batch_size: int, steps: int) -> Runner:
    """`vit train`."""

    def run(pause: Callable[[], None]) -> None:
        with tempfile.TemporaryDirectory(dir=Path(photographs).parent) as folder:
            train(f"{photographs}/table.csv", checkpoint, folder, framework, recipe_of(batch_size, steps),
                  report=lambda row: pause())  # fmt: skip

    return Paused(run), None


def steps_alone(framework: str, checkpoint: str, photographs: str, batch_size: int, steps: int) -> Runner:
    """`vit train`, whose data is one batch that lies ready."""
    batches = Data.batches

    def ready(self: Data, position: Any = None) -> Any:
        found = batches(self, position)
        batch = next(found)
        found.close()
        return itertools.repeat(batch)

    with patch.object(Data, "batches", ready):
        return whole(framework, checkpoint, photographs, batch_size, steps)


def data(framework: str, checkpoint: str, photographs: str, batch_size: int, steps: int) -> Runner:
    """The batches of `vit train`, none read before a turn begins."""
    recipe = recipe_of(batch_size, steps)
    examples = read(f"{photographs}/table.csv", 0.0, 0).training
    start = begin(checkpoint, examples, recipe)
    source = Data(examples, recipe, start.processor, start.config, available_cpus())
    turns = itertools.count()

    def run() -> None:
        batches = source.batches({"next_index": next(turns) * steps * batch_size})
        for _ in range(steps):
            next(batches)
        batches.close()

    return run, None


# === In the process of a peer ===


def files_of(photographs: str) -> tuple[list[str], list[int]]:
    """(paths, labels) of a long epoch, in which each file comes many times."""
    paths = sorted(map(str, Path(photographs).glob("*.jpg"))) * 100
    return paths, [i % CLASSES for i in range(len(paths))]


class Photographs:
    """A map-style data set of PyTorch, with RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize.

    These do on Pillow's images what torchvision's of these names do, which is not needed to compare.
    """

    def __init__(self, photographs: str, size: int) -> None:
        (self.paths, self.labels), self.size = files_of(photographs), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        with Image.open(self.paths[index]) as opened:
            image = opened.convert("RGB")
        box = random_crop_box(*image.size, CROP, np.random.default_rng(random.getrandbits(32)))
        image = image.crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return {"pixel_values": pixels.sub_(0.5).div_(0.5), "labels": self.labels[index]}


def trainer(
    framework: str, checkpoint: str, photographs: str, batch_size: int, steps: int, workers: int
) -> Runner:  # fmt: skip
    """transformers' Trainer, as its example of image classification calls it."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, ViTForImageClassification

    class Pausing(TrainerCallback):
        def __init__(self, pause: Callable[[], None]) -> None:
            self.pause = pause

        def on_log(self, *arguments: Any, **more: Any) -> None:
            self.pause()

    def run(pause: Callable[[], None]) -> None:
        model = ViTForImageClassification.from_pretrained(checkpoint)
        examples = Photographs(photographs, model.config.image_size)
        with tempfile.TemporaryDirectory(dir=Path(photographs).parent) as folder:
            arguments = TrainingArguments(
                folder, max_steps=ENDLESS, per_device_train_batch_size=batch_size, learning_rate=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY, dataloader_num_workers=workers, logging_steps=steps, save_strategy="no",
                report_to=[], remove_unused_columns=False, disable_tqdm=True,
            )  # fmt: skip
            Trainer(model, arguments, train_dataset=examples, callbacks=[Pausing(pause)]).train()

    return Paused(run), None


def fit(framework: str, checkpoint: str, photographs: str, batch_size: int, steps: int) -> Runner:
    """Keras' `fit` of transformers' model in TensorFlow, compiled as its example of image classification does."""
    import tensorflow as tf
    import tf_keras
    from transformers import TFViTForImageClassification, create_optimizer

    class Pausing(tf_keras.callbacks.Callback):
        def __init__(self, pause: Callable[[], None]) -> None:
            super().__init__()
            self.pause = pause

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if (batch + 1) % steps == 0:
                self.pause()

    def example(path: Any, label: Any) -> dict[str, Any]:
        data = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data), tf.zeros((1, 0, 4)), area_range=(CROP, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3), use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        image = tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], extent[:2]], 0), channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (size, size)))
        return {"pixel_values": tf.transpose((image / 255 - 0.5) / 0.5, (2, 0, 1)), "labels": label}

    size = read_config(checkpoint).image_size

    def run(pause: Callable[[], None]) -> None:
        model = TFViTForImageClassification.from_pretrained(checkpoint, from_pt=True)
        optimizer, _ = create_optimizer(LEARNING_RATE, ENDLESS, 0, weight_decay_rate=WEIGHT_DECAY,
                                        adam_global_clipnorm=1.0)  # fmt: skip
        model.compile(optimizer, metrics=["accuracy"])
        paths, labels = files_of(photographs)
        examples = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
        examples = examples.map(example, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)
        model.fit(examples, steps_per_epoch=ENDLESS, callbacks=[Pausing(pause)], verbose=0)

    return Paused(run), None


def loop(framework: str, checkpoint: str, photographs: str, batch_size: int, steps: int, workers: int) -> Runner:
    """A loop of optax over transformers' model in Flax, as its example of image classification has it."""
    import jax
    import optax
    from torch.utils.data import DataLoader
    from transformers import FlaxViTForImageClassification

    def run(pause: Callable[[], None]) -> None:
        model = FlaxViTForImageClassification.from_pretrained(checkpoint)
        loader = DataLoader(
            Photographs(photographs, model.config.image_size), batch_size, shuffle=True, drop_last=True,
            num_workers=workers, persistent_workers=workers > 0, collate_fn=_stacked,
            multiprocessing_context="spawn" if workers else None,  # JAX has threads, which a fork would lack
        )  # type: ignore[var-annotated, arg-type]  # fmt: skip
        optimizer = optax.adamw(optax.linear_schedule(LEARNING_RATE, 0.0, ENDLESS), weight_decay=WEIGHT_DECAY)

        def loss_of(params: Any, batch: dict[str, Any], key: Any) -> Any:
            logits = model(batch["pixel_values"], params=params, dropout_rng=key, train=True).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(params: Any, moments: Any, batch: dict[str, Any], key: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_of)(params, batch, key)
            updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments, loss

        params, moments = model.params, optimizer.init(model.params)
        key = jax.random.key(0)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for step, batch in enumerate(batches, 1):
            key, drawn = jax.random.split(key)
            params, moments, loss = update(params, moments, batch, drawn)
            if step % steps == 0:
                float(loss)
                pause()

    return Paused(run), None


def _stacked(examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    pixel_values = np.stack([each["pixel_values"].numpy() for each in examples])
    return {"pixel_values": pixel_values, "labels": np.array([each["labels"] for each in examples])}


if __name__ == "__main__":
    from .__main__ import main

    main(["finetune"])
