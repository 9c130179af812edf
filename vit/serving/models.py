"""A model that is served: images as clients send them -> what it gets, and its tasks, each a function of a batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from .. import attention
from ..errors import InputError
from ..image_processing import ViTImageProcessor
from ..image_processing.options import output_size
from ..image_processing.sources import naming, open_header
from ..outputs import ModelOutput
from ..pipeline import POOLS
from .refusals import Refusal, expected

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a model may be called, in routes and labels of metrics."""

MOST = 16
"""Integers above it are pixels, and no pixel_values that were rescaled and normalised."""

ORIENTATION = 0x0112  # of EXIF
LARGE = re.compile(r" Raise PIL\.Image.*$")  # a remedy for who runs the server


class Given(NamedTuple):
    """An image as a client sent it.

    Attributes:
        kind: "encoded" is the bytes of a file, "pixels" (height, width, channels) integers of 0 to 255, "values" what
            the model gets, (channels, height, width); "numbers" is one of these two, as its shape tells.
        data: bytes, or numbers in lists or an array.
        name: of a file, where there is one.
    """

    kind: str
    data: Any
    name: str | None = None


@dataclass(eq=False)
class Task:
    """One thing that a model computes, for a batch.

    Args:
        model: whose it is.
        name: "classify", "embed" or "attention".
        most: images of a batch.
        run: (batch, channels, height, width) -> outputs.
        sizes: of batches for which programs are compiled; a batch is padded to one. None: any size.
        share: is told before a batch whether it has all cores to itself. None: the framework shares them out.
    """

    model: Model
    name: str
    most: int
    run: Callable[[np.ndarray], ModelOutput]
    sizes: tuple[int, ...] | None = None
    share: Callable[[bool], None] | None = None

    def __call__(self, images: list[np.ndarray], alone: bool = True) -> ModelOutput:
        """Compute a batch; rows past the images are padding."""
        if self.share is not None:
            self.share(alone)
        count = len(images)
        size = count if self.sizes is None else next(size for size in self.sizes if size >= count)
        batch = np.zeros((size, *self.model.shape), np.float32)
        for row, image in enumerate(images):
            batch[row] = image
        return self.run(batch)


