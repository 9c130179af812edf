"""The PyTorch models are native PyTorch; that their numbers are right, tests/test_equivalence.py shows."""

from __future__ import annotations

import copy
import io
import os
import pickle
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import scatter_gather
from torch.utils import _pytree

from vit import ModelOutput, ViTForImageClassification, ViTForMaskedImageModeling, weights
from vit.pt.layers import ViTLayer

from .common import LABELS, MODELS, Load, assert_close, gradients, images, inputs_of

# === Parameters: names, dtypes, devices ===


@pytest.mark.parametrize("cls", MODELS)
def test_state_dict_has_the_canonical_names_and_shapes(load: Load, cls: type) -> None:
    model = load(cls)
    parts = {"add_pooling_layer": cls.head is None, "use_mask_token": cls.head == "decoder"}
    expected = model.config.parameter_shapes(head=cls.head, **parts)
    if cls.head is None:
        expected = {name.removeprefix("vit."): shape for name, shape in expected.items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert dict(model.named_parameters()).keys() == expected.keys()


@pytest.mark.parametrize("cls", MODELS)
def test_state_dict_loads_strictly_into_transformers_and_back(load: Load, cls: type) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load(cls, image_size=12, patch_size=4)  # transformers' encoder_stride is one number
    config = {key: value for key, value in ours.config.to_dict().items() if key != "architectures"}
    theirs = getattr(transformers, cls.__name__)(transformers.ViTConfig(**config))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    again = cls(ours.config)
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert_close(again.state_dict(), ours.state_dict(), atol=0)


def test_state_dict_survives_torch_save_restricted_to_tensors(model: Any) -> None:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = ViTForImageClassification(model.config).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_close(other(images()), model(images()), atol=0)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "quick_gelu"])
def test_model_can_be_copied_and_pickled(load: Load, hidden_act: str) -> None:
    model = load(hidden_act=hidden_act)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(images()), model(images()), atol=0)
        with torch.no_grad():
            other.classifier.bias += 1
        assert_close(other(images()).logits, model(images()).logits + 1)


@pytest.mark.parametrize(
    ("dtype", "loss_dtype", "atol"),
    [
        (torch.float16, torch.float32, 0.02),
        (torch.bfloat16, torch.float32, 0.15),
        (torch.float64, torch.float64, 1e-5),
    ],
)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_computes_in_the_dtype_it_is_moved_to(
    load: Load, dtype: torch.dtype, loss_dtype: torch.dtype, atol: float, attn_implementation: str
) -> None:
    expected = load(attn_implementation=attn_implementation)(images(), labels=LABELS, output_hidden_states=True)
    model = load(attn_implementation=attn_implementation).to(dtype)
    assert model.dtype is dtype
    outputs = model(images(), labels=LABELS, output_hidden_states=True)  # float32 pixels, as a processor gives them
    assert {value.dtype for value in (outputs.logits, *outputs.hidden_states)} == {dtype}
    assert outputs.loss.dtype is loss_dtype
    assert_close(outputs.logits.float(), expected.logits, atol)
    assert_close(outputs.loss.float(), expected.loss, atol)
    outputs.loss.backward()
    assert {gradient.dtype for gradient in gradients(model).values()} == {dtype}


def test_half_double_and_bfloat16_convert_the_whole_model(load: Load) -> None:
    model = load()
    for convert, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)):
        assert getattr(model, convert)().dtype is dtype
        assert {value.dtype for value in model.state_dict().values()} == {dtype}


def test_channels_last_memory_gives_the_same_numbers(load: Load, model: Any) -> None:
    other = load().to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    assert_close(other(x), model(images()))


def test_masked_image_modeling_interpolates_in_half_precision(load: Load) -> None:
    model, x = load(ViTForMaskedImageModeling), images(2, 16, 10)
    mask = torch.arange(40).reshape(2, 20) % 3 == 0
    expected = model(x, bool_masked_pos=mask, interpolate_pos_encoding=True)
    outputs = model.to(torch.bfloat16)(x, bool_masked_pos=mask, interpolate_pos_encoding=True)
    assert outputs.reconstruction.dtype is torch.bfloat16
    assert outputs.reconstruction.shape == x.shape
    assert outputs.loss.dtype is torch.float32
    assert_close(outputs.loss, expected.loss, atol=0.02)


