"""What the pictures' slides hold: each panel's place, size and pixels, and each text's place, size and colour.

They are compared with `fixtures/pictures.json`, which was looked at when it was made. After a change that is meant:
`python -m tests.test_pictures` writes it anew; look at its differences, and at the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import picture
from vit.cli import attention, bench, demo, posemb
from vit.training import pictures as training

REFERENCE = Path(__file__).parent / "fixtures" / "pictures.json"


# === What is drawn ===


def demo_of(scans: int) -> demo.Results:
    random = np.random.default_rng(scans)
    labels = [str(i // 3 % 10) for i in range(scans)]
    logits = random.uniform(-3, 3, (scans, 10)).astype(np.float32)
    for i, label in enumerate(labels):
        logits[i, int(label)] += 6 * (i != 1)
    other = logits + np.float32(0.001)
    other[-1] = np.roll(logits[-1], 1)  # each says something else of the last
    return demo.Results(
        files=[Path(f"digit-{label}-{i:04}.png") for i, label in enumerate(labels)],
        labels=labels,
        names=[str(i) for i in range(10)],
        images=random.random((scans, 12, 12)),
        runs={"pt": demo.Run("1.0", logits, 0.01), "flax": demo.Run("2.0", other, 0.02)},
        attention=random.random((scans, 3, 3)) ** 3,
    )


def looking(
    shape: tuple[int, int], grid: tuple[int, int], parts: int, others: int = 0, **options: Any
) -> attention.View:
    random = np.random.default_rng(parts)
    settings = {"layer": 1, "layers": 3, "rollout": False, "threshold": None, "model": "a-model", **options}
    pixels = attention.Pixels(np.zeros((1, 3, *shape)), random.random((*shape, 3)), grid, "about the pixels")
    heat = random.random((parts + others, *grid)) ** 4
    heat /= heat.sum(axis=(1, 2), keepdims=True)
    view = attention.View(pixels, heat[:parts].mean(axis=0), heat[:parts], **settings)
    view.others, view.others_name = heat[parts:], "register" if others > 1 else "distillation token" * others
    return view


ANSWERS = [attention.Answer("lynx", 0.7, "70.0%"), attention.Answer("cat", 0.2, "20.0%")]


def learned(grid: tuple[int, int], filters: tuple[int, ...], **options: Any) -> posemb.View:
    random = np.random.default_rng(filters[1])
    similarity = random.uniform(-0.37, 1, (*grid, *grid))
    shares = np.geomspace(4, 0.1, filters[0])
    shares *= 0.97 / shares.sum()
    return posemb.View(similarity, random.uniform(-1, 1, filters), shares, 64, "a-model", **options)


def measured() -> bench.Results:
    rows = [
        bench.Row("pt", "float32", "sdpa", 1, "cpu", 0.5, 0.25, [0.010, 0.008, 0.030]),
        bench.Row("tf", "float32", "sdpa", 1, "cpu", 0.5, 0.25, [0.020] * 2),
        bench.Row("flax", None, None, 1, error="RuntimeError: no room"),
        bench.Row("pt", "float32", "sdpa", 8, "cpu", 0.0, 0.25, [0.020] * 2),
        bench.Row("flax", "bfloat16", "eager", 8, "a card", 0.0, 0.25, [0.016] * 2),
    ]
    machine = {"cpu": "a processor", "cores": 2, "python": "3.11.4"}
    return bench.Results("my model", 10**6, machine, {"pt": "2.0"}, {("cpu", "float32"): 1e9}, rows)


def trained(rows: int) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl: an epoch is four of them, the last of which is an evaluation."""
    loss = np.random.default_rng(0).uniform(0.9, 1.1, rows) * 2 * 0.99 ** np.arange(rows)
    return [{"epoch": (i + 1) / 4, "loss": loss[i], "learning_rate": 1e-3 * (1 - i / rows),
             **({"validation_loss": 1.2 * loss[i], "top1": i / rows} if i % 4 == 3 else {})}
            for i in range(rows)]  # fmt: skip


