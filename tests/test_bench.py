"""`vit bench`: what it measures, prints and draws, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from rich.console import Console

from vit import CheckpointError, InputError, MissingFrameworkError, ViTConfig
from vit.cli import bench, main
from vit.errors import install_line
from vit.flops import forward_flops

ALL = ["pt", "tf", "flax"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    """What `vit bench` writes to stdout and stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "--seconds", "0.05", *arguments])
    out, err = capsys.readouterr()
    assert exit_.value.code == status, err
    return out, err


# === What is measured ===


@pytest.mark.parametrize(("framework", "device"), [("pt", "cuda:1"), ("tf", "gpu:1"), ("flax", "gpu:1")])
@pytest.mark.parametrize("given", ["gpu:1", "GPU:1", "cuda:1"])
def test_matrix_products_run_where_the_model_does(
    framework: str, device: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit.measure.matrix_rate", lambda *arguments: arguments)
    assert bench.rate(framework, "float32", given) == (framework, "float32", device)
    assert bench.rate(framework, "float32", None) == (framework, "float32", None)


def test_every_framework_is_measured_and_held_against_its_matrix_products(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # the user's
    results = json.loads(run(capsys, "--json", "-b", "2")[0])
    config = ViTConfig.from_pretrained(bench.DIGITS)
    assert results["flops_per_image"] == forward_flops(config)
    assert [row["framework"] for row in results["rows"]] == ALL == list(results["versions"])
    (rate,) = results["matrix_rates"]
    assert (rate["device"], rate["dtype"]) == ("cpu", "float32")
    for row in results["rows"]:
        assert (row["dtype"], row["attn_implementation"], row["batch_size"]) == ("float32", "sdpa", 2)
        assert row["device"] == "cpu"
        low, high = row["seconds_quartiles"]
        assert 0 < low <= row["seconds"] <= high
        assert row["calls"] >= 5
        assert min(row["load_seconds"], row["first_call_seconds"]) > 0
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["flops_per_second"] == pytest.approx(2 / row["seconds"] * results["flops_per_image"])
        assert row["share_of_matrix_rate"] == pytest.approx(row["flops_per_second"] / rate["flops_per_second"])
        assert 0 < row["share_of_matrix_rate"] < 1.2
    assert (results["missing"], results["broken"]) == ({}, {})


def test_repeated_options_are_measured_in_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    dtypes, attentions, sizes = ("float64", "float32"), ("eager", "sdpa"), (1, 3)
    options = [word for dtype in dtypes for word in ("--dtype", dtype)]
    options += [word for attention in attentions for word in ("--attn-implementation", attention)]
    out, _ = run(capsys, "--json", "-f", "flax", *options, "-b", "3", "-b", "1", "-b", "3")
    keys = ("dtype", "attn_implementation", "batch_size")
    rows = json.loads(out)["rows"]
    assert [tuple(row[key] for key in keys) for row in rows] == list(product(dtypes, attentions, sizes))
    assert {rate["dtype"] for rate in json.loads(out)["matrix_rates"]} == set(dtypes)
    assert [row["load_seconds"] > 0 for row in rows] == [True, False] * 4  # another batch size needs no other model


@pytest.mark.parametrize("head", [None, "decoder", "classifier"])
def test_a_model_is_measured_with_the_head_that_its_checkpoint_has(
    head: str | None, tmp_path: Path, random_checkpoint: Any, tiny_config: Callable[..., ViTConfig]
) -> None:
    config = tiny_config(image_size=(16, 24))
    random_checkpoint(tmp_path / "model", config, head)
    results = bench.measure(str(tmp_path / "model"), ["pt"], [None], [None], [1], None, 0.01)
    assert [row.error for row in results.rows] == [None]
    assert results.flops == forward_flops(config, head)


def test_a_line_that_fails_says_why_and_the_others_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "-f", "pt", "-b", str(10**10), "-b", "1", "-b", "2", status=1)
    assert "PyTorch batch 10000000000: " in out
    assert "MemoryError: " in out
    assert [line.split()[3] for line in out.splitlines() if line.strip().startswith("PyTorch ") and "sdpa" in line] == [
        "1",
        "2",
    ]
    results = json.loads(run(capsys, "--json", "-f", "pt", "-b", str(10**10), status=1)[0])
    assert "MemoryError" in results["rows"][0]["error"]
    assert "seconds" not in results["rows"][0]


def test_a_framework_that_cannot_be_imported_is_named_and_the_others_are_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('half of it is gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # not installed
    out, _ = run(capsys, "-b", "1")
    assert "PyTorch is installed but cannot be imported: half of it is gone" in out
    assert f"TensorFlow is not installed. Install it with: {install_line('tf')}" in out
    assert any(line.split()[:4] == ["Flax", "float32", "sdpa", "1"] for line in out.splitlines())
    _, err = run(capsys, "-b", "1", "-f", "pt", status=2)
    assert err == "vit: half of it is gone\n"


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_a_busy_machine_is_said_beside_the_figures(
    share: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit.measure.busy", lambda: share)
    out, _ = run(capsys, "-b", "1", "-f", "pt", "--seconds", "0.01")
    assert ("Other programs keep 90% of the processors busy" in out) == bool(share)
    assert json.loads(run(capsys, "-b", "1", "-f", "pt", "--seconds", "0.01", "--json")[0])["busy"] == share


# === What is refused ===


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "int4"], "--dtype is 'int4'; expected float16, bfloat16, float32, float64."),
        (["--attn-implementation", "flash"], "--attn-implementation is 'flash'; expected sdpa, eager."),
        (["--model", "./no/such/folder"], "does not exist"),
        (["--framework", "theano"], "framework is 'theano'; expected one of pt, tf, flax."),
        (["--framework", "pt", "--device", "gpu:7"], "device is 'cuda:7'"),
        (["--framework", "flax", "--device", "gpu:7"], "device is 'gpu:7'"),
        (["--output", "table.csv"], "expected a file name that ends in .png, .svg, .pdf."),
        (["--batch-size", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, *arguments, status=2)
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_picture_that_exists_is_kept_unless_forced_and_without_matplotlib_there_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "bench.png"
    there.write_bytes(b"mine")
    _, err = run(capsys, "-o", str(there), status=2)
    assert "--force" in err
    assert there.read_bytes() == b"mine"
    out, _ = run(capsys, "-f", "pt", "-b", "1", "-o", str(there), "--force")
    assert out.splitlines()[-1] == f"Picture: {there}"
    with Image.open(there) as image:
        assert image.width == 1920
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, err = run(capsys, "-o", str(tmp_path / "new.png"), status=2)
    assert install_line("plot") in err


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--quiet", "-f", "pt", "-b", "1") == ("", "")


def test_errors_have_the_types_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(**changes: Any) -> bench.Results:
        arguments = {"model": None, "frameworks": ["pt"], "dtypes": [None], "attn_implementations": [None],
                     "batch_sizes": [1], "device": None, "seconds": 0.01}  # fmt: skip
        return bench.measure(**{**arguments, **changes})

    with pytest.raises(CheckpointError):
        measure(model="/no/such/folder")
    with pytest.raises(InputError, match="device is 'cuda:7'"):
        measure(device="cuda:7")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingFrameworkError):
        bench.choose(["pt"], "vit bench")


# === What is shown ===


@pytest.fixture
def results() -> bench.Results:
    """Figures that are easy to follow: an operation rate of 1e9, a model of 1e6."""
    machine = {"cpu": "A Processor", "cores": 4, "python": "3.11.0"}
    rows = [
        bench.Row("pt", "float32", "sdpa", 1, "cpu", 0.5, 0.25, [0.010, 0.008, 0.030]),
        bench.Row("tf", "float32", "sdpa", 1, "cpu", 0.5, 0.25, [0.020]*2),
        bench.Row("flax", None, None, 1, error="RuntimeError: no room"),
        bench.Row("pt", "float32", "sdpa", 8, "cpu", 0.0, 0.25, [0.020]*2),
        bench.Row("flax", "bfloat16", "eager", 8, "a card", 0.0, 0.25, [0.016]*2),
    ]  # fmt: skip
    return bench.Results("my model", 10**6, machine, {"pt": "2.0"}, {("cpu", "float32"): 1e9}, rows)


def test_the_table_holds_the_figures(results: bench.Results) -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    bench.show(results, console)
    text = console.export_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "PyTorch float32 sdpa 1 0.50 0.25 10.0 9.00 .. 20.0 100.0 0.1 10%" in lines
    assert "TensorFlow float32 sdpa 1 0.50 0.25 20.0 20.0 .. 20.0 50.0 0.1 5%" in lines
    assert "PyTorch float32 sdpa 8 0.25 20.0 20.0 .. 20.0 400.0 0.4 40%" in lines
    assert "Flax bfloat16 eager 8 0.25 16.0 16.0 .. 16.0 500.0 0.5" in lines  # no rate for that card
    assert "my model: 0.001 GFLOP an image" in text
    assert "A Processor, 4 cores; Python 3.11.0, PyTorch 2.0" in text
    assert "large matrix products: float32 1 GFLOP/s" in text
    assert "Flax batch 1: RuntimeError: no room" in text


@pytest.mark.usefixtures("narrow_terminal")
def test_lines_reach_a_terminal_whole_and_plain(
    results: bench.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_, **__: results)
    results.model = "nobody/" + "1.5" * 40
    output = tmp_path / ("2" * 80 + " [red].svg")
    lines = run(capsys, "-o", str(output), status=1)[0].splitlines()  # as the line of Flax has an error
    assert set(bench.headlines(results)) <= set(lines)
    assert lines[-1] == f"Picture: {output}"


def test_the_bars_of_the_picture_are_as_long_as_the_throughputs(results: bench.Results, tmp_path: Path) -> None:
    bench.draw(tmp_path / "bench.png", results)
    pixels = np.asarray(Image.open(tmp_path / "bench.png").convert("RGB"), np.float32) / 255

    def lengths(framework: str) -> list[int]:
        """Of each bar of a colour, in pixels, from the top."""
        is_bar = np.abs(pixels - to_rgb(bench.COLORS[framework])).max(axis=2) < 0.02
        found: list[int] = []
        for count, before in zip(is_bar.sum(axis=1)[1:], is_bar.sum(axis=1)[:-1], strict=True):
            if count > 3 and before <= 3:
                found.append(0)
            if count > 3:
                found[-1] = max(found[-1], int(count))
        return found

    longest = max(lengths("flax"))
    assert np.allclose(np.array(lengths("pt")) / longest, [100 / 500, 400 / 500], atol=0.01)
    assert np.allclose(np.array(lengths("tf")) / longest, [50 / 500], atol=0.01)
    assert len(lengths("flax")) == 1  # the line that failed has no bar, but its reason
    red = np.abs(pixels - to_rgb(bench.picture.WRONG)).max(axis=2) < 0.1
    assert red.any()


def test_the_picture_is_as_high_as_its_lines_and_no_text_leaves_it(results: bench.Results, tmp_path: Path) -> None:
    bench.draw(tmp_path / "few.png", results)
    results.model = "a/very/long/path/" * 20
    results.rows *= 6
    bench.draw(tmp_path / "many.png", results)
    few, many = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("few.png", "many.png"))
    assert many.shape[0] - few.shape[0] == pytest.approx(25 * bench.LINE * bench.picture.DPI, abs=2)
    edges = np.concatenate([many[:, :12].ravel(), many[:, -12:].ravel()])
    assert np.ptp(edges) == 0
