"""Where a model looks: the maps by independent formulas, and the pictures of `vit attention` by their pixels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

import vit
from vit import (
    InputError,
    ViTConfig,
    ViTImageProcessor,
    attention_mask,
    attention_rollout,
    checkpoint,
    cls_attention,
    picture,
)
from vit.attention import check_threshold
from vit.cli import attention, frameworks, main
from vit.config import to_pair
from vit.errors import install_line
from vit.image_processing import DeiTImageProcessor

ALL = ["pt", "tf", "flax"]


def random_attentions(layers: int, batch: int, heads: int, tokens: int) -> list[np.ndarray]:
    weights = np.random.default_rng(0).exponential(size=(layers, batch, heads, tokens, tokens))
    return list(weights / weights.sum(axis=-1, keepdims=True))


# === Maps ===


def test_cls_attention_is_the_first_row_without_its_first_column_in_reading_order() -> None:
    attentions = random_attentions(layers=3, batch=2, heads=4, tokens=1 + 2 * 3)
    for layer in (0, 2, -1, -3):
        maps = cls_attention(attentions, (2, 3), layer)
        assert maps.shape == (2, 4, 2, 3)
        for image, head, row, column in np.ndindex(maps.shape):
            assert maps[image, head, row, column] == attentions[layer][image, head, 0, 1 + 3 * row + column]


def test_rollout_is_the_sum_over_all_paths_through_the_layers() -> None:
    tokens, layers = 4, 3
    attentions = random_attentions(layers, batch=2, heads=2, tokens=tokens)
    expected = np.zeros((2, tokens, tokens))
    for image in range(2):
        for path in itertools.product(range(tokens), repeat=layers + 1):  # from the input up
            share = 1.0
            for layer, (below, above) in enumerate(itertools.pairwise(path)):
                mean = sum(attentions[layer][image, head, above, below] for head in range(2)) / 2
                share *= 0.5 * mean + 0.5 * (below == above)
            expected[image, path[-1], path[0]] += share
    rollout = attention_rollout(attentions)
    assert np.abs(rollout - expected).max() < 1e-15
    assert np.abs(rollout.sum(axis=-1) - 1).max() < 1e-15
    assert np.abs(attention_rollout(attentions, tokens=[0]) - expected[:, :1]).max() < 1e-15
    assert np.abs(attention_rollout(attentions, tokens=[-1, 1]) - expected[:, [3, 1]]).max() < 1e-15


def test_mask_keeps_the_fewest_patches_that_hold_the_share() -> None:
    heat = np.random.default_rng(1).exponential(size=(5, 2, 3))
    for threshold in (0.0, 0.1, 0.5, 0.6, 0.9, 0.999, 1.0):
        masks = attention_mask(heat, threshold)
        for values, mask in zip(heat.reshape(5, 6), masks.reshape(5, 6), strict=True):
            wanted = threshold * values.sum() * (1 - 1e-12)
            enough = (n for n in range(7) if max(map(sum, itertools.combinations(values, n))) >= wanted)
            assert mask.sum() == next(enough)
            assert values[mask].sum() >= wanted
            # The published formula: of the values in rising order, those whose running share is above 1 - threshold.
            if 0 < threshold < 1:
                order = np.argsort(values)
                assert set(order[np.cumsum(values[order]) / values.sum() > 1 - threshold]) == set(np.flatnonzero(mask))


def test_mask_of_everything_leaves_out_what_holds_nothing_and_of_equals_keeps_the_first() -> None:
    assert attention_mask(np.array([[0.0, 2.0], [1.0, 0.0]]), 1).tolist() == [[False, True], [True, False]]
    assert attention_mask(np.ones((2, 3)), 0.5).tolist() == [[True, True, True], [False, False, False]]
    assert not attention_mask(np.zeros((2, 2)), 1).any()


def test_what_a_stretched_map_does_not_tell_is_said_beside_it() -> None:
    maps = np.array([[[1, 1], [1, 5]], [[2, 2], [2, 2]], [[0, 3], [0, 1]]], float)
    assert attention.strongest(maps) == "1 to 3 x"
    assert attention.strongest(maps[:1]) == "2.5 x"
    assert attention.strongest(np.zeros((1, 2, 2))) == "0 x"


def test_maps_take_the_tensors_of_every_framework() -> None:
    import jax.numpy as jnp
    import tensorflow as tf
    import torch

    attentions = [array.astype(np.float32) for array in random_attentions(2, 1, 2, 5)]
    tensors: list[Callable[[np.ndarray], Any]] = [
        lambda array: torch.from_numpy(array).requires_grad_(), tf.constant, jnp.asarray,
    ]  # fmt: skip
    for convert in tensors:
        converted = tuple(map(convert, attentions))
        assert np.array_equal(attention_rollout(converted), attention_rollout(attentions))
        assert np.array_equal(cls_attention(converted, (2, 2)), cls_attention(attentions, (2, 2)))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda a: cls_attention(a, (2, 2), 2), "layer is 2; expected 0 to 1, or -2 to -1 from the last"),
        (lambda a: cls_attention(a, (2, 2), -3), "layer is -3; expected 0 to 1"),
        (lambda a: cls_attention((), (2, 2)), "The model has no layers"),
        (lambda a: cls_attention(a, (2, 3)), "The attentions are of 5 tokens; expected 1 for CLS and 2 x 3"),
        (lambda a: cls_attention([each[0] for each in a], (2, 2)), r"shape \(2, 5, 5\); expected \(batch, heads, tok"),
        (lambda a: attention_rollout([]), "attentions holds no layer; expected at least one"),
        (lambda a: attention_rollout(a, tokens=[5]), "tokens holds 5; expected -5 to 4, as there are 5 tokens"),
        (lambda a: attention_mask(np.ones((2, 2)), 1.01), "threshold is 1.01; expected a share of the attention, 0 to"),
        (lambda a: check_threshold(float("nan")), "threshold is nan"),
        (lambda a: attention_mask(-np.ones((2, 2)), 0.5), "heat has values that are negative, NaN or infinite"),
        (lambda a: attention_mask(np.full((2, 2), np.nan), 0.5), "heat has values that are negative, NaN or infinite"),
    ],
)
def test_what_no_map_can_be_made_of_is_refused(call: Callable[[Any], object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        call(random_attentions(layers=2, batch=1, heads=2, tokens=5))


# === A model that looks where it is told ===


def looking(folder: Path, config: ViTConfig, targets: list[list[tuple[int, int]]], head: str | None) -> Path:
    """A checkpoint whose every token attends, in each layer and head, to one patch: `targets`[layer][head].

    Feature 1 + i of the position embeddings marks the i-th of the patches that are looked at, and the keys of a head
    read the feature of its patch; values are 0, so that every layer sees the same tokens.
    """
    grid, width = config.grid_size, config.hidden_size
    marked = sorted({place for layer in targets for place in layer})
    arrays = {name: np.zeros(shape, np.float32) for name, shape in config.parameter_shapes(head=head).items()}
    for name, array in arrays.items():
        if "layernorm" in name and name.endswith("weight"):
            array[:] = 1
    positions = arrays["vit.embeddings.position_embeddings"]
    positions[..., 0] = 1
    for i, (row, column) in enumerate(marked):
        positions[0, 1 + row * grid[1] + column] = np.eye(width)[1 + i]
    for layer, places in enumerate(targets):
        part = f"vit.encoder.layer.{layer}.attention.attention."
        arrays[f"{part}query.bias"][:] = 1
        for i, place in enumerate(places):
            rows = slice(i * config.head_dim, (i + 1) * config.head_dim)
            arrays[f"{part}key.weight"][rows, 1 + marked.index(place)] = 1
    if head:
        arrays["classifier.bias"][:] = np.arange(config.num_labels)
    else:
        arrays = {name.removeprefix("vit."): array for name, array in arrays.items()}
    architecture = "ViTForImageClassification" if head else "ViTModel"
    tensors = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    config = config.replace(architectures=(architecture,), dtype="float32")
    checkpoint.write(folder, config, tensors, arrays.__getitem__)
    ViTImageProcessor(size=to_pair(config.image_size)).save_pretrained(folder)
    return folder


TARGETS = [[(0, 0), (3, 5)], [(1, 4), (2, 1)], [(3, 0), (0, 2)]]  # of 4 x 6 patches; three layers of two heads


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ViTConfig]) -> Path:
    """A classifier of images of 32 x 48, in 4 x 6 patches, that looks at TARGETS."""
    config = tiny_config(image_size=(32, 48), patch_size=8, num_hidden_layers=3, num_attention_heads=2, id2label=LABELS)
    return looking(tmp_path_factory.mktemp("looking"), config, TARGETS, "classifier")


LABELS = {0: "never", 1: "lynx, catamount", 2: r"5 $ or \frac $ 6"}  # no formula


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["attention", *map(str, arguments)])
    return exit_.value.code


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[attention.View]:
    """What `vit attention` draws, for where its panels lie."""
    seen: list[attention.View] = []
    draw = attention.draw
    monkeypatch.setattr(attention, "draw", lambda path, view: (seen.append(view), draw(path, view)))
    return seen


def panels(path: Path, view: attention.View) -> list[np.ndarray]:
    """The pixels of the image, the summary and the parts of a picture, (height, width, 3) of 0..255."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1920
    first, second, parts = attention.layout(view)
    boxes = [[round(picture.DPI * each) for each in place] for place in (first, second, *parts)]
    return [pixels[top : top + height, left : left + width] for left, top, width, height in boxes]


