"""What a call of every class of every family gives, in every framework: what it left out, its order, its slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vit import families

from .tiny import HEADS, tiny_family

PIXELS = np.random.default_rng(0).standard_normal((2, 3, 16, 12)).astype(np.float32)
LOSS_WITHOUT_LABELS = [("vit_mae", "decoder")]


def call(framework: str, model_type: str, head: str | None, **flags: Any) -> Any:
    cls, config = families.model_class(framework, model_type, head), tiny_family(model_type)
    inputs = {"pixel_values": PIXELS, **config.fixed_inputs(PIXELS.shape)}
    if framework == "pt":
        import torch

        return cls(config).eval()(**{name: torch.from_numpy(each) for name, each in inputs.items()}, **flags)
    if framework == "tf":
        return cls(config)(**inputs, **flags)
    from flax import nnx

    model = cls(config, rngs=nnx.Rngs(0))
    model.eval()
    return model(**inputs, **flags)


@pytest.mark.parametrize("framework", families.PREFIXES)
@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_what_was_not_computed_is_none_and_the_rest_is_there_by_name_place_and_slice(model_type, head, framework):
    outputs = call(framework, model_type, head)
    assert (outputs.loss is None) is ((model_type, head) not in LOSS_WITHOUT_LABELS)
    assert outputs.attentions is outputs.hidden_states is None
    everything = call(framework, model_type, head, output_attentions=True, output_hidden_states=True)
    for found in (outputs, everything):
        values = found.to_tuple()
        assert type(values) is tuple
        assert not any(each is None for each in values)
        assert all(a is b for a, b in zip(found[:], values, strict=True))
        assert all(found[i] is value is found[name] for i, (name, value) in enumerate(found.items()))
        assert all(a is b for a, b in zip(found[1:], values[1:], strict=True))
        assert found[-1] is values[-1]
    assert list(everything)[-2:] == ["hidden_states", "attentions"]
    assert "loss" not in outputs or next(iter(outputs)) == "loss"
    assert tiny_family(model_type).heads[head].output in outputs
