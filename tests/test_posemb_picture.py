"""`vit posemb`: similarities and filters by independent formulas, and the picture by its pixels."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from vit import ViTConfig, checkpoint, picture
from vit.cli import main, posemb
from vit.errors import install_line

from . import equivalence

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "flax")

# === The numbers ===


def test_similarity_is_the_cosine_of_every_two_patches_without_cls() -> None:
    embeddings = np.random.default_rng(0).standard_normal((1, 1 + 2 * 3, 8)).astype(np.float32)
    embeddings[0, 0] *= 1000
    embeddings[0, 2] *= 1e-3  # a short one has a direction, too
    similarity = posemb.position_similarity(embeddings, (2, 3))
    assert similarity.shape == (2, 3, 2, 3)
    for row, column, other_row, other_column in np.ndindex(similarity.shape):
        one, other = (embeddings[0, 1 + 3 * i + j].astype(float) for i, j in ((row, column), (other_row, other_column)))
        cosine = (one * other).sum() / ((one**2).sum() * (other**2).sum()) ** 0.5
        assert similarity[row, column, other_row, other_column] == pytest.approx(cosine, abs=1e-15)


def test_biases_are_by_distance_and_of_the_largest_value() -> None:
    rows, columns = 2, 3
    table = np.random.default_rng(0).standard_normal((2 * rows - 1) * (2 * columns - 1) + 3)
    table[-3:] = 100  # CLS is no place
    bias = posemb.position_bias(table, (rows, columns))
    by_distance = table[:-3].reshape(2 * rows - 1, 2 * columns - 1)  # from the farthest above and to the left
    for row, column, other_row, other_column in np.ndindex(rows, columns, rows, columns):
        expected = by_distance[row - other_row + rows - 1, column - other_column + columns - 1]
        assert bias[row, column, other_row, other_column] == expected / np.abs(table[:-3]).max()


def test_a_checkpoint_with_biases_and_no_positions_shows_their_mean_over_layers_and_heads(
    tmp_path: Path, random_checkpoint: Callable[..., Path]
) -> None:
    config = equivalence.tiny_config("beit")
    folder = random_checkpoint(tmp_path / "beit", config)
    opened = checkpoint.Checkpoint(folder)
    tables = [opened.read(name) for name in opened.tensors if name.endswith("relative_position_bias_table")]
    assert len(tables) == config.num_hidden_layers
    view = posemb.examine(folder)
    assert np.allclose(view.similarity, posemb.position_bias(np.mean(tables, axis=(0, 2)), config.grid_size), atol=1e-6)
    assert view.measure == posemb.BIAS
    assert abs(view.similarity).max() == 1


def test_similarity_to_an_embedding_of_zeros_is_zero() -> None:
    embeddings = np.ones((1, 3, 4), np.float32)
    embeddings[0, 1] = 0
    assert np.abs(posemb.position_similarity(embeddings, (1, 2)).reshape(2, 2) - [[0, 0], [0, 1]]).max() < 1e-15


@pytest.mark.parametrize("shape", [(64, 3, 4, 4), (64, 1, 2, 8), (20, 3, 8, 8), (16, 5, 3, 3)])
def test_filters_are_the_principal_components_that_another_library_finds(shape: tuple[int, ...]) -> None:
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.geomspace(1, 9, shape[0])[
        :, None, None, None
    ] + np.float32(0.5)
    filters, shares = posemb.principal_filters(kernel)
    count = min(28, shape[0] - 1, int(np.prod(shape[1:])))  # of N filters less their mean, one says nothing new
    assert filters.shape == (count, *shape[1:])
    pca = PCA(count).fit(kernel.reshape(shape[0], -1).astype(np.float64))
    assert np.abs(shares - pca.explained_variance_ratio_).max() < 1e-12
    for found, expected in zip(filters, pca.components_.reshape(filters.shape), strict=True):
        assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 1e-6
        assert found.max() == np.abs(found).max()


def test_equal_filters_have_no_variance_and_give_no_nan() -> None:
    filters, shares = posemb.principal_filters(np.ones((8, 3, 2, 2), np.float32))
    assert np.isfinite(filters).all()
    assert not shares.any()


def test_tiles_are_rgb_or_the_channels_in_grey_side_by_side() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (6, 2, 3))
    rgb = posemb.filter_tile(values[:3])
    largest = np.abs(values[:3]).max()
    assert rgb.shape == (2, 3, 3)
    assert rgb[1, 2, 0] == pytest.approx(0.5 + values[0, 1, 2] / largest / 2)
    assert posemb.filter_tile(values[:1]).shape == (2, 3)
    five = posemb.filter_tile(values[:5])  # in a square of 3, of which the last row has nothing
    assert five.shape == (4, 9)
    assert five[1, 3 + 2] == pytest.approx(0.5 + values[1, 1, 2] / np.abs(values[:5]).max() / 2)
    assert five[2 + 1, 0] == pytest.approx(0.5 + values[3, 1, 0] / np.abs(values[:5]).max() / 2)
    assert np.isnan(five[2:, 6:]).all()
    assert np.isfinite(five[:, :6]).all()
    assert (posemb.filter_tile(np.zeros((3, 2, 2))) == 0.5).all()


# === The picture ===


def write(folder: Path, config: ViTConfig, arrays: dict[str, np.ndarray], source: Path) -> Path:
    """A copy of a checkpoint with some parameters replaced."""
    opened = checkpoint.Checkpoint(source)
    whole = {name: arrays.get(name, opened.read(name)) for name in opened.tensors}
    checkpoint.write(folder, config, {name: (a.shape, a.dtype) for name, a in whole.items()}, whole.__getitem__)
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["posemb", *map(str, arguments)])
    return exit_.value.code


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1920
    return pixels


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(int)))
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize(("grid", "patch", "step"), [((4, 6), (4, 4), 1), ((6, 3), (4, 8), 1), ((20, 18), (4, 4), 2)])
def test_every_position_is_bright_at_its_own_place_in_its_own_tile(
    grid: tuple[int, int], patch: tuple[int, int], step: int, tmp_path: Path, tiny_config: Callable[..., ViTConfig],
    random_checkpoint: Callable[..., Path],
) -> None:  # fmt: skip
    rows, columns = grid
    size = (rows * patch[0], columns * patch[1])
    width = rows * columns + rows * columns % 4
    config = tiny_config(hidden_size=width, num_attention_heads=1, image_size=size, patch_size=patch)
    source = random_checkpoint(tmp_path / "random", config)
    one_hot = np.zeros((1, 1 + rows * columns, width), np.float32)
    one_hot[0, 1:, : rows * columns] = np.eye(rows * columns)  # every position is like none but itself
    one_hot[0, 0] = 1  # CLS is like all of them
    filters = np.zeros((width, 3, *patch), np.float32)  # in no colour that could be taken for heat
    names = ("embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight")
    folder = write(tmp_path / "one-hot", config, dict(zip(names, (one_hot, filters), strict=True)), source)
    assert run(folder, "--output", tmp_path / "a.png", "--quiet") == 0
    pixels = read(tmp_path / "a.png")
    red, green, blue = pixels[: -round(picture.FOOT * picture.DPI)].transpose(2, 0, 1)  # without the legend's bar
    yellow = (red > 200) & (green > 200) & (red - blue > 50)
    tops, lefts = runs(yellow.any(axis=1)), runs(yellow.any(axis=0))
    drawn = (-(-rows // step), -(-columns // step))
    assert (len(tops), len(lefts)) == drawn
    assert sum(yellow[top:bottom, left:far].any() for top, bottom in tops for left, far in lefts) == np.prod(drawn)
    # From a tile to the next the bright cell moves by a tile, its gap and a step of cells: evenly.
    for edges in (tops, lefts):
        distances = [other[0] - one[0] for one, other in itertools.pairwise(edges)]
        assert max(distances) - min(distances) <= 3
    (height, breadth) = (edges[-1][1] - edges[0][0] for edges in (tops, lefts))
    assert breadth / height == pytest.approx((columns**2 * patch[1]) / (rows**2 * patch[0]), rel=0.15)


def test_filters_are_drawn_in_their_colours_the_strongest_first(
    tmp_path: Path, tiny_config: Callable[..., ViTConfig], random_checkpoint: Callable[..., Path]
) -> None:
    config = tiny_config(patch_size=4, image_size=16)
    source = random_checkpoint(tmp_path / "random", config)
    kernel = np.zeros((32, 3, 4, 4), np.float32)
    for i, (channel, strength) in enumerate(((1, 9), (0, 5), (2, 2))):  # green, red and blue, each all over the patch
        kernel[2 * i, channel], kernel[2 * i + 1, channel] = strength, -strength
    folder = write(tmp_path / "coloured", config, {"embeddings.patch_embeddings.projection.weight": kernel}, source)
    view = posemb.examine(folder)
    assert view.shares[:3] == pytest.approx(np.array([81, 25, 4]) / 110)
    assert run(folder, "--output", tmp_path / "a.png", "--quiet") == 0
    pixels = read(tmp_path / "a.png")
    top = round((picture.TOP + 0.2) * picture.DPI)  # into the first row of tiles
    left = round(picture.MARGIN * picture.DPI)
    tiles = runs((pixels[top, left:960] != pixels[top, 5]).any(axis=1))
    colours = [pixels[top, left + (begin + end) // 2].tolist() for begin, end in tiles[:3]]
    assert np.abs(np.array(colours) - [[128, 255, 128], [255, 128, 128], [128, 128, 255]]).max() <= 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_number_of_channels_is_drawn_and_said(
    channels: int, tmp_path: Path, tiny_config: Callable[..., ViTConfig], random_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    texts: list[str] = []
    original = picture.Slide.write

    def write(self: picture.Slide, left: float, top: float, text: str, *arguments: Any, **style: Any) -> float:
        right = original(self, left, top, text, *arguments, **style)
        assert picture.MARGIN - 1e-9 <= left <= right <= picture.WIDTH - picture.MARGIN + 0.3
        texts.append(self.figure.texts[-1].get_text())
        return right

    monkeypatch.setattr(picture.Slide, "write", write)
    folder = random_checkpoint(tmp_path / "model", tiny_config(num_channels=channels))
    assert run(folder, "--output", tmp_path / "a.pdf", "--quiet") == 0
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert texts[0] == "What model learned about patches and positions"
    assert texts[2].endswith({1: "pixels, grey", 3: "pixels, RGB"}.get(channels, f"pixels, {channels} channels"))
    assert texts[-1].endswith("row by row") == (channels not in (1, 3))


def test_bundled_digits_are_the_default_and_json_says_what_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--output", tmp_path / "a.png", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["grid"], printed["patch_size"], printed["channels"]) == ([8, 8], [4, 4], 1)
    assert len(printed["variance_shares"]) == 16
    assert sum(printed["variance_shares"]) == pytest.approx(1)
    assert -1 <= printed["least_similarity"] < 0
    assert printed["picture"] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("head", "options"), [(None, {}), ("classifier", {"dtype": "bfloat16"}), ("decoder", {"max_shard_size": 9000})]
)
def test_checkpoints_of_every_head_dtype_and_number_of_files_are_read(
    head: str | None, options: dict[str, Any], tmp_path: Path, tiny_config: Callable[..., ViTConfig],
    random_checkpoint: Callable[..., Path],
) -> None:  # fmt: skip
    config = tiny_config()
    folder = random_checkpoint(tmp_path / "model", config, head, **options)
    view = posemb.examine(folder)
    opened = checkpoint.Checkpoint(folder)
    prefix = "vit." if head else ""
    positions = opened.read(f"{prefix}embeddings.position_embeddings").astype(np.float64)[0, 1:]
    expected = np.corrcoef(np.c_[positions, -positions])  # of vectors whose mean is 0, the correlation is the cosine
    assert np.abs(view.similarity.reshape(expected.shape) - expected).max() < 1e-12
    assert view.similarity.shape == (*config.grid_size, *config.grid_size)


def test_no_framework_is_needed_or_imported(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({FRAMEWORKS})); from vit.cli import main\n"
        "main(['posemb', '--output', sys.argv[1]])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"Picture: {tmp_path / 'a.png'}\n"


# === Bad input ===


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["./no-such-model"],
            "./no-such-model does not exist; expected a checkpoint folder or a model name on the hub",
        ),
        (["folder"], "folder has no config.json"),
        (["other"], "other does not fit the model that config.json and the arguments describe"),
        (["--output", "old.png"], "'old.png', which exists; give another name, or --force to replace it."),
        (["--output", "folder"], "expected a file name that ends in .png, .svg, .pdf."),
        (["--output", "no/such.png"], "'no' is not a folder; make it first."),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], reason: str, tmp_path: Path, tiny_config: Callable[..., ViTConfig],
    random_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("old.png").write_bytes(b"old")
    if "other" in arguments:  # weights of another width than config.json says
        random_checkpoint("other", tiny_config())
        Path("other/config.json").write_text(tiny_config(hidden_size=64).to_json())
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_an_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    assert run("--output", tmp_path / "a.png", "--force", "--quiet") == 0
    assert read(tmp_path / "a.png").shape[2] == 3


def test_without_matplotlib_the_line_that_installs_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(picture, "available", lambda: False)
    assert run("--output", tmp_path / "a.png") == 2
    assert capsys.readouterr().err == f"vit: vit posemb needs matplotlib. Install it with: {install_line('plot')}\n"


def test_the_line_that_says_where_the_picture_is_and_the_gaps_of_the_mosaic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--output", tmp_path / "a.png") == 0
    assert capsys.readouterr().out == f"Picture: {tmp_path / 'a.png'}\n"
    tiles = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    drawn = posemb.mosaic(tiles, pixels=150)  # 10 pixels a cell, and 4 between
    assert drawn.shape == (2 * 40 + 4, 3 * 50 + 2 * 4)
    assert np.array_equal(drawn[5::44][:, 5::54], tiles[:, :, 0, 0])
    assert np.array_equal(drawn[44 + 5 :: 10][:4, 5:55:10], tiles[1, 0])
    assert np.isnan(drawn[40:44]).all()
    assert np.isnan(drawn[:, 50:54]).all()
    assert np.isfinite(drawn[:40, :50]).all()
    assert posemb.mosaic(tiles, pixels=1).shape == (2 * 4 + 1, 3 * 5 + 2)  # at least a pixel a cell, and one between
