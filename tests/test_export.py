"""`vit export`: every family in every format, run in the format's own runtime, and what becomes of a bad call."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vit
from vit import BitImageProcessor, CheckpointError, InputError, MissingFrameworkError, families, measure
from vit.cli import export as cli
from vit.cli import main
from vit.errors import install_line
from vit.exporting import FORMATS, Artifact, engine, export, formats, load
from vit.exporting.engine import DIGITS
from vit.inference import Forward
from vit.pipeline import POOLS

from .export_photographs import compared, photographs
from .test_every_family import CLASSIFIERS, PROCESSOR
from .tiny import tiny_checkpoint

FAMILIES = pytest.mark.parametrize("model_type", families.CONFIGS)
FORMATS_ = pytest.mark.parametrize("name", FORMATS)
HEADS = dict(reversed(CLASSIFIERS))


def target_of(folder: Path, name: str) -> Path:
    return folder / f"{name}{FORMATS[name].ending or ''}"


@pytest.fixture(scope="module", autouse=True)
def hurry() -> Iterator[None]:
    """What is timed is not measured here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every family, with a classification head where it has one."""
    found = {}
    for model_type in families.CONFIGS:
        found[model_type] = folder = tmp_path_factory.mktemp(model_type)
        overrides: dict[str, Any] = {"num_hidden_layers": 1}
        if model_type == "vit":  # two labels of one name, and several an image
            overrides |= {"problem_type": "multi_label_classification", "num_labels": None,
                          "id2label": {0: "cat", 1: "dog", 2: "crane", 3: "crane", 4: "ox"}}  # fmt: skip
        tiny_checkpoint(folder, model_type, HEADS.get(model_type), **overrides)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return found


@pytest.fixture(scope="module")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of the ViT to every format."""
    folder = tmp_path_factory.mktemp("exported")
    for name in FORMATS:
        report = export(folders["vit"], target_of(folder, name), to=name)
        assert (report.path, report.format, report.passed) == (target_of(folder, name), name, True)
        assert report.difference <= 1e-5 * max(1, report.largest)
        assert (report.agreement, report.images) == (1.0, 3 + 16)
        assert report.seconds > 0
        assert report.source_seconds > 0
    return {name: target_of(folder, name) for name in FORMATS}


def pixels(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 12), np.float32)


# === The same function ===


@FAMILIES
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "openvino"])  # whose graph is that of ONNX
def test_every_family_computes_the_same_in_every_format(model_type, name, folders, tmp_path):
    folder, target = folders[model_type], target_of(tmp_path, name)
    task = "classify" if model_type in HEADS else "embed"
    report = export(folder, target, to=name, task=task, pool="mean", verify=False)  # by what follows
    assert report.size == sum(p.stat().st_size for p in (target, *target.rglob("*")) if p.is_file())
    head = {"head": HEADS[model_type]} if task == "classify" else {"head": None, **no_pooler(model_type)}
    forward = Forward(folder, "pt", **head)
    values = pixels(2)  # not as many as there are channels
    outputs = forward(values)
    for run in (load(target), *([in_openvino(target)] if name == "onnx" else [])):
        found = run({"pixel_values": values})
        if task == "embed":
            assert list(found) == ["embedding"]
            expected = POOLS["mean"](outputs, forward.config.prefix_tokens)
            np.testing.assert_allclose(found["embedding"], expected, atol=1e-5)
            continue
        assert list(found) == ["logits", "probabilities", "labels"]
        logits = outputs.logits
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
        several = forward.config.problem_type == "multi_label_classification"
        scores = 1 / (1 + np.exp(-logits)) if several else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found["probabilities"], scores, atol=1e-6)
        labels = logits.argmax(1)
        if name == "saved-model":  # which has strings
            labels = [run.metadata["labels"][i].encode() for i in labels]
        np.testing.assert_array_equal(found["labels"], labels)
        assert [found[key].dtype.kind for key in found] == ["f", "f", "O" if name == "saved-model" else "i"]


