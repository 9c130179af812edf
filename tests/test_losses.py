"""Losses with weights, smoothing and gradient accumulation: one function in every framework, of every family."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from vit import InputError, families

from .equivalence import tiny_config
from .tiny import HEADS

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((6, 5))
SINGLE = np.array([0, 4, -100, 2, 2, 1])
LABELS: dict[str, np.ndarray] = {
    "single_label_classification": SINGLE,
    "multi_label_classification": (RNG.random((6, 5)) < 0.5).astype(np.float64),
    "regression": RNG.standard_normal((6, 5)),
}
CLASS_WEIGHTS, SAMPLE_WEIGHT = RNG.random(5) + 0.5, RNG.random(6) + 0.5
CLASSIFIERS = [(model_type, head) for model_type, head in HEADS if head == "classifier"]
PIXELS = RNG.standard_normal((6, 3, 16, 16)).astype(np.float32)


def loss_in(framework: str, labels: np.ndarray, problem_type: str, **options: Any) -> float:
    config = tiny_config(problem_type=problem_type)
    if framework == "pt":
        import torch

        from vit.pt.loss import classification_loss

        weight = options.pop("sample_weight", None)
        weight = weight if weight is None else torch.from_numpy(weight)
        tensors = torch.from_numpy(labels), torch.from_numpy(LOGITS)
        return classification_loss(*tensors, config, sample_weight=weight, **options).item()
    module = __import__(f"vit.{framework}.loss", fromlist=["loss"])
    if framework == "tf":
        import tensorflow as tf

        return float(module.classification_loss(tf.constant(labels), tf.constant(LOGITS), config, **options))
    import jax

    with jax.enable_x64(True):
        return float(module.classification_loss(labels, jax.numpy.asarray(LOGITS), config, **options))


def expected_loss(labels: np.ndarray, problem_type: str, **options: Any) -> float:
    """By PyTorch's own functions, and arithmetic."""
    import torch
    import torch.nn.functional as F

    logits, targets = torch.from_numpy(LOGITS), torch.from_numpy(labels)
    weights = None if options.get("class_weights") is None else torch.from_numpy(options["class_weights"])
    smoothing = options.get("label_smoothing", 0.0)
    if problem_type == "single_label_classification":
        losses = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="none")
        counted = targets != -100
        total = counted.sum() if weights is None else weights[targets[counted]].sum()
    else:
        if problem_type == "multi_label_classification":
            targets = targets * (1 - smoothing) + smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none").mean(1)
        else:
            losses = F.mse_loss(logits, targets, reduction="none").mean(1)
        total = torch.tensor(len(losses))
    if options.get("sample_weight") is not None:
        losses = losses * torch.from_numpy(options["sample_weight"])
    return (losses.sum() / total).item()


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "class weights": {"class_weights": CLASS_WEIGHTS},
    "smoothing": {"label_smoothing": 0.2},
    "sample weights": {"sample_weight": SAMPLE_WEIGHT},
    "all": {"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.1, "sample_weight": SAMPLE_WEIGHT},
}


@pytest.mark.parametrize("framework", families.PREFIXES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("problem_type", LABELS)
def test_the_loss_is_that_of_its_definition(problem_type: str, options: str, framework: str):
    given, labels = OPTIONS[options], LABELS[problem_type]
    if problem_type == "regression" and given.keys() & {"class_weights", "label_smoothing"}:
        with pytest.raises(InputError, match="A regression has no classes"):
            loss_in(framework, labels, problem_type, **given)
        return
    expected = expected_loss(labels, problem_type, **given)
    assert loss_in(framework, labels, problem_type, **given) == pytest.approx(expected, abs=1e-9)
    if options == "nothing" and problem_type == "single_label_classification":
        import torch

        plain = torch.nn.functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(labels))
        assert expected == pytest.approx(plain.item(), abs=1e-12)


@pytest.mark.parametrize("framework", families.PREFIXES)
@pytest.mark.parametrize(("options", "message"), [
    ({"class_weights": np.ones(4)}, r"class_weights has the shape \(4,\); expected \(5,\)"),
    ({"class_weights": np.ones((6, 5))}, r"class_weights has the shape \(6, 5\); expected \(5,\)"),
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0; expected a share"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1; expected a share"),
    ({"sample_weight": np.ones(5)}, r"sample_weight has the shape \(5,\); expected \(6,\)"),
    ({"sample_weight": np.ones((6, 2))}, r"sample_weight has the shape \(6, 2\); expected \(6,\)"),
])  # fmt: skip
def test_impossible_options_are_refused_by_name(options: dict[str, Any], message: str, framework: str):
    with pytest.raises(InputError, match=message):
        loss_in(framework, SINGLE, "single_label_classification", **options)


