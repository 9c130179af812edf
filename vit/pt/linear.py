"""Linear layers and activations; on CPUs in oneDNN's kernel, with the bias and the activation fused.

`F.linear` runs float32 on CPUs in the BLAS library that PyTorch was built with, and adds the bias and the activation in
passes of their own. oneDNN, which PyTorch carries, does all three in one pass, 1.2 to 1.4 times as fast on AVX-512
(python -m benchmarks inference). The layers stay plain `nn.Linear`: whatever has been done to one (hooks, adapters,
quantisation, autocast, compilation, function transforms), it is called as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
FUSED = {
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", None),
    "silu": ("swish", None),
    "tanh": ("tanh", None),
}
"""Activation -> oneDNN's name and algorithm."""


def linear(layer: nn.Module, x: Tensor, activation: str | None = None) -> Tensor:
    """`ACTIVATIONS[activation](layer(x))`, or layer(x) without one.

    Args:
        layer: an `nn.Linear`, or what has taken its place.
        x: (..., in_features).
        activation: a key of `ACTIVATIONS`.

    Returns:
        (..., out_features).
    """
    if isinstance(layer, InferenceLinear):
        return layer(x, activation)
    if not is_plain(layer, x):
        x = layer(x)
    elif torch.is_grad_enabled():
        x = _Linear.apply(x, layer.weight, layer.bias)
    elif activation in FUSED:
        return _kernel(x, layer.weight, layer.bias, *FUSED[activation])
    else:
        x = _kernel(x, layer.weight, layer.bias)
    return x if activation is None else ACTIVATIONS[activation](x)


def linears(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """`linear` of each layer for one input, which layers of int8 round only once."""
    first = layers[0]
    if isinstance(first, InferenceLinear) and all(type(each) is type(first) and not has_hooks(each) for each in layers):
        x = first.prepare(x)
    return [linear(layer, x) for layer in layers]


def _kernel(x: Tensor, weight: Tensor, bias: Tensor | None, name: str = "none", algorithm: str | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


class _Linear(torch.autograd.Function):
    """The kernel with a gradient; the product for the weight's is no faster in it, so that is left to the BLAS."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _kernel(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows, inputs = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled() or _is_batched(gradient):  # a second derivative is wanted, or many first ones
            of_x = gradient @ weight if needs_x else None
        else:
            of_x = _kernel(gradient.contiguous(), weight.t(), None) if needs_x else None
        return of_x, rows.t() @ inputs if needs_weight else None, rows.sum(0) if needs_bias else None


def _is_batched(x: Tensor) -> bool:
    """Whether vmap stands for many tensors by this one; the older of its kinds is that of autograd's Jacobian."""
    return torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_legacy_batchedtensor(x)


class InferenceLinear(nn.Module):
    """A linear layer for inference on CPUs, whose weights are what a kernel wants and no parameters.

    Args:
        layer: the layer to take the place of.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Any, activation: str | None = None) -> Tensor:
        """`ACTIVATIONS[activation]` of the product: (..., in_features), or that prepared -> (..., out_features)."""
        x = self.compute(self.prepare(x), FUSED.get(activation or "", ("none", None)))
        return x if activation is None or activation in FUSED else ACTIVATIONS[activation](x)

    def prepare(self, x: Any) -> Any:
        """What `compute` takes for an input; itself, if it is that already."""
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError("A quantised or prepacked model has no gradients; use one that is neither.")
        return x.contiguous()

    def compute(self, x: Any, fused: tuple[str, str | None]) -> Tensor:
        """The product of what was prepared, and a fused activation: oneDNN's name and algorithm."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes, and the kernel's weights cannot be copied

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class PackedLinear(InferenceLinear):
    """A linear layer whose weights lie in the order in which oneDNN's kernel reads them.

    Args:
        layer: the layer to take the place of.
        rows: of the inputs to come, which the order is chosen for; others are computed too.
    """

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        super().__init__(layer)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)

    def compute(self, x: Tensor, fused: tuple[str, str | None]) -> Tensor:
        return _kernel(x, self.weight, self.bias, *fused)


def is_plain(layer: nn.Module, x: Tensor) -> bool:
    """Whether oneDNN computes what calling the layer would: it is on a CPU, and nothing looks on."""
    return (
        takes_kernels(x)
        and type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and not has_hooks(layer)
        and type(layer.weight) is nn.Parameter
        and layer.weight.device.type == "cpu"
        and x.dtype == layer.weight.dtype
        and x.is_contiguous()
        and x.numel() > 0
    )


def has_hooks(layer: nn.Module) -> bool:
    """Whether anything is to be called before or after a layer."""
    own = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(own) or nn.modules.module._has_any_global_hook()


def takes_kernels(x: Tensor) -> bool:
    """Whether oneDNN's kernels may be called on a tensor: it is on a CPU, and no compiler or transform looks on."""
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and type(x) is Tensor
        and x.device.type == "cpu"
        and has_kernel(x.dtype)
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # no vmap, grad or jvp
        and torch.autograd.forward_ad._current_level < 0
    )


@cache
def keep_freed_memory() -> None:
    """Have glibc use freed blocks below 32 MiB again, and not give them back and ask for them anew at every layer.

    Above the largest block that was ever freed it maps memory for each block alone, and it gives back what lies free at
    the heap's end beyond twice that size (mallopt(3), M_MMAP_THRESHOLD). These are such blocks, and more than one since
    a free part of the heap may hold the first; their pages are never touched. Other C libraries take no notice, nor
    glibc where the environment has set either threshold.
    """
    [torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu") for _ in range(4)]


@cache
def has_kernel(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, with matrix products of this dtype on this CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return {
        torch.float32: lambda: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }.get(dtype, bool)()
