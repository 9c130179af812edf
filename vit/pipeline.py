"""`predict`: images to labels or vectors, in order, with reading and preprocessing beside the model."""

from __future__ import annotations

import atexit
import os
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from . import checkpoint, hub
from .config import PreTrainedConfig, to_pair
from .errors import CheckpointError, InputError, quoted
from .image_processing import ViTImageProcessor
from .image_processing.batch import is_array
from .image_processing.processor import available_cpus
from .image_processing.sources import label_of
from .inference import Forward
from .loading import open_checkpoint
from .outputs import ModelOutput

POOLS: dict[str, Callable[[ModelOutput, int], np.ndarray]] = {
    "cls": lambda outputs, prefix: outputs.last_hidden_state[:, 0],
    "mean": lambda outputs, prefix: outputs.last_hidden_state[:, prefix:].mean(axis=1),  # of the patches
    "pooler": lambda outputs, prefix: outputs.pooler_output,
    "patches": lambda outputs, prefix: outputs.last_hidden_state[:, prefix:],
}
"""What an embedding may be: the CLS token, the mean of the patch tokens, the pooler's output, all patch tokens.

Each is (outputs, number of tokens before the patches) -> vectors.
"""

TASKS = ("classify", "embed")
CLASSIFICATION = "ForImageClassification"  # in the names of the classes that classify
CALLS = 2  # batches in the model at a time: each fills the cores where the other leaves them idle
AHEAD = 2  # batches that are read meanwhile
PATIENCE = 3.0  # seconds that threads get to end what they do when nobody wants it any more


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was found for one image.

    Attributes:
        index: which one it is, from 0, or from `start`.
        path: of the file; None for an image that was no path.
        labels: the most probable ones, best first, of the task "classify".
        probabilities: of these labels.
        vector: (hidden_size,), or (patches, hidden_size) of the pool "patches", of the task "embed".
        error: why there is nothing else, as what follows the path in a sentence.
    """

    index: int
    path: str | None = None
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    vector: np.ndarray | None = None
    error: str | None = None


def predict(
    images: Iterable[Any],
    model: Any,
    framework: str | None = None,
    *,
    task: str = "classify",
    top_k: int = 5,
    pool: str = "cls",
    batch_size: int | None = None,
    workers: int | None = None,
    on_error: str = "row",
    processor: ViTImageProcessor | None = None,
    start: int = 0,
    **options: Any,
) -> Iterator[Prediction]:
    """Classify or embed images, few or millions: threads read them beside the model, and memory stays bounded.

    An image's result depends on the image, the model, the batch size and its own place in the order alone: to go on
    after the first n images, pass the others with `start=n`, and every bit is the same.

    Args:
        images: paths, or whatever else the image processor takes; any iterable, of which a few batches are taken in
            advance. One path or image stands for itself.
        model: a checkpoint folder, the name of a model on the hub, a loaded model of this package, or a `Forward`.
        framework: "pt", "tf" or "flax"; None for the first that is installed.
        task: "classify" or "embed".
        top_k: how many labels.
        pool: what the vector is: "cls", "mean" (of the patch tokens), "pooler" or "patches" (all patch tokens).
        batch_size: images a step; `default_batch_size` when None.
        workers: threads that read; one for each CPU when None.
        on_error: "row" gives an image that cannot be read a result with its error; "raise" raises it in its turn.
        processor: that of the checkpoint when None; needed with a loaded model.
        start: the index of the first image: batches are cut as if so many had come before.
        **options: of the loading: dtype, device, attn_implementation, revision, ...

    Returns:
        An iterator of a `Prediction` for each image, in order. The model is loaded before it is returned.

    Raises:
        CheckpointError: no checkpoint there, a broken one, or one without the part that the task needs.
        InputError: an impossible argument, or, from the iterator, an image that cannot be used.
        ImportError: a framework that is not installed.
    """
    if on_error not in ("row", "raise"):
        raise InputError(f"on_error is {quoted(on_error)}; expected 'row' or 'raise'.")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 1), ("start", start, 0),
                               ("top_k", top_k, 1)):  # fmt: skip
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise InputError(f"{name} is {quoted(value)}; expected an int of at least {least}.")
    check_task(task, pool)
    single = label_of(images) is not None or not isinstance(
        images, Iterable
    )  # a file object gives lines, bytes numbers
    if single or is_array(images):
        images = images if is_array(images) and len(images.shape) == 4 else [images]  # type: ignore[attr-defined]
    if isinstance(model, str | os.PathLike):
        hub_options, options = hub.split_options(options)
        folder = hub.resolve(model, **hub_options)
        parts = parts_for(folder, task, pool)
        processor = processor or ViTImageProcessor.from_pretrained(folder)
        model = Forward(folder, framework, **parts, **options)
    elif not isinstance(model, Forward):
        model = Forward(model, framework, **options)
    if processor is None:
        raise InputError(
            "A loaded model needs its image processor: pass processor=ViTImageProcessor.from_pretrained()."
        )
    config = model.config
    if not (CLASSIFICATION in config.heads[model.head].name if task == "classify" else model.head is None):
        raise InputError(
            f"The model is a {type(model.model).__name__}; task={task!r} needs one "
            + ("with a classification head." if task == "classify" else "without a head, such as ViTModel.")
        )
    if task == "classify" and config.gives_numbers:
        raise InputError(f"The {type(model.model).__name__} predicts a number (a regression), not labels.")
    expected = shape_of_images(processor, config)
    answer = _labels(config, processor, top_k) if task == "classify" else _vectors(pool, config.prefix_tokens)
    batch_size = batch_size or default_batch_size(model, expected)
    found = _run(iter(images), model, processor, answer, expected, batch_size, workers or available_cpus(), start)
    return found if on_error == "row" else _raising(found)


# === Choices ===


def check_task(task: str, pool: str) -> None:
    """Refuse what `predict` does not do.

    Raises:
        InputError: an unknown task or pool.
    """
    if task not in TASKS:
        raise InputError(f"task is {quoted(task)}; expected one of {', '.join(TASKS)}.")
    if pool not in POOLS:
        raise InputError(f"pool is {quoted(pool)}; expected one of {', '.join(POOLS)}.")


def parts_for(folder: str | os.PathLike[str], task: str, pool: str) -> dict[str, Any]:
    """The arguments of `Forward` that give the model that a task needs, of a checkpoint that lacks nothing of it.

    Raises:
        CheckpointError: it lacks something, in whose place the model would have random weights, or is not whole.
        InputError: it gives a number where labels are asked for; or an unknown task or pool.
    """
    check_task(task, pool)
    opened = open_checkpoint(folder)
    config = opened.config
    if task == "classify":
        head = checkpoint.head_of(opened, CLASSIFICATION)
        checkpoint.fit(opened, config, head)  # or it is not whole
        if head is None:
            raise CheckpointError(
                f"{folder} has no classification head, so there is nothing to classify by: fine-tune it first, or take "
                "its vectors (the task 'embed')."
            )
        if config.gives_numbers:
            raise InputError(f"{folder} predicts a number (a regression), not labels.")
        return {"head": head}
    parts = {part: pool == "pooler" for part in config.heads[None].parts if part == "add_pooling_layer"}
    _, fresh, _ = checkpoint.fit(opened, config, **{**config.heads[None].parts, **parts})
    if fresh or (pool == "pooler" and not config.pooler_output_size):
        others = ", ".join(each for each in POOLS if each != pool)
        raise CheckpointError(f"{folder} has no weights for the pool {pool!r}; take one of {others}.")
    return {"head": None, **parts}


def shape_of_images(processor: ViTImageProcessor, config: PreTrainedConfig) -> tuple[int, ...]:
    """(channels, height, width) of the images that an image processor gives a model.

    Raises:
        InputError: the model does not take them.
    """
    height, width = to_pair(config.image_size)
    expected = (config.num_channels, height, width)
    probe = np.zeros((height, width, config.num_channels), np.uint8)
    found = processor(probe, return_tensors="np", input_data_format="channels_last").pixel_values.shape[1:]
    fits = found == expected
    if config.any_size:
        least = to_pair(config.patch_size)
        fits = found[0] == config.num_channels and found[1] >= least[0] and found[2] >= least[1]
    if not fits:
        raise InputError(
            f"The image processor gives images of {_shape(found)}, and the model takes {_shape(expected)} (channels x "
            "height x width); make preprocessor_config.json and config.json agree."
        )
    return found


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def default_batch_size(forward: Forward, image: Sequence[int] | None = None) -> int:
    """How many images a step is quick with: few on a CPU, where activations should stay in its caches.

    Args:
        forward: what computes.
        image: (channels, height, width) of the images; None for those of `config.image_size`.
    """
    if forward.device_type != "cpu":
        return 64
    rows, columns = _grid(forward.config, image)
    tokens = forward.config.prefix_tokens + rows * columns
    floats = 300_000  # in one array of all tokens of a batch
    return max(2, min(64, 1 << (floats // (tokens * forward.config.hidden_size)).bit_length()))


def vector_shape(config: PreTrainedConfig, pool: str, image: Sequence[int] | None = None) -> tuple[int, ...]:
    """The shape of the vector of one image, of `image_size` or of the (channels, height, width) that is given."""
    if pool == "pooler":
        return (config.pooler_output_size,)
    if pool != "patches":
        return (config.hidden_size,)
    rows, columns = _grid(config, image)
    return (rows * columns, config.hidden_size)


def _grid(config: PreTrainedConfig, image: Sequence[int] | None) -> tuple[int, int]:
    """(rows, columns) of the patches of an image, of `image_size` or of the (channels, height, width) that is given."""
    height, width = to_pair(config.image_size) if image is None else image[1:]
    patch_height, patch_width = to_pair(config.patch_size)
    return height // patch_height, width // patch_width


# === The pipeline ===

Answer = Callable[[ModelOutput, int, int], list[dict[str, Any]]]
"""(outputs of a batch, first slot, end) -> what each image's Prediction holds."""


