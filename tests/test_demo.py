"""`vit demo`: what it prints and draws, with all frameworks, with some and with none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vit import InputError, MissingFrameworkError, ViTForImageClassification, ViTImageProcessor, picture
from vit.cli import demo, frameworks, main
from vit.errors import CheckpointError, install_line

ROOT = Path(__file__).parents[1]
ALL = ["pt", "tf", "flax"]
INSTALL = {extra: install_line(extra) for extra in (*ALL, "all", "plot")}


def run_demo(*arguments: str, cwd: Path, blocked: tuple[str, ...] = (), **variables: str) -> Any:
    """`vit demo` as a process of its own, in which the modules `blocked` are not installed."""
    site = cwd / "site"
    site.mkdir(exist_ok=True)
    # None is what the import system takes for a module that cannot be found.
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n")
    own = {"TF_CPP_MIN_LOG_LEVEL", "GRPC_VERBOSITY", "GLOG_minloglevel", "KERAS_BACKEND", "XLA_FLAGS"}  # set for tests
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "COLUMNS": "120", **variables}
    command = [sys.executable, "-c", "from vit.cli import main; main()", "demo", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)


# === Everything installed ===


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What `vit demo --json` prints with all three frameworks, for a user whose Keras is set to another backend."""
    folder = tmp_path_factory.mktemp("everywhere")
    result = run_demo("--json", cwd=folder, KERAS_BACKEND="jax")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout), folder


def test_every_framework_gives_every_scan_its_true_label_or_the_accuracy_says_so(everywhere: Any) -> None:
    results, _ = everywhere
    assert list(results["frameworks"]) == ALL
    for extra, summary in results["frameworks"].items():
        right = sum(image["answers"][extra]["label"] == image["label"] for image in results["images"])
        assert summary["correct"] == right
        assert summary["accuracy"] == right / len(results["images"])
        assert right >= len(results["images"]) - 1
        assert summary["images_per_second"] == pytest.approx(len(results["images"]) / summary["seconds"])


def test_the_scans_are_the_shipped_ones_under_their_labels(everywhere: Any) -> None:
    results, _ = everywhere
    assert [image["file"] for image in results["images"]] == sorted(file.name for file in demo.DIGITS.glob("*.png"))
    assert all(image["label"] == image["file"].split("-")[1] for image in results["images"])


def test_no_logit_differs_between_frameworks_beyond_rounding(everywhere: Any) -> None:
    results, _ = everywhere
    assert 1 < results["largest_logit"] < 30
    assert 0 < results["largest_logit_difference"] <= 1e-5
    for image in results["images"]:
        probabilities = [answer["probability"] for answer in image["answers"].values()]
        assert np.ptp(probabilities) <= 1e-5


def test_the_picture_lies_where_it_is_said_to_and_nothing_else_is_written(everywhere: Any) -> None:
    results, folder = everywhere
    assert results["picture"] == "vit-demo.png"
    assert (results["missing"], results["broken"]) == ({}, {})
    assert sorted(path.name for path in folder.iterdir() if path.name != "site") == ["vit-demo.png"]
    with Image.open(folder / "vit-demo.png") as image:
        assert image.width == 1920
        assert 900 <= image.height <= 1200


# === Some or none installed ===


def test_with_one_framework_it_shows_that_one_and_how_to_install_the_rest(tmp_path: Path) -> None:
    result = run_demo(cwd=tmp_path, blocked=("tensorflow", "keras", "jax", "flax", "matplotlib"))
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert f"TensorFlow is not installed. Install it with: {INSTALL['tf']}" in lines
    assert f"Flax is not installed. Install it with: {INSTALL['flax']}" in lines
    assert f"No picture: it needs matplotlib. Install it with: {INSTALL['plot']}" in lines
    assert "Largest difference" not in result.stdout
    assert not list(tmp_path.glob("*.png"))
    rows = [line for line in lines if "digit-" in line]
    assert len(rows) == len(list(demo.DIGITS.glob("*.png")))
    for row in rows:
        scan, label, answer = (cell.split() for cell in row.strip("│ ").split("│"))
        assert scan[0].startswith(f"digit-{label[0]}-")
        assert answer[1].endswith("%")
        assert float(answer[1][:-1]) <= 100
    assert any(line.strip("│ ").startswith("PyTorch") and torch.__version__ in line for line in lines)


