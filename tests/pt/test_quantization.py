"""int8 is as accurate on the digits as float32, packed weights change nothing, and both say what they cannot do."""

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
from vit.pt import prepack, quantization, quantize
from vit.pt.linear import FUSED, PackedLinear, has_kernel
from vit.pt.quantization import Int8Linear

pytestmark = pytest.mark.skipif(not quantization.has_int8_kernel(), reason="this PyTorch was built without oneDNN")


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


def test_query_key_and_value_share_their_rounded_input(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize(ViTModel(tiny_config()))
    rounded, seen = [], []
    measure = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda x: rounded.append(1) or measure(x))
    with torch.inference_mode():
        model(torch.randn(2, 3, 16, 16))
        assert len(rounded) == 4 * model.config.num_hidden_layers  # not 6: query, key and value, then three others
        key = model.encoder.layer[0].attention.attention.key
        key.register_forward_hook(lambda layer, given, output: seen.append((given[0].shape, output.shape)))
        model(torch.randn(2, 3, 16, 16))
    assert seen == [((2, 17, 32), (2, 17, 32))]  # a hook sees tensors, as those of other layers do


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [-3.0, 0.0, 3.0])  # all below zero, on both sides, all above
@pytest.mark.parametrize("rows", [1, 256, 257, 600])  # fewer than are rounded at once, as many, more
def test_inputs_are_rounded_to_the_nearest_of_256_levels_from_their_lowest_to_their_highest(
    rows: int, offset: float, dtype: torch.dtype
) -> None:
    x = (torch.rand(1, rows, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1 + offset).to(dtype)
    rounded = Int8Linear(nn.Linear(24, 4)).prepare(x)
    assert (rounded.values.shape, rounded.values.dtype, rounded.dtype) == (x.shape, torch.uint8, dtype)
    lowest, highest = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    assert rounded.scale == pytest.approx((highest - lowest) / 255)
    back = rounded.scale * (rounded.values.double() - rounded.zero_point)
    # Half a level, and another half at the ends: zero lies on a level, so the levels are moved by as much.
    assert (back - x).abs().max() <= (0.5 + 0.5 + 1e-3) * rounded.scale
    assert rows == 1 or (back - x).abs().median() <= 0.35 * rounded.scale  # cut off, it would be half a level


def test_inputs_that_are_not_finite_give_what_is_not_finite() -> None:
    dense = Int8Linear(nn.Linear(8, 4))
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(3, 8)
        x[1] = value
        assert not dense(x)[1].isfinite().any()


@pytest.mark.parametrize("size", [1e-7, 1e-20])
def test_small_inputs_are_rounded_as_finely(size: float) -> None:
    dense = nn.Linear(64, 4, bias=False)
    x = torch.randn(3, 64)
    expected = dense(x)
    assert (Int8Linear(dense)(x * size) / size - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("prepare", [quantize, prepack])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_images_are_computed_too(tiny_config: Any, dtype: torch.dtype, prepare: Any) -> None:
    if not has_kernel(dtype):
        pytest.skip(f"this CPU does not multiply {dtype}")
    model = prepare(ViTModel(tiny_config()).to(dtype))
    with torch.inference_mode():
        assert model(torch.zeros(0, 3, 16, 16)).last_hidden_state.shape == (0, 17, 32)


def test_inputs_without_a_range_are_computed(tiny_config: Any) -> None:
    dense = nn.Linear(8, 4)
    with torch.inference_mode():
        torch.testing.assert_close(Int8Linear(dense)(torch.zeros(3, 8)), dense.bias.expand(3, 4))


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu", "quick_gelu", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_the_layer(activation: str | None, dtype: torch.dtype) -> None:
    from vit.pt.linear import linear

    if not has_kernel(dtype):
        pytest.skip(f"this CPU does not multiply {dtype}")
    torch.manual_seed(0)
    dense = nn.Linear(96, 40, bias=activation != "relu").to(dtype)
    packed = PackedLinear(dense, rows=34)
    with torch.inference_mode():
        for batch_size in (1, 2, 65):  # what it was packed for is 2
            x = torch.randn(batch_size, 17, 96, dtype=dtype)
            torch.testing.assert_close(linear(packed, x, activation), linear(dense, x, activation))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_prepacked_model_gives_the_same_logits_and_holds_no_second_copy(tiny_config: Any, batch_size: int) -> None:
    model = ViTForImageClassification(tiny_config(num_labels=5)).eval()
    config = model.config
    pixel_values = torch.randn(3, config.num_channels, *np.broadcast_to(config.image_size, 2))
    with torch.inference_mode():
        expected = model(pixel_values).logits
        prepacked = prepack(model, batch_size)
        torch.testing.assert_close(prepacked(pixel_values).logits, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(copy.deepcopy(prepacked)(pixel_values).logits, expected, rtol=1e-5, atol=1e-6)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(PackedLinear) == 6 * config.num_hidden_layers
    assert not any("encoder" in name and "dense" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("prepare", [quantize, prepack])
def test_a_model_for_inference_alone_says_so(tiny_config: Any, prepare: Any, tmp_path: Any) -> None:
    model = prepare(ViTModel(tiny_config()))
    config = model.config
    pixel_values = torch.zeros(1, config.num_channels, *np.broadcast_to(config.image_size, 2), requires_grad=True)
    with pytest.raises(InputError, match="has no gradients"):
        model(pixel_values)
    with pytest.raises(InputError, match="save it before that"):
        model.save_pretrained(tmp_path / "new")
    for again in (quantize, prepack):
        with pytest.raises(InputError, match=r"The model is (quantised to int8|prepacked) already"):
            again(model)


def test_what_it_cannot_prepack_is_refused_and_left_alone(tiny_config: Any) -> None:
    model = ViTModel(tiny_config())
    for batch_size in (0, "1", 2.0):
        with pytest.raises(InputError, match="expected an int of at least 1"):
            prepack(model, batch_size)
    with pytest.raises(InputError, match="expected a dtype that PyTorch's oneDNN multiplies"):
        prepack(model.double())
    assert model.training
    assert model.inference_only is None
