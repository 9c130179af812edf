"""MAE and DINOv2 as each framework's users use them: fresh, recomputed, in half precision, and called wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit
from vit import ConfigError, InputError, families

from .equivalence import random_checkpoint, tiny_config

CLASSES = {
    "vit_mae": "decoder",
    "dinov2": "classifier",
    "dinov2_with_registers": "classifier",
}
"""model_type -> the head it is trained with."""


def arrays(model_type: str, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    more = {"noise": rng.random((batch, 16))} if model_type == "vit_mae" else {"labels": np.arange(batch) % 5}
    return {"pixel_values": rng.standard_normal((batch, 3, 16, 16)).astype(np.float32), **more}


def load(framework: str, model_type: str, folder: Path, head: str | None = None, **options: Any) -> Any:
    random_checkpoint(folder, tiny_config(model_type), head)
    return families.model_class(framework, model_type, head).from_pretrained(folder, **options)


# === Fresh models ===


def test_a_fresh_mae_starts_from_fixed_positions_in_every_framework(tmp_path: Path):
    from flax import nnx

    config = tiny_config("vit_mae")
    models = {
        "pt": vit.ViTMAEForPreTraining(config),
        "tf": vit.TFViTMAEForPreTraining(config),
        "flax": vit.FlaxViTMAEForPreTraining(config, rngs=nnx.Rngs(0)),
    }
    for framework, model in models.items():
        model.save_pretrained(tmp_path / framework)
        from safetensors.numpy import load_file

        tensors = load_file(tmp_path / framework / "model.safetensors")
        for name, width in (("vit.embeddings.position_embeddings", 32), ("decoder.decoder_pos_embed", 24)):
            assert np.array_equal(tensors[name], config.positions(width).astype(np.float32)), framework
        patches = tensors["vit.embeddings.patch_embeddings.projection.weight"].reshape(32, -1)
        bound = (6 / (32 + 48)) ** 0.5
        assert 0.9 * bound < np.abs(patches).max() <= bound, framework
        assert 0 < np.abs(tensors["decoder.mask_token"]).max() <= 0.06, framework


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_a_decoder_that_a_checkpoint_lacks_starts_fresh_from_fixed_positions(framework: str, tmp_path: Path):
    config = tiny_config("vit_mae")
    random_checkpoint(tmp_path / "encoder", config)
    with pytest.warns(UserWarning, match=r"holds no fitting decoder\.decoder_embed"):
        model = families.model_class(framework, "vit_mae", "decoder").from_pretrained(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "whole")
    from safetensors.numpy import load_file

    positions = load_file(tmp_path / "whole" / "model.safetensors")["decoder.decoder_pos_embed"]
    assert np.array_equal(positions, config.positions(24).astype(np.float32))


def test_mae_positions_are_not_trained(tmp_path: Path):
    from flax import nnx

    model = load("pt", "vit_mae", tmp_path, "decoder")
    fixed = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert fixed == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    assert len(load("tf", "vit_mae", tmp_path, "decoder").trainable_variables) == len(list(model.parameters())) - 2
    params = nnx.to_flat_state(nnx.state(load("flax", "vit_mae", tmp_path, "decoder"), nnx.Param))
    assert len(params) == len(list(model.parameters())) - 2


# === Noise ===


def test_without_noise_each_framework_draws_its_own(tmp_path: Path):
    import torch
    from flax import nnx

    pixels = arrays("vit_mae")["pixel_values"]
    model = load("pt", "vit_mae", tmp_path)
    torch.manual_seed(0)
    masks = [model(torch.from_numpy(pixels)).mask.numpy() for _ in range(2)]
    tf_model = load("tf", "vit_mae", tmp_path)
    masks += [np.asarray(tf_model(pixels).mask) for _ in range(2)]
    flax_model, rngs = load("flax", "vit_mae", tmp_path), nnx.Rngs(0)
    masks += [np.asarray(flax_model(pixels, rngs=rngs).mask) for _ in range(2)]
    assert all((mask.sum(1) == 12).all() for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    with pytest.raises(InputError, match=r"pass rngs=nnx\.Rngs\(0\), or noise"):
        flax_model(pixels)


def test_equal_noise_is_kept_in_the_order_of_the_patches(tmp_path: Path):
    import torch

    pixels, noise = arrays("vit_mae")["pixel_values"], np.array([[1, 0] * 8, [0] * 16], np.float32)
    expected = np.argsort(np.argsort(noise, axis=1, kind="stable"), axis=1)
    for framework in ("pt", "tf", "flax"):
        model = load(framework, "vit_mae", tmp_path)
        inputs = [torch.from_numpy(value) if framework == "pt" else value for value in (pixels, noise)]
        assert np.array_equal(np.asarray(model(*inputs).ids_restore), expected), framework


COUNTS = [(100, 0.9, 9), (10, 0.9, 0), (20, 0.9, 1), (10, 0.8, 1), (196, 0.75, 49)]


@pytest.mark.parametrize(("patches", "ratio", "kept"), COUNTS)
def test_patches_are_counted_in_double_precision_as_the_original_does(patches: int, ratio: float, kept: int):
    assert vit.ViTMAEConfig(mask_ratio=ratio).kept(patches) == kept


def test_patches_and_pixels_are_the_same_in_every_framework(tmp_path: Path):
    import torch

    pixels = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    expected = pixels.reshape(2, 3, 4, 4, 4, 4).transpose(0, 2, 4, 3, 5, 1).reshape(2, 16, 48)
    for framework in ("pt", "tf", "flax"):
        model = load(framework, "vit_mae", tmp_path, "decoder")
        patches = model.patchify(torch.from_numpy(pixels) if framework == "pt" else pixels)
        assert np.array_equal(np.asarray(patches), expected), framework
        assert np.array_equal(np.asarray(model.unpatchify(patches)), pixels), framework
        assert model.unpatchify(patches, original_image_size=(8, 32)).shape == (2, 3, 8, 32)
        with pytest.raises(InputError, match=r"expected \(batch, 4, 48\) of images of 8 x 8"):
            model.unpatchify(patches, original_image_size=(8, 8))


# === PyTorch ===


@pytest.mark.parametrize("model_type", CLASSES)
def test_pytorch_checkpoints_gradients_and_computes_in_half_precision(model_type: str, tmp_path: Path):
    import torch

    model = load("pt", model_type, tmp_path, CLASSES[model_type]).train()
    inputs = {name: torch.from_numpy(value) for name, value in arrays(model_type).items()}
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    half = type(model).from_pretrained(tmp_path, dtype="bfloat16")(**inputs)
    assert half.logits.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32


@pytest.mark.parametrize("model_type", CLASSES)
def test_tensorflow_recomputes_layers_in_training_alone_where_that_is_asked(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from vit.tf import heads, layers

    model, inputs, seen = load("tf", model_type, tmp_path, CLASSES[model_type]), arrays(model_type), []
    for module in (heads, layers):
        monkeypatch.setattr(module, "recomputed", lambda layer: seen.append(layer) or layer)
    model(**inputs, training=True)
    model.gradient_checkpointing_enable()
    model(**inputs)
    assert not seen
    model(**inputs, training=True)
    assert len(seen) == model.config.num_hidden_layers + getattr(model.config, "decoder_num_hidden_layers", 0)


# === Flax ===


@pytest.mark.parametrize("model_type", CLASSES)
def test_flax_splits_jits_and_checkpoints_gradients(model_type: str, tmp_path: Path):
    import jax
    from flax import nnx

    model = load("flax", model_type, tmp_path, CLASSES[model_type])
    inputs = arrays(model_type)
    graphdef, state = nnx.split(model)
    jitted = jax.jit(lambda state, inputs: nnx.merge(graphdef, state)(**inputs))(state, inputs)
    assert np.allclose(jitted.logits, model(**inputs).logits, atol=1e-5)

    def loss(model: Any, inputs: Any) -> Any:
        return model(**inputs).loss

    plain = nnx.grad(loss)(model, inputs)
    model.gradient_checkpointing_enable()
    recomputed = nnx.grad(loss)(model, inputs)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        assert np.allclose(a, b, atol=1e-5)


# === Stochastic depth ===


def test_every_layer_of_dinov2_drops_its_branches_at_the_same_rate():
    assert tiny_config("dinov2", drop_path_rate=0.3).drop_path_rates == (0.3, 0.3)


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_dinov2_drops_branches_in_training_alone(framework: str, tmp_path: Path):
    import torch
    from flax import nnx

    random_checkpoint(tmp_path, tiny_config("dinov2", drop_path_rate=0.5))
    model = families.model_class(framework, "dinov2").from_pretrained(tmp_path)
    pixels = arrays("dinov2", 8)["pixel_values"]
    if framework == "pt":
        pixels = torch.from_numpy(pixels)
        kept, dropped = model(pixels)[0].detach(), model.train()(pixels)[0].detach()
    elif framework == "tf":
        kept, dropped = model(pixels)[0], model(pixels, training=True)[0]
    else:
        kept = model(pixels)[0]
        model.train()
        dropped = model(pixels, rngs=nnx.Rngs(0))[0]
    assert np.abs(np.asarray(kept) - np.asarray(dropped)).max() > 0.1


# === Bad input ===


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_noise_and_masks_of_another_shape_are_refused_by_name(framework: str, tmp_path: Path):
    import torch

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array) if framework == "pt" else array

    pixels = tensor(arrays("vit_mae")["pixel_values"])
    for shape in ((2, 15), (3, 16), (16,), (2, 16, 1)):
        with pytest.raises(InputError, match=r"noise has the shape .*expected \(2, 16\)"):
            load(framework, "vit_mae", tmp_path / "mae")(pixels, noise=tensor(np.zeros(shape, np.float32)))
        with pytest.raises(InputError, match=r"bool_masked_pos has the shape .*expected \(2, 16\)"):
            load(framework, "dinov2", tmp_path / "dinov2")(pixels, bool_masked_pos=tensor(np.zeros(shape, bool)))
    random_checkpoint(tmp_path / "unmasked", tiny_config("dinov2", use_mask_token=False))
    model = families.model_class(framework, "dinov2").from_pretrained(tmp_path / "unmasked")
    with pytest.raises(InputError, match="bool_masked_pos needs a mask token"):
        model(pixels, bool_masked_pos=tensor(np.zeros((2, 16), bool)))
    with pytest.raises(InputError, match="smaller than one patch"):
        model(tensor(np.zeros((1, 3, 3, 16), np.float32)))


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (vit.ViTMAEConfig, {"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        (vit.ViTMAEConfig, {"mask_ratio": "0.75"}, "mask_ratio is '0.75'"),
        (vit.ViTMAEConfig, {"norm_pix_loss": "yes"}, "norm_pix_loss is 'yes'"),
        (vit.ViTMAEConfig, {"decoder_num_attention_heads": 3}, "decoder_hidden_size 512 is not divisible"),
        (vit.ViTMAEConfig, {"hidden_size": 30, "num_attention_heads": 3}, "hidden_size is 30; .* multiple of 4"),
        (vit.ViTMAEConfig, {"decoder_interpolation": "3d"}, "decoder_interpolation is '3d'"),
        (vit.Dinov2Config, {"mlp_ratio": 0}, "mlp_ratio is 0"),
        (vit.Dinov2Config, {"drop_path_rate": 1}, "drop_path_rate is 1"),
        (vit.Dinov2Config, {"use_swiglu_ffn": 1}, "use_swiglu_ffn is 1"),
        (vit.Dinov2Config, {"interpolate_offset": float("nan")}, "interpolate_offset is nan"),
        (vit.Dinov2WithRegistersConfig, {"num_register_tokens": -1}, "num_register_tokens is -1"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(config: Any, overrides: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config(**overrides)


def test_keys_as_published_files_have_them_are_read():
    config = vit.ViTMAEConfig.from_dict({"norm_pix_loss": 1, "image_size": [432, 432]})
    assert config.norm_pix_loss is True
    assert config.grid_size == (27, 27)
    assert vit.Dinov2Config.variant("g/14").intermediate_size == 4096
    assert vit.Dinov2Config.from_dict({"model_type": "dinov2", "mlp_ratio": 4}).use_mask_token


def test_the_noise_that_keeps_every_patch_in_its_place_is_of_the_images_own_shape():
    config = tiny_config("vit_mae", mask_ratio=0.0, patch_size=(4, 8), image_size=(16, 24))
    noise = config.fixed_inputs((2, 3, 12, 40))["noise"]
    assert noise.dtype == np.float32
    assert noise.tolist() == [list(range(3 * 5))] * 2
    hidden = config.replace(mask_ratio=0.5).fixed_inputs((2, 3, 12, 40))["noise"]
    assert sorted(hidden[0]) == list(range(3 * 5))
    assert hidden[0].tolist() == hidden[1].tolist() != noise[0].tolist()
    assert config.fixed_inputs((12, 40)) == {}
