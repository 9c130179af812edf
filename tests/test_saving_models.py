"""What save_pretrained is given, whatever was done to it, is written as it computes, or refused by name."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations, prune

import vit
from vit import CheckpointError

from .tiny import tiny_checkpoint

X = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)


@pytest.fixture
def folder(random_checkpoint: Any, tiny_config: Any, tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "in", tiny_config(), head="classifier")


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Tagged(torch.Tensor):
    """Stands for the tensors of quantisers, which are subclasses."""


def query(model: Any) -> Any:
    return model.vit.encoder.layer[1].attention.attention


@pytest.fixture(autouse=True)
def quick_quantisation() -> Any:
    """Keras collects the garbage of the whole process for each layer that it quantises."""
    gc.freeze()
    yield
    gc.unfreeze()


def put(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def tie(model: Any) -> None:
    model.vit.encoder.layer[0].output = model.vit.encoder.layer[1].output
    query(model).key.weight = query(model).query.weight


def old_spectral_norm(model: Any) -> None:
    torch.nn.utils.spectral_norm(query(model).query)
    model(torch.from_numpy(X))


def changed_after(norm: Any) -> Any:
    def change(model: Any) -> None:
        norm(query(model).query)
        with torch.no_grad():
            for name, parameter in query(model).query.named_parameters():
                if name.endswith(("_g", "original0", "weight_orig")):
                    parameter.mul_(1.5)

    return change


KEPT_PT = {
    "nothing": lambda m: None,
    "training": lambda m: m.train(),
    "weight_norm": changed_after(parametrizations.weight_norm),
    "the older weight_norm": changed_after(torch.nn.utils.weight_norm),
    "spectral_norm": changed_after(parametrizations.spectral_norm),
    "the older spectral_norm": old_spectral_norm,
    "orthogonal": changed_after(parametrizations.orthogonal),
    "pruning": changed_after(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "pruning twice": lambda m: [prune.random_unstructured(query(m).query, "weight", 0.3) for _ in range(2)],
    "tied": tie,
    "a compiled layer": lambda m: put(m.vit.encoder, "layer", nn.ModuleList(
        torch.compile(layer, backend="eager") for layer in m.vit.encoder.layer)),
    "NaN": lambda m: m.classifier.bias.data.fill_(float("nan")),
}  # fmt: skip

REFUSED_PT = {
    "vit.pt.quantize": (lambda m: vit.pt.quantize(m), "quantised to int8"),
    "vit.pt.prepack": (lambda m: vit.pt.prepack(m), "prepacked"),
    "prepacked base": (lambda m: vit.pt.prepack(m.vit), "prepacked"),
    "a user's layer": (lambda m: put(query(m), "query", Doubled(32, 32)), r"query is a .*Doubled"),
    "an adapter": (lambda m: put(query(m).query, "lora_A", nn.Linear(32, 4)), "lora_A"),
    "another head": (lambda m: put(m, "head2", nn.Linear(32, 4)), r"head2\.weight is no parameter"),
    "a buffer": (lambda m: m.register_buffer("mean", torch.ones(3)), "mean is no parameter"),
    "dynamic int8": (lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, inplace=True),
                     "quantized.*Save it before it is quantised"),
    "a subclass": (lambda m: put(query(m).query, "weight", nn.Parameter(torch.ones(32, 32).as_subclass(Tagged))),
                   r"query\.weight is a .*Tagged"),
    "meta": (lambda m: m.to("meta"), "meta device.*Load or initialise it first"),
    "a layer more": (lambda m: m.vit.encoder.layer.append(copy.deepcopy(m.vit.encoder.layer[0])), r"layer\.2\."),
    "a layer less": (lambda m: m.vit.encoder.layer.pop(1), r"layer\.1\..* is missing"),
    "another epsilon": (lambda m: put(m.vit.layernorm, "eps", 0.1), "layernorm is a "),
    "another shape": (lambda m: put(m, "classifier", nn.Linear(32, 3)), r"has the shape \(3, 32\), not \(5, 32\)"),
    "DataParallel": (lambda m: put(m, "vit", nn.DataParallel(m.vit)), "DataParallel"),
    "no bias": (lambda m: put(m, "classifier", nn.Linear(32, 5, bias=False)), r"classifier\.bias is missing"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", KEPT_PT.values(), ids=KEPT_PT)
def test_pytorch_models_are_saved_as_they_compute(change, folder, tmp_path):
    model = vit.ViTForImageClassification.from_pretrained(folder)
    change(model)
    model.save_pretrained(tmp_path / "out")
    found = vit.ViTForImageClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(X)).logits
        np.testing.assert_allclose(found(torch.from_numpy(X)).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "message"), REFUSED_PT.values(), ids=REFUSED_PT)
def test_pytorch_models_that_no_checkpoint_reproduces_are_refused_by_name(change, message, folder, tmp_path):
    model = vit.ViTForImageClassification.from_pretrained(folder)
    change(model)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Codes(torch.Tensor):
    """Stands for a weight of torchao, which is a subclass that gives its numbers back on request."""

    __module__ = "torchao.quantization"

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor) * 2


def test_weights_that_torchao_quantised_are_written_as_what_they_stand_for_on_request(folder, tmp_path):
    model = vit.ViTForImageClassification.from_pretrained(folder)
    codes = model.classifier.weight.detach() / 2
    model.classifier.weight = nn.Parameter(codes.as_subclass(Codes), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"classifier\.weight is a torchao\..*pass dequantize=True"):
        model.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "out", dequantize=True)
    before, after = (checkpoint_arrays(tmp_path / name) for name in ("in", "out"))
    assert all(np.array_equal(before[name], after[name]) for name in after)


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
import vit
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
model = vit.ViTForImageClassification.from_pretrained(f"{folder}/in")
mesh = init_device_mesh("cpu", (2,))
for layer in model.vit.encoder.layer:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
assert type(model.classifier.weight).__name__ == "DTensor" or hasattr(model.classifier.weight, "full_tensor")
model.save_pretrained(f"{folder}/out")
dist.barrier()
dist.destroy_process_group()
"""


