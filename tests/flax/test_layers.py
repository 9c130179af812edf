"""What stands in the place of a function of JAX or Flax computes the same, and where it is meant to."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from vit.flax import layers
from vit.flax.attention import attend, attend_on_cpu
from vit.flax.norm import normalize


def test_attention_is_that_of_the_platform_it_is_compiled_for_wherever_that_happens() -> None:
    def operations(function: Any, platform: str) -> Counter[str]:
        x = jnp.zeros((2, 5, 2, 8))
        module = jax_export.export(jax.jit(function), platforms=[platform])(x, x, x).mlir_module()
        return Counter(re.findall(r"stablehlo\.(?!constant|case|return)\w+", module))

    for platform, expected in {"cpu": attend_on_cpu, "cuda": jax.nn.dot_product_attention}.items():
        assert operations(attend, platform) == operations(expected, platform)
    assert operations(attend, "cpu") != operations(attend, "cuda")


def test_attention_on_cpus_equals_that_of_jax() -> None:
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 2, 8))
    np.testing.assert_allclose(attend(query, key, value), jax.nn.dot_product_attention(query, key, value), atol=1e-6)


def test_the_rule_of_the_layer_norm_is_what_jax_derives():
    def plain(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, direction, weight = (jnp.asarray(rng.standard_normal((3, 7)) * 2 + 1) for _ in range(3))
        ours = lambda x: normalize(x, 1e-6)  # noqa: E731
        for f in (lambda f: jax.jvp(f, (x,), (direction,))[1], lambda f: jax.vjp(f, x)[1](weight)[0],
                  lambda f: jax.hessian(lambda x: (f(x) * weight).sum())(x),
                  lambda f: jax.vmap(jax.jacobian(f))(x)):  # fmt: skip
            np.testing.assert_allclose(f(ours), f(plain), rtol=1e-10, atol=1e-10)


def test_training_without_dropout_of_the_attention_runs_the_fused_one(monkeypatch, tiny_config):
    calls = []
    monkeypatch.setattr(layers, "attend", lambda *arguments: calls.append(1) or attend(*arguments))
    x = jnp.zeros((1, 5, 32))
    for rate, expected in ((0.0, 1), (0.1, 0)):
        attention = layers.ViTSelfAttention(tiny_config(attention_probs_dropout_prob=rate), rngs=nnx.Rngs(0))
        attention.train()
        calls.clear()
        attention(x, rngs=nnx.Rngs(dropout=0))
        assert len(calls) == expected
