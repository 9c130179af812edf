"""The canonical parameter table: transformers' names and shapes, and each framework's layout and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from vit import ViTConfig
from vit.weights import LAYOUTS, from_local, initial_value, local_name, to_local

CONFIGS = {
    "plain": {},
    "no qkv_bias": {"qkv_bias": False},
    "non-square": {"image_size": (16, 24), "patch_size": (4, 8)},
    "one channel": {"num_channels": 1},
    "pooler size": {"pooler_output_size": 12},
    "no layers": {"num_hidden_layers": 0},
    "stride of its own": {"encoder_stride": 2},
    "one label": {"num_labels": 1},
    "no labels": {"num_labels": 0},
}
MODELS = {
    "base": (transformers.ViTModel, {"add_pooling_layer": True}, None),
    "base without pooler": (transformers.ViTModel, {}, None),
    "base with mask token": (transformers.ViTModel, {"add_pooling_layer": True, "use_mask_token": True}, None),
    "classifier": (transformers.ViTForImageClassification, {}, "classifier"),
    "decoder": (transformers.ViTForMaskedImageModeling, {"use_mask_token": True}, "decoder"),
}


def oracle_shapes(config: ViTConfig, model: str) -> dict[str, tuple[int, ...]]:
    cls, options, head = MODELS[model]
    options = {"add_pooling_layer": False, **options} if head is None else {}
    with torch.device("meta"):
        state = cls(transformers.ViTConfig(**config.to_dict()), **options).state_dict()
    return {("" if head else "vit.") + name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("values", "model"),
    [(c, m) for c in CONFIGS for m in MODELS if (c, m) != ("non-square", "decoder")],  # one that transformers lacks
)
def test_names_and_shapes_are_those_of_transformers(tiny_config, values, model):
    config = tiny_config(**CONFIGS[values])
    _, options, head = MODELS[model]
    assert config.parameter_shapes(head=head, **options) == oracle_shapes(config, model)


def test_a_decoder_of_non_square_patches_gives_every_pixel_of_a_patch(tiny_config):
    shapes = tiny_config(**CONFIGS["non-square"]).parameter_shapes(head="decoder", use_mask_token=True)
    assert shapes["decoder.0.weight"] == (4 * 8 * 3, 32, 1, 1)
    assert shapes["decoder.0.bias"] == (4 * 8 * 3,)


def test_the_published_size_has_the_published_shapes():
    shapes = ViTConfig(num_labels=1000).parameter_shapes(head="classifier")
    assert len(shapes) == 200
    assert sum(np.prod(shape) for shape in shapes.values()) == 86_567_656  # google/vit-base-patch16-224
    assert shapes["vit.embeddings.position_embeddings"] == (1, 197, 768)
    assert shapes["vit.embeddings.patch_embeddings.projection.weight"] == (768, 3, 16, 16)


# === Layouts ===

LAYER = "vit.encoder.layer.1"
LOCAL_NAMES = {
    "vit.embeddings.cls_token": ("vit.embeddings.cls_token",) * 3,
    "vit.embeddings.mask_token": ("vit.embeddings.mask_token",) * 3,
    "vit.embeddings.position_embeddings": ("vit.embeddings.position_embeddings",) * 3,
    "classifier.weight": ("classifier.weight", "classifier.kernel", "classifier.kernel"),
    "classifier.bias": ("classifier.bias",) * 3,
    "decoder.0.weight": ("decoder.0.weight", "decoder.0.kernel", "decoder.0.kernel"),
    "vit.layernorm.weight": ("vit.layernorm.weight", "vit.layernorm.gamma", "vit.layernorm.scale"),
    f"{LAYER}.layernorm_after.bias": tuple(f"{LAYER}.layernorm_after.{leaf}" for leaf in ("bias", "beta", "bias")),
    f"{LAYER}.attention.output.dense.weight": (
        f"{LAYER}.attention.output.dense.weight",
        f"{LAYER}.attention.dense_output.dense.kernel",
        f"{LAYER}.attention.output.dense.kernel",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "local"), LOCAL_NAMES.items(), ids=LOCAL_NAMES)
def test_each_framework_has_its_own_name_for_a_leaf(name, local):
    assert tuple(local_name(name, framework) for framework in ("pt", "tf", "flax")) == local


@pytest.mark.parametrize("framework", LAYOUTS)
def test_no_two_parameters_have_one_local_name(tiny_config, framework):
    for _, options, head in MODELS.values():
        names = tiny_config().parameter_shapes(head=head, **options)
        assert len({local_name(name, framework) for name in names}) == len(names)


@pytest.mark.parametrize("framework", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_survives_the_round_trip_through_a_layout(tiny_config, model, framework):
    _, options, head = MODELS[model]
    rng = np.random.default_rng(0)
    for name, shape in tiny_config(**CONFIGS["non-square"]).parameter_shapes(head=head, **options).items():
        array = rng.standard_normal(shape)
        local = to_local(name, array, framework)
        np.testing.assert_array_equal(from_local(name, local, shape, framework), array, err_msg=name)
        assert np.shares_memory(local, array), f"{name} was copied"


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_matrices_are_stored_in_out_and_tokens_and_tables_as_they_are(framework):
    matrix = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(to_local("dense.weight", matrix, framework), matrix.T)
    kernel = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # (out, in, height, width)
    local = to_local("projection.weight", kernel, framework)
    assert local.shape == (3 * 4 * 5, 2)
    assert local[1 * 20 + 2 * 5 + 3, 1] == kernel[1, 1, 2, 3]
    others = {
        "cls_token": (1, 1, 4),
        "mask_token": (1, 4),
        "relative_position_bias_table": (5, 4),
        "norm1.weight": (4,),
    }
    for name, shape in others.items():
        assert to_local(f"vit.{name}", array := np.ones(shape), framework) is array, name
        assert from_local(f"vit.{name}", array, shape, framework) is array, name


def test_pytorch_stores_the_canonical_arrays():
    array = np.arange(6.0).reshape(2, 3)
    assert to_local("dense.weight", array, "pt") is array
    assert from_local("dense.weight", array, (2, 3), "pt") is array


# === Fresh values ===


def test_fresh_parameters_start_as_in_transformers(tiny_config):
    config = tiny_config(initializer_range=0.5)
    shapes = config.parameter_shapes(add_pooling_layer=True, use_mask_token=True)
    state = transformers.ViTModel(transformers.ViTConfig(**config.to_dict()), use_mask_token=True).state_dict()
    for name in shapes:
        value = state[name.removeprefix("vit.")]
        is_constant = value.unique().numel() == 1
        assert initial_value(name) == (value.flatten()[0].item() if is_constant else None), name