def test_a_model_sharded_over_processes_is_gathered(folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    running = [subprocess.Popen([sys.executable, "-c", SHARDED, str(rank), str(tmp_path)], env=environment,
                                stderr=subprocess.PIPE, text=True) for rank in range(2)]  # fmt: skip
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    before, after = (checkpoint_arrays(tmp_path / name) for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def checkpoint_arrays(folder: Path) -> dict[str, np.ndarray]:
    opened = vit.checkpoint.Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


# === Keras ===


class DoubledDense(keras.layers.Dense):
    def call(self, inputs: Any, training: Any = None) -> Any:
        return 2 * super().call(inputs)


def enable_lora(model: Any) -> None:
    model.classifier.enable_lora(2)
    query(model).query.enable_lora(4, lora_alpha=7)
    for layer in (model.classifier, query(model).query):
        layer.lora_kernel_b.assign(np.random.default_rng(1).standard_normal(layer.lora_kernel_b.shape) * 0.1)


def replace_dense(model: Any) -> None:
    dense = DoubledDense(5)
    dense.build((None, 32))
    model._tracker.unlock()
    model.classifier = dense


KEPT_TF = {"nothing": lambda m: None, "enable_lora": enable_lora, "compiled": lambda m: m.compile("adam")}
REFUSED_TF = {
    "int8": (
        lambda m: m.quantize("int8"),
        "quantised to int8.*Save it before it is quantised, or pass dequantize=True",
    ),
    "int4": (lambda m: m.quantize("int4"), "quantised to int4.*or pass dequantize=True"),
    "one layer of int8": (lambda m: query(m).query.quantize("int8"), "quantised to int8"),
    "float8": (lambda m: query(m).query.quantize("float8"), "quantised to float8"),
    "a user's layer": (replace_dense, "DoubledDense"),
    "an activation": (lambda m: put(m.classifier, "activation", keras.activations.relu), "activation relu"),
    "another epsilon": (lambda m: put(m.vit.layernorm, "epsilon", 0.1), "epsilon 0.1"),
    "a layer less": (lambda m: m.vit.encoder.layer.pop(1), "layer.1.* is missing"),
}


@pytest.mark.parametrize("change", KEPT_TF.values(), ids=KEPT_TF)
def test_keras_models_are_saved_as_they_compute(change, folder, tmp_path):
    model = vit.TFViTForImageClassification.from_pretrained(folder)
    change(model)
    model.save_pretrained(tmp_path / "out")
    found = vit.TFViTForImageClassification.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(found(X).logits, model(X).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("change", "message"), REFUSED_TF.values(), ids=REFUSED_TF)
def test_keras_models_that_no_checkpoint_reproduces_are_refused_by_name(change, message, folder, tmp_path):
    model = vit.TFViTForImageClassification.from_pretrained(folder)
    change(model)
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_adapters(model: Any) -> None:
    model.quantize("int8")
    enable_lora(model)


QUANTISED = {
    "int8": lambda m: m.quantize("int8"),
    "int4": lambda m: m.quantize("int4"),
    "int4, no groups": lambda m: m.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=None)),
    "int4, odd groups": lambda m: m.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=12)),
    "some layers": lambda m: m.quantize("int4", filters="query|intermediate"),
    "adapters over int8": with_adapters,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["vit", "dinov3_vit"])