@pytest.mark.parametrize(("module", "extra"), [("torch", "pt"), ("tensorflow", "tf"), ("flax", "flax")])
def test_a_missing_framework_that_was_asked_for_is_an_error_with_the_line_that_installs_it(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingFrameworkError) as error:
        frameworks.choose([extra], "vit demo")
    assert INSTALL[extra] in str(error.value)
    assert frameworks.choose(None, "vit demo") == [other for other in ALL if other != extra]


def test_with_no_framework_it_says_in_one_line_how_to_install_each(tmp_path: Path) -> None:
    result = run_demo(cwd=tmp_path, blocked=("torch", "tensorflow", "keras", "jax", "flax"))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert all(INSTALL[extra] in result.stderr for extra in ALL)
    assert not list(tmp_path.glob("*.png"))


def test_a_broken_framework_is_reported_and_the_others_run_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(folder: Path, extra: str) -> Any:
        if extra != "pt":
            raise ImportError(f"lib{extra}.so is missing")
        return frameworks.open_model(folder, extra)

    monkeypatch.setattr(demo, "open_model", opened)
    results = demo.classify(demo.DIGITS, ["pt", "tf"], skip_broken=True)
    assert list(results.runs) == ["pt"]
    demo.show(results, Console(width=120))
    assert "TensorFlow is installed but cannot be imported: libtf.so is missing\n" in capsys.readouterr().out
    for extras, skip_broken in ((["pt", "tf"], False), (["tf", "flax"], True)):
        with pytest.raises(ImportError, match="is missing"):
            demo.classify(demo.DIGITS, extras, skip_broken=skip_broken)


def test_frameworks_run_once_each_in_one_order_however_they_are_named() -> None:
    assert frameworks.choose(["flax", "pt", "flax"], "vit demo") == ["pt", "flax"]
    with pytest.raises(InputError, match="framework is 'theano'; expected one of pt, tf, flax"):
        frameworks.choose(["pt", "theano"], "vit demo")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("torch", "pt"), ("PyTorch", "pt"), ("tensorflow", "tf"), ("keras", "tf"), ("jax", "flax"), ("Flax", "flax")],
)
def test_a_framework_is_known_by_every_name_that_people_give_it(name: str, extra: str) -> None:
    assert frameworks.choose([name], "vit demo") == [extra]


def test_a_command_of_one_framework_takes_the_first_installed_or_the_one_that_is_named() -> None:
    assert frameworks.choose_one(None, "vit classify") == "pt"
    assert frameworks.choose_one(["tensorflow", "tf"], "vit classify") == "tf"
    with pytest.raises(InputError, match="vit classify runs in one framework; got --framework pt and --framework tf"):
        frameworks.choose_one(["tf", "torch"], "vit classify")


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_times_are_left_out_where_other_programs_keep_the_machine_busy(
    share: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vit.measure.busy", lambda: share)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["demo", "-f", "pt"])
    out = capsys.readouterr().out
    assert ("Images/s" in out, "Other programs keep 90% of the processors busy" in out) == (not share, bool(share))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["demo", "-f", "pt"])
    assert "vit-demo.png', which exists" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["demo", "-f", "pt", "--force", "--json"])
    assert json.loads(capsys.readouterr().out)["busy"] == share


# === Output ===


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/demo.png", "is not a folder; make it first"),
        ("file/demo.png", "is not a folder; make it first"),
        ("folder.png", "is a folder; expected a file"),
        ("demo.bmp", "expected a file name that ends in .png, .svg, .pdf"),
        ("demo", "expected a file name that ends in .png, .svg, .pdf"),
    ],
)
def test_an_impossible_output_is_refused_before_anything_is_computed(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    computed: list[object] = []
    monkeypatch.setattr(demo, "classify", lambda *arguments: computed.append(arguments))
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--output", str(tmp_path / name)])
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), computed) == ("", 1, [])
    assert reason in err


def test_a_read_only_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as whom tests may run, can write anywhere
    with pytest.raises(InputError, match="may not be written"):
        picture.check_output(tmp_path / "demo.png", force=True)


def test_quiet_prints_nothing_and_draws(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "-f", "pt", "--quiet", "--output", str(tmp_path / "demo.png")])
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


# === The computation ===


@pytest.fixture(scope="module")
def in_pytorch() -> demo.Results:
    return demo.classify(demo.DIGITS, ["pt"])


