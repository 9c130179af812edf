"""int8: close to float32, as accurate on what the digits checkpoint never saw, and honest about what it cannot do."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from vit import InputError, ViTForImageClassification, ViTImageProcessor, ViTModel
from vit.cli.frameworks import DIGITS
from vit.pt import quantization, quantize
from vit.pt.linear import FUSED
from vit.pt.quantization import Int8Linear

pytestmark = pytest.mark.skipif(not quantization.has_kernels(), reason="this PyTorch was built without oneDNN")


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu", "selu", "quick_gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_within_the_rounding_of_its_inputs_and_weights(activation: str | None, bias: bool) -> None:
    from vit.pt.linear import ACTIVATIONS

    torch.manual_seed(0)
    dense, x = nn.Linear(96, 40, bias=bias), torch.randn(2, 17, 96)
    with torch.inference_mode():
        step_x, step_w = (x.max() - x.min()) / 255, dense.weight.abs().amax(1) / 127
        # Rounding is off by half a step at most, in each of 96 terms of a sum.
        bound = x.abs().sum(-1, keepdim=True) * step_w / 2 + dense.weight.abs().sum(1) * step_x / 2
        bound = bound + 96 * step_x * step_w / 4
        expected, found = dense(x), Int8Linear(dense)(x)
        assert ((found - expected).abs() <= bound).all()
        assert (found - expected).norm() < 0.02 * expected.norm()
        if activation:
            torch.testing.assert_close(Int8Linear(dense)(x, activation), ACTIVATIONS[activation](found))
    assert activation is None or activation in {*FUSED, "selu", "quick_gelu"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_digits_are_classified_alike(dtype: str) -> None:
    scans = load_digits().images  # (1797, 8, 8) in 0..16; the checkpoint was trained on four fifths of them
    images = [Image.fromarray(np.round(scan * 255 / 16).astype(np.uint8)) for scan in scans]
    pixel_values = ViTImageProcessor.from_pretrained(DIGITS)(images, return_tensors="pt").pixel_values
    exact = ViTForImageClassification.from_pretrained(DIGITS)
    model = quantize(ViTForImageClassification.from_pretrained(DIGITS, dtype=dtype))
    with torch.inference_mode():
        expected, found = exact(pixel_values).logits, model(pixel_values).logits.float()
    assert (expected.argmax(1) == found.argmax(1)).double().mean() >= 0.99
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)


def test_every_linear_layer_of_the_encoder_and_no_other_is_quantised(tiny_config: Any) -> None:
    model = quantize(ViTModel(tiny_config()))
    kinds = {name: type(module) for name, module in model.named_modules() if hasattr(module, "in_features")}
    assert {name for name, kind in kinds.items() if kind is nn.Linear} == {"pooler.dense"}
    assert sum(kind is Int8Linear for kind in kinds.values()) == 6 * model.config.num_hidden_layers
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_quantised_model_is_not_saved_half(tiny_config: Any, tmp_path: Any) -> None:
    model = quantize(ViTModel(tiny_config()))
    with pytest.raises(InputError, match="The model is quantised to int8; save it before that"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_it_cannot_quantise_is_refused_and_left_alone(tiny_config: Any) -> None:
    model = ViTModel(tiny_config())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="dtype is 'int4'; expected 'int8'"):
        quantize(model, "int4")
    with pytest.raises(InputError, match="expected float32 or bfloat16 on the CPU"):
        quantize(model.double())
    assert model.state_dict().keys() == before.keys()
    assert model.training


def test_inputs_without_a_range_are_computed(tiny_config: Any) -> None:
    dense = nn.Linear(8, 4)
    with torch.inference_mode():
        torch.testing.assert_close(Int8Linear(dense)(torch.zeros(3, 8)), dense.bias.expand(3, 4))