def test_keras_weights_that_were_quantised_are_written_as_what_they_stand_for_on_request(model_type, tmp_path):
    head = "classifier" if model_type == "vit" else None
    tiny_checkpoint(tmp_path / "in", model_type, head)
    x, auto = X[:, :, :, :12], vit.TFAutoModelForImageClassification if head else vit.TFAutoModel
    for name, quantise in QUANTISED.items() if head else [("int4", QUANTISED["int4"])]:
        model = auto.from_pretrained(tmp_path / "in")
        plain = model(x)[0]
        quantise(model)
        model.save_pretrained(tmp_path / "out", dequantize=True)
        for layer in model._flatten_layers():
            if getattr(layer, "quantization_mode", None) == "int8":
                layer.inputs_quantizer = None  # which rounds what is multiplied with the weights
        expected = model(x)[0]
        found = type(model).from_pretrained(tmp_path / "out")
        assert found.config == vit.AutoConfig.from_pretrained(tmp_path / "in")
        np.testing.assert_allclose(found(x)[0], expected, rtol=0, atol=2e-5, err_msg=name)
        assert abs(np.asarray(plain - expected)).max() > 1e-4, name
    before, after = (checkpoint_arrays(tmp_path / place) for place in ("in", "out"))
    assert before.keys() == after.keys()


def test_what_is_quantised_otherwise_or_is_not_ours_is_refused_all_the_same(folder, tmp_path):
    def own(model: Any) -> None:
        replace_dense(model)
        model.classifier.quantize("int8", type_check=False)

    for change, message in ((lambda m: m.quantize("float8"), "quantised to float8"), (own, "DoubledDense")):
        model = vit.TFViTForImageClassification.from_pretrained(folder)
        change(model)
        with pytest.raises(CheckpointError, match=message):
            model.save_pretrained(tmp_path / "out", dequantize=True)
    assert not (tmp_path / "out").exists()


# === Flax ===


class DoubledLinear(nnx.Linear):
    def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
        return 2 * super().__call__(inputs)


def lora_linear(model: Any) -> None:
    old, new = query(model).query, nnx.LoRALinear(32, 32, lora_rank=4, rngs=nnx.Rngs(0))
    new.kernel, new.bias = old.kernel, old.bias
    new.lora.lora_b[...] = jnp.ones_like(new.lora.lora_b[...]) * 0.1
    query(model).query = new