def test_answers_and_attention_are_those_of_the_model(in_pytorch: demo.Results) -> None:
    model = ViTForImageClassification.from_pretrained(demo.DIGITS, attn_implementation="eager")
    processor = ViTImageProcessor.from_pretrained(demo.DIGITS)
    pixel_values = processor(in_pytorch.files, return_tensors="pt").pixel_values
    with torch.inference_mode():
        output = model(pixel_values, output_attentions=True)
    probabilities, labels = output.logits.double().softmax(dim=1).max(dim=1)
    for i, (probability, label) in enumerate(zip(probabilities, labels, strict=True)):
        assert in_pytorch.answer("pt", i) == (str(int(label)), pytest.approx(float(probability), abs=1e-5))
    cls_to_patches = output.attentions[-1].mean(dim=1)[:, 0, 1:]
    assert in_pytorch.attention.shape == (len(in_pytorch.files), 8, 8)
    assert np.abs(in_pytorch.attention.reshape(-1, 64) - cls_to_patches.numpy()).max() < 1e-6
    assert np.abs(in_pytorch.images - (pixel_values[:, 0].numpy() + 1) / 2).max() < 1e-6


def test_a_folder_without_scans_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no files digit-"):
        demo.classify(tmp_path, ["pt"])


# === The picture ===


def results_of(logits: dict[str, np.ndarray], labels: list[str], attention: np.ndarray) -> demo.Results:
    return demo.Results(
        files=[Path(f"digit-{label}-{i:04}.png") for i, label in enumerate(labels)],
        labels=labels,
        names=["0", "1"],
        images=np.zeros((len(labels), 16, 16), np.float32),
        runs={extra: demo.Run("1.0", values, 0.01) for extra, values in logits.items()},
        attention=attention,
    )


