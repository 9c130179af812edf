"""The libraries that PyTorch's users bring: each takes our models as it takes any module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vit

from .common import LABELS, needs, pixels, run, targets

PIXELS, TARGETS = torch.from_numpy(pixels()), torch.from_numpy(targets())


def load(folder: Path, **options: Any) -> Any:
    return vit.ViTForImageClassification.from_pretrained(folder, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PIXELS).logits


def equal(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(a.detach(), b.detach(), atol=atol)


# === Accelerate ===


@needs("accelerate")
def test_accelerate_prepares_accumulates_and_saves_by_its_documented_call(folder: Path, tmp_path: Path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = load(folder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.DataLoader(list(zip(PIXELS, TARGETS, strict=True)), batch_size=2)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    for images, labels in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(pixel_values=images, labels=labels).loss)
            optimizer.step()
            optimizer.zero_grad()
    # Two halves accumulated are the whole at once.
    whole = load(folder).train()
    whole(PIXELS, labels=TARGETS).loss.backward()
    torch.optim.SGD(whole.parameters(), lr=0.1).step()
    equal(logits(whole), logits(model))

    unwrapped = accelerator.unwrap_model(model)
    unwrapped.save_pretrained(
        tmp_path / "saved",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(model),
    )
    equal(logits(load(tmp_path / "saved")), logits(model))
    accelerator.save_state(str(tmp_path / "state"))
    with torch.no_grad():
        unwrapped.classifier.bias.add_(1)
    accelerator.load_state(str(tmp_path / "state"))
    equal(logits(load(tmp_path / "saved")), logits(model))


@needs("accelerate")
def test_accelerate_makes_an_empty_model_and_loads_it(folder: Path):
    from accelerate import init_empty_weights, load_checkpoint_in_model

    with init_empty_weights():
        model = vit.ViTForImageClassification(load(folder).config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    load_checkpoint_in_model(model, str(folder))
    equal(logits(model), logits(load(folder)))


# === Lightning ===


@needs("lightning")
def test_lightning_trains_checkpoints_and_loads(folder: Path, tmp_path: Path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = load(Path(path)).train()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.model(batch[0], labels=batch[1]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    data = torch.utils.data.DataLoader(list(zip(PIXELS, TARGETS, strict=True)), batch_size=2)
    module = Module(str(folder))
    fit = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    fit.fit(module, data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    equal(logits(again.model), logits(module.model))
    assert not torch.equal(logits(again.model), logits(load(folder)))
    again.model.save_pretrained(tmp_path / "saved")
    equal(logits(load(tmp_path / "saved")), logits(module.model))


# === PEFT ===


@needs("peft")
def test_peft_adapts_saves_and_merges(folder: Path, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"], init_lora_weights=False)
    model = get_peft_model(load(folder), config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 + 2  # two layers, query and value, A and B; the head's weight and bias
    model(pixel_values=PIXELS, labels=TARGETS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    expected = logits(model)
    assert not torch.allclose(expected, logits(load(folder)), atol=1e-3)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(folder), str(tmp_path / "adapter"))
    equal(logits(again), expected)
    merged = again.merge_and_unload()
    assert isinstance(merged, vit.ViTForImageClassification)
    merged.save_pretrained(tmp_path / "merged")
    equal(logits(load(tmp_path / "merged")), expected, atol=1e-4)


@needs("peft")
def test_peft_trains_with_gradient_checkpointing(folder: Path):
    from peft import LoraConfig, get_peft_model

    model = load(folder)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"])).train()
    adapted(pixel_values=PIXELS, labels=TARGETS).loss.backward()
    found = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert len(found) == 2
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found)


# === torchao ===


@needs("torchao")
def test_torchao_quantises_what_then_still_classifies(folder: Path, tmp_path: Path):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = load(folder)
    expected = logits(model)
    quantize_(model, Int8WeightOnlyConfig())
    found = logits(model)
    assert not torch.equal(found, expected)
    equal(found, expected, atol=0.1)
    with pytest.raises(vit.CheckpointError, match=r"no place for: .*is a torchao"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# === FSDP ===


def test_fsdp_1_and_2_keep_the_outputs_and_gather_what_is_saved(folder: Path, tmp_path: Path):
    script = Path(__file__).with_name("distributed.py")
    run(script, folder, tmp_path, cwd=tmp_path, OMP_NUM_THREADS="1")
    whole = load(folder).train()
    loss = whole(PIXELS, labels=TARGETS).loss
    loss.backward()
    torch.optim.SGD(whole.parameters(), lr=0.1).step()
    for kind in ("ddp", "fsdp1", "fsdp2"):
        found = np.load(tmp_path / f"{kind}.npy")
        assert found == pytest.approx(float(loss.detach()), abs=1e-5), kind
        equal(logits(load(tmp_path / kind)), logits(whole))


# === datasets ===


@needs("datasets")
def test_datasets_give_batches_by_a_transform(folder: Path, images: Path, tmp_path: Path):
    from datasets import load_dataset

    processor = vit.ViTImageProcessor.from_pretrained(folder)
    data = load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(tmp_path))
    assert data.features["label"].names == list(LABELS)

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        return {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}

    transformed = data.with_transform(transform)
    loader = torch.utils.data.DataLoader(transformed, batch_size=6)
    assert sum(len(batch["labels"]) for batch in loader) == len(data) == 18
    loss = load(folder)(**next(iter(loader))).loss
    assert torch.isfinite(loss)
    # What is computed once and stored is the same.
    mapped = data.map(lambda batch: processor(batch["image"]), batched=True, remove_columns="image").with_format(
        "torch"
    )
    equal(mapped[:6]["pixel_values"], transformed[:6]["pixel_values"])


# === captum ===


@needs("captum")
def test_captum_attributes_a_class_to_pixels(folder: Path):
    from captum.attr import IntegratedGradients, LayerIntegratedGradients, Saliency

    model = load(folder)

    def score(values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=values).logits

    attributions, delta = IntegratedGradients(score).attribute(
        PIXELS, target=TARGETS, n_steps=64, return_convergence_delta=True
    )
    assert attributions.shape == PIXELS.shape
    difference = score(PIXELS) - score(torch.zeros_like(PIXELS))
    expected = difference.gather(1, TARGETS[:, None])[:, 0]
    np.testing.assert_allclose(attributions.sum((1, 2, 3)), expected.detach(), atol=0.05)  # completeness
    assert delta.abs().max() < 0.05
    assert Saliency(score).attribute(PIXELS, target=TARGETS).abs().sum() > 0
    layer = LayerIntegratedGradients(score, model.vit.embeddings)
    assert layer.attribute(PIXELS, target=TARGETS, n_steps=4).shape == (4, 17, 32)


# === ONNX ===


@needs("onnx", "onnxscript", "onnxruntime")
@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_has_the_same_numbers(dynamic: bool, folder: Path, tmp_path: Path):
    import onnxruntime

    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    shapes = {"pixel_values": {0: torch.export.Dim("batch", max=64)}} if dynamic else None
    program = torch.onnx.export(
        Logits(load(folder)).eval(), (PIXELS,), dynamo=True, input_names=["pixel_values"], output_names=["logits"],
        dynamic_shapes=shapes, verbose=False,
    )  # fmt: skip
    program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (4, 7) if dynamic else (4,):
        values = pixels(batch, seed=1)
        (found,) = session.run(["logits"], {"pixel_values": values})
        with torch.no_grad():
            np.testing.assert_allclose(found, load(folder)(torch.from_numpy(values)).logits, atol=1e-4)


@needs("onnx", "onnxscript", "onnxruntime")
def test_onnx_takes_a_model_whole(folder: Path, tmp_path: Path):
    import onnxruntime

    model = load(folder)
    torch.onnx.export(model, (PIXELS,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: PIXELS.numpy()})
    np.testing.assert_allclose(found, logits(model), atol=1e-4)
