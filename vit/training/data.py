"""From examples to batches: Grain's pipeline, the same batches in the same order for every framework and resume.

An example is a function of its number and the recipe's seed, a batch of its number: where an iterator stands is all
there is to save.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..config import PreTrainedConfig
from ..errors import InputError, shown
from ..image_processing import ViTImageProcessor, random_patch_mask
from ..image_processing.inputs import Reader, to_bytes
from ..image_processing.sources import label_of, open_image
from . import augment
from .examples import SINGLE, Examples
from .processes import ALONE, Processes
from .recipe import Recipe
from .schedule import seed_of

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels of a model -> the mode of Pillow that its images are read in."""

MASKED = 0.6
"""Part of the patches that masked image modelling hides by default (Xie et al. 2022, SimMIM, Section 4.1)."""

Batch = dict[str, np.ndarray]


class Data:
    """The batches that a run trains on, and those that it is evaluated on.

    Args:
        training: what is trained on.
        recipe: how.
        processor: the checkpoint's, which evaluation uses as it is.
        config: the model's.
        workers: threads that read and augment.
        strict: stop at an image that cannot be read, instead of taking the next in its place.
        processes: that share every batch, the n-th of them the images n, n + size, n + 2 size, ... of it.

    Attributes:
        broken: images that could not be read, and why.
    """

    def __init__(
        self,
        training: Examples,
        recipe: Recipe,
        processor: ViTImageProcessor,
        config: PreTrainedConfig,
        workers: int = 1,
        strict: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        if config.num_channels not in MODES:
            raise InputError(f"The model takes {config.num_channels} channels; images have 1, 3 or 4.")
        self.training, self.recipe, self.processor, self.config = training, recipe, processor, config
        self.workers, self.strict, self.processes = workers, strict, processes
        self.size = size_of(processor)
        self.broken: dict[str, str] = {}
        self._lock = threading.Lock()
        self.dtype = np.float64 if recipe.dtype == "float64" else np.float32

    def batches(self, position: Any = None) -> Any:
        """Grain's iterator of this process's parts of batches without end.

        Args:
            position: as `position` gave it; None to begin.
        """
        import grain

        order = grain.MapDataset.range(len(self.training)).shuffle(seed=seed_of(self.recipe, "order") % 2**32)
        rank, processes = self.processes.rank, self.processes.size
        size = self.recipe.batch_size // processes
        read = grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=min(2 * size + self.workers, 500))
        examples = order.repeat().map_with_index(self.example)[rank::processes].to_iter_dataset(read)
        iterator = iter(examples.batch(size).map(self.finish))
        if position:
            iterator.set_state({name: value // processes for name, value in position.items()})
        return iterator

    def position(self, batches: Any) -> dict[str, int]:
        """Where an iterator of `batches` stands: how many examples all processes have taken."""
        return {name: value * self.processes.size for name, value in batches.get_state().items()}

    def example(self, number: int, index: int) -> Batch:
        """The example of a number, from 0, whose image and target have an index in `training`."""
        rng = np.random.default_rng([self.recipe.seed, 1, int(number)])
        for offset in range(len(self.training)):
            place = (int(index) + offset) % len(self.training)
            try:
                pixel_values = self._augmented(self.training.images[place], rng)
            except InputError as error:
                self._note(self.training.name_of(place), error)
                continue
            found = {"number": np.asarray(number), "pixel_values": pixel_values.astype(self.dtype, copy=False)}
            if self.recipe.objective == "reconstruction":
                return found | self._masked(rng)
            return found | {"targets": self._smoothed(self.training.targets[place])}
        raise InputError(f"None of the {len(self.training)} training images can be read.")

    def finish(self, batch: Batch) -> Batch:
        """Mix a batch, by a seed of its own."""
        step = int(batch.pop("number")[0]) // self.recipe.batch_size
        if "targets" not in batch:
            return batch
        rng = np.random.default_rng([self.recipe.seed, 2, step])
        return augment.mix(batch, self.recipe.mixup, self.recipe.cutmix, rng)

    def evaluation(self, examples: Examples, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(pixel_values, indices) of this process's examples as the image processor gives them, those it can read.

        Every process has as many batches, of at most `batch_size`.
        """
        from concurrent.futures import ThreadPoolExecutor

        rank, processes = self.processes.rank, self.processes.size
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(0, len(examples), batch_size * processes):
                indices = range(first, min(first + batch_size * processes, len(examples)))[rank::processes]
                arrays = list(pool.map(lambda i: self._plain(examples, i), indices))
                kept = [(i, array) for i, array in zip(indices, arrays, strict=True) if array is not None]
                yield self._stacked([array for _, array in kept]), np.array([i for i, _ in kept], np.int32)

    def _stacked(self, arrays: list[np.ndarray]) -> np.ndarray:
        return np.stack(arrays) if arrays else np.zeros((0, self.config.num_channels, *self.size), self.dtype)

    # === One image ===

    def _plain(self, examples: Examples, index: int) -> np.ndarray | None:
        try:
            opened = self._open(examples.images[index])
            return self.processor(opened, return_tensors="np", threads=1).pixel_values[0].astype(self.dtype, copy=False)
        except InputError as error:
            self._note(examples.name_of(index), error)
            return None

    def _open(self, image: Any) -> Image.Image:
        """An image of 8 bits a channel, in the model's mode, read as the image processor reads it."""
        mode = MODES[self.config.num_channels]
        opened = image if label_of(image) is None else open_image(image)
        frame = Reader(self.config.num_channels, None, None).read("The image", opened)
        pixels = frame.pixels
        if not isinstance(pixels, Image.Image):
            array, _ = to_bytes(frame)
            pixels = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        return pixels if pixels.mode == mode else pixels.convert(mode)

    def _augmented(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        recipe, opened = self.recipe, self._open(image)
        height, width = self.size
        if recipe.crop_scale < 1:
            box = augment.random_crop_box(*opened.size, recipe.crop_scale, rng)
            opened = opened.resize((width, height), Image.Resampling(self.processor.resample), box=box)
        else:
            as_is = {"do_rescale": False, "do_normalize": False, "data_format": "channels_last"}
            pixels = self.processor(opened, return_tensors="np", threads=1, **as_is).pixel_values[0]
            opened = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if rng.random() < recipe.flip:
            opened = ImageOps.mirror(opened)
        if recipe.randaugment:
            opened = augment.randaugment(opened, recipe.randaugment, recipe.randaugment_magnitude, rng)
        sized = {"do_resize": False, "do_center_crop": False}
        pixel_values = self.processor(opened, return_tensors="np", threads=1, **sized).pixel_values[0]
        if rng.random() < recipe.erasing:
            augment.erase(pixel_values, rng)
        return pixel_values

    def _smoothed(self, target: np.ndarray) -> np.ndarray:
        if self.training.problem_type == SINGLE:
            part = self.recipe.label_smoothing
            target = target * (1 - part) + part / len(target)
        return target.astype(self.dtype)

    def _masked(self, rng: np.random.Generator) -> Batch:
        if self.config.model_type == "vit_mae":
            return {"noise": rng.random(self.config.num_patches).astype(self.dtype)}
        ratio = MASKED if self.recipe.mask_ratio is None else self.recipe.mask_ratio
        return {"bool_masked_pos": random_patch_mask(self.config, 1, ratio, rng)[0]}

    def _note(self, name: str, error: InputError) -> None:
        name = shown(name)
        if self.strict:
            raise InputError(f"{name}: {error}") from None
        with self._lock:
            self.broken[name] = str(error)


def size_of(processor: ViTImageProcessor) -> tuple[int, int]:
    """(height, width) of what an image processor gives; not always the model's `image_size`, as DINOv2's is not.

    Raises:
        InputError: it depends on the image.
    """
    size = processor.crop_size if processor.do_center_crop else processor.size
    if not (processor.do_center_crop or processor.do_resize) or not {"height", "width"} <= size.keys():
        raise InputError(
            "The image processor gives images of other proportions another size, and a batch needs one: write size as "
            "height and width, or do_center_crop, into preprocessor_config.json."
        )
    return size["height"], size["width"]
