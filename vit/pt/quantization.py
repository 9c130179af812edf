"""Int8 on CPUs: the encoder's linear layers as integer products of oneDNN, which PyTorch carries.

Weights are rounded to int8 with a scale for each output, once; activations to uint8 with one scale for the tensor, at
each call (dynamic quantisation; Jacob et al. 2018, Section 2.1). Bias and gelu stay float, fused into the product. The
embeddings, LayerNorms, attention, pooler and head stay as they are.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from .linear import ACTIVATIONS, FUSED
from .pretrained import ViTPreTrainedModel

Model = TypeVar("Model", bound=ViTPreTrainedModel)


def has_kernels() -> bool:
    """Whether this PyTorch has what int8 needs."""
    there = hasattr(torch, "quantize_per_tensor_dynamic") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return torch.backends.mkldnn.is_available() and there


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for inference on CPUs.

    Args:
        layer: the layer to take the place of.
    """

    fuses_activation = True

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()  # (out_features, in_features)
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.in_features, self.out_features, self.scale = layer.in_features, layer.out_features, scale
        self.weight = torch.ops.onednn.qlinear_prepack((weight / scale[:, None]).round().to(torch.int8), None)
        self.zero_point = torch.zeros(layer.out_features, dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """(..., in_features) float -> (..., out_features) of the same dtype."""
        quantised = torch.quantize_per_tensor_dynamic(x.float().contiguous(), torch.quint8, False)
        name, algorithm = FUSED.get(activation or "", ("none", None))
        x = torch.ops.onednn.qlinear_pointwise(
            # The quantised tensor's own memory: int_repr would copy it.
            torch.empty(0, dtype=torch.uint8).set_(quantised.untyped_storage(), 0, quantised.shape, quantised.stride()),
            quantised.q_scale(), quantised.q_zero_point(), self.weight, self.scale, self.zero_point, self.bias,
            1.0, 0, x.dtype, name, [], algorithm or "",
        )  # fmt: skip
        return x if activation is None or activation in FUSED else ACTIVATIONS[activation](x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype=int8"


def quantize(model: Model, dtype: str = "int8") -> Model:
    """Quantise a model for inference on CPUs; it is changed in place, and can be neither trained nor saved after that.

    Args:
        model: a float32 or bfloat16 model on the CPU.
        dtype: "int8".

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: another dtype, a model elsewhere or of another dtype, or a PyTorch without the kernels.
    """
    if dtype != "int8":
        raise InputError(f"dtype is {dtype!r}; expected 'int8'.")
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"The model is {model.dtype} on {model.device}; expected float32 or bfloat16 on the CPU.")
    if not has_kernels():
        raise InputError(f"PyTorch {torch.__version__} lacks oneDNN's integer products; install 2.13 for x86.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once a process: quantised tensors will leave PyTorch some day
        torch.quantize_per_tensor_dynamic(torch.zeros(1), torch.quint8, False)
    for parent in list(model._base().encoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    model.quantized = dtype
    return model.requires_grad_(False).eval()
