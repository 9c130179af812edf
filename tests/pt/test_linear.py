"""Linear layers on CPUs run oneDNN's fused kernel where, and only where, it computes what the plain layer would."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from vit import config
from vit.pt import linear as module
from vit.pt.linear import ACTIVATIONS, FUSED, linear

needs_kernel = pytest.mark.skipif(not module.has_kernel(torch.float32), reason="this PyTorch was built without oneDNN")


def layer(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias=bias, dtype=dtype)


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (4 * torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(1))).to(dtype)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the fused kernel was asked for."""
    calls: list[str] = []
    kernel = torch.ops.mkldnn._linear_pointwise

    class Spy:
        def __call__(self, *arguments: Any) -> Tensor:
            calls.append(arguments[3])
            return kernel(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Spy())
    return calls


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, *config.ACTIVATIONS])
def test_the_fused_kernel_is_as_exact_as_the_layer(fused: list[str], activation: str | None, bias: bool) -> None:
    dense, x = layer(bias=bias), inputs()
    exact = layer(bias=bias).double()(x.double())
    exact = exact if activation is None else ACTIVATIONS[activation](exact)
    with torch.inference_mode():
        torch.testing.assert_close(linear(dense, x, activation).double(), exact, rtol=2e-6, atol=2e-6)
    assert fused == [FUSED.get(activation, ("none", None))[0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_round_no_more_than_the_layer_does(dtype: torch.dtype) -> None:
    x = inputs(dtype)
    before = layer(dtype).double()(x.double())
    with torch.inference_mode():
        error = linear(layer(dtype), x, "gelu").double() - nn.functional.gelu(before)
    assert (error.abs() <= torch.finfo(dtype).eps * before.abs() + 1e-4).all()


class Doubled(nn.Linear):
    """What an adapter library would put in the place of a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def doubling_hook(dense: nn.Module, given: Any, output: Tensor) -> Tensor:
    return 2 * output


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("how", ["subclass", "forward", "hook", "pre-hook", "global hook"])
def test_what_changes_a_layer_is_not_gone_around(fused: list[str], how: str, activation: str | None) -> None:
    dense, x = layer(), inputs()
    expected = 2 * dense(x)
    expected = expected if activation is None else ACTIVATIONS[activation](expected)
    handle: Any = contextlib.nullcontext()
    if how == "subclass":
        dense.__class__ = Doubled
    elif how == "forward":
        plain = dense.forward
        dense.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]
    elif how == "hook":
        handle = dense.register_forward_hook(doubling_hook)
    elif how == "pre-hook":
        dense.bias.data.mul_(2)
        handle = dense.register_forward_pre_hook(lambda dense, given: (2 * given[0],))
    else:
        handle = nn.modules.module.register_module_forward_hook(doubling_hook)
    with handle, torch.inference_mode():
        torch.testing.assert_close(linear(dense, x, activation), expected)
    assert not fused


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_the_backward_pass_are_called(register: str) -> None:
    dense, seen = layer(), []
    getattr(dense, register)(lambda *arguments: seen.append(type(arguments[0])))
    linear(dense, inputs().requires_grad_(), "gelu").sum().backward()
    assert seen == [nn.Linear]


@needs_kernel
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("x",)], ids=str)
def test_gradients_first_and_second_are_those_of_the_layer(fused: list[str], frozen: tuple[str, ...]) -> None:
    def derivatives(call: Any, dtype: torch.dtype) -> list[Tensor]:
        dense, x = layer().to(dtype), inputs().to(dtype).requires_grad_("x" not in frozen)
        for name in {"weight", "bias"} & {*frozen}:
            getattr(dense, name).requires_grad_(False)
        wanted = [each for each in (x, dense.weight, dense.bias) if each.requires_grad]
        first = torch.autograd.grad(call(dense, x).square().mean(), wanted, create_graph=True)
        plain = torch.autograd.grad(call(dense, x).square().mean(), wanted)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), wanted)
        return [*first, *plain, *second]

    exact = derivatives(lambda dense, x: nn.functional.gelu(dense(x)), torch.float64)
    assert not fused
    for ours, theirs in zip(derivatives(lambda *a: linear(*a, "gelu"), torch.float32), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    assert fused


def test_autocast_float64_and_a_switched_off_onednn_are_the_layers_own(fused: list[str]) -> None:
    dense, x = layer(), inputs()
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(dense, x, "gelu").dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            linear(dense, x, "gelu")
        linear(layer(torch.float64), x.double(), "gelu")
        linear(dense, x.transpose(0, 1), "gelu")  # not contiguous
        assert linear(dense, x[:0], "gelu").shape == (0, 7, 80)
    assert not fused


def test_function_transforms_see_through_it(fused: list[str]) -> None:
    dense, x, tangent = layer(), inputs(), torch.ones(3, 7, 48)
    expected = dense.weight.sum(1).expand(3, 7, 80)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(lambda each: linear(dense, each))(x), dense(x))
        torch.testing.assert_close(torch.func.jvp(lambda each: linear(dense, each), (x,), (tangent,))[1], expected)
        with forward_ad.dual_level():
            output = linear(dense, forward_ad.make_dual(x, tangent))
            torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, expected)
    assert not fused


@needs_kernel
def test_models_use_it_for_every_layer_of_the_encoder(fused: list[str], tiny_config: Any) -> None:
    from vit import ViTModel

    model = ViTModel(tiny_config()).eval()
    size = model.config.image_size
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert fused == ["none", "none", "none", "none", "gelu", "none"] * model.config.num_hidden_layers


@needs_kernel
def test_without_onednn_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = layer(), inputs()
    with torch.inference_mode():
        with_kernel = linear(dense, x, "gelu")
        monkeypatch.setattr(module, "has_kernel", lambda dtype: False)
        torch.testing.assert_close(linear(dense, x, "gelu"), with_kernel, rtol=2e-6, atol=2e-6)