def bright_boxes(path: Path) -> tuple[list[tuple[int, int, int, int]], tuple[int, int]]:
    """(left, top, right, bottom) of each bright yellow patch of a picture, reading down the columns; and its size."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    warm = (pixels[..., 0] > 180) & (pixels[..., 1] > 150) & (pixels[..., 0] - pixels[..., 2] > 60)
    warm[-110:] = False  # the legend at the foot

    def runs(flags: np.ndarray) -> list[tuple[int, int]]:
        edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(int)))
        return list(zip(edges[::2], edges[1::2], strict=True))

    boxes = []
    for left, right in runs(warm.any(axis=0)):
        boxes += [(left, top, right, bottom) for top, bottom in runs(warm[:, left:right].any(axis=1))]
    return boxes, pixels.shape[:2]


@pytest.mark.parametrize("count", [1, 12, 30])
def test_there_is_a_panel_for_each_scan_and_heat_where_the_attention_is(count: int, tmp_path: Path) -> None:
    attention = np.zeros((count, 4, 4), np.float32)
    attention[:, 0, 0] = 0.3  # top left
    logits = np.tile(np.float32([[4, -4]]), (count, 1))
    corner = results_of({"pt": logits}, ["0"] * count, attention)
    demo.draw(tmp_path / "corner.png", corner)
    corner.attention = attention[:, ::-1, ::-1]  # bottom right
    demo.draw(tmp_path / "opposite.png", corner)
    (first, size), (second, _) = bright_boxes(tmp_path / "corner.png"), bright_boxes(tmp_path / "opposite.png")
    assert len(first) == len(second) == count
    assert size[1] == 1920
    side = 1920 * (picture.WIDTH - 2 * picture.MARGIN - 9 * demo.GAP) / 10 / picture.WIDTH
    for (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) in zip(
        first, second, strict=True
    ):
        assert right - left < side / 2
        assert bottom - top < side / 2
        # From the left edge of one to the right edge of the other is the whole panel, which is square.
        assert other_right - left == pytest.approx(side, abs=3)
        assert other_bottom - top == pytest.approx(side, abs=3)
        assert other_left > right
        assert other_top > bottom


def test_captions_tell_right_wrong_and_differing_answers() -> None:
    zero, one = np.float32([[4, -4]]), np.float32([[-4, 4]])
    attention = np.ones((1, 2, 2), np.float32)
    assert demo.caption(results_of({"pt": zero, "tf": zero}, ["0"], attention), 0) == ("0", True)
    assert demo.caption(results_of({"pt": one, "tf": one}, ["0"], attention), 0) == ("1, is 0", False)
    assert demo.caption(results_of({"pt": zero, "tf": one}, ["0"], attention), 0) == ("pt 0 tf 1", False)


def test_summary_counts_each_framework_and_gives_the_difference_of_several() -> None:
    zero, attention = np.float32([[4, -4]]), np.ones((1, 2, 2), np.float32)
    alone = demo.summary(results_of({"pt": zero}, ["0"], attention))
    both = demo.summary(results_of({"pt": zero, "flax": zero + np.float32(0.5)}, ["1"], attention))
    assert alone == "Right of 1 held-out handwritten digits:  PyTorch 1"
    assert both.split("  ")[1:] == ["PyTorch 0,", "Flax 0.", " Largest difference of any logit:", "5.0e-01"]


def test_title_claims_the_same_answers_only_where_several_frameworks_gave_them() -> None:
    zero, one, attention = np.float32([[4, -4]]), np.float32([[-4, 4]]), np.ones((1, 2, 2), np.float32)
    assert demo.title(results_of({"pt": zero}, ["0"], attention)) == "One checkpoint in PyTorch"
    assert demo.title(results_of(dict.fromkeys(ALL, zero), ["0"], attention)) == (
        "One checkpoint, the same answers in PyTorch, TensorFlow and Flax"
    )
    assert (
        demo.title(results_of({"tf": zero, "flax": one}, ["0"], attention)) == "One checkpoint in TensorFlow and Flax"
    )


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_decides_the_format(suffix: str, magic: bytes, tmp_path: Path) -> None:
    results = results_of({"pt": np.float32([[4, -4]])}, ["0"], np.ones((1, 2, 2), np.float32))
    demo.draw(tmp_path / f"demo{suffix}", results)
    assert (tmp_path / f"demo{suffix}").read_bytes().startswith(magic)


def test_a_drawing_that_fails_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(self: Figure, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "disk full")

    (tmp_path / "demo.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    results = results_of({"pt": np.float32([[4, -4]])}, ["0"], np.ones((1, 2, 2), np.float32))
    with pytest.raises(InputError, match="which cannot be written: disk full"):
        demo.draw(tmp_path / "demo.png", results)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# === What is printed ===


def test_what_is_printed_and_given_as_json_is_what_was_computed(capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.float32([[4, -4], [1, 3]])
    results = results_of({"pt": logits, "flax": logits + np.float32([[0, 0], [0, -6]])}, ["0", "1"], np.ones((2, 2, 2)))
    results.missing = {"tf": "pip install something"}
    assert results.largest_logit == 4
    assert results.difference == 6
    found = results.to_dict()
    found.pop("busy")
    sure, one, other = 1 / (1 + np.exp(-8)), 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-4))
    answers = [each["answers"] for each in found.pop("images")]
    assert answers[0]["flax"] == {"label": "0", "probability": pytest.approx(sure)}
    assert answers[1]["pt"] == {"label": "1", "probability": pytest.approx(one)}
    assert answers[1]["flax"] == {"label": "0", "probability": pytest.approx(other)}
    shared = {"version": "1.0", "seconds": 0.01, "images_per_second": pytest.approx(200)}
    assert found == {
        "frameworks": {
            "pt": {"name": "PyTorch", "correct": 2, "accuracy": 1.0, **shared},
            "flax": {"name": "Flax", "correct": 1, "accuracy": 0.5, **shared},
        },
        "largest_logit_difference": 6.0,
        "largest_logit": 4.0,
        "missing": {"tf": "pip install something"},
        "broken": {},
        "picture": None,
    }
    demo.show(results, Console(width=120))
    printed = capsys.readouterr().out
    assert "Largest difference of any logit between frameworks: 6.0e+00, of 4.0\n" in printed
    assert "TensorFlow is not installed. Install it with: pip install something\n" in printed
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in printed.splitlines() if "│" in line]
    assert rows == [
        ["digit-0-0000.png", "0", "0   99.97%", "0   99.97%"],
        ["digit-1-0001.png", "1", "1   88.08%", "0   98.20%"],
        ["PyTorch", "1.0", "2/2", "100.0%", "10.0", "200"],
        ["Flax", "1.0", "1/2", "50.0%", "10.0", "200"],
    ]