def lora_around(model: Any) -> None:
    new = nnx.LoRA(32, 4, 32, base_module=query(model).value, rngs=nnx.Rngs(0))
    new.lora_b[...] = jnp.ones_like(new.lora_b[...]) * 0.1
    query(model).value = new


def tie_flax(model: Any) -> None:
    query(model).key.kernel = query(model).query.kernel


KEPT_FLAX = {"nothing": lambda m: None, "LoRALinear": lora_linear, "LoRA": lora_around, "tied": tie_flax}
REFUSED_FLAX = {
    "a user's layer": (lambda m: put(query(m), "query", DoubledLinear(32, 32, rngs=nnx.Rngs(0))), "DoubledLinear"),
    "a parameter": (lambda m: put(m, "scale", nnx.Param(jnp.ones(3))), "scale is no parameter"),
    "another head": (lambda m: put(m, "head2", nnx.Linear(32, 3, rngs=nnx.Rngs(0))), "head2.* is no parameter"),
    "no values": (lambda m: put(m.classifier.bias, "value", jax.ShapeDtypeStruct((5,), jnp.float32)), "classifier"),
    "another product": (lambda m: put(m.classifier, "dot_general", lambda *a, **k: 0), "another product"),
    "another epsilon": (lambda m: put(m.vit.layernorm, "epsilon", 0.1), "epsilon 0.1"),
    "deleted": (lambda m: m.classifier.bias.get_value().delete(), "was deleted"),
}


@pytest.mark.parametrize("change", KEPT_FLAX.values(), ids=KEPT_FLAX)
def test_flax_models_are_saved_as_they_compute(change, folder, tmp_path):
    model = vit.FlaxViTForImageClassification.from_pretrained(folder)
    change(model)
    model.save_pretrained(tmp_path / "out")
    found = vit.FlaxViTForImageClassification.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(found(X).logits, model(X).logits, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "message"), REFUSED_FLAX.values(), ids=REFUSED_FLAX)
def test_flax_models_that_no_checkpoint_reproduces_are_refused_by_name(change, message, folder, tmp_path):
    model = vit.FlaxViTForImageClassification.from_pretrained(folder)
    change(model)
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# === Classes of one's own ===


class Mine(vit.ViTForImageClassification):
    """Computes as its base."""


class MineInKeras(vit.TFViTForImageClassification):
    """Computes as its base."""


class MineInFlax(vit.FlaxViTForImageClassification):
    """Computes as its base."""


@pytest.mark.parametrize("class_", [Mine, MineInKeras, MineInFlax])
def test_a_class_of_ones_own_is_saved_as_its_base_is(class_, folder, tmp_path):
    class_.from_pretrained(folder).save_pretrained(tmp_path / "out")
    before, after = (vit.checkpoint.Checkpoint(path) for path in (folder, tmp_path / "out"))
    assert before.tensors.keys() == after.tensors.keys()
    assert all(np.array_equal(before.read(name), after.read(name)) for name in before.tensors)


def test_a_loss_that_is_a_module_of_its_own_trains_and_is_not_saved(tmp_path):
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, labels, logits, config):
            return self.scale * torch.nn.functional.cross_entropy(logits, labels)

    config = vit.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=32
    )
    model = vit.ViTForImageClassification(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    plain = model(pixels, labels=torch.tensor([0, 1]))
    model.loss_function = Loss()
    assert torch.equal(model(pixels, labels=torch.tensor([0, 1])).loss, 2 * plain.loss)
    assert any(name == "loss_function.scale" for name, _ in model.named_parameters())
    assert torch.equal(copy.deepcopy(model)(pixels, labels=torch.tensor([0, 1])).loss, 2 * plain.loss)
    model.save_pretrained(tmp_path)
    model.loss_function = lambda labels, logits, config: logits.sum()
    assert torch.equal(model(pixels, labels=torch.tensor([0, 1])).loss, plain.logits.sum())
    assert torch.equal(vit.ViTForImageClassification.from_pretrained(tmp_path)(pixels).logits, plain.logits)
