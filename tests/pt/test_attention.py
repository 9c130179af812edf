"""Attention on CPUs in bfloat16 is three products of our own where, and only where, the fused kernel is slow there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit import ViTModel
from vit.pt import attention as module
from vit.pt import linear
from vit.pt.attention import attend, has_slow_kernel


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this CPU is, the way of those that the products were written for."""
    monkeypatch.setattr(module, "has_slow_kernel", lambda: True)
    monkeypatch.setattr(linear, "has_kernel", lambda dtype: True)


def inputs(dtype: torch.dtype = torch.bfloat16, batch: int = 3, tokens: int = 17) -> list[Tensor]:
    """Query, key and value, (batch, 4, tokens, 8), as a projection leaves them: tokens before heads in memory."""
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(batch, tokens, 4, 8, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that PyTorch's kernel was asked for."""
    calls: list[torch.dtype] = []
    kernel = F.scaled_dot_product_attention

    def spy(query: Tensor, *arguments: Any, **options: Any) -> Tensor:
        calls.append(query.dtype)
        return kernel(query, *arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return calls


@pytest.mark.parametrize("tokens", [17, 197])  # fewer and more than a vector register holds
@pytest.mark.parametrize("most_scores", [1, 2 * 4 * 17 * 17, 1 << 22])
def test_it_rounds_no_more_than_eager_attention_does(
    fused: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, most_scores: int, tokens: int
) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", most_scores)  # an image at a time, two and then one, all
    query, key, value = inputs(tokens=tokens)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    eager = (query @ key.transpose(-1, -2) * 8**-0.5).softmax(-1) @ value
    fused.clear()
    with torch.inference_mode():
        found = attend(query, key, value)
    assert not fused
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= 1.05 * (eager - exact).norm()
    assert (found - exact).norm() < 0.05 * exact.norm()
    assert found.transpose(1, 2).is_contiguous()  # so that joining the heads copies nothing


def test_no_tensor_of_the_caller_changes() -> None:
    tensors = inputs()
    before = [tensor.clone() for tensor in tensors]
    with torch.inference_mode():
        attend(*tensors)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_dtypes_run_in_the_fused_kernel(fused: list[torch.dtype], dtype: torch.dtype) -> None:
    with torch.inference_mode():
        attend(*inputs(dtype))
    assert fused == [dtype]


def test_training_runs_in_the_fused_kernel_and_has_its_gradients(fused: list[torch.dtype]) -> None:
    ours, theirs = ([tensor.requires_grad_() for tensor in inputs()] for _ in range(2))
    attend(*ours).sum().backward()
    assert fused == [torch.bfloat16]
    F.scaled_dot_product_attention(*theirs).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_long_sequences_run_in_the_fused_kernel_which_keeps_no_scores(
    fused: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS", 16)
    with torch.inference_mode():
        attend(*inputs(tokens=17))
        assert fused == [torch.bfloat16]
        attend(*inputs(tokens=16))
    assert len(fused) == 1


def test_dropout_and_autocast_run_in_the_fused_kernel(fused: list[torch.dtype]) -> None:
    query, key, value = inputs()
    with torch.no_grad():
        attend(query, key, value, dropout_p=0.5)
        with torch.autocast("cpu", torch.bfloat16):
            attend(query, key, value)
    assert len(fused) == 2


def test_transforms_run_in_operations_that_have_rules_for_them(fused: list[torch.dtype]) -> None:
    query, key, value = inputs()
    bias = torch.randn(1, query.shape[1], query.shape[2], query.shape[2])
    with torch.no_grad():
        found = torch.vmap(lambda *heads: attend(*heads, bias=bias))(query[None], key[None], value[None])[0]
        assert not fused
        torch.testing.assert_close(found, attend(query, key, value, bias=bias), atol=0.02, rtol=0.02)


def test_an_empty_batch_has_no_context() -> None:
    with torch.inference_mode():
        assert attend(*inputs(batch=0)).shape == (0, 4, 17, 8)


def test_another_cpu_runs_the_fused_kernel(fused: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_slow_kernel", lambda: False)
    with torch.inference_mode():
        attend(*inputs())
    assert fused == [torch.bfloat16]


@pytest.mark.parametrize(("bf16", "amx", "slow"), [(True, False, True), (True, True, False), (False, False, False)])
def test_cpus_with_bfloat16_and_without_tiles_have_a_slow_kernel(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool, slow: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_slow_kernel.__wrapped__() is slow


def test_an_export_has_the_fused_kernel_alone_and_leaves_the_number_of_tokens_open(tiny_config: Any) -> None:
    model = ViTModel(tiny_config()).to(torch.bfloat16).eval()
    shapes = {2: 4 * torch.export.Dim("rows", max=300), 3: 4 * torch.export.Dim("columns", max=300)}
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.zeros(2, 3, 24, 20, dtype=torch.bfloat16),), {"interpolate_pos_encoding": True},
            dynamic_shapes={"pixel_values": shapes, "interpolate_pos_encoding": None},
        )  # fmt: skip
        large = program.module()(torch.zeros(2, 3, 200, 204, dtype=torch.bfloat16), interpolate_pos_encoding=True)
    assert large.last_hidden_state.shape == (2, 1 + 50 * 51, 32)  # more than MOST_TOKENS
    graph = str(program.graph)
    assert graph.count("scaled_dot_product_attention") >= model.config.num_hidden_layers
    assert "softmax" not in graph