def taken(labels: int, images: int = 50) -> tuple[np.ndarray, list[str]]:
    """A table of confusions, and names, some of them long, one with what mathematics is written in."""
    random = np.random.default_rng(labels)
    table = random.multinomial(images, np.eye(labels) * 0.9 + 0.1 / labels)
    names = [
        ("a cat", "$x_1$", "a photograph of something that has a long name")[i % 3] + f" {i}" for i in range(labels)
    ]
    return table, names


SLIDES: dict[str, Callable[[Path], None]] = {
    "demo of 7": lambda path: demo.draw(path, demo_of(7)),
    "demo of 30": lambda path: demo.draw(path, demo_of(30)),
    "heads": lambda path: attention.draw(path, looking((32, 48), (4, 6), 6, answers=ANSWERS)),
    "twelve heads of a wide image": lambda path: attention.draw(path, looking((16, 64), (2, 8), 12)),
    "one head": lambda path: attention.draw(path, looking((32, 32), (4, 4), 1, layer=2, answers=ANSWERS[:1])),
    "rollout": lambda path: attention.draw(path, looking((48, 32), (6, 4), 3, rollout=True)),
    "mask": lambda path: attention.draw(path, looking((32, 32), (4, 4), 4, threshold=0.6)),
    "distillation token": lambda path: attention.draw(path, looking((32, 32), (4, 4), 3, others=1)),
    "registers": lambda path: attention.draw(path, looking((32, 32), (4, 4), 1, others=4)),
    "grey filters": lambda path: posemb.draw(path, learned((4, 4), (16, 1, 4, 4))),
    "filters in colour": lambda path: posemb.draw(path, learned((3, 5), (28, 3, 4, 8))),
    "throughputs": lambda path: bench.draw(path, measured()),
    "curves": lambda path: training.curves(path, trained(500), "a-run", "about the run"),
    "curves of one row": lambda path: training.curves(path, trained(1), "a-run", "about the run"),
    "confusions of two": lambda path: training.confusion(path, *taken(2), "a-model"),
    "confusions of ten": lambda path: training.confusion(path, *taken(10), "a-model"),
    "confusions of a hundred": lambda path: training.confusion(path, *taken(100), "a-model"),
    "no confusion": lambda path: training.confusion(path, np.eye(3, dtype=int), list("abc"), "a-model"),
    "filters of five channels": lambda path: posemb.draw(path, learned((20, 18), (9, 5, 4, 4), measure=posemb.BIAS)),
}  # fmt: skip


# === What it is compared by ===


def thumbnail(image: Any) -> list[list[list[int]]]:
    """(3, 4, 4) of RGBA: what matplotlib makes of an image's values, in blocks."""
    pixels = np.asarray(image.to_rgba(image.get_array(), bytes=True))
    return np.asarray(Image.fromarray(pixels).resize((4, 3), Image.Resampling.BOX)).tolist()