def _run(
    images: Iterator[Any],
    forward: Forward,
    processor: ViTImageProcessor,
    answer: Answer,
    expected: tuple[int, ...],
    batch_size: int,
    workers: int,
    start: int,
) -> Iterator[Prediction]:
    def read(image: Any) -> np.ndarray:
        _check_regular(image)
        pixel_values = processor(image, return_tensors="np", threads=1).pixel_values  # of which `workers` run
        if pixel_values.shape != (1, *expected):
            raise InputError(
                f"came out of the image processor as {_shape(pixel_values.shape)} (batch x channels x height x width); "
                f"the model takes {_shape((1, *expected))}."
            )
        return pixel_values[0]

    def compute(first: int, batch: list[Any], reading: list[Future[np.ndarray]]) -> list[Prediction]:
        # An image has the slot that its index gives it, whatever became of the others: kernels may round differently
        # in another row or for another batch size. Short of a batch is padded where a shape costs a compilation, unless
        # there is but one batch.
        slot = first % batch_size
        end = slot + len(batch)
        whole = forward.framework != "pt" and first >= batch_size
        pixel_values = np.zeros((batch_size if whole else end, *expected), np.float32)
        errors: list[str | None] = []
        for i, (image, future) in enumerate(zip(batch, reading, strict=True), slot):
            error = future.exception()
            errors.append(None if error is None else _reason(image, error))
            if error is None:
                pixel_values[i] = future.result()
        if stopped.is_set():
            raise CancelledError
        reading.clear()
        answers: list[dict[str, Any]] = [{}] * len(batch)
        if None in errors:
            answers = answer(forward(pixel_values), slot, end)
        return [
            Prediction(index, _path(image), **({"error": error} if error else found))
            for index, image, error, found in zip(range(first, first + len(batch)), batch, errors, answers, strict=True)
        ]

    pending: deque[tuple[Future[list[Prediction]], list[Future[np.ndarray]]]] = deque()
    stopped = threading.Event()
    readers, models = Threads("vit-read", workers), Threads("vit-model", CALLS)
    try:
        while True:
            while len(pending) < CALLS + AHEAD:
                if not (batch := list(islice(images, batch_size - start % batch_size))):
                    break
                reading = [readers.submit(read, each) for each in batch]
                pending.append((models.submit(compute, start, batch, reading), reading))
                start += len(batch)
            if not pending:
                return
            yield from pending.popleft()[0].result()
    finally:
        stopped.set()
        models.stop()  # what has not begun never will
        readers.stop()
        for _, reading in pending:  # nor is it waited for
            for future in tuple(reading):
                if not future.cancel():
                    with suppress(InvalidStateError):
                        future.set_exception(CancelledError())
        end = time.monotonic() + PATIENCE
        models.join(end)
        readers.join(end)


