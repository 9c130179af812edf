"""The commands convert, verify and inspect, and the findings that they print."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import conversion
from vit.cli import convert, inspect, verify
from vit.errors import CheckpointError, InputError, MissingFrameworkError
from vit.families.vit import ViTConfig

FIXTURES = Path(__file__).parent / "fixtures" / "conversion"
HEADS = ["--num-attention-heads", "4"]

app = typer.Typer()
for _module in (convert, verify, inspect):
    app.command(_module.__name__.rpartition(".")[2])(_module.command)


def invoke(*arguments: object) -> tuple[int, str]:
    """(exit status, output) of a command; its errors are raised."""
    result = CliRunner().invoke(app, list(map(str, arguments)), standalone_mode=False, catch_exceptions=False)
    return result.return_value or 0, result.stdout


# === convert ===


def test_convert_says_what_it_found_assumed_and_left_out(tmp_path):
    status, output = invoke("convert", FIXTURES / "google_vit_in21k.npz", tmp_path / "out", "--dtype", "float16")
    assert status == 0
    assert "google, ViTModel custom/8 at 32" in output
    assert "hidden_act gelu_new: that of the code of google" in output
    assert "left out head/kernel, head/bias: this head reads the output of pre_logits" in output
    assert "mean 0.5, 0.5, 0.5" in output
    assert "compared bit by bit" in output
    assert conversion.inspect(tmp_path / "out").dtypes == {"float16": 69456}


def test_convert_takes_every_option(tmp_path):
    (tmp_path / "names").write_text("\n".join("abcdefg"))
    options = [*HEADS, "--from", "timm", "--labels", tmp_path / "names", "--published-config", "--image-size", "32x32",
               "--patch-size", "8", "--no-verify", "--json"]  # fmt: skip
    status, output = invoke("convert", FIXTURES / "timm_vit.safetensors", tmp_path / "out", *options)
    report = json.loads(output)
    assert status == 0
    assert (report["source_format"], report["verified"], report["ignored"]) == ("timm", False, {})
    assert report["config"]["layer_norm_eps"] == 1e-12
    assert report["config"]["image_size"] == 32
    assert report["config"]["id2label"]["6"] == "g"
    options = ["--to", "timm", "--hidden-act", "relu", "--layer-norm-eps", "1e-5"]
    _, output = invoke("convert", FIXTURES / "google_vit.npz", tmp_path / "out.safetensors", *options)
    assert "the code of timm computes with hidden_act gelu by default; this checkpoint has relu" in output
    with pytest.raises(typer.BadParameter, match="no size"):
        convert.command(FIXTURES / "google_vit.npz", tmp_path / "x", image_size="big")


def test_python_m_conversion_converts_and_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "conversion", str(FIXTURES / "google_vit.npz"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("conversion: ")
    assert again.stderr.count("\n") == 1


def test_converting_a_numpy_file_and_inspecting_load_no_framework(tmp_path):
    code = (
        "import sys, conversion\n"
        "conversion.convert(sys.argv[1], sys.argv[2], labels=list('abcdefg'))\n"
        "conversion.inspect(sys.argv[2])\n"
        "print({'torch', 'tensorflow', 'keras', 'jax', 'flax', 'h5py'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(FIXTURES / "google_vit.npz"), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_progress_counts_every_tensor_for_writing_and_for_comparing(tmp_path):
    seen: list[tuple[int, int]] = []
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out", progress=lambda *step: seen.append(step))
    assert len(seen) == 2 * 56
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == 2 * 4 * 67447


# === inspect ===


def test_inspect_says_what_a_checkpoint_is(reference):
    status, output = invoke("inspect", reference / "hf_torch")
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["format"] == "hf"
    assert lines["architecture"] == "ViTForImageClassification custom/8 at 32"
    assert lines["parameters"] == "67,447 in 56 tensors"
    assert lines["head"] == "7 labels: LABEL_0, LABEL_1, LABEL_2, ..."
    assert (lines["dtype"], lines["whole"], lines["size"]) == ("float32", "yes", "276.6 kB")
    status, output = invoke("inspect", reference / "hf_torch_mim", "--json")
    found = json.loads(output)
    assert (status, found["architecture"], found["whole"]) == (0, "ViTForMaskedImageModeling", True)


def test_inspect_knows_published_sizes(tmp_path, random_checkpoint):
    folder = random_checkpoint(tmp_path / "ti", ViTConfig.variant("Ti/16", image_size=64), None)
    assert conversion.inspect(folder).variant == "Ti/16 at 64"


def test_inspect_says_why_a_checkpoint_is_not_whole(tmp_path, reference):
    shutil.copytree(reference / "hf_torch_sharded", tmp_path / "sharded")
    (tmp_path / "sharded" / "model-00002-of-00008.safetensors").unlink()
    status, output = invoke("inspect", tmp_path / "sharded")
    assert status == 1
    assert "lacks the shard model-00002-of-00008.safetensors" in output
    status, output = invoke("inspect", FIXTURES / "timm_vit_registers.safetensors")
    assert (status, "register tokens" in output) == (1, True)
    with pytest.raises(CheckpointError, match="does not exist"):
        conversion.inspect(tmp_path / "nowhere")


# === verify ===


def test_verify_shows_that_a_checkpoint_is_the_same_everywhere(tmp_path):
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    images = ["--images", tmp_path / "0.png", "--images", tmp_path / "1.png"]
    status, output = invoke("verify", FIXTURES / "google_vit.npz", *images)
    assert status == 0
    assert "google_vit.npz: ViTForImageClassification custom/8 at 32, float32" in output
    assert "0.png, 1.png" in output
    for stage in ("embeddings", "layer 0 attention", "layer 2", "logits", "logits (sdpa)"):
        assert f" {stage} " in output
    assert "pt - tf" in output
    assert "the same function: the largest difference is" in output


def test_verify_in_json_holds_every_stage_and_answer(reference):
    status, output = invoke("verify", reference / "hf_torch", "--json", "--dtype", "float64")
    found = json.loads(output)
    assert status == 0
    assert found["passed"] is True
    assert [stage["name"] for stage in found["stages"]] == [
        "embeddings", "layer 0 attention", "layer 0", "layer 1 attention", "layer 1", "layer 2 attention", "layer 2",
        "logits", "logits (sdpa)"]  # fmt: skip
    eager = [stage for stage in found["stages"] if "sdpa" not in stage["name"]]
    assert max(difference for stage in eager for difference in stage["differences"].values()) < 1e-10
    (answers,) = found["answers"].values() if len(found["answers"]) == 1 else [found["answers"]["random image 0"]]
    assert set(answers) == {"pt", "tf", "flax"}


@pytest.mark.parametrize("name", ["hf_torch_base", "hf_torch_mim"])
def test_verify_takes_models_without_a_classifier_and_two_frameworks(name, reference):
    found = conversion.verify(reference / name, frameworks=["pt", "flax"])
    assert found.passed
    assert list(found.stages[0].differences) == ["pt-flax"]
    assert found.stages[-1].name.startswith({"hf_torch_base": "pooler_output", "hf_torch_mim": "reconstruction"}[name])


def test_verify_fails_past_the_tolerance(reference):
    status, output = invoke("verify", reference / "hf_torch", "--tolerance", "1e-9", "-f", "pt", "-f", "flax")
    assert status == 1
    assert "NOT the same function" in output


def test_verify_finds_a_framework_that_computes_something_else(reference, monkeypatch):
    import torch

    from vit.pt import linear

    monkeypatch.setitem(linear.ACTIVATIONS, "gelu", lambda x: torch.nn.functional.gelu(x, approximate="tanh"))
    monkeypatch.delitem(linear.FUSED, "gelu")
    found = conversion.verify(reference / "hf_torch", frameworks=["pt", "flax"])
    assert not found.passed
    within = {stage.name: found.within(stage) for stage in found.stages}
    assert within["layer 0 attention"]
    assert not within["layer 0"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("frameworks", [("pt",), ("tf",), ("flax",), ("pt", "tf"), ("pt", "tf", "flax")])
def test_what_is_no_number_does_not_pass_in_whatever_framework_it_is(frameworks, bad):
    values = {each: np.float64([[1, bad if each in frameworks else 2]]) for each in ("pt", "tf", "flax")}
    with np.errstate(invalid="ignore"):
        stage = conversion.equality._stage("logits", values)
    found = conversion.Verification("x", "ViTModel", ViTConfig(), [], "float32", 1e-5, stages=[stage])
    assert not found.passed
    assert not np.isfinite(found.worst.worst())


def test_verify_refuses_what_it_cannot_compare(reference, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"asked for pt\. Name two or more of pt, tf, flax, or none for all"):
        conversion.verify(reference / "hf_torch", frameworks=["pt"])
    for chosen, installed in ((None, ["pt"]), (["pt"], ["pt"]), (["pt", "flax"], ["pt", "tf"])):
        monkeypatch.setattr(conversion.equality, "installed_frameworks", lambda installed=installed: installed)
        with pytest.raises(MissingFrameworkError, match=r"compares frameworks with each other; .* pip install"):
            conversion.verify(reference / "hf_torch", frameworks=chosen)
    monkeypatch.undo()
    with pytest.raises(InputError, match="Unknown framework 'jax'"):
        conversion.verify(reference / "hf_torch", frameworks=["pt", "jax"])
    with pytest.raises(InputError, match="dtype is 'int8'"):
        conversion.verify(reference / "hf_torch", dtype="int8")
    with pytest.raises(InputError, match="is no image file"):
        conversion.verify(reference / "hf_torch", [tmp_path / "none.png"])
    (tmp_path / "file").write_text("hello")
    with pytest.raises(CheckpointError, match="no checkpoint that is known"):
        conversion.verify(tmp_path / "file")


def test_a_progress_bar_shows_on_a_terminal(tmp_path):
    import os
    import pty

    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "conversion", str(FIXTURES / "google_vit.npz"), str(tmp_path / "out")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, check=True)
    os.close(end)
    assert b"converting" in os.read(terminal, 100_000)
    assert b"converting" not in done.stdout


Stage, Verification = conversion.equality.Stage, conversion.equality.Verification


def verdict(differences: list[dict[str, float]], largest: float = 1.0, answers: dict | None = None) -> Verification:
    stages = [Stage(str(i), (1,), largest, values) for i, values in enumerate(differences)]
    return Verification("x", "ViTModel", ViTConfig(), [], "float32", 1e-5, stages=stages, answers=answers or {})


def test_the_verdict_is_that_of_every_stage_every_pair_and_every_image():
    good, bad = {"pt-tf": 1e-6, "pt-flax": 0.0}, {"pt-tf": 1e-6, "pt-flax": 2e-5}
    assert verdict([good, good]).passed
    assert not verdict([good, bad]).passed
    assert not verdict([bad, good]).passed
    same, other = {"pt": "cat", "tf": "cat"}, {"pt": "cat", "tf": "dog"}
    assert verdict([good], answers={"a": same, "b": same}).passed
    assert not verdict([good], answers={"a": same, "b": other}).passed


def test_the_tolerance_is_of_the_largest_value_and_of_one_where_values_are_smaller():
    assert verdict([{"pt-tf": 0.9e-5}], largest=0.01).passed
    assert verdict([{"pt-tf": 0.9e-3}], largest=100.0).passed
    assert not verdict([{"pt-tf": 1.1e-5}], largest=0.01).passed
    assert not verdict([{"pt-tf": 1.1e-3}], largest=100.0).passed


def test_the_worst_stage_is_the_one_that_differs_most_for_its_size_and_one_that_fails_before_all():
    found = verdict([{"pt-tf": 1.1e-6}, {"pt-tf": 1e-6}, {"pt-tf": 0.9e-6}])
    found.stages[0] = Stage("0", (1,), 1.2, {"pt-tf": 1.1e-6})
    assert found.worst.name == "1"
    found.stages[2] = Stage("2", (1,), 100.0, {"pt-tf": 1.1e-3})
    assert found.worst.name == "2"


@pytest.mark.usefixtures("narrow_terminal")
def test_what_a_verification_found_reaches_a_terminal_in_whole_and_plain_lines(capsys):
    found = verdict([{"pt-tf": 1e-6}])
    found.name, found.versions = "nobody/" + "1.5" * 40, {"pt": "2.0", "tf": "3.0"}
    found.images.append("2 words " * 20)
    verify.show(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{found.name}: ViTModel B/16")
    assert lines[1] == f"PyTorch 2.0, TensorFlow 3.0; {found.images[0]}"
    assert lines[-1].startswith("the same function: the largest difference is 1.0e-06 at 0, where values reach 1; the")
    assert lines[-1].endswith("or 1e-05")


def test_the_processor_that_a_conversion_writes_prepares_images_as_its_source_did(tmp_path):
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out")
    from vit import ViTImageProcessor

    white = np.full((32, 32, 3), 255, np.uint8)
    prepared = ViTImageProcessor.from_pretrained(tmp_path / "out")(white, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(prepared, 1.0, atol=1e-6)  # (255 / 255 - 0.5) / 0.5
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert written["rescale_factor"] == pytest.approx(1 / 255)


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_names_and_labels_reach_the_terminal_without_control_characters(command, tmp_path):
    import torch

    state = {key: torch.from_numpy(np.array(value)) for key, value in torch.load(
        FIXTURES / "dino_backbone.pth", weights_only=True).items()}  # fmt: skip
    torch.save({"teacher": state, "\x1b[31mred\n": 1, "\ud800": 2}, tmp_path / "x.pth")
    arguments = [tmp_path / "x.pth", *([tmp_path / "\x1b[2Jout"] if command == "convert" else []), *HEADS]
    status, output = invoke(command, *arguments)
    assert status == 0
    assert all(line.isprintable() for line in output.splitlines())
    torch.save({"x": torch.zeros(1), "\x1b[31mred": torch.zeros(1)}, tmp_path / "y.pth")
    done = subprocess.run([sys.executable, "-m", "conversion", tmp_path / "y.pth", tmp_path / "o"], capture_output=True)
    assert done.returncode == 2
    assert b"\\x1b[31mred" in done.stderr
    assert b"\x1b" not in done.stderr