class Model:
    """A model that is served; `vit.serving.loading` makes one.

    Attributes:
        name: in routes.
        version: 1, and one more each time that it changed.
        platform: what computes, such as "pt" or "onnxruntime".
        config: of the checkpoint; of an export what it says of its labels.
        processor: makes what the model gets of an image.
        shape: (channels, height, width) of that.
        pool: what the vector is of who asks for none.
        vector: its shape.
        tasks: name -> Task; a model without labels has no "classify".
    """

    def __init__(
        self, name: str, version: int, platform: str, config: Any, processor: ViTImageProcessor, shape: tuple[int, ...]
    ) -> None:
        self.name, self.version, self.platform = name, version, platform
        self.config, self.processor, self.shape = config, processor, shape
        self.pool = "cls"
        self.vector: tuple[int, ...] = (config.hidden_size,)
        self.tasks: dict[str, Task] = {}

    @property
    def default(self) -> str:
        """The task of who asks for none."""
        return "classify" if "classify" in self.tasks else "embed"

    def task(self, name: str) -> Task:
        """One of its tasks.

        Raises:
            Refusal: it has no such task.
        """
        if name not in self.tasks:
            raise Refusal(400, f"The model {self.name} has no task {name}; {expected(self.tasks)}")
        return self.tasks[name]

    def warm(self) -> None:
        """Compute every batch that is compiled for, or one, so that no client waits for that."""
        for task in self.tasks.values():
            for size in task.sizes or ((1,) if task.name == self.default else ()):
                task([np.zeros(self.shape, np.float32)] * size)

    # === Reading ===

    def read(self, given: Given, max_pixels: int) -> np.ndarray:
        """What the model gets of an image: (channels, height, width) float32.

        Raises:
            Refusal: it is none, a broken one, too large, or of another shape.
        """
        if given.kind != "encoded":
            return self._read_numbers(given, max_pixels)
        check_pixels(given.data, max_pixels)
        try:
            (found,) = self.processor(given.data, return_tensors="np", threads=1).pixel_values
        except InputError as error:
            raise Refusal(422, _sentence(error)) from None
        return self._fitting(found)

    def _read_numbers(self, given: Given, max_pixels: int) -> np.ndarray:
        try:
            array = np.asarray(given.data)
        except (ValueError, TypeError, OverflowError):  # lists of unequal lengths
            raise Refusal(422, "The image is no array: its rows differ in length or depth.") from None
        if array.dtype.kind not in "iuf" or array.ndim != 3:  # of a batch that is one image these are rows of it
            raise Refusal(
                422, f"The image is an array of {array.dtype.name} with {array.ndim} axes; expected 3, of numbers."
            )
        kind = given.kind
        if kind == "numbers":
            kind = "values" if array.shape == self.shape else "pixels"
            if kind == "values" and array.dtype.kind != "f" and np.abs(array).max() > MOST:
                raise Refusal(
                    422, f"The image is integers of the shape of pixel_values, {self.shape}; expected (height, width, "
                    "channels), or the name pixel_values."
                )  # fmt: skip
        if kind == "values":
            found = array.astype(np.float32)
            if not np.isfinite(found).all():
                raise Refusal(422, "pixel_values holds values that are NaN or infinite; expected numbers.")
            return self._fitting(found)
        if array.dtype.kind == "f" or array.size == 0 or array.min() < 0 or array.max() > 255:
            raise Refusal(
                422, f"The image is an array of shape {array.shape}; expected integers of 0 to 255, (height, width, "
                f"channels), or pixel_values of shape {self.shape}."
            )  # fmt: skip
        if array.shape[0] * array.shape[1] > max_pixels:
            raise _too_large(array.shape[1], array.shape[0], max_pixels)
        try:
            pixels = array.astype(np.uint8)
            (found,) = self.processor(
                pixels, return_tensors="np", threads=1, input_data_format="channels_last"
            ).pixel_values
        except InputError as error:
            raise Refusal(422, _sentence(error)) from None
        return self._fitting(found)

    def _fitting(self, found: np.ndarray) -> np.ndarray:
        if found.shape != self.shape:
            raise Refusal(422, f"The image came out as {found.shape}; the model takes {self.shape}.")
        return found

    def area(self, data: bytes) -> list[float]:
        """The part of an image that the patches cover: left, top, right and bottom, as shares of its width and height.

        Args:
            data: of its file, turned as its EXIF orientation says.
        """
        with open_header(BytesIO(data)) as image:
            turned = image.getexif().get(ORIENTATION, 1) in range(5, 9)
            width, height = image.size[::-1] if turned else image.size
        processor = self.processor
        if processor.do_resize:
            height, width = output_size(height, width, processor.size)
        rows, columns = self.shape[1:]
        top, left = ((height - rows) // 2, (width - columns) // 2) if processor.do_center_crop else (0, 0)
        bottom, right = (top + self.grid[0] * self.patch[0], left + self.grid[1] * self.patch[1])
        return [left / width, top / height, right / width, bottom / height]

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch."""
        size = self.config.patch_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.shape[1] // self.patch[0], self.shape[2] // self.patch[1]

    # === Answers, of one row of a batch's outputs ===

    def labels(self, outputs: ModelOutput, row: int, top_k: int) -> dict[str, list[Any]]:
        """The most probable labels, best first, and their probabilities."""
        logits = self.logits(outputs, row)[None]
        (best,) = self.processor.post_process_image_classification(logits, top_k, self.config)
        names = [each["label"] for each in best]
        if self.unnamed:
            names = [name.removeprefix("LABEL_") for name in names]
        return {"labels": names, "probabilities": [each["score"] for each in best]}

    def logits(self, outputs: ModelOutput, row: int) -> np.ndarray:
        """(labels,), which are numbers."""
        return _finite(outputs.logits[row])

    def embedding(self, outputs: ModelOutput, row: int, pool: str) -> np.ndarray:
        """The vector of a pool.

        Raises:
            Refusal: the model does not give it.
        """
        if "embedding" in outputs:  # of an export, which gives but one
            if pool != self.pool:
                raise Refusal(400, f"The model {self.name} gives the pool {self.pool}, and no other.")
            return _finite(outputs["embedding"][row])
        if pool == "pooler" and "pooler_output" not in outputs:
            raise Refusal(400, f"The model {self.name} has no pooler; {expected(set(POOLS) - {'pooler'})}")
        one = ModelOutput({key: outputs[key][row : row + 1] for key in ("last_hidden_state", "pooler_output")
                           if key in outputs})  # fmt: skip
        return _finite(POOLS[pool](one, self.config.prefix_tokens)[0])

    def attention(self, outputs: ModelOutput, row: int, layer: int, head: int | None, rollout: bool) -> np.ndarray:
        """(rows, columns): how much CLS attends to each patch, by one head, the mean of all, or through the layers."""
        layers = [each[row : row + 1] for each in outputs.attentions]
        prefix = self.config.prefix_tokens
        if rollout:
            (found,) = attention.attention_rollout(layers[: layer % len(layers) + 1], tokens=[0])[:, 0, prefix:]
            return _finite(found.reshape(self.grid))
        (heads,) = attention.cls_attention(layers, self.grid, layer, prefix)
        return _finite(heads.mean(axis=0) if head is None else heads[head])

    @property
    def unnamed(self) -> bool:
        """Whether the checkpoint names no labels, so that they are known by their index."""
        return list(self.config.id2label.values()) == [f"LABEL_{i}" for i in range(self.config.num_labels)]


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise Refusal(422, "The image came out of the model as values that are NaN or infinite.")
    return values


def _sentence(error: Exception) -> str:
    return LARGE.sub("", str(error))


def _too_large(width: int, height: int, most: int) -> Refusal:
    return Refusal(413, f"The image has {width} x {height} pixels; expected at most {most:,}.")


def check_pixels(data: bytes, most: int) -> None:
    """Refuse an image file by what its header says, before anything of it is decoded.

    Raises:
        Refusal: no image, or one of more pixels than `most`.
    """
    try:
        with naming("The image"), open_header(BytesIO(data)) as image:
            width, height = image.size
    except InputError as error:
        raise Refusal(413 if "too large" in str(error) else 422, _sentence(error)) from None
    if width * height > most:
        raise _too_large(width, height, most)
