"""DINOv3's ViT: what its makers' code computes, its positions, and as its users use it: trained, compiled, exported.

The classes of transformers are compared in tests/test_family_transformers.py.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conversion
import vit
from vit import CheckpointError, ConfigError, InputError, families

from .equivalence import DINOV3, GATED, random_checkpoint, tiny_config

FRAMEWORKS = pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
CASES = {
    "plain": DINOV3,
    "gated": GATED,
    "biased keys": {**DINOV3, "key_bias": True, "proj_bias": False, "mlp_bias": False},
    "no registers": {**GATED, "query_bias": False, "value_bias": False, "num_register_tokens": 0},
}


def pixels(batch: int = 2, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, height, width)).astype(np.float32)


def load(framework: str, folder: Path, **overrides: Any) -> Any:
    random_checkpoint(folder, tiny_config(**{**DINOV3, **overrides}))
    return families.model_class(framework, "dinov3_vit").from_pretrained(folder)


def as_array(framework: str, value: Any) -> np.ndarray:
    return value.detach().numpy() if framework == "pt" else np.asarray(value)


# === transformers ===


def test_the_names_that_transformers_5_gives_a_model_are_read(tmp_path: Path):
    """Its files have those of 4 (tests/test_family_transformers.py); its models keep their layers at model.layer."""
    from safetensors.numpy import load_file, save_file

    random_checkpoint(tmp_path, tiny_config(**DINOV3))
    file = tmp_path / "model.safetensors"
    before = load_file(file)
    save_file({re.sub("^layer", "model.layer", name): value for name, value in before.items()}, file)
    model = vit.DINOv3ViTModel.from_pretrained(tmp_path)
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in model.state_dict().items())
    report = conversion.convert(tmp_path, tmp_path / "hf")
    assert report.source_format == "hf"
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() == before.keys()


# === What its makers' code computes ===


def original_state(gated: bool = False, width: int = 32, depth: int = 2, mlp_width: int = 48) -> dict[str, np.ndarray]:
    """A random state dict of facebookresearch/dinov3, of 4 heads, patches of 4 pixels and 3 storage tokens."""
    rng = np.random.default_rng(5)

    def weights(*shape: int) -> np.ndarray:
        return (
            rng.standard_normal(shape) * math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else rng.standard_normal(shape)
        )

    state = {
        "cls_token": rng.standard_normal((1, 1, width)),
        "storage_tokens": rng.standard_normal((1, 3, width)),
        "mask_token": rng.standard_normal((1, width)),
        "patch_embed.proj.weight": weights(width, 3, 4, 4),
        "patch_embed.proj.bias": weights(width),
        "rope_embed.periods": 100.0 ** (2 * np.arange(2) / 4),
    }
    mlp = {"w1": (mlp_width, width), "w2": (mlp_width, width), "w3": (width, mlp_width)}
    mlp = mlp if gated else {"fc1": (mlp_width, width), "fc2": (width, mlp_width)}
    for i in range(depth):
        block = {
            "norm1.weight": weights(width), "norm1.bias": weights(width),
            "attn.qkv.weight": weights(3 * width, width), "attn.qkv.bias": weights(3 * width),
            "attn.qkv.bias_mask": np.repeat([1.0, 0.0, 1.0], width),
            "attn.proj.weight": weights(width, width), "attn.proj.bias": weights(width), "ls1.gamma": weights(width),
            "norm2.weight": weights(width), "norm2.bias": weights(width),
            **{f"mlp.{name}.weight": weights(*shape) for name, shape in mlp.items()},
            **{f"mlp.{name}.bias": weights(shape[0]) for name, shape in mlp.items()},
            "ls2.gamma": weights(width),
        }  # fmt: skip
        state |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    return {**state, "norm.weight": weights(width), "norm.bias": weights(width)}


def original(state: dict[str, np.ndarray], images: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """What facebookresearch/dinov3 computes with a state dict: the normalised tokens, (B, 1 + 3 + N, D); in NumPy."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        bias = state.get(f"{name}.bias", 0.0) * state.get(f"{name}.bias_mask", 1.0)
        return x @ state[f"{name}.weight"].T + bias

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def turn(x: np.ndarray) -> np.ndarray:  # (B, H, N, D / H)
        first, second = np.split(x, 2, axis=-1)
        return x * np.cos(angles) + np.concatenate([-second, first], axis=-1) * np.sin(angles)

    (batch, _, height, width), heads = images.shape, 4
    rows, columns = height // 4, width // 4
    cut = images.reshape(batch, 3, rows, 4, columns, 4)
    x = np.einsum("bcrhkw,dchw->brkd", cut, state["patch_embed.proj.weight"]).reshape(batch, rows * columns, -1)
    x = x + state["patch_embed.proj.bias"]
    if mask is not None:
        x = np.where(mask[:, :, None], state["mask_token"], x)
    prefix = [np.repeat(state[name], batch, 0) for name in ("cls_token", "storage_tokens")]
    x = np.concatenate([*prefix, x], axis=1)
    axes = [np.arange(0.5, length) / length for length in (rows, columns)]
    centres = 2 * np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2) - 1
    angles = 2 * np.pi * centres[:, :, None] / state["rope_embed.periods"]
    angles = np.tile(angles.reshape(rows * columns, -1), 2)
    for i in range(2):
        block = f"blocks.{i}."
        qkv = linear(f"{block}attn.qkv", norm(f"{block}norm1", x)).reshape(batch, -1, 3, heads, x.shape[-1] // heads)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)
        query, key = (np.concatenate([each[:, :, :4], turn(each[:, :, 4:])], axis=2) for each in (query, key))
        scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]))
        context = (scores / scores.sum(-1, keepdims=True)) @ value
        context = context.swapaxes(1, 2).reshape(x.shape)
        x = x + linear(f"{block}attn.proj", context) * state[f"{block}ls1.gamma"]
        y = norm(f"{block}norm2", x)
        if f"{block}mlp.w1.weight" in state:
            gate = linear(f"{block}mlp.w1", y)
            y = linear(f"{block}mlp.w3", gate / (1 + np.exp(-gate)) * linear(f"{block}mlp.w2", y))
        else:
            y = linear(f"{block}mlp.fc1", y)
            y = linear(f"{block}mlp.fc2", y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2)
        x = x + y * state[f"{block}ls2.gamma"]
    return norm("norm", x)