def _ends(line: Any) -> list[Any]:
    """How many points a line has, and its first and last."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    return [len(x), [x[0], y[0]], [x[-1], y[-1]]]


def _cells(panel: Any) -> dict[str, Any]:
    """The lines between the cells of a table, and the names of its columns and rows."""
    axes = (panel.xaxis, panel.yaxis)
    lines = [list(axis.get_minorticklocs()) for axis in axes]
    names = [
        [[label.get_text(), label.get_size(), label.get_parse_math()] for label in axis.get_ticklabels()]
        for axis in axes
    ]
    return {"cells": lines, "names": names} if lines[0] else {}


def described(slide: picture.Slide) -> dict[str, Any]:
    """What a slide holds; places and sizes are inches."""
    width, height = slide.figure.get_size_inches()
    panels = [
        {
            "place": [panel.get_position().x0 * width, (1 - panel.get_position().y1) * height],
            "size": [panel.get_position().width * width, panel.get_position().height * height],
            "ground": [
                panel.axison,
                list(panel.get_facecolor()),
                *map(bool, (panel.get_xticks().size, panel.get_yticks().size)),
            ],
            "edges": [spine.get_visible() for spine in panel.spines.values()],
            "images": [
                {
                    "values": list(image.get_array().shape),
                    "drawn": [panel.get_aspect(), image.get_interpolation()],
                    "pixels": thumbnail(image),
                }
                for image in panel.images
            ],
            **_cells(panel),
            **({"lines": [[line.get_color(), *_ends(line)] for line in panel.lines]} if panel.lines else {}),
        }
        for panel in slide.figure.axes
    ]
    texts = [
        {
            "text": text.get_text(),
            "place": [text.get_position()[0] * width, (1 - text.get_position()[1]) * height],
            "style": [text.get_fontsize(), text.get_weight(), text.get_color(), text.get_ha(), text.get_va()],
            "outlined": bool(text.get_path_effects()),
        }
        for text in slide.figure.texts
    ]
    ground = [slide.figure.dpi, list(slide.figure.get_facecolor())]
    return {"size": [float(width), float(height)], "ground": ground, "panels": panels, "texts": texts}


def drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    slides: list[picture.Slide] = []
    monkeypatch.setattr(picture.Slide, "save", lambda self, *where: slides.append(self))
    SLIDES[name](Path("no.png"))
    (slide,) = slides
    return described(slide)


def check(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            check(found[key], expected[key], f"{where}, {key}")
    elif isinstance(expected, list) and not where.endswith("pixels"):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            check(*pair, f"{where} {i}")
    elif where.endswith("pixels"):
        assert np.abs(np.subtract(found, expected)).max() <= 2, where  # of 255
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=0.003), where  # a third of a pixel
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", SLIDES)
def test_every_panel_and_text_is_where_it_was_and_what_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(drawn(name, monkeypatch), json.loads(REFERENCE.read_text(encoding="utf-8"))[name], name)


def test_a_bar_shows_every_colour_from_the_least_to_the_most() -> None:
    slide = picture.Slide(2)
    slide.bar(1, 0.5, 1.5, 0.13)
    (image,) = slide.figure.axes[0].images
    assert np.array_equal(image.to_rgba(image.get_array())[0], slide.colormap(np.linspace(0, 1, 256)))


@pytest.mark.parametrize("most", [0.5, 1.0, 2.0, 2.9])
def test_a_text_that_is_too_long_is_cut_where_it_just_fits(most: float) -> None:
    text = "of 31 letters, all of the same."
    slide = picture.Slide(2)
    right = slide.write(1, 1, text, most, fontsize=20)
    shown = slide.figure.texts[0].get_text()
    assert right <= 1 + most
    assert shown.endswith("…")
    assert text.startswith(shown[:-1])
    kept = len(shown) - 1
    longer = slide.write(1, 1, text[: kept + 1 + (text[kept] == " ")] + "…", fontsize=20)
    assert longer > 1 + most
    exactly = slide.write(0, 1, shown, fontsize=20)
    assert slide.write(0, 1, text, exactly, fontsize=20) == exactly
    assert slide.write(1, 1, text, 99, fontsize=20) == slide.write(1, 1, text, fontsize=20) > 1 + most


def test_texts_of_any_length_end_within_the_margins_of_the_slide() -> None:
    long, slide = "of many words " * 40, picture.Slide(4)
    slide.heading(long, "beside", long)
    slide.heading(long, "", "")
    slide.foot(long, long)
    slide.foot(long, "", bar=False)
    rights = {text.get_text()[:1]: [] for text in slide.figure.texts}
    for text in slide.figure.texts:
        rights[text.get_text()[:1]].append(slide._right(text))
    end = picture.WIDTH - picture.MARGIN
    assert max(rights["o"]) <= end
    assert min(sorted(rights["o"])[1:]) > end - 0.3  # all but the one with a text beside it
    assert end - 1.5 < rights["b"][0] <= end


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        found = {name: drawn(name, patch) for name in SLIDES}
    text = json.dumps(found, separators=(",", ":"))
    REFERENCE.write_text(text.replace('},{"', '},\n{"').replace('"texts":', '\n"texts":') + "\n", encoding="utf-8")
