"""transformers' Trainer and pipeline with our models, as their users write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vit

from .common import LABELS, needs, pixels, targets


def dataset(count: int = 8) -> list[dict[str, Any]]:
    """Examples of random pixels with labels, as a Trainer collates them."""
    return [{"pixel_values": p, "labels": int(t)} for p, t in zip(pixels(count), targets(count), strict=True)]


def trainer(model: Any, output: Path, **options: Any) -> Any:
    """A Trainer on the CPU that reports as it does by default: to every tracker that is installed."""
    from transformers import Trainer, TrainingArguments

    values = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "epoch",
              "logging_steps": 1, "use_cpu": True, "seed": 0, "disable_tqdm": True, **options}  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(output), **values),
        train_dataset=dataset(),
        eval_dataset=dataset(4),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )


@needs("accelerate", "tensorboard")
def test_a_trainer_trains_reports_saves_and_goes_on(folder: Path, tmp_path: Path):
    model = vit.ViTForImageClassification.from_pretrained(folder)
    run = trainer(model, tmp_path)
    run.train()
    assert list((tmp_path / "runs").rglob("events.out.tfevents*"))
    metrics = run.evaluate()
    assert {"eval_loss", "eval_accuracy"} <= metrics.keys()
    run.save_model(str(tmp_path / "saved"))
    expected = model.eval()(run._prepare_inputs({"pixel_values": _tensor(pixels())})["pixel_values"]).logits
    for place in ("saved", "checkpoint-4"):
        again = vit.ViTForImageClassification.from_pretrained(tmp_path / place)
        assert again.config.id2label == dict(enumerate(LABELS))
        np.testing.assert_allclose(again(_tensor(pixels())).logits.detach(), expected.detach(), atol=1e-6)
    # The second half, again, from the first: the same as both in one go.
    resumed = trainer(vit.ViTForImageClassification.from_pretrained(folder), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    logits = resumed.model.eval()(_tensor(pixels())).logits
    np.testing.assert_allclose(logits.detach(), expected.detach(), atol=1e-5)


@needs("accelerate", "tensorboard")
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
        {"bf16": True, "optim": "adamw_torch"},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": "accuracy"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_trainers_options_hold(options: dict[str, Any], folder: Path, tmp_path: Path):
    run = trainer(
        vit.ViTForImageClassification.from_pretrained(folder), tmp_path, num_train_epochs=1, report_to="none", **options
    )
    assert np.isfinite(run.train().training_loss)
    vit.ViTForImageClassification.from_pretrained(next(tmp_path.glob("checkpoint-*")))


@needs("accelerate")
def test_accumulated_small_batches_are_one_big_batch_to_the_trainer(folder: Path, tmp_path: Path):
    import torch

    examples = dataset(8)
    for left_out in (0, 5, 6):  # another number of labels in each small batch
        examples[left_out]["labels"] = -100
    found = []
    for small, steps in ((8, 1), (2, 4)):
        run = trainer(
            vit.ViTForImageClassification.from_pretrained(folder), tmp_path, max_steps=1, report_to="none",
            per_device_train_batch_size=small, gradient_accumulation_steps=steps, save_strategy="no",
            optim="sgd", lr_scheduler_type="constant", learning_rate=0.5, max_grad_norm=0.0,
        )  # fmt: skip
        run.train_dataset = examples
        loss = run.train().training_loss
        found.append((loss, torch.cat([p.detach().flatten() for p in run.model.parameters()])))
    (one, expected), (many, weights) = found
    assert many == pytest.approx(one, abs=1e-5)
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@needs("accelerate")
def test_a_trainer_predicts_and_makes_its_model_anew(folder: Path, tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    run = Trainer(
        model_init=lambda: vit.ViTForImageClassification.from_pretrained(folder),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        train_dataset=dataset(4),
    )
    found = run.predict(dataset(6))
    expected = vit.ViTForImageClassification.from_pretrained(folder)(_tensor(pixels(6))).logits
    np.testing.assert_allclose(found.predictions, expected.detach(), atol=1e-5)


def test_a_pipeline_classifies(folder: Path, images: Path):
    from transformers import pipeline

    model = vit.ViTForImageClassification.from_pretrained(folder)
    processor = vit.ViTImageProcessor.from_pretrained(folder)
    classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    paths = [str(path) for path in sorted(images.rglob("*.png"))[:3]]
    found = classify(paths, top_k=3)
    for path, answers in zip(paths, found, strict=True):
        logits = model(**processor(Image.open(path), return_tensors="pt")).logits[0]
        assert [each["label"] for each in answers] == [LABELS[i] for i in logits.argsort(descending=True)]
        assert sum(each["score"] for each in answers) == pytest.approx(1, abs=1e-5)
    assert classify(Image.open(paths[0]), top_k=1)[0] == found[0][0]


def test_a_pipeline_of_features(folder: Path, images: Path):
    from transformers import pipeline

    # It copies every output into a plain dict and asks for the first value of that, which a tuple alone has.
    model = vit.ViTModel.from_pretrained(folder, add_pooling_layer=False, return_dict=False)
    processor = vit.ViTImageProcessor.from_pretrained(folder)
    path = str(next(images.rglob("*.png")))
    features = pipeline("image-feature-extraction", model=model, image_processor=processor, device="cpu")(path)
    (expected,) = model(**processor(Image.open(path), return_tensors="pt"))
    np.testing.assert_allclose(features, expected.detach(), atol=1e-5)


def test_transformers_reads_the_configuration_of_every_saved_folder(folder: Path, tmp_path: Path):
    from transformers import AutoConfig, AutoImageProcessor

    vit.ViTForImageClassification.from_pretrained(folder).save_pretrained(tmp_path)
    vit.ViTImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label == dict(enumerate(LABELS))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    assert AutoImageProcessor.from_pretrained(tmp_path, use_fast=False).size == {"height": 16, "width": 16}


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)