_running: weakref.WeakSet[Threads] = weakref.WeakSet()


class Threads:
    """Threads that call functions, and that nobody waits for without end: a read may hang, a batch take minutes.

    Those of `concurrent.futures` keep the process from ending until they do.
    """

    def __init__(self, name: str, count: int) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._name, self._count = name, count
        self._threads: list[threading.Thread] = []
        _running.add(self)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, call, arguments))
        if len(self._threads) < self._count:
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True))
            self._threads[-1].start()
        return future

    def stop(self) -> None:
        """Let them end after what they do now."""
        with suppress(Empty):
            while True:
                if waiting := self._calls.get_nowait():
                    waiting[0].cancel()
        for _ in self._threads:
            self._calls.put(None)

    def join(self, end: float) -> None:
        """Wait for them, until then at most."""
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        _running.discard(self)


def _work(calls: SimpleQueue[Any]) -> None:
    while item := calls.get():
        future, call, arguments = item
        if future.set_running_or_notify_cancel():
            try:
                result = call(*arguments)
            except BaseException as error:
                with suppress(InvalidStateError):  # given up meanwhile
                    future.set_exception(error)
            else:
                with suppress(InvalidStateError):
                    future.set_result(result)
                del result
        del item, future, call, arguments  # nothing is kept while the next is waited for