def by_patch(panel: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The mean of (height, width) over each patch of a grid."""
    rows, columns = (
        np.linspace(0, length, count + 1).round().astype(int) for length, count in zip(panel.shape, grid, strict=True)
    )
    means = [
        [panel[top:bottom, left:right].mean() for left, right in itertools.pairwise(columns)]
        for top, bottom in itertools.pairwise(rows)
    ]
    return np.array(means)


def hottest(panel: np.ndarray, grid: tuple[int, int], count: int = 1) -> list[tuple[int, int]]:
    """The patches of a panel that are drawn in the colours of heat, over grey, in reading order."""
    warmth = by_patch((panel[..., 0] - panel[..., 2]).clip(0), grid)
    best = np.argsort(-warmth, axis=None)[:count]
    assert warmth.flat[best].min() > 25
    assert np.delete(warmth, best).max() < 0.4 * warmth.flat[best].min()  # what spreads from a patch to the next
    return sorted((int(i) // grid[1], int(i) % grid[1]) for i in best)


@pytest.fixture(scope="module")
def pictures(model: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same picture, drawn from each framework's attention."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = {extra: folder / f"{extra}.png" for extra in ALL}
    for extra, path in paths.items():
        assert run(photo, "--model", model, "--framework", extra, "--output", path, "--quiet") == 0
    return paths


@pytest.mark.parametrize("extra", ALL)
def test_heat_lies_where_the_attention_is_in_every_framework(
    extra: str, pictures: dict[str, Path], model: Path, photo: Path, tmp_path: Path, views: list[attention.View]
) -> None:
    assert run(photo, "--model", model, "-f", "pt", "-o", tmp_path / "again.png", "--quiet") == 0
    image, mean, *heads = panels(pictures[extra], views[0])
    assert hottest(mean, (4, 6), count=2) == sorted(TARGETS[-1])
    assert [hottest(head, (4, 6)) for head in heads] == [[place] for place in TARGETS[-1]]
    expected = Image.fromarray(data.astronaut()).resize(image.shape[1::-1])
    for colour in range(3):  # the photograph, undisturbed
        drawn, original = (by_patch(np.asarray(each)[..., colour], (16, 24)) for each in (image, expected))
        assert np.abs(drawn - original).max() < 8  # the last row and column are cut by rounding


def test_every_framework_draws_the_same_picture(pictures: dict[str, Path]) -> None:
    first, *others = (np.asarray(Image.open(path)).astype(int) for path in pictures.values())
    for other in others:
        assert np.abs(other - first).max() <= 2  # of 255


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_layers_count_from_0_or_from_the_last(
    layer: int, model: Path, photo: Path, tmp_path: Path, views: list[attention.View]
) -> None:
    assert run(photo, "-m", model, "-f", "pt", "-o", tmp_path / "a.png", "--layer", layer, "-q") == 0
    _, _, *heads = panels(tmp_path / "a.png", views[0])
    assert [hottest(head, (4, 6)) for head in heads] == [[place] for place in TARGETS[layer]]


def test_rollout_shows_what_comes_through_the_layers_one_more_in_each_panel(
    model: Path, tmp_path: Path, views: list[attention.View]
) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "black.png")
    assert run(tmp_path / "black.png", "-m", model, "-f", "pt", "-o", tmp_path / "a.png", "--rollout", "-q") == 0
    # Every token looks at the same patches, so that a layer halves what is there and adds half of what it looks at.
    expected = np.zeros((3, 4, 6))
    for upper in range(3):
        for layer, places in enumerate(TARGETS[: upper + 1]):
            for place in places:
                expected[upper, *place] += 0.5 ** (layer + 1) / 2
    assert np.abs(views[0].parts - expected).max() < 1e-3
    assert np.array_equal(views[0].summary, views[0].parts[2])
    _, rollout, *layers = panels(tmp_path / "a.png", views[0])
    for panel, heat in zip((rollout, *layers), (expected[2], *expected), strict=True):
        height, width = panel.shape[0] / 4, panel.shape[1] / 6
        light: dict[float, list[int]] = {}
        for row, column in [*np.ndindex(4, 6)][1:]:  # the number of a layer is written on the first patch
            middle = panel[int((row + 0.5) * height), int((column + 0.5) * width)]
            light.setdefault(heat[row, column], []).append(middle.sum())  # over black, more attention is lighter
        levels = [light[level] for level in sorted(light)]
        assert max(levels[0]) < 10
        assert all(max(less) + 15 < min(more) for less, more in itertools.pairwise(levels))


def test_threshold_leaves_the_colours_of_the_patches_that_are_kept(
    model: Path, tmp_path: Path, views: list[attention.View], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), (40, 200, 60)).save(tmp_path / "green.png")
    output = tmp_path / "a.png"
    assert run(tmp_path / "green.png", "-m", model, "-f", "pt", "-o", output, "--threshold", "0.6", "--json") == 0
    image, mean, *heads = panels(output, views[0])
    # Half of the mean is at each of two patches; a head has one.
    for panel, places in ((mean, TARGETS[-1]), (heads[0], TARGETS[-1][:1]), (heads[1], TARGETS[-1][1:])):
        green = by_patch(panel[..., 1] - panel[..., 0], (4, 6))
        kept = np.zeros((4, 6), bool)
        kept[tuple(np.transpose(places))] = True
        label = np.zeros((4, 6), bool)
        label[0, 0] = panel is not mean  # the number of a head is written there
        assert (green[kept & ~label] > 140).all()
        assert (green[~kept & ~label] < 12).all()
    assert by_patch(image[..., 1] - image[..., 0], (4, 6)).min() > 140
    printed = json.loads(capsys.readouterr().out)
    assert (printed["mean"]["kept"], [head["kept"] for head in printed["heads"]]) == (2, [1, 1])


# === What is drawn over ===


@pytest.mark.parametrize(
    ("processor", "image_size", "shape"),
    [
        (ViTImageProcessor(size=(32, 48)), None, (32, 48)),
        (ViTImageProcessor(size=(32, 48)), (70, 61), (70, 61)),  # patches of 8 leave 6 rows and 5 columns over
        (ViTImageProcessor(size={"shortest_edge": 60}, do_center_crop=True, crop_size=(32, 48)), None, (32, 48)),
        (ViTImageProcessor(size={"shortest_edge": 60}, do_center_crop=True, crop_size=(32, 48)), (64, 64), (64, 64)),
        (ViTImageProcessor(size={"shortest_edge": 50}, do_center_crop=True, crop_size=(32, 48)), (48, 96), (48, 96)),
        (DeiTImageProcessor(size=64, crop_size=(32, 48)), None, (32, 48)),
        (DeiTImageProcessor(size=64, crop_size=(32, 48)), (48, 96), (48, 96)),
        (ViTImageProcessor(do_resize=False, do_center_crop=True, crop_size=(32, 48)), None, (32, 48)),
        (ViTImageProcessor(do_resize=False), (40, 40), (40, 40)),
    ],
    ids=lambda value: str(value).partition("(")[0] if isinstance(value, ViTImageProcessor) else None,
)
def test_image_shown_is_the_part_of_the_photograph_that_the_patches_cover(
    processor: ViTImageProcessor, image_size: Any, shape: tuple[int, int], photo: Path, model: Path
) -> None:
    pixels = attention.preprocess(photo, processor, ViTConfig.from_pretrained(model), image_size)
    assert pixels.values.shape == (1, 3, *shape)
    rows, columns = pixels.grid
    assert (rows, columns) == (shape[0] // 8, shape[1] // 8)
    mean, std = (np.array(option)[:, None, None] for option in (processor.image_mean, processor.image_std))
    seen = (pixels.values[0] * std + mean)[:, : 8 * rows, : 8 * columns].transpose(1, 2, 0)  # by the model
    shown = Image.fromarray((pixels.shown * 255).round().astype(np.uint8)).resize(seen.shape[1::-1], Image.BOX)
    differences = [np.abs(seen - np.roll(np.asarray(shown) / 255, shift, axis)).mean() for shift, axis in SHIFTS]
    assert differences[0] < 0.03
    assert differences[0] < 0.6 * min(differences[1:])  # no pixel of the model's to the side
    assert pixels.shown.any(axis=(0, 2)).all()  # nothing was padded
    if processor.do_resize:
        assert pixels.shown.shape[0] >= 300  # the photograph has 512


SHIFTS = [(0, 0), (1, 0), (-1, 0), (1, 1), (-1, 1)]


def test_a_finer_map_is_made_at_another_image_size(
    model: Path, photo: Path, tmp_path: Path, views: list[attention.View], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.png"
    assert run(photo, "-m", model, "-f", "pt", "-o", output, "--image-size", "64x96", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["grid"] == [8, 12]
    for head, (row, column) in zip(printed["heads"], TARGETS[-1], strict=True):  # a patch has become four
        assert (head["row"] // 2, head["column"] // 2) == (row, column)
    assert "64 x 96, in 8 x 12 patches" in views[0].pixels.about


def test_grey_models_take_grey_scans(tmp_path: Path, views: list[attention.View]) -> None:
    scan = next(frameworks.DIGITS.glob("digit-3-*.png"))
    assert run(scan, "-f", "pt", "-o", tmp_path / "a.png", "-q") == 0
    assert views[0].answers[0].label == "3"
    assert views[0].pixels.shown.shape == (32, 32, 3)
    assert views[0].model == "the bundled digits"


def test_exif_orientation_is_applied_to_what_is_shown_and_said(tmp_path: Path, model: Path) -> None:
    image = Image.fromarray(data.astronaut()[:, :256])  # 512 x 256
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    processor = ViTImageProcessor(size=(32, 48))
    pixels = attention.preprocess(tmp_path / "turned.jpg", processor, ViTConfig.from_pretrained(model))
    assert "turned.jpg, 256 x 512, resized" in pixels.about
    upright = np.asarray(image.rotate(-90, expand=True).resize(pixels.shown.shape[1::-1])) / 255
    assert np.abs(pixels.shown - upright).mean() < 0.05


# === What is written ===


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """Every text of a picture, and its left and right edge in inches."""
    texts: list[tuple[str, float, float]] = []
    right = picture.Slide._right

    def write(self: picture.Slide, left: float, top: float, text: str, *arguments: Any, **style: Any) -> float:
        edge = original(self, left, top, text, *arguments, **style)
        assert 0 < top < self.height
        texts.append((self.figure.texts[-1].get_text(), left, right(self, self.figure.texts[-1])))
        return edge

    original = picture.Slide.write
    monkeypatch.setattr(picture.Slide, "write", write)
    return texts


def test_classifiers_answer_is_the_title_and_labels_are_taken_literally(
    model: Path, photo: Path, tmp_path: Path, written: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photo, "-m", model, "-f", "pt", "-o", tmp_path / "a.png") == 0
    e = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    texts = [text for text, _, _ in written]
    assert texts[:2] == [LABELS[2], f"{e[2]:.1%}"]
    assert texts[2].endswith(  # of synonyms the first
        f", attention of the last of 3 layers.   Other answers: lynx ({e[1]:.1%}), never ({e[0]:.1%})"
    )
    # A head looks at one of 24 patches.
    assert {"image", "mean of 2 heads: 0.00% to 50.00%", "each head", "0", "1"} < set(texts)
    assert any(
        text.endswith("in each panel; were all patches alike, each had 4.17%; the heads reach 24 x that")
        for text in texts
    )
    assert texts[-1] == "astronaut.png, 512 x 512, resized to what the model gets: 32 x 48, in 4 x 6 patches"
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{LABELS[2]} ({e[2]:.1%}), lynx, catamount ({e[1]:.1%}), never ({e[0]:.1%})",
        f"Picture: {tmp_path / 'a.png'}",
    ]


@pytest.mark.parametrize("extra", ALL)
def test_a_base_model_has_no_answer(
    extra: str, tmp_path: Path, photo: Path, tiny_config: Callable[..., ViTConfig], written: list[Any],
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    config = tiny_config(image_size=16, num_hidden_layers=1, num_attention_heads=2)
    folder = looking(tmp_path / "base", config, [[(0, 1), (3, 2)]], None)
    assert run(photo, "-m", folder, "-f", extra, "-o", tmp_path / "a.png", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["answers"] == []
    assert [(head["row"], head["column"]) for head in printed["heads"]] == [(0, 1), (3, 2)]
    assert [text for text, _, _ in written][:3] == ["Where base looks", "", "Attention of the last of 1 layers"]
    assert not [warning for warning in recwarn if "freshly initialised" in str(warning.message)]


def test_numbers_and_no_invented_names_are_shown_where_a_checkpoint_names_no_labels(model: Path) -> None:
    processor = ViTImageProcessor.from_pretrained(model)
    named = attention.answers(processor, ViTConfig(num_labels=4), np.float32([[0, 3, 1, 2]]))
    assert [answer.label for answer in named] == ["1", "3", "2"]
    several = ViTConfig(num_labels=2, problem_type="multi_label_classification")
    assert [answer.shown for answer in attention.answers(processor, several, np.float32([[0, 9]]))] == [
        "100.0%",
        "50.0%",
    ]
    apart = ViTConfig(id2label={0: "ant", 1: "bee"}, label2id={"bee": 0, "ant": 1})  # the names are those of id2label
    assert [answer.label for answer in attention.answers(processor, apart, np.float32([[0, 9]]))] == ["bee", "ant"]
    one = ViTConfig(num_labels=1, problem_type="single_label_classification")  # whose softmax is 1, whatever it says
    for config in (ViTConfig(num_labels=1), ViTConfig(num_labels=1, problem_type="regression"), one):
        assert [answer.shown for answer in attention.answers(processor, config, np.float32([[0.25]]))] == ["0.25"]


@pytest.mark.parametrize("shape", [(96, 96), (64, 160), (160, 64), (40, 400)])
@pytest.mark.parametrize("parts", [1, 2, 3, 6, 12, 16, 24, 48])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_panels_and_texts_of_any_number_stay_apart_and_on_the_slide(
    shape: tuple[int, int], parts: int, threshold: float | None, written: list[Any], tmp_path: Path
) -> None:
    grid = (shape[0] // 8, shape[1] // 8)
    heat = np.random.default_rng(0).random((parts, *grid))
    long = "a very long name of something that goes on " * 6
    pixels = attention.Pixels(np.zeros((1, 3, *shape)), np.zeros((*shape, 3)), grid, long)
    answers = [attention.Answer(long, 0.5, "50.0%"), attention.Answer(long, 0.4, "40.0%")]
    view = attention.View(pixels, heat.mean(axis=0), heat, 2, 3, False, threshold, long, answers)
    first, second, places = attention.layout(view)
    assert len(places) == (parts if parts > 1 else 0)
    edges = [(left, top, left + width, top + height) for left, top, width, height in (first, second, *places)]
    for (left, top, right, bottom), other in itertools.combinations(edges, 2):
        assert (
            right <= other[0] + 1e-9 or bottom <= other[1] + 1e-9 or other[2] <= left + 1e-9 or other[3] <= top + 1e-9
        )
    for left, top, right, bottom in edges:
        assert picture.MARGIN - 1e-9 <= left < right <= picture.WIDTH - picture.MARGIN + 1e-9
        assert picture.TOP <= top < bottom <= 9 - picture.FOOT - picture.UNDER + 1e-9
        assert (right - left) / (bottom - top) == pytest.approx(shape[1] / shape[0])
    attention.draw(tmp_path / "a.png", view)
    assert len(written) == 7 + len(places) + bool(places)
    for text, left, right in written:
        assert left >= picture.MARGIN - 1e-9, text
        assert right <= picture.WIDTH - picture.MARGIN + 0.02, text


# === Bad input ===


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.jpg"], "missing.jpg) does not exist; expected the path of an image file."),
        (["text.jpg"], "text.jpg) is not an image file that Pillow can read."),
        (["cut.png"], "cut.png) cannot be read"),
        (["folder"], "folder) cannot be read"),
        (["a.png", "--model", "./no-such-model"], "./no-such-model does not exist; expected a checkpoint folder"),
        (["a.png", "--model", "folder"], "folder has no config.json"),
        (["a.png", "--layer", "3"], "layer is 3; expected 0 to 2, or -3 to -1 from the last."),
        (["a.png", "--layer", "-4"], "layer is -4; expected 0 to 2"),
        (["a.png", "--layer", "x"], "Invalid value for '--layer'"),
        (["a.png", "--threshold", "-0.1"], "threshold is -0.1; expected a share of the attention, 0 to 1."),
        (["a.png", "--threshold", "60"], "threshold is 60; expected a share"),
        (["a.png", "--output", "old.png"], "'old.png', which exists; give another name, or --force to replace it."),
        (["a.png", "--output", "folder.png"], "'folder.png', which is a folder; expected a file."),
        (["a.png", "--output", "no/such.png"], "'no' is not a folder; make it first."),
        (["a.png", "--output", "new.jpg"], "expected a file name that ends in .png, .svg, .pdf."),
        (["a.png", "--image-size", "4"], "pixel_values is 4 x 4, smaller than one patch of 8 x 8."),
        (["a.png", "--image-size", "big"], "'big' is no size; expected a number, or height and width such as 384x512."),
        (["a.png", "--framework", "theano"], "framework is 'theano'; expected one of pt, tf, flax."),
        (["a.png", "--framework", "pt", "--device", "gpu:77"], "device is 'cuda:77'; PyTorch sees cpu"),
        (["a.png", "--framework", "pt", "--dtype", "int8"], "dtype is 'int8'; expected one of float64"),
        (["a.png", "--model", "square"], "makes 32x32 (height x width) of a.png, but its model expects 32x48."),
        (["a.png", "--model", "flat"], "The model has no layers, and so no attention."),
        ([], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], reason: str, model: Path, tmp_path: Path, tiny_config: Callable[..., ViTConfig],
    random_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    Image.fromarray(data.astronaut()).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:50_000])
    Path("text.jpg").write_text("no image")
    Path("old.png").write_bytes(b"old")
    for name in ("folder", "folder.png"):
        Path(name).mkdir()
    if "square" in arguments:
        for file in model.iterdir():
            (tmp_path / "square").mkdir(exist_ok=True)
            (tmp_path / "square" / file.name).write_bytes(file.read_bytes())
        ViTImageProcessor(size=32).save_pretrained("square")
    if "flat" in arguments:
        random_checkpoint("flat", tiny_config(num_hidden_layers=0))
    before = sorted(tmp_path.rglob("*"))
    defaults = [] if "--model" in arguments else ["--model", str(model)]
    assert run(*arguments, *defaults) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("old.png").read_bytes() == b"old"


def test_force_replaces_an_output_that_exists(model: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(b"old")
    assert run(photo, "-m", model, "-f", "pt", "-o", tmp_path / "a.svg", "-q", "--force") == 0
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [("matplotlib", "plot", []), ("torch", "pt", ["-f", "pt"]), ("tensorflow", "tf", ["-f", "tf"]),
     ("flax", "flax", ["-f", "flax"])],
)  # fmt: skip
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(
    module: str, extra: str, arguments: list[str], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = vit.errors.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else found(name))
    assert run(photo, "-o", tmp_path / "a.png", *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert install_line(extra) in err


def test_attention_that_is_nan_is_an_error_and_no_picture(
    tmp_path: Path, photo: Path, tiny_config: Callable[..., ViTConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(image_size=16, num_hidden_layers=1, num_attention_heads=2, layer_norm_eps=0.0)
    folder = looking(tmp_path / "broken", config, [[(0, 1), (3, 2)]], None)
    tensors = checkpoint.Checkpoint(folder)
    arrays = {name: tensors.read(name).copy() for name in tensors.tensors}
    arrays["embeddings.position_embeddings"][:] = np.nan
    checkpoint.write(folder, tensors.config, {name: (a.shape, a.dtype) for name, a in arrays.items()}, arrays.get)
    assert run(photo, "-m", folder, "-f", "pt", "-o", tmp_path / "a.png") == 2
    assert "The attention has values that are NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(("height", "shown"), [(240, 240), (241, 480), (480, 480), (481, 720), (720, 720), (999, 720)])
def test_what_is_shown_is_as_fine_as_the_photograph_and_a_panel_have_use_for(
    tmp_path: Path, height: int, shown: int
) -> None:
    Image.new("RGB", (16, height)).save(tmp_path / "photo.png")
    config = ViTConfig.variant("Ti/16", image_size=(240, 16))
    pixels = attention.preprocess(tmp_path / "photo.png", ViTImageProcessor(size=(240, 16)), config)
    assert pixels.shown.shape[0] == shown


@pytest.mark.parametrize(("size", "shown"), [((60, 40), 1.5), ((40, 60), 2 / 3), ((900, 100), 3.0)])
def test_a_photograph_that_nothing_is_cropped_from_keeps_its_proportions(
    tmp_path: Path, size: tuple[int, int], shown: float
) -> None:
    Image.new("RGB", size).save(tmp_path / "photo.png")
    config = ViTConfig.variant("Ti/16", image_size=64)
    pixels = attention.preprocess(tmp_path / "photo.png", ViTImageProcessor(size={"height": 64, "width": 64}), config)
    assert pixels.values.shape == (1, 3, 64, 64)
    assert pixels.shown.shape[1] / pixels.shown.shape[0] == pytest.approx(shown, rel=0.02)
    square = attention.preprocess(tmp_path / "photo.png", DeiTImageProcessor(
        size={"height": 72, "width": 72}, crop_size={"height": 64, "width": 64}), config)  # fmt: skip
    assert square.shown.shape[0] == square.shown.shape[1]
