"""What augmentation does with what it draws: a generator that draws what a test says, and the outcome by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTImageProcessor
from vit.training import Recipe, augment
from vit.training.data import Data
from vit.training.examples import Examples

from .equivalence import tiny_config


class Drawn:
    """A generator that draws parts of the ranges it is asked for, in an order."""

    def __init__(self, *parts: float) -> None:
        self.parts, self.alphas = list(parts), list[float]()

    def random(self) -> float:
        return self.parts.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + self.random() * (high - low)

    def integers(self, high: int) -> int:
        return int(self.random() * high)

    def choice(self, values: list[float]) -> float:
        return values[self.integers(len(values))]

    def beta(self, a: float, b: float) -> float:
        self.alphas += [a, b]
        return self.random()

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.random())


LAST = 0.999  # the last of some integers

BOXES = {
    "half of the area, as wide as can be": (40, 30, 0.25, (1 / 3, 1, 0.5, 0.5), (6, 5, 34, 26)),
    "half of the area, as high as can be, in the corner": (40, 30, 0.25, (1 / 3, 0, LAST, LAST), (19, 2, 40, 30)),
    "all of it": (40, 30, 0.25, (1, 1, LAST, LAST), (0, 0, 40, 30)),
    "the second draw": (40, 30, 0.25, (1, 0, 1 / 3, 1, 0, 0), (0, 0, 28, 21)),
    "none fits a wide image": (100, 10, 0.9, (1, 1) * 10, (43, 0, 56, 10)),
    "none fits a high image": (10, 100, 0.9, (1, 0) * 10, (0, 43, 10, 56)),
    "none has a pixel": (1, 1, 0.05, (0, 0.5) * 10, (0, 0, 1, 1)),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_crop_has_the_area_the_sides_and_the_place_that_were_drawn(name: str) -> None:
    width, height, scale, parts, expected = BOXES[name]
    drawn: Any = Drawn(*parts)
    assert augment.random_crop_box(width, height, scale, drawn) == expected
    assert not drawn.parts


def test_operations_are_as_strong_as_they_are_asked_to_be() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    levels = np.arange(256, dtype=np.uint8)[None]

    def applied(name: str, strength: float, sign: float, to: Any = image) -> np.ndarray:
        return np.asarray(augment.OPERATIONS[name](to, strength, sign))

    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    assert [applied("brightness", 0.5, sign, grey)[0, 0, 0] for sign in (1, -1)] == [145, 55]
    for sign in (1, -1):
        moved = sign * 0.5
        np.testing.assert_array_equal(applied("rotate", 0.5, sign), image.rotate(30 * moved, Image.Resampling.BILINEAR))
        for name, matrix in {
            "shear_x": (1, 0.3 * moved, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.3 * moved, 1, 0),
            "shift_x": (1, 0, 0.45 * moved * 24, 0, 1, 0), "shift_y": (1, 0, 0, 0, 1, 0.45 * moved * 20),
        }.items():  # fmt: skip
            expected = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(applied(name, 0.5, sign), expected, err_msg=name)
    ramp = Image.fromarray(levels)
    for strength, first in ((0.0, 256), (0.2, 205), (1.0, 1)):  # of the levels that are inverted
        expected = np.where(levels >= first, 255 - levels, levels)
        np.testing.assert_array_equal(applied("solarize", strength, 1, ramp), expected)
    for strength, bits in ((0.0, 0xFF), (0.5, 0xFC), (1.0, 0xF0)):
        np.testing.assert_array_equal(applied("posterize", strength, 1, ramp), levels & bits)


def test_operations_take_the_images_of_every_model_and_change_colours_beside_an_alpha_channel_alike() -> None:
    pixels = np.random.default_rng(0).integers(40, 200, (20, 24, 4), np.uint8)
    with_alpha, grey = Image.fromarray(pixels), Image.fromarray(pixels[:, :, 0])
    for name, operation in augment.OPERATIONS.items():
        found, expected = operation(with_alpha, 0.7, 1.0), operation(with_alpha.convert("RGB"), 0.7, 1.0)
        assert (found.mode, operation(grey, 0.7, 1.0).mode) == ("RGBA", "L"), name
        if name in ("autocontrast", "equalize", "solarize", "posterize"):
            assert np.array_equal(found.convert("RGB"), expected), name
            assert np.array_equal(found.getchannel("A"), pixels[:, :, 3]), name


def test_randaugment_draws_so_many_operations_and_a_sign_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def noted(name: str) -> Any:
        return lambda image, strength, sign: calls.append((name, strength, sign)) or image

    monkeypatch.setattr(augment, "OPERATIONS", {name: noted(name) for name in "abc"})
    image = Image.new("L", (2, 2))
    drawn: Any = Drawn(0, 0, LAST, LAST)
    again: Any = Drawn(0.5, 0.5)
    assert augment.randaugment(image, 2, 9, drawn) is image
    augment.randaugment(image, 1, 25, again)
    assert calls == [("a", 0.9, -1.0), ("c", 0.9, 1.0), ("b", 1.0, 1.0)]


RECTANGLES = {
    "a third, square, in the corner": ((2, 10, 20), (1, 0.5, LAST, LAST, 7), (2, 10, 12, 20)),
    "the least, high": ((2, 10, 20), (0, 1, 0, 0, 7), (0, 4, 0, 1)),
    "the least, wide": ((2, 10, 20), (0, 0, 0, 0, 7), (0, 1, 0, 4)),
    "the second draw": ((1, 4, 4), (0, 0, 1, 0.5, 0, 0, 7), (0, 2, 0, 2)),
    "the second draw, as the first has no column": ((1, 4, 4), (0, 1, 1, 0.5, 0, 0, 7), (0, 2, 0, 2)),
    "never one as high as the image": ((1, 4, 40), (0.2554, 0.5) * 10, (0, 0, 0, 0)),
    "never one as wide as the image": ((1, 40, 4), (0.2554, 0.5) * 10, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", RECTANGLES)
def test_a_rectangle_of_noise_has_the_area_the_sides_and_the_place_that_were_drawn(name: str) -> None:
    shape, parts, (top, bottom, left, right) = RECTANGLES[name]
    drawn: Any = Drawn(*parts)
    pixel_values = np.zeros(shape)
    augment.erase(pixel_values, drawn)
    expected = np.zeros(shape)
    expected[:, top:bottom, left:right] = 7
    np.testing.assert_array_equal(pixel_values, expected)
    assert not drawn.parts


MIXES = {
    "mixup": (0.8, 0.0, (0.25,), None, [0.8, 0.8]),
    "mixup of both": (0.8, 0.3, (0.5, 0.25), None, [0.8, 0.8]),
    "cutmix": (0.0, 0.3, (0.9, LAST, LAST), (slice(5, 8), slice(4, 6)), [0.3, 0.3]),
    "cutmix of both": (0.8, 0.3, (0.49, 0.9, 0, 0), (slice(0, 3), slice(0, 2)), [0.3, 0.3]),
}


@pytest.mark.parametrize("name", MIXES)
def test_images_and_targets_are_mixed_by_the_part_that_was_drawn(name: str) -> None:
    mixup, cutmix, parts, cut, alphas = MIXES[name]
    pixels = np.random.default_rng(0).random((4, 3, 8, 6), np.float32)
    batch = {"pixel_values": pixels, "targets": np.eye(4, dtype=np.float32), "other": np.arange(4)}
    drawn: Any = Drawn(*parts)
    mixed = augment.mix(batch, mixup, cutmix, drawn)
    partner = [2, 3, 0, 1]
    if cut is None:
        part, expected = 0.25, 0.25 * pixels + 0.75 * pixels[partner]
    else:
        part, expected = 1 - 6 / 48, pixels.copy()
        expected[:, :, *cut] = pixels[partner][:, :, *cut]
    np.testing.assert_allclose(mixed["pixel_values"], expected, rtol=1e-6)
    np.testing.assert_allclose(mixed["targets"], part * np.eye(4) + (1 - part) * np.eye(4)[partner], rtol=1e-6)
    assert (mixed["pixel_values"].dtype, mixed["targets"].dtype) == (np.float32, np.float32)
    assert mixed["other"] is batch["other"]
    assert (drawn.parts, drawn.alphas) == ([], alphas)
    assert augment.mix(batch, 0, 0, np.random.default_rng(0)) is batch


# === An example of a batch ===


def data(folder: Path, **fields: Any) -> Data:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(4)]
    examples = Examples(images, np.eye(2, dtype=np.float32)[[0, 1, 1, 0]], ("a", "b"))
    recipe = Recipe(**{"batch_size": 4, "crop_scale": 1.0, "flip": 0.0, "label_smoothing": 0.0, **fields})
    return Data(examples, recipe, ViTImageProcessor(size=16), tiny_config())


def test_an_example_is_what_evaluation_sees_but_for_what_the_recipe_asks(tmp_path: Path) -> None:
    plain = next(data(tmp_path).evaluation(data(tmp_path).training, 4))[0]
    for index in range(4):
        found = data(tmp_path).example(9, index)
        np.testing.assert_array_equal(found["pixel_values"], plain[index])
        assert found["number"] == 9
        mirrored = data(tmp_path, flip=1.0, label_smoothing=0.2).example(9, index)
        np.testing.assert_array_equal(mirrored["pixel_values"], plain[index][:, :, ::-1])
        assert mirrored["targets"] == pytest.approx([0.9, 0.1] if index in (0, 3) else [0.1, 0.9])
        for change in ({"erasing": 1.0}, {"randaugment": 3}, {"crop_scale": 0.2}):
            changed = data(tmp_path, **change).example(9, index)["pixel_values"]
            assert changed.shape == plain[index].shape
            assert not np.array_equal(changed, plain[index]), change


def test_a_part_of_the_images_is_mirrored_and_erased(tmp_path: Path) -> None:
    plain = next(data(tmp_path).evaluation(data(tmp_path).training, 4))[0]
    for change in ({"flip": 0.25}, {"erasing": 0.25}):
        some = data(tmp_path, **change)
        changed = [not np.array_equal(some.example(n, n % 4)["pixel_values"], plain[n % 4]) for n in range(200)]
        assert 0.15 < np.mean(changed) < 0.35


def test_a_seed_an_example_and_a_batch_have_draws_of_their_own(tmp_path: Path) -> None:
    """What a number draws is the same in every version, or a run could not be gone on with."""
    some = data(tmp_path, mixup=0.5, crop_scale=0.2, seed=3)
    batch = {"pixel_values": np.random.default_rng(0).random((4, 3, 2, 2)), "targets": np.eye(4)}
    mixed = some.finish({"number": np.array([8, 9, 10, 11]), **batch})
    expected = augment.mix(batch, 0.5, 0.0, np.random.default_rng([3, 2, 2]))
    np.testing.assert_array_equal(mixed["pixel_values"], expected["pixel_values"])
    assert mixed.keys() == {"pixel_values", "targets"}
    box = augment.random_crop_box(24, 20, 0.2, np.random.default_rng([3, 1, 6]))
    cropped = some.training.images[2].resize((16, 16), Image.Resampling.BILINEAR, box=box)
    expected_pixels = some.processor(cropped, return_tensors="np", do_resize=False).pixel_values[0]
    np.testing.assert_array_equal(some.example(6, 2)["pixel_values"], expected_pixels)