@pytest.mark.parametrize("assign", [False, True])
def test_model_made_on_the_meta_device_is_filled_later(model: Any, assign: bool) -> None:
    with torch.device("meta"):
        other = ViTForImageClassification(model.config)
    assert other.device.type == "meta"
    assert all(parameter.is_meta for parameter in other.parameters())
    if not assign:
        other.to_empty(device="cpu")
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    assert other.device.type == "cpu"
    assert_close(other.eval()(images()), model(images()), atol=0)
    other(images(), labels=LABELS).loss.backward()
    assert all(gradient is not None for gradient in gradients(other).values())


def test_meta_model_computes_shapes_without_numbers(model: Any) -> None:
    other = copy.deepcopy(model).to("meta")
    outputs = other(images(2).to("meta"), output_attentions=True)
    assert outputs.logits.is_meta
    assert outputs.logits.shape == (2, 5)
    assert [tuple(attentions.shape) for attentions in outputs.attentions] == [(2, 4, 13, 13)] * 2


# === from_pretrained and save_pretrained ===


def test_loading_initialises_nothing_and_leaves_the_random_state_alone(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guard(name: str) -> None:
        original = getattr(nn.init, name)

        def guarded(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            assert tensor.is_meta, f"{name} fills a real tensor"
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(nn.init, name, guarded)

    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    assert {"trunc_normal_", "kaiming_uniform_", "uniform_", "zeros_", "ones_"} <= set(names)
    for name in names:
        guard(name)
    state = torch.get_rng_state()
    for cls in MODELS:
        load(cls)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has mapped")
def test_loading_maps_the_file_and_training_leaves_it_alone(
    tiny_config: Any, random_checkpoint: Any, tmp_path: Any
) -> None:
    folder = random_checkpoint(tmp_path, tiny_config(), "classifier")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    model = ViTForImageClassification.from_pretrained(folder)
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [[int(end, 16) for end in fields[0].split("-")] for fields in maps if fields[-1] == str(file)]
    for name, parameter in model.named_parameters():
        assert any(begin <= parameter.data_ptr() < end for begin, end in mapped), name
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    model(images(3, 16, 16), labels=LABELS).loss.backward()
    optimizer.step()
    assert not torch.equal(before["classifier.weight"], model.classifier.weight)
    assert file.read_bytes() == content
    model.save_pretrained(folder)  # over the file that is still mapped
    assert_close(ViTForImageClassification.from_pretrained(folder).state_dict(), model.state_dict(), atol=0)


def test_loaded_model_is_in_evaluation_mode_and_can_be_trained(model: Any) -> None:
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_saves_and_loads_each_dtype_in_one_file_or_shards(
    load: Load, tmp_path: Any, dtype: torch.dtype, max_shard_size: str
) -> None:
    model = load().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "10KB")
    other = ViTForImageClassification.from_pretrained(tmp_path)
    assert other.dtype is dtype
    assert other.config.dtype == str(dtype).removeprefix("torch.")
    assert_close(other.state_dict(), model.state_dict(), atol=0)
    assert_close(other(images()), model(images()), atol=1e-6)


def test_loads_in_another_dtype_than_the_checkpoint_has(load: Load, tmp_path: Any) -> None:
    model = load()
    model.save_pretrained(tmp_path)
    for dtype in ("bfloat16", torch.bfloat16):
        other = ViTForImageClassification.from_pretrained(tmp_path, dtype=dtype)
        assert_close(other.state_dict(), copy.deepcopy(model).to(torch.bfloat16).state_dict(), atol=0)


# === Outputs ===


@pytest.mark.parametrize("cls", MODELS)
def test_return_dict_false_gives_the_same_values_as_a_tuple(load: Load, cls: type) -> None:
    model = load(cls)
    expected = model(**inputs_of(cls), output_hidden_states=True)
    outputs = model(**inputs_of(cls), output_hidden_states=True, return_dict=False)
    assert type(outputs) is tuple
    assert_close(outputs, expected.to_tuple(), atol=0)


def test_configuration_sets_what_a_call_returns(load: Load) -> None:
    model = load(output_hidden_states=True, output_attentions=True)
    assert list(model(images())) == ["logits", "hidden_states", "attentions"]
    assert list(model(images(), output_hidden_states=False, output_attentions=False)) == ["logits"]
    model = load(return_dict=False)
    assert [type(value) for value in model(images())] == [Tensor]
    assert isinstance(model(images(), return_dict=True), ModelOutput)


def test_output_is_a_pytree(model: Any) -> None:
    outputs = model(images(), output_hidden_states=True)
    doubled = _pytree.tree_map(lambda value: 2 * value, outputs)
    assert isinstance(doubled, ModelOutput)
    assert list(doubled) == ["logits", "hidden_states"]
    assert_close(doubled.hidden_states[1], 2 * outputs.hidden_states[1], atol=0)


def test_outputs_of_several_devices_gather_into_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gather:  # that of PyTorch wants a GPU
        @staticmethod
        def apply(device: int, dim: int, *tensors: Tensor) -> Tensor:
            return torch.cat([tensor[None] if tensor.dim() == 0 else tensor for tensor in tensors], dim)

    monkeypatch.setattr(scatter_gather, "Gather", Gather)
    parts = [model(images(seed=seed), labels=LABELS, output_hidden_states=True) for seed in (0, 1)]
    outputs = scatter_gather.gather(parts, 0)
    assert type(outputs) is ModelOutput
    assert outputs.loss.shape == (2,)
    both = model(torch.cat([images(seed=0), images(seed=1)]), output_hidden_states=True)
    assert_close((outputs.logits, *outputs.hidden_states), (both.logits, *both.hidden_states))


def test_distributed_data_parallel_finds_the_gradients_behind_an_output(load: Load, tmp_path: Any) -> None:
    model = load()
    model(images(), labels=LABELS).loss.backward()
    expected = copy.deepcopy(gradients(model))
    model.zero_grad()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        outputs = parallel(images(), labels=LABELS)
        assert isinstance(outputs, ModelOutput)
        outputs.loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_close(gradients(model), expected, atol=1e-6)


def test_inference_mode_records_nothing(model: Any) -> None:
    with torch.inference_mode():
        outputs = model(images(), labels=LABELS)
    assert outputs.logits.is_inference()
    assert_close(outputs.logits.clone(), model(images()).logits.detach())


def test_fresh_model_starts_as_published(tiny_config: Any) -> None:
    torch.manual_seed(0)
    model = ViTForImageClassification(tiny_config(hidden_size=64, intermediate_size=256, initializer_range=0.05))
    for name, parameter in model.named_parameters():
        start = weights.initial_value(name)
        if start is None:
            assert parameter.abs().max() <= 0.1, name
            assert parameter.numel() < 1000 or 0.04 < parameter.std() < 0.05, name  # 0.88 * 0.05
        else:
            assert torch.equal(parameter, torch.full_like(parameter, start)), name
    assert isinstance(model.vit.encoder.layer[0], ViTLayer)
    assert model.training
    assert np.isfinite(model(images(2, 16, 16)).logits.detach().numpy()).all()


# === Memory ===


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked to keep freed memory")
def test_freed_memory_is_kept_for_the_next_layer_once_something_was_inferred() -> None:
    code = """if True:
        import torch, vit, vit.pt

        def is_mapped_alone(size):
            block = torch.empty(size, dtype=torch.uint8)
            heap = next(line for line in open("/proc/self/maps") if "[heap]" in line)
            start, end = (int(address, 16) for address in heap.split()[0].split("-"))
            return not start <= block.data_ptr() < end

        config = vit.ViTConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8)
        model = vit.pt.ViTModel(config).eval()
        before = is_mapped_alone(16 << 20)
        with torch.inference_mode():
            model(torch.zeros(1, 3, 224, 224))
        print(before, is_mapped_alone(24 << 20))  # freed, the 16 MiB alone would have glibc keep blocks of up to 16 MiB
    """
    allocators = ("MALLOC_", "GLIBC_", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(allocators)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.split() == ["True", "False"]


def test_transformers_takes_a_model_for_one_of_its_own_and_nobody_else_does(load: Load) -> None:
    """Its Trainer saves the configuration of no other (the function below stands for one of its modules)."""
    import transformers

    told: dict[str, Any] = {"__name__": "transformers.trainer"}
    exec("def ask(model, cls): return isinstance(model, cls), model.__class__", told)
    model = load()
    is_one, kind = told["ask"](model, transformers.PreTrainedModel)
    assert is_one
    assert (kind.__name__, kind.forward) == (type(model).__name__, type(model).forward)
    assert not told["ask"](torch.nn.Linear(1, 1), transformers.PreTrainedModel)[0]
    assert not isinstance(model, transformers.PreTrainedModel)
    assert model.__class__ is type(model)
    assert type(copy.deepcopy(model)) is type(pickle.loads(pickle.dumps(model))) is type(model)