def in_timm(state: dict[str, np.ndarray], biased: bool) -> dict[str, np.ndarray]:
    """A state dict as timm names it: without a mask token, and without the biases of queries, keys and values or with
    two of them."""
    names = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2", "mlp.w1": "mlp.fc1_g",
             "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2"}  # fmt: skip
    found = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if name.endswith("qkv.bias"):
            query, _, value = np.split(value, 3)
            parts = {"q_bias": query, "v_bias": value} if biased else {}
            found |= {name.replace("qkv.bias", part): each for part, each in parts.items()}
        elif not name.startswith(("rope_embed", "mask_token")) and not name.endswith("bias_mask"):
            found[name] = value
    return found


def changed(state: dict[str, np.ndarray], **changes: Any) -> dict[str, np.ndarray]:
    """A state dict with other tensors; those that are None are gone. `_` stands for a dot."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


def without(state: dict[str, np.ndarray], ending: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if not name.endswith(ending)}


PLAIN, GATED_STATE = original_state(), original_state(gated=True)
OTHER_PERIODS = {"rope_embed__periods": 30.0 ** (np.arange(2) / 2)}
SOURCES = {
    "plain": PLAIN,
    "gated": GATED_STATE,
    "no mask, so keys have biases": without(PLAIN, "bias_mask"),
    "no biases of queries, keys and values": without(without(GATED_STATE, "qkv.bias"), "bias_mask"),
    "other periods": changed(PLAIN, **OTHER_PERIODS),
    "a norm of small crops": changed(GATED_STATE, local_cls_norm__weight=np.ones(32), local_cls_norm__bias=np.ones(32)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_original_is_converted_and_computes_what_it_computed(name: str, tmp_path: Path):
    import torch

    state = SOURCES[name]
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "dinov3.pth")
    report = conversion.convert(tmp_path / "dinov3.pth", tmp_path / "hf", num_attention_heads=4)
    assert report.source_format == "dinov3"
    assert report.config.rope_theta == (30 if name == "other periods" else 100)
    mask = np.random.default_rng(1).random((2, 5 * 6)) < 0.4
    model = vit.DINOv3ViTModel.from_pretrained(tmp_path / "hf")
    images = pixels(2, 20, 24).astype(np.float64)
    found = model(torch.from_numpy(images), torch.from_numpy(mask)).last_hidden_state.detach().numpy()
    assert np.abs(found - original(state, images, mask)).max() < 1e-10
    processor = vit.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert type(processor) is vit.DINOv3ViTImageProcessorFast
    assert processor.image_mean == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ["plain", "gated"])
def test_timms_form_is_converted_and_computes_what_it_computed(name: str, biased: bool, tmp_path: Path):
    import torch
    from safetensors.numpy import save_file

    state = SOURCES[name]
    (tmp_path / "timm").mkdir()
    save_file(in_timm(state, biased), tmp_path / "timm" / "model.safetensors")
    described = {"architecture": "vit_small_patch16_dinov3", "num_classes": 0, "global_pool": "avg",
                 "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                                    "interpolation": "bicubic", "input_size": [3, 256, 256]}}  # fmt: skip
    (tmp_path / "timm" / "config.json").write_text(json.dumps(described))
    report = conversion.convert(tmp_path / "timm", tmp_path / "hf", num_attention_heads=4)
    assert report.source_format == "timm"
    computed = state if biased else without(without(state, "qkv.bias"), "bias_mask")
    model = vit.DINOv3ViTModel.from_pretrained(tmp_path / "hf")
    images = pixels(2, 20, 24).astype(np.float64)
    found = model(torch.from_numpy(images)).last_hidden_state.detach().numpy()
    assert np.abs(found - original(computed, images)).max() < 1e-10


def test_the_teacher_of_a_training_is_converted_whatever_its_periods_were_rounded_to(tmp_path: Path):
    import torch

    state = {f"backbone.{key}": torch.from_numpy(value).float() for key, value in GATED_STATE.items()}
    state["backbone.rope_embed.periods"] = state["backbone.rope_embed.periods"].bfloat16()
    state["dino_head.mlp.0.weight"] = torch.zeros(3, 3)
    del state["backbone.storage_tokens"]  # a training may have none
    torch.save({"teacher": state, "iteration": 3}, tmp_path / "checkpoint.pth")
    report = conversion.convert(tmp_path / "checkpoint.pth", tmp_path / "hf", num_attention_heads=4)
    assert report.config.rope_theta == 100
    assert vit.DINOv3ViTModel.from_pretrained(tmp_path / "hf").config.num_register_tokens == 0
    assert any("dino_head" in name for name in report.ignored)
    assert sum("k_proj" in why or "keys" in why for why in report.ignored.values()) >= 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"rope_embed__periods": np.array([3.0, 10.0])}, r"rope_embed\.periods is .* expected powers of one number"),
    ({"blocks__0__attn__qkv__bias_mask": np.ones(96)}, "bias_mask masks something else than the biases of the keys"),
    ({"cls_norm__weight": np.ones(32)}, "a LayerNorm of their own for CLS and the registers"),
])  # fmt: skip
def test_an_original_that_computes_something_else_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    import torch

    torch.save({key: torch.from_numpy(value) for key, value in changed(PLAIN, **changes).items()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        conversion.convert(tmp_path / "x.pth", tmp_path / "hf", num_attention_heads=4)
    assert not (tmp_path / "hf").exists()


TARGETS = {"hf": "", "orbax": "", "keras": ".keras", "keras weights": ".weights.h5"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["plain", "gated", "no registers"])
def test_out_and_in_again_every_bit_is_the_same(name: str, target: str, tmp_path: Path):
    from safetensors.numpy import load_file

    config = tiny_config(**CASES[name])
    random_checkpoint(tmp_path / "first", config)
    other = tmp_path / f"other{TARGETS[target]}"
    conversion.convert(tmp_path / "first", other, target_format=target.partition(" ")[0])
    lost = {"num_attention_heads": 4} if "weights" in target else {}
    report = conversion.convert(other, tmp_path / "again", **lost)
    assert report.source_format == target.partition(" ")[0]
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("first", "again"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    if not lost:
        assert report.config == vit.AutoConfig.from_pretrained(tmp_path / "first")
    if target == "keras":
        import keras

        expected = vit.TFDINOv3ViTModel.from_pretrained(tmp_path / "first")(pixels()).last_hidden_state
        found = keras.saving.load_model(other)(pixels()).last_hidden_state
        assert np.array_equal(np.asarray(found), np.asarray(expected))


# === Positions ===


@FRAMEWORKS
def test_angles_are_those_of_the_paper(framework: str):
    """By hand, for one patch of a grid of 2 x 3: y and x from -1 to 1, the periods 1 and 10 of half an image."""
    import importlib

    room = importlib.import_module(f"vit.{framework}.posemb")
    if framework == "pt":
        import torch

        like, one = torch.zeros(1), torch.from_numpy
    else:
        like, one = "float32", np.asarray
    frequencies = vit.posemb.frequencies(8, 100.0)
    assert np.allclose(frequencies, (2 * math.pi, 2 * math.pi / 10))
    angles = room.rotation((2, 3), 2, frequencies, like)
    heads = np.random.default_rng(0).standard_normal((1, 2 + 6, 1, 8)).astype(np.float32)  # (B, T, H, D / H)
    axes = (0, 2, 1, 3) if framework == "pt" else (0, 1, 2, 3)
    found = as_array(framework, room.rotate(one(heads.transpose(axes)), angles)).transpose(axes)
    assert np.array_equal(found[:, :2], heads[:, :2])  # CLS and a register stay
    y, x = -0.5, 2 / 3  # of the patch in the first row and the last column
    turned = heads[0, 4, 0].astype(np.float64)
    for i, angle in enumerate(2 * math.pi * np.array([y, y / 10, x, x / 10])):
        first, second = turned[i], turned[i + 4]
        turned[i] = first * math.cos(angle) - second * math.sin(angle)
        turned[i + 4] = second * math.cos(angle) + first * math.sin(angle)
    assert np.abs(found[0, 4, 0] - turned).max() < 1e-6


MOVES = {
    "shift": ({"pos_embed_shift": 0.3}, lambda centres, moved: np.ptp(moved - centres, axis=0)),
    "jitter": ({"pos_embed_jitter": 1.5}, lambda centres, moved: np.ptp(moved / centres, axis=0)),
    "rescale": ({"pos_embed_rescale": 2.0}, lambda centres, moved: np.ptp(moved / centres)),
}


@FRAMEWORKS
@pytest.mark.parametrize("name", MOVES)
def test_positions_are_moved_within_their_bounds_in_training_alone(name: str, framework: str, tmp_path: Path):
    """Seen as what each rotation makes of one pair of numbers, of the slowest pair, whose angle does not wrap."""
    import keras
    import torch
    from flax import nnx

    keras.utils.set_random_seed(0)
    torch.manual_seed(0)

    keys, spread = MOVES[name]
    model = load(framework, tmp_path, **keys, rope_theta=1e6, num_register_tokens=0)
    rope, grid, rngs = model.rope_embeddings, (4, 4), nnx.Rngs(0)

    def places(training: bool) -> np.ndarray:
        """(N, 2): the centres that the angles say."""
        if framework == "pt":
            angles = rope.train(training)(torch.zeros(1), grid)
        elif framework == "tf":
            angles = rope(np.zeros(1, np.float32), grid=grid, training=training)
        else:
            (model.train if training else model.eval)()
            angles = rope(np.zeros(1, np.float32), grid, rngs)
        cosines, sines = as_array(framework, angles)[:, 1:]
        slowest = [1, 3]  # of y and of x, of heads of 8
        return np.arctan2(-sines[:, slowest], cosines[:, slowest]) / model.config.rope_theta**-0.5 / (2 * math.pi)

    centres = vit.posemb.centres(grid)
    assert np.abs(places(False) - centres).max() < 1e-3
    draws = [places(True) for _ in range(16)]
    assert len({draw.tobytes() for draw in draws}) == 16
    (bound,) = keys.values()
    for moved in draws:
        assert spread(centres, moved).max() < 1e-2  # one draw for all patches
        far = np.abs(moved - centres) if name == "shift" else np.exp(np.abs(np.log(moved / centres)))
        assert far.max() <= bound * 1.01
        assert np.abs(moved - centres).max() > 1e-3


def test_flax_asks_for_keys_where_positions_are_moved(tmp_path: Path):
    model = load("flax", tmp_path, pos_embed_rescale=2.0)
    model(pixels())
    model.train()
    with pytest.raises(InputError, match=r"pass rngs=nnx\.Rngs\(0\), call model\.eval\(\), or set pos_embed_shift"):
        model(pixels())
    model.config.pos_embed_rescale = None
    model(pixels())


# === Training, compiling, saving ===


def test_pytorch_compiles_whole_exports_and_recomputes(tmp_path: Path):
    import torch

    model = load("pt", tmp_path, **GATED)
    images = {size: torch.from_numpy(pixels(3, *size)) for size in ((16, 16), (24, 20))}
    with torch.no_grad():
        expected = {size: model(each).last_hidden_state for size, each in images.items()}
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
        dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        exported = torch.export.export(
            model, (), {"pixel_values": images[24, 20]}, dynamic_shapes={"pixel_values": dims}
        ).module()
        for size, each in images.items():
            for other in (compiled(each).last_hidden_state, exported(pixel_values=each)["last_hidden_state"]):
                assert torch.allclose(other, expected[size], atol=1e-5), size
    model.train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(images[16, 16]).last_hidden_state.square().sum().backward()
        gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_keras_trains_saves_loads_and_exports(tmp_path: Path):
    import keras
    import tensorflow as tf

    model = load("tf", tmp_path / "hf", **GATED, pos_embed_rescale=2.0, drop_path_rate=0.1)
    model.gradient_checkpointing_enable()
    inputs = keras.Input((3, 16, 16))
    classifier = keras.Model(inputs, keras.layers.Dense(2)(model(inputs).pooler_output))
    classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = np.asarray(model.layer[0].mlp.gate_proj.kernel)
    history = classifier.fit(pixels(4), np.arange(4) % 2, batch_size=2, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert np.abs(np.asarray(model.layer[0].mlp.gate_proj.kernel) - before).max() > 0
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.config == model.config
    expected = np.asarray(model(pixels()).last_hidden_state)
    assert np.array_equal(np.asarray(again(pixels()).last_hidden_state), expected)
    again.save_pretrained(tmp_path / "again")
    tokens = vit.FlaxDINOv3ViTModel.from_pretrained(tmp_path / "again")(pixels()).last_hidden_state
    assert np.abs(np.asarray(tokens) - expected).max() < 1e-5
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    served = exported.serve(pixels())
    assert np.abs(np.asarray(served["last_hidden_state"]) - expected).max() < 1e-5


def test_flax_splits_jits_and_recomputes(tmp_path: Path):
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model = load("flax", tmp_path, **GATED)
    graphdef, state = nnx.split(model)
    jitted = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))(state, pixels())
    assert np.allclose(jitted.last_hidden_state, model(pixels()).last_hidden_state, atol=1e-5)
    assert "layer.1.attention.q_proj.kernel" in {
        ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }

    def loss(model: Any) -> Any:
        return jnp.square(model(pixels()).last_hidden_state).sum()

    plain = nnx.grad(loss)(model)
    model.gradient_checkpointing_enable()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(nnx.grad(loss)(model)), strict=True):
        assert np.allclose(a, b, atol=1e-4)


def test_its_linear_layers_are_prepacked_and_quantised(tmp_path: Path):
    import torch

    from vit.pt import prepack, quantize

    images = torch.from_numpy(pixels())
    expected = load("pt", tmp_path, **GATED)(images).last_hidden_state.detach()
    for prepare, tolerance in ((prepack, 1e-5), (quantize, 0.5)):
        model = prepare(vit.DINOv3ViTModel.from_pretrained(tmp_path))
        replaced = [name for name, layer in model.named_modules() if isinstance(layer, vit.pt.linear.InferenceLinear)]
        assert len(replaced) == 2 * 7
        assert (model(images).last_hidden_state - expected).abs().max() < tolerance


def test_registers_that_the_configuration_does_not_name_are_refused(tmp_path: Path):
    config = tiny_config(**DINOV3)
    random_checkpoint(tmp_path, config)
    config.replace(num_register_tokens=0).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"register_tokens is \(1, 3, 32\), expected \(1, 0, 32\)"):
        vit.FlaxDINOv3ViTModel.from_pretrained(tmp_path)


@FRAMEWORKS
def test_a_fresh_model_is_saved_and_read_again(framework: str, tmp_path: Path):
    from flax import nnx

    config = tiny_config(**DINOV3, layerscale_value=0.25)
    cls = families.model_class(framework, "dinov3_vit")
    model = cls(config, rngs=nnx.Rngs(0)) if framework == "flax" else cls(config)
    model.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    assert (tensors["layer.0.layer_scale1.lambda1"] == 0.25).all()
    assert (tensors["embeddings.mask_token"] == 0).all()
    assert 0 < np.abs(tensors["embeddings.register_tokens"]).max() <= 0.04
    assert vit.AutoModel.from_pretrained(tmp_path).config.layerscale_value == 0.25


# === Configuration ===


@pytest.mark.parametrize(("overrides", "message"), [
    ({"pos_embed_jitter": 0.5}, "pos_embed_jitter is 0.5; expected a number of at least 1, or None"),
    ({"pos_embed_shift": -1}, "pos_embed_shift is -1"),
    ({"pos_embed_rescale": "2"}, "pos_embed_rescale is '2'"),
    ({"rope_theta": 0}, "rope_theta is 0; expected a finite number above 0"),
    ({"num_register_tokens": 1.5}, "num_register_tokens is 1.5"),
    ({"use_gated_mlp": 1}, "use_gated_mlp is 1"),
    ({"num_attention_heads": 64}, "leaves each of 64 heads 6 numbers; expected a multiple of 4"),
    ({"attention_probs_dropout_prob": 0.1}, None),
])  # fmt: skip
def test_impossible_values_are_refused_by_name(overrides: dict[str, Any], message: str | None):
    if message is None:  # a key of other families, kept as any other
        assert vit.DINOv3ViTConfig(**overrides).extra == overrides
        return
    with pytest.raises(ConfigError, match=message):
        vit.DINOv3ViTConfig(**overrides)


def test_null_of_a_move_is_kept_and_means_none(tmp_path: Path):
    config = vit.DINOv3ViTConfig(pos_embed_rescale=None)
    config.save_pretrained(tmp_path)
    assert vit.AutoConfig.from_pretrained(tmp_path) == config
    assert vit.DINOv3ViTConfig.from_dict({"hidden_size": None}).pos_embed_rescale == 2.0


SIZES = {"S/16": 21, "S+/16": 29, "B/16": 86, "L/16": 300, "H+/16": 840, "7B/16": 6716}
"""Size -> millions of parameters, as its makers say."""


@pytest.mark.parametrize("name", SIZES)
def test_variants_are_the_published_sizes(name: str):
    config = vit.DINOv3ViTConfig.variant(name)
    parameters = sum(math.prod(shape) for shape in config.parameter_shapes().values())
    assert abs(parameters / 1e6 / SIZES[name] - 1) < 0.03
    assert config.head_dim == (128 if name == "7B/16" else 64)
    assert config.num_register_tokens == 4
