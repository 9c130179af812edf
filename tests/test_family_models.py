"""What is computed again in the backward pass, and the branches that are dropped in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vit import families

from .equivalence import tiny_config

PIXELS = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)


def model_of(framework: str, **overrides: Any) -> Any:
    config = tiny_config("beit", **overrides)
    cls = families.model_class(framework, "beit", "classifier")
    if framework != "flax":
        return cls(config)
    from flax import nnx

    return cls(config, rngs=nnx.Rngs(0))


def test_pytorch_recomputes_layers_with_biases_and_dropped_branches():
    import torch

    torch.manual_seed(0)
    model, pixels = model_of("pt", drop_path_rate=0.5).train(), torch.from_numpy(PIXELS)
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model.zero_grad()
        model(pixels).logits.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_a_branch_is_dropped_image_by_image_in_training_alone(framework: str):
    """With almost every branch of the last layer dropped, most images leave it as they came in."""
    count = 64
    pixels = np.repeat(PIXELS[:1], count, 0)
    model = model_of(framework, drop_path_rate=0.9)
    if framework == "pt":
        import torch

        torch.manual_seed(0)
        states, calm = (
            model.train(training)(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
            for training in (True, False)
        )
        states, calm = ([each.detach().numpy() for each in found] for found in (states, calm))
    elif framework == "tf":
        states, calm = (
            model(pixels, output_hidden_states=True, training=training).hidden_states for training in (True, False)
        )
    else:
        from flax import nnx

        model.train()
        states = model(pixels, output_hidden_states=True, rngs=nnx.Rngs(dropout=0)).hidden_states
        model.eval()
        calm = model(pixels, output_hidden_states=True).hidden_states
    before, after, calm_before, calm_after = (np.asarray(each) for each in (*states[-2:], *calm[-2:]))
    kept = np.abs(after - before).reshape(count, -1).max(1) == 0
    assert 0.6 * count < kept.sum() < count  # 0.81 of them
    assert (np.abs(calm_after - calm_before).reshape(count, -1).max(1) > 0).all()