def in_openvino(path: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """An ONNX file in OpenVINO, computing in float32."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: {name.get_any_name(): value for name, value in compiled(inputs).items()}


def no_pooler(model_type: str) -> dict[str, bool]:
    parts = families.config_class(model_type).heads[None].parts
    return {part: False for part in parts if part == "add_pooling_layer"}


@pytest.mark.parametrize("framework", ["pt", "flax"])
@pytest.mark.parametrize("pool", POOLS)
def test_an_embedding_is_that_of_predict(framework, pool, tmp_path):
    tiny_checkpoint(tmp_path, "dinov2")
    values = pixels(3)
    model = families.model_class(framework, "dinov2").from_pretrained(tmp_path)
    if framework == "pt":
        from vit.pt.export import Served

        with torch.no_grad():
            found = Served(model, "embed", pool)(torch.from_numpy(values))["embedding"].numpy()
    else:
        from vit.flax.export import served

        found = np.asarray(served(model, "embed", pool)(values)["embedding"])
    expected = POOLS[pool](Forward(model)(values), model.config.prefix_tokens)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape[1:] == vit.pipeline.vector_shape(model.config, pool)


@pytest.mark.parametrize(("name", "dtype"), [(n, each.dtypes[1]) for n, each in FORMATS.items()])
def test_half_precisions_differ_by_what_they_round(name, dtype, folders, tmp_path):
    target = target_of(tmp_path, name)
    report = export(folders["deit"], target, to=name, dtype=dtype, verify=False)
    assert report.metadata["dtype"] == dtype
    values = pixels(3)
    found, logits = load(target)({"pixel_values": values}), Forward(folders["deit"], "pt")(values).logits
    assert {found[key].dtype.name for key in ("logits", "probabilities")} == {"float32"}
    assert 1e-6 < np.abs(found["logits"] - logits).max() <= engine.TOLERANCES[dtype] * max(1, np.abs(logits).max())


@pytest.mark.parametrize("name", ["onnx", "torch", "stablehlo"])
def test_the_image_processor_in_the_graph_gives_what_it_gives_outside(name, tmp_path):
    tiny_checkpoint(tmp_path, "dinov2", "classifier", num_hidden_layers=1)
    processor = BitImageProcessor(size={"shortest_edge": 20}, crop_size=(16, 12))
    processor.save_pretrained(tmp_path)
    target = target_of(tmp_path, name)
    export(tmp_path, target, to=name, images=True, verify=False)
    artifact, forward = load(target), Forward(tmp_path, "pt")
    runs: list[Any] = [artifact, *([in_openvino(target)] if name == "onnx" else [])]
    (kind,) = artifact.metadata["inputs"]
    for image in (skimage.data.chelsea()[:120], skimage.data.chelsea()[::-1, :111]):
        expected = forward(processor([image, image[:, ::-1]], return_tensors="np").pixel_values).logits
        for run in runs:
            found = run({kind: np.stack([image, image[:, ::-1]])})["logits"]
            np.testing.assert_allclose(found, expected, atol=5e-3)
            np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_photographs_come_out_as_they_do_of_the_model(tmp_path):
    found = compared(
        "deit", "torch", photographs(few=True), tmp_path
    )  # `python -m tests.export_photographs` is the whole
    assert found["difference"] <= 1e-5
    assert found["within a level"] >= 0.999
    assert found["same"] == 1.0
    assert found["difference with images"] <= engine.IMAGE_TOLERANCE


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if each.int8])
def test_int8_reads_the_digits_as_the_model_does(name, tmp_path, capfd):
    digits = load_digits()
    scans = [Image.fromarray((scan / 16 * 255).round().astype(np.uint8)) for scan in digits.images[::8]]
    (tmp_path / "images" / "more").mkdir(parents=True)
    for i, scan in enumerate(scans[::14]):
        scan.save(tmp_path / "images" / "more" / f"{i}.png")
    target = target_of(tmp_path, name)
    report = export(DIGITS, target, to=name, int8=tmp_path / "images")
    assert capfd.readouterr().out == ""
    assert (report.passed, report.tolerance, report.metadata["int8"]) == (True, None, True)
    assert 1e-3 < report.difference < 0.2 * report.largest
    assert report.size < 0.6 * sum(path.stat().st_size for path in DIGITS.glob("*.safetensors"))
    processor = vit.ViTImageProcessor.from_pretrained(DIGITS)
    values = processor(scans, return_tensors="np").pixel_values
    found, expected = load(target)({"pixel_values": values}), Forward(DIGITS, "pt")(values).logits
    assert np.mean(found["labels"] == expected.argmax(1)) >= 0.99
    assert np.mean(found["labels"] == digits.target[::8]) >= 0.99


# === What is known about an export ===


@FORMATS_
def test_an_export_says_what_it_is(name, exported, folders):
    found = load(exported[name]).metadata
    assert found["trivit"] == vit.__version__
    assert (found["format"], found["model_type"], found["task"], found["dtype"]) == (name, "vit", "classify", "float32")
    assert found["labels"] == ["cat", "dog", "crane", "crane", "ox"]
    assert found["problem_type"] == "multi_label_classification"
    assert found["inputs"]["pixel_values"] == {"shape": [None, 3, 16, 12], "dtype": "float32"}
    assert list(found["outputs"]) == ["logits", "probabilities", "labels"]
    outputs = load(exported[name])({"pixel_values": pixels(2)})
    assert found["outputs"] == {
        key: {"shape": [None, *value.shape[1:]], "dtype": "bytes" if value.dtype.kind == "O" else value.dtype.name}
        for key, value in outputs.items()
    }
    processor = load(exported[name]).processor
    assert processor.to_dict() == vit.ViTImageProcessor.from_pretrained(folders["vit"]).to_dict()
    digest = subprocess.run(["sha256sum", folders["vit"] / "model.safetensors"], capture_output=True, text=True).stdout
    assert found["source"]["sha256"]["model.safetensors"] == digest.split()[0]
    assert set(found["source"]["sha256"]) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert str(folders["vit"].parent) not in json.dumps(found)


def test_the_opset_and_the_version_of_the_onnx_file_are_told(exported):
    import onnx

    model = onnx.load(exported["onnx"])
    metadata = load(exported["onnx"]).metadata
    assert [(each.domain, each.version) for each in model.opset_import] == [("", metadata["opset"])]
    assert model.ir_version == metadata["ir_version"]
    assert not [each for each in model.graph.node if each.domain]
    onnx.checker.check_model(model, full_check=True)
    assert not [each for each in (*model.graph.node, *model.graph.value_info) if each.metadata_props or each.doc_string]


def test_the_stablehlo_file_is_what_jax_itself_reads(exported):
    import jax.export

    program = jax.export.deserialize(bytearray(exported["stablehlo"].read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    values = pixels(2)
    expected = load(exported["stablehlo"])({"pixel_values": values})
    np.testing.assert_array_equal(program.call(values)["logits"], expected["logits"])


def test_an_onnx_file_needs_no_framework_to_run(exported):
    code = f"""
import sys
for module in ("torch", "tensorflow", "jax", "flax", "onnx"):
    sys.modules[module] = None
import numpy as np
from vit.exporting import load
artifact = load({str(exported["onnx"])!r})
image = np.zeros((40, 30, 3), np.uint8)
values = artifact.processor(image, return_tensors="np", input_data_format="channels_last").pixel_values
print(artifact({{"pixel_values": values}})["labels"].shape)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert run.stdout.strip() == "(1,)", run.stderr


@FORMATS_
def test_an_artifact_says_what_it_takes(name, exported):
    artifact = load(exported[name])
    with pytest.raises(InputError, match="has no input 'pixels'; expected pixel_values"):
        artifact({"pixels": pixels(1)})
    with pytest.raises(InputError, match=r"expected float32 of \(any, 3, 16, 12\)"):
        artifact({"pixel_values": pixels(1)[:, :, :8]})
    with pytest.raises(InputError, match="pixel_values is float64"):
        artifact({"pixel_values": pixels(1).astype(np.float64)})


# === What is said of an export ===


def test_an_export_passes_where_it_differs_by_no_more_than_its_numbers_allow():
    def passed(**found: Any) -> bool:
        return engine.Report(Path("a.onnx"), "onnx", 1, {}, **found).passed

    assert passed()  # nothing was compared
    assert passed(difference=1e-3, largest=128.0, tolerance=2**-16)
    assert passed(difference=2**-9, largest=128.0, tolerance=2**-16)
    assert not passed(difference=2.1e-3, largest=128.0, tolerance=2**-16)
    assert passed(difference=2**-16, largest=0.5, tolerance=2**-16)
    assert not passed(difference=1.6e-5, largest=0.5, tolerance=2**-16)
    for nothing in (np.nan, np.inf):
        assert not passed(difference=nothing, largest=nothing, tolerance=1e-5)
        assert not passed(difference=nothing, agreement=1.0)
    assert passed(difference=9.0, agreement=engine.AGREEMENT)  # of int8
    assert not passed(difference=9.0, agreement=engine.AGREEMENT - 1e-6)
    assert engine.AGREEMENT >= 0.9


@pytest.mark.parametrize(("noise", "passes"), [(0.1, True), (1.0, False)])
def test_int8_vectors_that_point_elsewhere_do_not_pass(noise, passes):
    model = Forward(DIGITS, "pt", head=None, add_pooling_layer=False)
    rng = np.random.default_rng(0)

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        vectors = model(**inputs).last_hidden_state[:, 0]
        return {"embedding": vectors + noise * vectors.std() * rng.standard_normal(vectors.shape, np.float32)}

    scans = sorted(DIGITS.glob("*.png"))[:4]
    job = engine._job(DIGITS, "onnx", "embed", "cls", False, None, {}, scans)
    artifact = Artifact("onnx", Path("a.onnx"), job.metadata(), run)
    report = engine._compared(engine.Report(artifact.path, "onnx", 1, artifact.metadata), artifact, job, scans)
    assert (report.passed, report.tolerance, report.agreement) == (passes, None, float(passes))
    assert f"{report.agreement:.1%} of the images have a vector near the model's" in engine.verdict(report)
    with pytest.raises(InputError, match="no image to compare an export by: int8 is compared by images of the kind"):
        engine._compared(report, artifact, job, [])


def test_a_comparison_is_told_in_words():
    report = engine.Report(Path("a"), "onnx", 1, {}, 2e-6, 12.5, 1e-5, 0.75, 4)
    assert engine.verdict(report) == (
        "the largest difference is 2.0e-06 where values reach 12.5, and 75.0% of the images have the same label; the "
        "tolerance is 1e-05 of that, or 1e-05"
    )
    report = engine.Report(Path("a"), "onnx", 1, {}, 2e-6, 12.5)
    assert engine.verdict(report) == "the largest difference is 2.0e-06 where values reach 12.5"


@pytest.mark.usefixtures("narrow_terminal")
def test_lines_reach_a_terminal_whole_and_plain(monkeypatch, capsys):
    path = Path("a folder of 2 words") / ("1.5" * 40)
    found = {"task": "logits", "dtype": "float32", "int8": None}
    cli.show(engine.Report(path, "onnx", 123, found))
    assert capsys.readouterr().out.splitlines() == [f"{path}: onnx, logits, float32", "0.1 kB; not compared"]
    monkeypatch.setattr(measure, "busy", lambda: 0.9)
    cli.show(engine.Report(path, "onnx", 123, found, 2e-6, 12.5, 1e-5, 0.75, 4))
    assert capsys.readouterr().out.splitlines()[-1] == f"{cli.busy_line(0.9)}: times would mislead, and are left out."


def test_int8_is_calibrated_with_images_from_all_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CALIBRATION", 3)
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/a.png", ".b.png", "notes.txt", "0.png", "1.jpg", "deep/2.PNG"):
        (tmp_path / name).touch()
    assert [path.name for path in engine.calibration_images(tmp_path)] == ["0.png", "1.jpg", "2.PNG"]
    (tmp_path / "z.png").touch()
    assert [path.name for path in engine.calibration_images(tmp_path)] == ["0.png", "2.PNG"]
    for i in range(3, 6):
        (tmp_path / f"deep/{i}.png").touch()
    assert [path.name for path in engine.calibration_images(tmp_path)] == ["0.png", "3.png", "z.png"]


# === Served ===


def test_every_format_is_served(exported, folders):
    from vit.serving import Limits, create_app

    from .served import Client, picture

    file = picture()
    values = vit.ViTImageProcessor.from_pretrained(folders["vit"])(file, return_tensors="np").pixel_values
    logits = Forward(folders["vit"], "pt")(values).logits[0]
    names = ["cat", "dog", "crane", "crane", "ox"]
    models = {name: str(path) for name, path in exported.items()}
    with Client(create_app(models, limits=Limits(max_batch_size=2))) as client:
        for name in models:
            (found,) = client.post(f"/classify?model={name}", content=file).json()["results"]
            assert found["labels"] == [names[i] for i in np.argsort(-logits, kind="stable")], name
            np.testing.assert_allclose(
                found["probabilities"], np.sort(1 / (1 + np.exp(-logits)))[::-1], atol=1e-5, err_msg=name
            )
            assert client.get(f"/v2/models/{name}").json()["platform"] == f"trivit_{name}"
            answer = client.post(f"/embed?model={name}", content=file)
            assert (answer.status_code, "has no task embed" in answer.json()["error"]) == (400, True)


# === What is refused ===


def refused(error: type[Exception], match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=match):
        export(*arguments, **options)


def test_bad_calls_name_what_is_expected_and_leave_nothing(folders, tmp_path, monkeypatch):
    model, empty, onnx = folders["vit"], tmp_path / "empty", tmp_path / "a.onnx"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    known = ", ".join(FORMATS)
    refused(InputError, f"The format is 'tensorrt'; expected one of {known}", model, tmp_path / "a", to="tensorrt")
    refused(InputError, "a does not tell the format; expected a name that ends in .onnx", model, tmp_path / "a")
    refused(
        InputError, "is to be a file of the format onnx; end its name in .onnx", model, tmp_path / "a.pt2", to="onnx"
    )
    refused(
        InputError, "has the ending of the format onnx; an export to openvino is a folder", model, onnx, to="openvino"
    )
    refused(InputError, "dtype is 'float64'; the format onnx has float32, float16", model, onnx, dtype="float64")
    refused(InputError, "The format torch has no int8 here", model, tmp_path / "a.pt2", int8=empty)
    refused(InputError, "empty has no images to calibrate int8 with", model, onnx, int8=empty)
    refused(InputError, "nowhere does not exist; expected a folder of images", model, onnx, int8=tmp_path / "nowhere")
    refused(InputError, "what is not int8 stays float32", model, onnx, int8=DIGITS, dtype="float16")
    refused(InputError, "cannot hold the image processor, which", model, tmp_path / "a.tflite", images=True)
    refused(InputError, "task is 'detect'", model, onnx, task="detect")
    refused(InputError, "pool is 'max'", model, onnx, task="embed", pool="max")
    refused(InputError, "no argument 'opset'", model, onnx, opset=17)
    refused(InputError, "model is a Forward; expected a checkpoint folder", Forward(model, "pt"), onnx)
    refused(CheckpointError, "has no classification head", folders["vit_mae"], onnx)
    refused(CheckpointError, "does not exist; expected a checkpoint folder", tmp_path / "none", onnx)
    refused(CheckpointError, "is a folder; an export to onnx is a file", model, folder_at(tmp_path / "b.onnx"))
    refused(CheckpointError, "b exists; name another target", model, folder_at(tmp_path / "b"), to="openvino")
    refused(
        CheckpointError,
        "of something else than an export to openvino",
        model,
        tmp_path / "b",
        to="openvino",
        force=True,
    )
    (tmp_path / "link.onnx").symlink_to(onnx)
    refused(CheckpointError, "is a symbolic link", model, tmp_path / "link.onnx")
    assert sorted(os.listdir(tmp_path)) == ["b", "b.onnx", "empty", "link.onnx"]


def folder_at(path: Path) -> Path:
    path.mkdir()
    (path / "mine").write_text("x")
    return path


@FORMATS_
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(name, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_job", None)  # what is missing is told before anything is loaded
    for needed in FORMATS[name].modules:
        gone = needed.partition(".")[0]
        monkeypatch.setattr(formats, "find_spec", lambda module, gone=gone: None if module == gone else module)
        with pytest.raises(MissingFrameworkError) as error:
            export(folders["vit"], target_of(tmp_path, name), to=name)
        line = install_line(FORMATS[name].extra)
        assert str(error.value) == f"An export to {name} needs {needed}. Install it with: {line}"
    package = {"pt": "torch", "tf": "tensorflow", "flax": "flax"}[FORMATS[name].framework]
    monkeypatch.setattr(formats, "find_spec", lambda module: None if module == package else module)
    with pytest.raises(MissingFrameworkError, match=f"^An export to {name} needs .* Install it with: "):
        export(folders["vit"], target_of(tmp_path, name), to=name)
    assert not os.listdir(tmp_path)


def test_an_operator_that_a_format_lacks_is_named_and_nothing_is_left(folders, tmp_path, monkeypatch):
    from vit.pt.export import Served

    forward = Served.forward

    def with_bessel(self: Any, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: torch.special.bessel_j0(value) for name, value in forward(self, pixel_values).items()}

    monkeypatch.setattr(Served, "forward", with_bessel)
    with pytest.raises(InputError, match=r"family vit cannot be exported to onnx: .*bessel_j0"):
        export(folders["vit"], tmp_path / "new" / "a.onnx")
    assert not os.listdir(tmp_path)


def test_weights_that_an_onnx_file_cannot_hold_are_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(formats.module_of("onnx"), "MOST", 1000)
    refused(
        InputError, "bytes, and a file of the format onnx holds 1,000. Pass dtype", folders["vit"], tmp_path / "a.onnx"
    )
    assert not os.listdir(tmp_path)


def test_an_export_that_differs_never_appears_and_the_old_one_stays(folders, tmp_path, monkeypatch):
    target = tmp_path / "a.pt2"
    target.write_bytes(b"old")
    module = formats.module_of("torch")
    right = module.load

    def wrong(path: Path) -> Artifact:
        artifact = right(path)
        return Artifact(
            "torch", path, artifact.metadata, lambda inputs: {n: v + 1 for n, v in artifact.run(inputs).items()}
        )

    monkeypatch.setattr(module, "load", wrong)
    refused(CheckpointError, "a.pt2 exists; name another target, or pass force=True", folders["vit"], target)
    with pytest.raises(
        CheckpointError, match=r"would not be the same function: .* Nothing was written; pass verify=False"
    ):
        export(folders["vit"], target, force=True)
    assert (os.listdir(tmp_path), target.read_bytes()) == (["a.pt2"], b"old")
    report = export(folders["vit"], target, force=True, verify=False)
    assert (report.difference, report.passed, zipfile.is_zipfile(target)) == (None, True, True)


# === Exports of others, which are programs ===


def archive_with(old: Path, new: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """A copy of a .pt2 file whose parts are changed, and more of them added."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        root = source.namelist()[0].partition("/")[0]
        for each in source.namelist():
            target.writestr(each, change(each, source.read(each)))
        for name, data in more.items():
            target.writestr(f"{root}/{name}", data)
    return new


class Evil:
    """What leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def first_node(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["graph_module"]["graph"]["nodes"][-1]


def find(value: Any, key: str) -> Iterator[Any]:
    for each, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if each == key:
            yield inner
        if isinstance(inner, dict | list):
            yield from find(inner, key)


RUNS = "__import__('pathlib').Path('RAN').touch()"
GRAPHS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "holds 'torch.os.system'": lambda graph: first_node(graph).update(target="torch.os.system"),
    "holds 'torch.ops.aten.from_file.default'": lambda graph: first_node(graph).update(
        target="torch.ops.aten.from_file.default"
    ),
    'holds "__import__\\(': lambda graph: next(find(graph, "as_expr")).update(expr_str=RUNS),
    'holds "Symbol': lambda graph: next(find(graph, "as_expr")).update(expr_str=f"Symbol('s1').__class__.{RUNS}"),
    'holds "__import': lambda graph: graph.update(guards_code=[RUNS]),
    "holds 'x=print": lambda graph: next(find(graph, "as_tensor")).update(name="x=print()"),
    r"holds .*collections\.d": lambda graph: next(
        each for each in find(graph, "signature") if each and "in_spec" in each
    ).update(in_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'),
    "holds 'as_custom_obj'": lambda graph: first_node(graph)["inputs"][0]["arg"].update(as_custom_obj={"name": "x"}),
}
"""What is said of a .pt2 file -> what was done to the graph in it."""


def test_a_pt2_file_that_is_more_than_tensors_and_known_functions_is_not_loaded(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new, evil = exported["torch"], tmp_path / "a.pt2", pickle.dumps(Evil(tmp_path / "RAN"))

    def same(name: str, data: bytes) -> bytes:
        return data

    archive_with(old, new, lambda name, data: evil if "sample_inputs" in name else data)
    with pytest.raises(CheckpointError, match="cannot be loaded as torch"):
        load(new)
    for name, what in (
        ("data/weights/model.pt", "pickled weights"),
        ("data/aotinductor/model/a.so", "machine code"),
        ("serialized_state_dict.pt", "pickled weights"),
        ("models/other.json", "'models/other.json'"),
    ):
        with pytest.raises(CheckpointError, match=f"holds {what}; nothing of it was loaded"):
            load(archive_with(old, new, same, **{name: evil}))
    archive_with(
        old, new, lambda name, data: data.replace(b'"use_pickle": false', b'"use_pickle": true') if "config" in name
        else data,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="holds pickled objects; nothing of it was loaded"):
        load(new)
    for message, change in GRAPHS.items():

        def changed(name: str, data: bytes, change: Callable[[dict[str, Any]], Any] = change) -> bytes:
            if not name.endswith("models/model.json"):
                return data
            graph = json.loads(data)
            change(graph)
            return json.dumps(graph).encode()

        with pytest.raises(CheckpointError, match=message):
            load(archive_with(old, new, changed))
    assert os.listdir(tmp_path) == ["a.pt2"]


@pytest.mark.parametrize(
    "operation", ["ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "DebugIdentityV3", "RestoreV2"]
)
def test_a_saved_model_that_does_more_than_compute_is_not_loaded(operation, exported, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(exported["saved-model"], tmp_path / "a")
    file = tmp_path / "a" / "1" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    functions = model.meta_graphs[0].graph_def.library.function
    served = next(each for each in functions if "signature_wrapper" in each.signature.name)
    served.node_def.add(op=operation, name="more")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=f"a has the operation '{operation}', which no export has"):
        load(tmp_path / "a")


def test_a_saved_model_reads_no_files_by_what_tensorflow_reads_its_weights_with(exported, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(exported["saved-model"], tmp_path / "a")
    file = tmp_path / "a" / "1" / "saved_model.pb"
    original = file.read_bytes()
    for how in ("operation", "attribute", "served"):
        model = saved_model_pb2.SavedModel.FromString(original)
        graph = model.meta_graphs[0]
        functions = graph.graph_def.library.function
        store = next(each.signature.name for each in functions if "traced_restore" in each.signature.name)
        served = next(each for each in functions if "signature_wrapper" in each.signature.name)
        if how == "operation":
            served.node_def.add(op=store, name="more")
        elif how == "attribute":
            served.node_def.add(op="StatefulPartitionedCall", name="more").attr["f"].func.name = store
        else:
            graph.object_graph_def.concrete_functions[store].SetInParent()
        file.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match="has the operation '"):
            load(tmp_path / "a")


def test_an_onnx_file_that_refers_to_others_is_not_loaded(exported, tmp_path):
    import onnx
    from onnx import helper

    path = tmp_path / "a.onnx"
    (tmp_path / "secret").write_bytes(b"x" * 10_000)

    def refused(match: str, change: Callable[[onnx.ModelProto], Any]) -> None:
        model = onnx.load(exported["onnx"])
        change(model)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match=match):
            load(path)

    def outside(model: onnx.ModelProto) -> None:
        weight = next(each for each in model.graph.initializer if each.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")

    def in_a_branch(model: onnx.ModelProto) -> None:
        tensor = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
        branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "b", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))

    refused("holds weights that lie in another file", outside)
    refused("holds weights that lie in another file", in_a_branch)
    refused(
        "operators of 'com.evil'",
        lambda model: model.graph.node.append(helper.make_node("A", [], [], domain="com.evil")),
    )
    refused("functions of its own", lambda model: model.functions.add(name="f"))
    refused("does not say what it is", lambda model: helper.set_model_props(model, {"trivit": '{"trivit": "1"}'}))
    path.write_bytes(exported["onnx"].read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="damaged: it is no ONNX file"):
        load(path)


def test_a_stablehlo_file_that_calls_what_this_process_has_is_not_loaded(exported, tmp_path):
    import jax
    from jax.export import DisabledSafetyCheck

    def run(x: jax.Array) -> jax.Array:
        return jax.ffi.ffi_call("xla_ffi_python_cpu_callback", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    call = DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")
    program = jax.export.export(jax.jit(run), disabled_checks=[call], platforms=["cpu"])(np.zeros(3, np.float32))
    path = tmp_path / "a.stablehlo"
    path.write_bytes(program.serialize())
    with zipfile.ZipFile(exported["stablehlo"]) as archive, zipfile.ZipFile(path, "a") as new:
        new.writestr("trivit", archive.read("trivit"))
    with pytest.raises(CheckpointError, match="calls 'xla_ffi_python_cpu_callback', which no export does"):
        load(path)


def test_a_folder_with_a_link_that_leads_out_of_it_is_not_loaded(exported, tmp_path):
    shutil.copytree(exported["openvino"], tmp_path / "a")
    (tmp_path / "a" / "model.bin").rename(tmp_path / "model.bin")
    (tmp_path / "a" / "model.bin").symlink_to("../model.bin")
    with pytest.raises(CheckpointError, match="has a link that leads out of it; nothing of it was loaded"):
        load(tmp_path / "a")


ABOUT = {"trivit": "0.1.0", "inputs": {"pixel_values": {"shape": [None, 3, 4, 4], "dtype": "float32"}},
         "outputs": {"logits": {"shape": [None, 2], "dtype": "float32"}}, "task": "classify", "preprocessing": {},
         "labels": ["a", "b"]}  # fmt: skip


@pytest.mark.parametrize("key", ABOUT)
def test_what_an_export_says_of_itself_is_not_believed(key):
    assert formats.parse(json.dumps(ABOUT), Path("a")) == ABOUT
    for odd in (
        7,
        ["x", 1],
        {"pixel_values": {"shape": [None, -3], "dtype": "float32"}},
        {"x": {"shape": 3}},
        True,
        "x",
    ):
        if (key == "trivit" and odd == "x") or (key == "preprocessing" and isinstance(odd, dict)):
            continue
        with pytest.raises(CheckpointError, match="a does not say what it is; expected what 'vit export' wrote"):
            formats.parse(json.dumps({**ABOUT, key: odd}), Path("a"))


@FORMATS_
def test_a_damaged_export_is_refused(name, exported, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; expected what 'vit export' wrote"):
        load(target_of(tmp_path, name))
    path = target_of(tmp_path, name)
    if path.suffix or FORMATS[name].ending:
        path.write_bytes(exported[name].read_bytes()[:-100])
    else:
        mark = path / FORMATS[name].mark
        mark.parent.mkdir(parents=True)
        mark.write_text("<net/>")
    with pytest.raises(CheckpointError):
        load(path, name)


def test_an_export_of_a_checkpoint_whose_labels_or_preprocessing_changed_is_told(exported, folders, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folders["vit"], changed)
    config = json.loads((changed / "config.json").read_text())
    names = config["id2label"]
    names["0"], names["1"] = names["1"], names["0"]
    config |= {"label2id": None, "problem_type": "single_label_classification"}
    (changed / "config.json").write_text(json.dumps(config))
    (changed / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "image_mean": [0.4, 0.5, 0.5]}))
    report = engine.verify(changed, exported["torch"])
    assert (report.changed, report.agreement) == (("labels", "problem_type", "preprocessing"), 1.0)
    report = replace(report, difference=0.0)  # were the numbers alone to tell
    assert replace(report, changed=()).passed
    assert not report.passed
    said = "; the labels and the problem_type and the preprocessing are others than the checkpoint's"
    assert engine.verdict(report).endswith(said)


# === Commands ===


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    return int(exit_.value.code or 0)


def test_vit_export_and_vit_verify(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit.measure.busy", lambda: 0.0)
    model, target = folders["vit"], tmp_path / "a.pt2"
    assert run("export", model, target) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("torch, classify, float32", "largest difference", "100.0% of 19", "PyTorch"))
    assert run("export", model, target, "--json", "--force", "--no-verify") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["format"], printed["difference"], printed["size"]) == ("torch", None, target.stat().st_size)
    assert run("verify", model, "--artifact", target, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is True
    assert printed["difference"] <= 1e-5 * max(1, printed["largest"])
    for option in (("--tolerance", "1e-9"), ("--dtype", "float64"), ("-f", "flax"), ("--device", "cuda")):
        assert run("verify", model, "--artifact", target, *option) == 2
        assert "changes nothing of an export, which has its own runtime, dtype and tol" in capsys.readouterr().err
    other = tmp_path / "other"
    tiny_checkpoint(other, "vit", "classifier", seed=1, num_hidden_layers=1, problem_type="multi_label_classification")
    (other / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    monkeypatch.setattr("vit.measure.busy", lambda: 0.9)
    assert run("verify", other, "--artifact", target) == 1
    table = capsys.readouterr().out
    assert "NOT the same function: the largest difference is" in table
    assert "Other programs keep 90% of the processors busy: times would mislead, and are left out." in table
    assert "ms an image" not in table
    assert run("export", model, target) == 2
    assert (
        capsys.readouterr().err
        == f"vit: {target} exists; name another target, or pass force=True (--force) to replace it.\n"
    )
