"""What makes a model faster on CPUs and fit for inference alone: int8, and weights in oneDNN's own order.

Int8 computes the encoder's linear layers as integer products of oneDNN, which PyTorch carries. Weights are rounded to
int8 with a scale for each output, once; activations to uint8 with one scale for the tensor, at each call (dynamic
quantisation; Jacob et al. 2018, Section 2.1). Bias and gelu stay float, fused into the product. The embeddings,
LayerNorms, attention, pooler and head stay as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, quoted
from .linear import InferenceLinear, PackedLinear, has_kernel
from .pretrained import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def has_int8_kernel() -> bool:
    """Whether this PyTorch has what int8 needs."""
    there = hasattr(torch, "_empty_affine_quantized") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return torch.backends.mkldnn.is_available() and there


ROWS_AT_ONCE = 256
"""Of an input, rounded at once: in float32 these stay in cache, where a whole batch of 32 images takes 77 MB."""


class Rounded(NamedTuple):
    """A tensor in uint8: scale * (values - zero_point), of a floating dtype before."""

    values: Tensor
    scale: float
    zero_point: int
    dtype: torch.dtype


class Int8Linear(InferenceLinear):
    """A linear layer with int8 weights.

    Args:
        layer: the layer to take the place of.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()  # (out_features, in_features)
        self.scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round().to(torch.int8), None)
        self.zero_point = torch.zeros(layer.out_features, dtype=torch.int32)
        self.bias = None if self.bias is None else self.bias.float()

    def prepare(self, x: Any) -> Rounded:
        if isinstance(x, Rounded):
            return x
        x = super().prepare(x)
        lowest, highest = (end.item() for end in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)  # zero stays zero
        scale = max((highest - lowest) / 255, torch.finfo(torch.float32).tiny)
        zero_point = round(-lowest / scale) if math.isfinite(scale) else 0  # if not, the product is not finite either
        rounded = torch._empty_affine_quantized(
            x.shape, scale=scale, zero_point=zero_point, dtype=torch.quint8, device=x.device
        )
        parts = (tensor.view(-1, self.in_features).split(ROWS_AT_ONCE) for tensor in (x, rounded))
        for part, out in zip(*parts, strict=True):
            out.copy_(part.float())
        # The quantised tensor's own memory: int_repr would copy it.
        values = torch.empty(0, dtype=torch.uint8, device=x.device)
        values.set_(rounded.untyped_storage(), 0, x.shape, x.stride())
        return Rounded(values, scale, zero_point, x.dtype)

    def compute(self, x: Rounded, fused: tuple[str, str | None]) -> Tensor:
        if not x.values.numel():  # the kernel loses a dimension then
            return x.values.new_empty(*x.values.shape[:-1], self.out_features, dtype=x.dtype)
        name, algorithm = fused
        return torch.ops.onednn.qlinear_pointwise(
            x.values, x.scale, x.zero_point, self.weight, self.scale, self.zero_point, self.bias,
            1.0, 0, x.dtype, name, [], algorithm or "",
        )  # fmt: skip


def quantize(model: Model, dtype: str = "int8") -> Model:
    """Quantise a model for inference on CPUs; it is changed in place, and can be neither trained nor saved after that.

    Images of a batch share the scales of their activations, so one that is not finite spoils the others.

    Args:
        model: a float32 or bfloat16 model on the CPU.
        dtype: "int8".

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: another dtype, a model elsewhere or of another dtype, or a PyTorch without the kernels.
    """
    if dtype != "int8":
        raise InputError(f"dtype is {quoted(dtype)}; expected 'int8'.")
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"The model is {model.dtype} on {model.device}; expected float32 or bfloat16 on the CPU.")
    if not has_int8_kernel():
        raise InputError(f"PyTorch {torch.__version__} lacks oneDNN's integer products; install 2.13 for x86.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once a process: quantised tensors will leave PyTorch some day
        torch._empty_affine_quantized((1,), scale=1.0, zero_point=0, dtype=torch.quint8)
    return _replace_linear(model, Int8Linear, "quantised to int8")


def prepack(model: Model, batch_size: int = 1) -> Model:
    """Order a model's weights as oneDNN reads them, for faster inference on CPUs with the same results.

    The encoder's linear layers are changed in place, without a second copy of their weights; the model can be neither
    trained nor saved after that.

    Args:
        model: a model on the CPU, in a dtype that oneDNN multiplies there: float32, and mostly bfloat16.
        batch_size: of the inputs to come, which the order is chosen for; others are computed too.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: a model elsewhere, of another dtype or quantised, or a batch size below 1.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {quoted(batch_size)}; expected an int of at least 1.")
    if model.device.type != "cpu" or not has_kernel(model.dtype):
        raise InputError(
            f"The model is {model.dtype} on {model.device}; expected a dtype that PyTorch's oneDNN multiplies on this "
            "CPU, such as float32."
        )
    rows = batch_size * (model.config.num_patches + model.config.prefix_tokens)
    return _replace_linear(model, lambda layer: PackedLinear(layer, rows), "prepacked")


def _replace_linear(model: Model, new: Callable[[nn.Linear], InferenceLinear], made: str) -> Model:
    if model.inference_only:
        raise InputError(f"The model is {model.inference_only} already; load it anew.")
    for parent in list(model._stack().modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, new(child))
    model.inference_only = made
    return model.requires_grad_(False).eval()