# === Models ===


def model_of(framework: str, model_type: str, head: str | None = "classifier", **overrides: Any) -> Any:
    cls = families.model_class(framework, model_type, head)
    config = tiny_config(model_type, **overrides)
    if framework != "flax":
        return cls(config)
    from flax import nnx

    return cls(config, rngs=nnx.Rngs(0))


def call(framework: str, model: Any, **inputs: Any) -> Any:
    if framework == "pt":
        import torch

        inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
    return model(**inputs)


@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
@pytest.mark.parametrize("framework", families.PREFIXES)
def test_a_loss_function_that_is_assigned_is_the_models(framework: str, model_type: str, head: str):
    model = model_of(framework, model_type, head)
    module = __import__(f"vit.{framework}.loss", fromlist=["loss"])
    model.loss_function = partial(module.classification_loss, class_weights=CLASS_WEIGHTS, label_smoothing=0.1)
    outputs = call(framework, model, pixel_values=PIXELS, labels=SINGLE)
    logits = outputs.logits.detach() if framework == "pt" else outputs.logits
    expected = module.classification_loss(
        call_labels(framework), logits, model.config, class_weights=CLASS_WEIGHTS, label_smoothing=0.1
    )
    assert float(outputs.loss) == pytest.approx(float(expected), abs=1e-6)
    model.loss_function = lambda labels, logits, config: (
        logits.sum() * 0 + config.num_labels if framework != "tf" else 5.0
    )
    assert float(call(framework, model, pixel_values=PIXELS, labels=SINGLE).loss) == 5


def call_labels(framework: str) -> Any:
    if framework == "pt":
        import torch

        return torch.from_numpy(SINGLE)
    return SINGLE


def test_a_flax_loss_function_holds_in_compiled_calls():
    from flax import nnx

    from vit.flax.loss import classification_loss

    model = model_of("flax", "vit")
    run = nnx.jit(lambda model, x, y: model(x, labels=y).loss)
    before = run(model, PIXELS, SINGLE)
    model.loss_function = partial(classification_loss, label_smoothing=0.5)
    after = run(model, PIXELS, SINGLE)
    assert float(before) != float(after)
    assert float(after) == pytest.approx(float(model(PIXELS, labels=SINGLE).loss), abs=1e-6)


def test_a_keras_loss_function_holds_in_fit_that_was_traced_before():
    from vit.tf.loss import classification_loss

    model = model_of("tf", "vit")
    model.compile("sgd")
    before = model.evaluate(PIXELS, SINGLE, verbose=0)
    model.loss_function = partial(classification_loss, label_smoothing=0.5)
    after = model.evaluate(PIXELS, SINGLE, verbose=0)
    assert after == pytest.approx(float(model(PIXELS, labels=SINGLE).loss), abs=1e-5)
    assert after != before


# === Gradient accumulation in PyTorch ===


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
def test_gradients_of_small_batches_add_up_to_those_of_the_whole(model_type: str, head: str, problem_type: str):
    import torch

    model = (
        model_of("pt", model_type, head, problem_type=problem_type, drop_path_rate=0.0)
        if "drop_path_rate" in (dir(families.config_class(model_type)))
        else model_of("pt", model_type, head, problem_type=problem_type)
    )
    labels = LABELS[problem_type]
    labels = torch.from_numpy(labels if problem_type == "single_label_classification" else labels.astype(np.float32))
    pixels = torch.from_numpy(PIXELS)
    model(pixels, labels=labels).loss.backward()
    whole = model.classifier.weight.grad.clone()
    model.zero_grad()
    count = labels.ne(-100).sum()  # as transformers' Trainer counts
    for part in (slice(0, 4), slice(4, 6)):  # of which one label is left out
        model(pixels[part], labels=labels[part], num_items_in_batch=count).loss.backward()
    torch.testing.assert_close(model.classifier.weight.grad, whole, atol=1e-6, rtol=1e-5)
    assert model.accepts_loss_kwargs