@atexit.register
def _end_threads() -> None:
    """Before the interpreter ends under them."""
    threads = list(_running)
    for each in threads:
        each.stop()
    end = time.monotonic() + PATIENCE
    for each in threads:
        each.join(end)


def _check_regular(image: Any) -> None:
    """Refuse what would be waited for without end, such as a pipe. What does not exist is not looked for here."""
    if not isinstance(image, str | os.PathLike):
        return
    try:
        mode = os.stat(image).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kinds = {stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
        raise InputError(f"is a {next((kind for is_kind, kind in kinds.items() if is_kind(mode)), 'device')}, no file.")


def _raising(found: Iterator[Prediction]) -> Iterator[Prediction]:
    for prediction in found:
        if prediction.error is not None:
            raise InputError(f"{prediction.path or f'Image {prediction.index}'} {prediction.error}")
        yield prediction


def _path(image: Any) -> str | None:
    is_data = isinstance(image, str) and image[:5].lower() == "data:"
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) and not is_data else None


def _reason(image: Any, error: BaseException) -> str:
    """Why an image could not be used, without its path, which stands beside it."""
    if isinstance(error, InputError):
        return str(error).removeprefix("The image ").removeprefix(f"({label_of(image)}) ")
    return f"cannot be read: {type(error).__name__}: {error}"  # some decoders of Pillow raise anything


# === Answers ===

NOT_FINITE = "came out of the model as values that are NaN or infinite; try the dtype float32."


def _labels(config: PreTrainedConfig, processor: ViTImageProcessor, top_k: int) -> Answer:
    default = {f"LABEL_{i}": str(i) for i in range(config.num_labels)}
    names = default if list(default) == list(config.id2label.values()) else {}  # no labels: their indices

    def answer(outputs: ModelOutput, first: int, end: int) -> list[dict[str, Any]]:
        logits = outputs.logits[first:end]
        finite = np.isfinite(logits).all(axis=1)
        best = iter(processor.post_process_image_classification(logits[finite], top_k, config))
        return [_best(next(best), names) if fine else {"error": NOT_FINITE} for fine in finite]

    return answer


def _best(found: list[dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    labels = tuple(names.get(each["label"], each["label"]) for each in found)
    return {"labels": labels, "probabilities": tuple(each["score"] for each in found)}


def _vectors(pool: str, prefix_tokens: int) -> Answer:
    def answer(outputs: ModelOutput, first: int, end: int) -> list[dict[str, Any]]:
        vectors = POOLS[pool](outputs, prefix_tokens)[first:end]
        return [
            {"vector": vector.copy()} if np.isfinite(vector).all() else {"error": NOT_FINITE}  # no view of the batch
            for vector in vectors
        ]

    return answer
