"""The count of floating-point operations, beside what PyTorch counts while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit.config import to_pair
from vit.flops import forward_flops, training_flops

BATCH = 2
ODD = {
    "plain": {},
    "not square": {"image_size": (16, 28), "patch_size": (4, 7), "encoder_stride": (4, 7)},
    "one channel": {"num_channels": 1},
    "pixels left over": {"image_size": 18},
    "no layer": {"num_hidden_layers": 0},
    "pooler of its own width": {"pooler_output_size": 8},
    "no labels": {"num_labels": 0},
}
MODELS = {None: ViTModel, "classifier": ViTForImageClassification, "decoder": ViTForMaskedImageModeling}


def counted(model: Any, backward: bool = False) -> int:
    """What PyTorch counts of a call on a batch."""
    config = model.config
    with FlopCounterMode(display=False) as counter:
        outputs = model(torch.randn(BATCH, config.num_channels, *to_pair(config.image_size)))
        if backward:
            outputs[0].sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("overrides", ODD.values(), ids=list(ODD))
@pytest.mark.parametrize("head", MODELS)
def test_forward_is_what_pytorch_counts(
    head: str | None, overrides: dict[str, Any], tiny_config: Callable[..., ViTConfig]
) -> None:
    config = tiny_config(**overrides, attn_implementation="eager")
    assert BATCH * forward_flops(config, head) == counted(MODELS[head](config))


def test_a_model_without_head_or_pooler_is_what_pytorch_counts(tiny_config: Callable[..., ViTConfig]) -> None:
    config = tiny_config(attn_implementation="eager")
    model = ViTModel(config, add_pooling_layer=False)
    assert BATCH * forward_flops(config, None, add_pooling_layer=False) == counted(model)


@pytest.mark.parametrize("overrides", ODD.values(), ids=list(ODD))
@pytest.mark.parametrize("head", ["classifier", "decoder"])
def test_training_is_what_pytorch_counts(
    head: str, overrides: dict[str, Any], tiny_config: Callable[..., ViTConfig]
) -> None:
    config = tiny_config(**overrides, attn_implementation="eager")
    assert BATCH * training_flops(config, head) == counted(MODELS[head](config), backward=True)


def test_the_published_sizes_cost_what_is_quoted_for_them() -> None:
    """The multiply-adds that are quoted for an image of 224 x 224: pairs of operations."""
    published = {"Ti/16": 1.3e9, "S/16": 4.6e9, "B/16": 17.6e9, "L/16": 61.6e9}
    for name, operations in published.items():
        flops = forward_flops(ViTConfig.variant(name, num_labels=1000))
        assert flops / 2 == pytest.approx(operations, rel=0.04)