@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_a_model_takes_num_items_in_batch_where_it_says_so(model_type: str, head: str | None):
    import inspect

    cls = families.model_class("pt", model_type, head)
    assert cls.accepts_loss_kwargs is ("num_items_in_batch" in inspect.signature(cls.forward).parameters)


def test_visual_tokens_of_small_batches_add_up():
    import torch

    model = model_of("pt", "beit", "lm_head", use_mask_token=True)
    pixels, masked = torch.from_numpy(PIXELS[:3]), torch.zeros(3, 16, dtype=torch.bool)
    masked[0, :5] = masked[1, 2:4] = masked[2, 7] = True
    labels = torch.arange(8)
    whole = model(pixels, masked, labels=labels).loss
    first = model(pixels[:1], masked[:1], labels=labels[:5], num_items_in_batch=8).loss
    rest = model(pixels[1:], masked[1:], labels=labels[5:], num_items_in_batch=8).loss
    assert (first + rest).item() == pytest.approx(whole.item(), abs=1e-6)


# === Keras ===


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
def test_keras_weighs_samples_and_classes_as_transformers_did(model_type: str, head: str, as_dict: bool):
    model = model_of("tf", model_type, head)
    model.compile("sgd")
    labels = np.where(SINGLE == -100, 3, SINGLE)
    log_probs = np.asarray(model(PIXELS).logits, np.float64)
    log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
    losses = -log_probs[np.arange(6), labels]
    by_class = {0: 2.0, 2: 0.25}
    x, y = ({"pixel_values": PIXELS, "labels": labels}, None) if as_dict else (PIXELS, labels)
    found = model.evaluate(x, y, sample_weight=SAMPLE_WEIGHT, verbose=0)
    assert found == pytest.approx((losses * SAMPLE_WEIGHT).mean(), abs=1e-5)
    model.optimizer.learning_rate = 0.0
    found = model.fit(x, y, class_weight=by_class, batch_size=6, verbose=0).history["loss"][0]
    assert found == pytest.approx((losses * [by_class.get(label, 1.0) for label in labels]).mean(), abs=1e-5)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(losses.mean(), abs=1e-5)
    if as_dict:
        assert "labels" in x


def test_keras_weighs_the_elements_of_a_dataset():
    import tensorflow as tf

    model = model_of("tf", "vit")
    model.compile("sgd")
    labels = np.where(SINGLE == -100, 3, SINGLE)
    data = tf.data.Dataset.from_tensor_slices((PIXELS, labels, SAMPLE_WEIGHT)).batch(6)
    assert model.evaluate(data, verbose=0) == pytest.approx(
        model.evaluate(PIXELS, labels, sample_weight=SAMPLE_WEIGHT, verbose=0), abs=1e-6
    )


@pytest.mark.parametrize(("model_type", "head", "more"), [
    ("vit", "decoder", {"bool_masked_pos": np.arange(96).reshape(6, 16) % 3 == 0}),
    ("vit_mae", "decoder", {}),
])  # fmt: skip
def test_keras_refuses_weights_that_a_loss_has_no_use_for(model_type: str, head: str, more: dict[str, Any]):
    model = model_of("tf", model_type, head)
    model.compile("sgd")
    with pytest.raises(InputError, match="weight are for labels, and the inputs have none"):
        model.fit({"pixel_values": PIXELS, **more}, sample_weight=SAMPLE_WEIGHT, verbose=0)
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match=f"The loss of {type(model).__name__} has no weights for images"):
        model.fit({"pixel_values": PIXELS, **more}, SINGLE, sample_weight=SAMPLE_WEIGHT, verbose=0)


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_labels_that_a_compiled_program_cannot_refuse_make_the_loss_nan(framework: str):
    logits = np.array([[0.5, 1.0, -2.0]] * 2, np.float32)
    if framework == "tf":
        import tensorflow as tf

        from vit.tf.loss import cross_entropy

        compiled = tf.function(cross_entropy)
    else:
        import jax

        from vit.flax.loss import cross_entropy

        compiled = jax.jit(cross_entropy)
    for label, right in ((-1, False), (0, True), (2, True), (3, False), (4, False), (-100, True)):
        loss = float(compiled(logits, np.array([1, label])))
        assert np.isfinite(loss) == right, label
        if right:
            assert loss == pytest.approx(float(cross_entropy(logits, np.array([1, label]))), abs=1e-6)
