"""torch.compile and torch.export take the PyTorch models as they are."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from vit import ModelOutput, ViTForMaskedImageModeling

from .common import LABELS, MODELS, Load, assert_close, gradients, images, inputs_of, masks


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_to_one_graph_with_the_same_outputs_and_gradients(load: Load, checkpointing: bool) -> None:
    model = load(num_hidden_layers=1).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = {}
    for name, call in (("eager", model), ("compiled", compiled)):
        model.zero_grad()
        output = call(images(), labels=LABELS, output_hidden_states=True, output_attentions=True)
        output.loss.backward()
        outputs[name] = output, gradients(model)
    assert isinstance(outputs["compiled"][0], ModelOutput)
    assert_close(outputs["compiled"], outputs["eager"], atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiles_with_the_default_backend(load: Load) -> None:
    model = load(num_hidden_layers=1)
    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True)(images()), model(images()))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("interpolate", [False, True])
def test_compiled_model_leaves_batch_and_image_size_open_from_the_second_size_on(load: Load, interpolate: bool) -> None:
    model, counter = load(num_hidden_layers=1), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    sizes = [(16, 10), (24, 6), (20, 14), (8, 22)] if interpolate else [(12, 8)] * 4
    with torch.no_grad():
        for batch, size in zip((4, 5, 7, 6), sizes, strict=True):
            expected = model(images(batch, *size), interpolate_pos_encoding=interpolate)
            assert_close(compiled(images(batch, *size), interpolate_pos_encoding=interpolate), expected)
    assert counter.frame_count == 2  # for the first sizes, then for any


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_masked_image_modeling_equals_eager(load: Load) -> None:
    model = load(ViTForMaskedImageModeling, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(images(), bool_masked_pos=masks()), model(images(), bool_masked_pos=masks()))


@pytest.mark.parametrize("cls", MODELS)
def test_exports_with_a_free_batch_size_and_survives_saving(load: Load, cls: type) -> None:
    model, batch = load(cls), torch.export.Dim("batch")
    inputs = {**inputs_of(cls), "output_hidden_states": True}
    shapes = {name: {0: batch} if isinstance(value, Tensor) else None for name, value in inputs.items()}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (), inputs, dynamic_shapes=shapes), file)
    file.seek(0)
    program = torch.export.load(file).module()
    inputs = {
        name: torch.cat([value, value.flip(0)]) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    outputs = program(**inputs)
    assert type(outputs) is ModelOutput
    with torch.no_grad():
        assert_close(outputs, model(**inputs))


def test_exports_with_a_free_image_size(load: Load) -> None:
    model, Dim = load(), torch.export.Dim
    shapes = {0: Dim("batch"), 2: 4 * Dim("rows", max=32), 3: 2 * Dim("columns", max=32)}
    program = torch.export.export(
        model,
        (images(2, 16, 10),),
        {"interpolate_pos_encoding": True},
        dynamic_shapes={"pixel_values": shapes, "interpolate_pos_encoding": None},
    ).module()
    x = images(3, 24, 14)
    with torch.no_grad():
        assert_close(program(x, interpolate_pos_encoding=True), model(x, interpolate_pos_encoding=True))
