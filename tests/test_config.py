"""ViTConfig: the published keys, defaults and files; what is refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle

import numpy as np
import pytest
import torch
import transformers

from vit import ConfigError, ViTConfig, families
from vit.config import ACTIVATIONS, PROBLEM_TYPES, keys_of

PUBLISHED = {
    name: parameter.default
    for name, parameter in inspect.signature(transformers.ViTConfig.__init__).parameters.items()
    if parameter.default is not parameter.empty
}
LABELS = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}


# === Keys and defaults ===


@pytest.mark.parametrize("key", [*PUBLISHED, "num_labels", "id2label", "label2id", "problem_type", "model_type",
                                 "output_hidden_states", "output_attentions", "return_dict"])  # fmt: skip
def test_every_published_key_has_the_published_default(key):
    assert getattr(ViTConfig(), key) == getattr(transformers.ViTConfig(), key)


@pytest.mark.parametrize("model_type", [name for name in families.CONFIGS if name in transformers.CONFIG_MAPPING])
def test_every_familys_defaults_are_those_of_its_published_class(model_type):
    ours, theirs = families.config_class(model_type)(), transformers.CONFIG_MAPPING[model_type]()
    shared = [field.name for field in dataclasses.fields(ours) if hasattr(theirs, field.name)]
    assert {name: getattr(ours, name) for name in shared} == {name: getattr(theirs, name) for name in shared}
    assert len(shared) > 20


def test_the_oracle_lists_the_published_keys():
    assert {"hidden_size", "qkv_bias", "encoder_stride", "pooler_act", "layer_norm_eps"} <= PUBLISHED.keys()


CHANGED = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 100,
    "hidden_act": "quick_gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2,
    "initializer_range": 0.01, "layer_norm_eps": 1e-6, "image_size": 64, "patch_size": 8, "num_channels": 1,
    "qkv_bias": False, "encoder_stride": 8, "pooler_output_size": 24, "pooler_act": "relu",
}  # fmt: skip


def test_the_changed_values_cover_every_published_key():
    assert CHANGED.keys() == PUBLISHED.keys()
    assert all(CHANGED[key] != PUBLISHED[key] for key in PUBLISHED)


def test_transformers_reads_our_config_json(tmp_path):
    ViTConfig(**CHANGED, **LABELS, problem_type="regression", dtype="bfloat16").save_pretrained(tmp_path)
    theirs = transformers.ViTConfig.from_pretrained(tmp_path)
    assert {key: getattr(theirs, key) for key in CHANGED} == CHANGED
    assert (theirs.id2label, theirs.label2id) == tuple(LABELS.values())
    assert (theirs.num_labels, theirs.problem_type, str(theirs.dtype)) == (2, "regression", "torch.bfloat16")


def test_we_read_the_config_json_of_transformers(tmp_path):
    theirs = transformers.ViTConfig(**CHANGED, **LABELS, problem_type="regression", dtype="float16")
    theirs.save_pretrained(tmp_path)
    ours = ViTConfig.from_pretrained(tmp_path)
    assert {key: getattr(ours, key) for key in CHANGED} == CHANGED
    assert (ours.id2label, ours.label2id) == tuple(LABELS.values())
    assert (ours.num_labels, ours.problem_type, ours.dtype) == (2, "regression", "float16")
    assert ours.extra == {"transformers_version": "4.57.6"}


def test_a_config_goes_to_transformers_and_back_unchanged(tmp_path):
    ours = ViTConfig(**CHANGED, **LABELS, dtype="float32", attn_implementation="sdpa")
    ours.save_pretrained(tmp_path / "ours")
    transformers.ViTConfig.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert ViTConfig.from_pretrained(tmp_path / "theirs").replace(extra={}) == ours


@pytest.mark.parametrize("name", ["hf_torch", "hf_torch_base", "hf_torch_mim"])
def test_a_published_config_json_survives_a_round_trip(reference, tmp_path, name):
    ViTConfig.from_pretrained(reference / name).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (reference / name / "config.json").read_text()
    )


# === Round trips ===

CONFIGS = {
    "default": {},
    "changed": {**CHANGED, **LABELS},
    "pairs": {"image_size": (32, 48), "patch_size": (8, 16), "encoder_stride": (8, 16)},
    "no labels": {"num_labels": 0},
    "call defaults": {"output_hidden_states": True, "output_attentions": True, "return_dict": False},
    "eager": {"attn_implementation": "eager", "dtype": "float64", "architectures": ("ViTModel",)},
    "unknown keys": {"extra": {"nested": {"a": [1, None]}, "null": None, "extra": 3}},
}


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_a_config_is_equal_after_a_round_trip_through_its_file(tmp_path, values):
    config = ViTConfig(**values)
    config.save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_a_config_is_equal_after_copying_and_pickling(clone, values):
    config = ViTConfig(**values)
    assert clone(config) == config
    assert hash(clone(config)) == hash(config)


def test_unknown_keys_of_a_config_json_are_kept_nulls_included(tmp_path):
    unknown = {"finetuning_task": None, "_num_labels": 7, "drop_path": {"rate": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **unknown}))
    config = ViTConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert unknown.items() <= json.loads((tmp_path / "config.json").read_text()).items()


def test_nulls_of_known_keys_count_as_not_given():
    nulls = dict.fromkeys(["pooler_output_size", "hidden_size", "id2label", "problem_type", "torch_dtype", "dtype"])
    assert ViTConfig.from_dict(nulls) == ViTConfig()


@pytest.mark.parametrize(("values", "dtype"), [
    ({"torch_dtype": "float16"}, "float16"),
    ({"dtype": "bfloat16"}, "bfloat16"),
    ({"torch_dtype": "float16", "dtype": "bfloat16"}, "bfloat16"),
    ({}, None),
])  # fmt: skip
def test_dtype_is_read_under_its_older_name_too(values, dtype):
    config = ViTConfig.from_dict(values)
    assert config.dtype == dtype
    assert config.extra == {}
    assert config.to_dict().get("dtype") == dtype


def test_from_pretrained_overrides_keys_and_keeps_the_rest(reference):
    config = ViTConfig.from_pretrained(reference / "hf_torch", image_size=64, num_labels=3)
    assert (config.image_size, config.num_labels, config.hidden_size) == (64, 3, 48)


# === Sizes ===


@pytest.mark.parametrize(("image_size", "patch_size", "grid"), [
    (224, 16, (14, 14)),
    ((224, 112), 16, (14, 7)),
    ([32, 48], [8, 16], (4, 3)),
    (32, (4, 8), (8, 4)),
    (20, 16, (1, 1)),  # the rest of an image that the patches do not fill is left out, as by a convolution
    (16, 16, (1, 1)),
])  # fmt: skip
def test_sizes_are_ints_or_height_width_pairs(image_size, patch_size, grid):
    config = ViTConfig(image_size=image_size, patch_size=patch_size)
    assert config.grid_size == grid
    assert config.num_patches == math.prod(grid)
    assert ViTConfig.from_dict(config.to_dict()).grid_size == grid


# hidden_size, layers, heads, intermediate_size, parameters without head and pooler at patch 16 and 224 pixels
VARIANTS = {
    "Ti": (192, 12, 3, 768, 5_524_416),
    "S": (384, 12, 6, 1536, 21_665_664),
    "B": (768, 12, 12, 3072, 85_798_656),
    "L": (1024, 24, 16, 4096, 303_301_632),
    "H": (1280, 32, 16, 5120, 630_918_400),
    "g": (1408, 40, 16, 6144, 1_011_371_392),
    "G": (1664, 48, 16, 8192, 1_842_975_360),
}


@pytest.mark.parametrize(("name", "published"), VARIANTS.items(), ids=VARIANTS)
def test_variants_have_the_published_sizes(name, published):
    config = ViTConfig.variant(f"{name}/16")
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    parameters = sum(math.prod(shape) for shape in config.parameter_shapes().values())
    assert (*sizes, parameters) == published


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_parameters_of_the_oracle(name):
    config = ViTConfig.variant(f"{name}/16")
    with torch.device("meta"):
        oracle = transformers.ViTModel(transformers.ViTConfig(**config.to_dict()), add_pooling_layer=False)
    assert sum(parameter.numel() for parameter in oracle.parameters()) == VARIANTS[name][-1]


@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_the_variants_of_every_family_have_published_sizes(model_type):
    published = {
        **{name: sizes[:4] for name, sizes in VARIANTS.items()},
        **({"g": (1536, 40, 24, 4096)} if model_type.startswith("dinov2") else {}),  # of gated linear units
        "S+": (384, 12, 6, 1536),
        "H+": (1280, 32, 20, 5120),
        "7B": (4096, 40, 32, 8192),
    }
    variants = families.config_class(model_type).variants
    assert len(variants) > 1
    assert variants == {name: published[name] for name in variants}


def test_variants_take_a_patch_size_and_overrides():
    config = ViTConfig.variant("S/32", image_size=384, num_labels=7)
    assert (config.patch_size, config.encoder_stride, config.image_size, config.num_labels) == (32, 32, 384, 7)
    assert ViTConfig.variant("B/16") == ViTConfig()


@pytest.mark.parametrize("name", ["XL/16", "B", "B/", "B/x", "B16", "b/16", "", "B/-4", "B/1.5"])
def test_an_unknown_variant_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"expected one of Ti, S, B, L, H, g, G, then '/' and a patch size"):
        ViTConfig.variant(name)


def test_a_variant_refuses_a_misspelt_key_with_the_nearest():
    with pytest.raises(ConfigError, match="'image_sise'; did you mean 'image_size'"):
        ViTConfig.variant("B/16", image_sise=384)


# === Labels, and changed copies ===


@pytest.mark.parametrize(("given", "id2label"), [
    ({}, {0: "LABEL_0", 1: "LABEL_1"}),
    ({"num_labels": 1}, {0: "LABEL_0"}),
    ({"id2label": {"1": "b", "0": "a"}}, {0: "a", 1: "b"}),
    ({"label2id": {"b": 1, "a": "0"}}, {0: "a", 1: "b"}),
    ({"id2label": {0: "a"}, "num_labels": 1}, {0: "a"}),
    ({"num_labels": 0}, {}),
])  # fmt: skip
def test_label_keys_agree_whichever_are_given(given, id2label):
    config = ViTConfig(**given)
    assert config.id2label == id2label
    assert list(config.id2label) == list(range(config.num_labels))
    assert config.label2id == {label: index for index, label in id2label.items()}


def test_a_label_name_may_stand_for_two_classes():
    # ImageNet has two cranes: label2id has one entry less than id2label in the published checkpoints.
    config = ViTConfig(id2label={0: "crane", 1: "crane"}, label2id={"crane": 1})
    assert (config.num_labels, config.label2id) == (2, {"crane": 1})


NAMED = {"id2label": {0: "a", 1: "b", 2: "c"}}


@pytest.mark.parametrize(("overrides", "id2label"), [
    ({"num_labels": 3}, {0: "a", 1: "b", 2: "c"}),  # the same number: the names stay
    ({"num_labels": 2}, {0: "LABEL_0", 1: "LABEL_1"}),
    ({"id2label": {0: "x"}}, {0: "x"}),
    ({"label2id": {"x": 0, "y": 1}}, {0: "x", 1: "y"}),
    ({"id2label": {0: "x"}, "num_labels": 1}, {0: "x"}),
    ({"image_size": 64}, {0: "a", 1: "b", 2: "c"}),
])  # fmt: skip
def test_replace_makes_the_label_keys_follow(overrides, id2label):
    config = ViTConfig(**NAMED).replace(**overrides)
    assert config.id2label == id2label
    assert config.num_labels == len(id2label)
    assert config.label2id == {label: index for index, label in id2label.items()}


def test_replace_leaves_the_original_as_it_was():
    config = ViTConfig(**NAMED)
    assert config.replace(hidden_size=48, num_labels=9) != config
    assert config == ViTConfig(**NAMED)


def test_replacing_hidden_size_takes_the_pooler_along_unless_it_has_a_size_of_its_own():
    assert ViTConfig().replace(hidden_size=384).pooler_output_size == 384
    assert ViTConfig(pooler_output_size=100).replace(hidden_size=384).pooler_output_size == 100
    assert ViTConfig().replace(hidden_size=384, pooler_output_size=5).pooler_output_size == 5


@pytest.mark.parametrize(("key", "near"), [
    ("hiden_size", "hidden_size"), ("num_layers", "num_labels"), ("label2ids", "label2id"), ("torch_dtype", "dtype"),
])  # fmt: skip
def test_replace_refuses_an_unknown_key_and_names_the_nearest(key, near):
    with pytest.raises(ConfigError, match=f"Unknown configuration key '{key}'; did you mean '{near}'"):
        ViTConfig().replace(**{key: 1})


def test_an_unknown_key_far_from_all_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"Unknown configuration key 'zzz'\.$"):
        ViTConfig().replace(zzz=1)


# === Equality ===


@pytest.mark.parametrize("key", [*CHANGED, "id2label", "dtype", "extra", "attn_implementation", "return_dict"])
def test_configs_that_differ_in_one_key_are_unequal(key):
    values = {**CHANGED, "id2label": {0: "x"}, "dtype": "float64", "extra": {"a": 1}, "attn_implementation": "eager",
              "return_dict": False, "num_attention_heads": 6, "encoder_stride": 8}  # fmt: skip
    assert ViTConfig().replace(**{key: values[key]}) != ViTConfig()


def test_equal_configs_have_one_hash_and_one_place_in_a_set():
    assert len({ViTConfig(**NAMED), ViTConfig(**NAMED), ViTConfig(num_labels=3)}) == 2
    assert ViTConfig() != "a string"


IMPOSSIBLE = [
    *[(key, value, "an int of at least 1")
      for key in ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels", "pooler_output_size")
      for value in (0, -1, 1.5, "768", True, [768])],
    *[("num_hidden_layers", value, "an int of at least 0") for value in (-1, 2.0, None, "12")],
    *[(key, value, "a positive int, or a (height, width) pair of them")
      for key in ("image_size", "patch_size", "encoder_stride")
      for value in (0, -16, 16.0, "16", None, (16,), (16, 16, 16), (16, 0), (16, "16"), {"height": 16, "width": 16})],
    *[(key, value, "a probability of at least 0 and less than 1")
      for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")
      for value in (-0.1, 1.0, 1, float("nan"), "0.1", None, True)],
    *[(key, value, "a finite number of at least 0")
      for key in ("initializer_range", "layer_norm_eps")
      for value in (-1e-6, float("nan"), float("inf"), "1e-12", None)],
    *[(key, value, "true or false")
      for key in ("qkv_bias", "output_hidden_states", "output_attentions", "return_dict")
      for value in (1, "yes", None)],
    *[(key, value, "one of " + ", ".join(map(repr, ACTIVATIONS)))
      for key in ("hidden_act", "pooler_act") for value in ("geluu", None, "GELU", ["gelu"])],
    *[("problem_type", value, "one of None, " + ", ".join(map(repr, PROBLEM_TYPES))) for value in ("regresion", 1)],
    *[("attn_implementation", value, "one of 'sdpa', 'eager'") for value in ("flash_attention_2", None)],
    *[("dtype", value, "one of None, 'float16', 'bfloat16', 'float32', 'float64'") for value in ("int8", "fp16", 32)],
    *[("model_type", value, "one of 'vit'") for value in ("deit", None)],
    *[("architectures", value, "a list of class names") for value in ("ViTModel", 3, [3])],
    *[("num_labels", value, "an int of at least 0") for value in (-1, 2.0, "2", True)],
    *[(key, value, "a mapping between label indices and names")
      for key in ("id2label", "label2id") for value in (["cat", "dog"], "cat", 3)],
]  # fmt: skip


# === Assignment ===

SHAPES = [key for key in keys_of(ViTConfig) if key not in ViTConfig.assignable]
ASSIGNED = {
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "initializer_range": 0.1,
    "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "num_labels": 2, "problem_type": "regression",
    "output_hidden_states": True, "output_attentions": True, "return_dict": False, "attn_implementation": "eager",
    "architectures": ("ViTModel",), "extra": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("key", SHAPES)
def test_what_shapes_a_model_cannot_be_assigned_and_the_error_names_replace(key):
    config = ViTConfig()
    with pytest.raises(
        ConfigError, match=rf"^{key} is part of what a model is made of.* config\.replace\({key}=\.\.\.\)"
    ):
        setattr(config, key, getattr(config, key))
    assert config == ViTConfig()


def test_every_key_that_may_be_assigned_is_tried():
    assert ASSIGNED.keys() == ViTConfig.assignable


def test_update_shapes_a_model_until_there_is_one():
    from vit import ViTModel

    config = ViTConfig(num_hidden_layers=1)
    config.update({"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "image_size": [32, 16],
                   "num_labels": 3, "output_attentions": True, "mine": 1})  # fmt: skip
    assert (config.hidden_size, config.image_size, config.pooler_output_size) == (32, (32, 16), 32)
    assert (config.num_labels, config.output_attentions, config.mine) == (3, True, 1)
    model = ViTModel(config)
    config.update({"hidden_size": 32, "image_size": (32, 16), "output_attentions": False})  # what it is
    assert not model.config.output_attentions
    before = config.to_dict()
    for values in ({"hidden_size": 64}, {"num_labels": 4}):
        with pytest.raises(ConfigError, match=r"config\.replace\("):
            config.update(values)
    with pytest.raises(ConfigError, match="hidden_size is -1"):
        ViTConfig().update({"hidden_size": -1})
    assert config.to_dict() == before
    config.replace().update({"hidden_size": 64})  # a copy that no model has


def test_update_assigns_all_of_its_keys_or_none():
    config = ViTConfig()
    before = config.to_dict()
    for values in ({"hidden_size": 48, "hidden_dropout_prob": 7}, {"output_attentions": True, "hidden_act": "x"}):
        with pytest.raises(ConfigError):
            config.update(values)
        assert config.to_dict() == before


@pytest.mark.parametrize("name", ["ViTForImageClassification", "TFViTForImageClassification",
                                  "FlaxViTForImageClassification"])  # fmt: skip
def test_a_configuration_that_a_model_was_given_is_its_own(name):
    from flax import nnx

    import vit

    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    model = getattr(vit, name)(config, **({"rngs": nnx.Rngs(0)} if name.startswith("Flax") else {}))
    model.config = config.replace(output_attentions=True)
    with pytest.raises(ConfigError, match=r"config\.replace\("):
        model.config.update({"hidden_size": 64})


def test_update_from_string_reads_each_value_as_its_key_has_it():
    config = ViTConfig()
    config.update_from_string("hidden_size=64, num_attention_heads=4,qkv_bias=False,output_attentions=yes,"
                              "layer_norm_eps=1e-6,hidden_act=relu")  # fmt: skip
    assert (config.hidden_size, config.qkv_bias, config.output_attentions) == (64, False, True)
    assert (config.layer_norm_eps, config.hidden_act) == (1e-6, "relu")
    for text, message in (("hiden_size=3", "did you mean 'hidden_size'"), ("qkv_bias", "no key=value"),
                          ("hidden_size=wide", "hidden_size is 'wide'")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            config.update_from_string(text)


def test_keys_that_mean_nothing_are_taken_and_kept(reference):
    config = ViTConfig.from_pretrained(reference / "hf_torch", finetuning_task="image-classification")
    assert config.finetuning_task == "image-classification"
    assert config.to_dict()["finetuning_task"] == "image-classification"


@pytest.mark.parametrize("key", ASSIGNED)
def test_behaviour_is_assigned_as_replace_would_give_it(key):
    config = ViTConfig()
    hash(config)
    setattr(config, key, ASSIGNED[key])
    assert config == ViTConfig().replace(**{key: ASSIGNED[key]})
    assert hash(config) == hash(ViTConfig().replace(**{key: ASSIGNED[key]}))
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("key", sorted(ViTConfig.assignable - {"num_labels", "extra", "architectures", "id2label",
                                                               "label2id", "initializer_range"}))  # fmt: skip
def test_a_changed_behaviour_has_another_hash(key):
    config = ViTConfig()
    before = hash(config)
    setattr(config, key, ASSIGNED[key])
    assert hash(config) != before


@pytest.mark.parametrize(("key", "value", "expected"),
                         [(key, value, expected) for key, value, expected in IMPOSSIBLE if key in ViTConfig.assignable
                          and value is not None])  # fmt: skip
def test_an_impossible_value_is_refused_when_it_is_assigned(key, value, expected):
    config = ViTConfig()
    with pytest.raises(ConfigError) as error:
        setattr(config, key, value)
    assert str(error.value) == f"{key} is {value!r}; expected {expected}."
    assert config == ViTConfig()


@pytest.mark.parametrize(("key", "value"), [
    ("num_labels", 4), ("id2label", {0: "a"}), ("label2id", {"a": 0, "b": 1, "c": 2}),
])  # fmt: skip
def test_another_number_of_labels_cannot_be_assigned(key, value):
    config = ViTConfig()
    with pytest.raises(ConfigError, match=r"Another number needs another head: config\.replace"):
        setattr(config, key, value)
    assert config == ViTConfig()


def test_assigned_names_make_the_other_names_follow():
    config = ViTConfig(num_labels=2)
    config.id2label = {"0": "cat", "1": "dog"}
    assert (config.id2label, config.label2id) == ({0: "cat", 1: "dog"}, {"cat": 0, "dog": 1})
    config.label2id = {"a": 0, "b": 1}
    assert config.id2label == {0: "a", 1: "b"}
    config.id2label = {0: "crane", 1: "crane"}
    config.label2id = {"crane": 0}  # two labels of one name
    assert (config.id2label, config.label2id) == ({0: "crane", 1: "crane"}, {"crane": 0})


def test_unknown_keys_are_kept_by_the_constructor_by_assignment_and_in_the_file(tmp_path):
    config = ViTConfig(is_decoder=False, mine=[1])
    config.other = 2
    assert (config.is_decoder, config.mine, config.other) == (False, [1], 2)
    config.save_pretrained(tmp_path)
    again = ViTConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.extra == {"is_decoder": False, "mine": [1], "other": 2}


def test_a_name_that_nothing_has_is_an_attribute_error_with_the_nearest():
    with pytest.raises(AttributeError, match="ViTConfig has no attribute 'hiden_size'; did you mean 'hidden_size'"):
        ViTConfig().hiden_size  # noqa: B018


def test_a_snapshot_stays_as_it_was():
    config = ViTConfig()
    snapshot = config.snapshot()
    assert config.snapshot() is snapshot
    config.return_dict = False
    assert snapshot.config.return_dict
    assert config.snapshot() != snapshot
    restored = snapshot.restored()
    restored.output_attentions = True
    assert snapshot == ViTConfig().snapshot()


# === transformers' names ===


@pytest.mark.parametrize("use_diff", [True, False])
def test_json_strings_and_files_read_back(tmp_path, use_diff):
    config = ViTConfig(**LABELS, image_size=32, hidden_dropout_prob=0.1)
    config.to_json_file(tmp_path / "any.json", use_diff=use_diff)
    assert (tmp_path / "any.json").read_text() == config.to_json_string(use_diff=use_diff)
    assert ViTConfig.from_json_file(tmp_path / "any.json") == config
    assert ("hidden_size" in json.loads(config.to_json_string(use_diff=use_diff))) is not use_diff


def test_get_config_dict_gives_the_file_and_the_keywords_that_are_left(tmp_path):
    ViTConfig(image_size=32).save_pretrained(tmp_path)
    values, rest = ViTConfig.get_config_dict(tmp_path, local_files_only=True, image_size=64)
    assert (values["image_size"], rest) == (32, {"image_size": 64})


def test_names_of_transformers_read_and_write_the_same_values():
    config = ViTConfig(torch_dtype="float16")
    config._attn_implementation = "eager"
    config.name_or_path = "here"
    config.update({"output_attentions": True, "mine": 1})
    assert (config.dtype, config.torch_dtype, config.use_return_dict) == ("float16", "float16", True)
    assert (config.attn_implementation, config.name_or_path, config._commit_hash) == ("eager", "here", None)
    assert (config.output_attentions, config.mine, config.is_encoder_decoder) == (True, 1, False)
    assert "_name_or_path" not in config.to_dict()


# === Impossible values ===


@pytest.mark.parametrize(("key", "value", "expected"), IMPOSSIBLE, ids=[f"{k}={v!r}" for k, v, _ in IMPOSSIBLE])
def test_an_impossible_value_is_refused_with_what_was_given_and_what_is_allowed(key, value, expected):
    with pytest.raises(ConfigError) as error:
        ViTConfig(**{key: value})
    assert str(error.value) == f"{key} is {value!r}; expected {expected}."


@pytest.mark.parametrize(("values", "message"), [
    ({"hidden_size": 100}, "hidden_size 100 is not divisible by num_attention_heads 12."),
    ({"patch_size": 256}, "patch_size 256 is larger than image_size 224."),
    ({"image_size": (224, 8)}, "patch_size 16 is larger than image_size (224, 8)."),
    ({"id2label": {0: "a", 2: "b"}}, "id2label has the indices [0, 2]; expected 0 to 1."),
    ({"id2label": {1: "a", 2: "b"}}, "id2label has the indices [1, 2]; expected 0 to 1."),
    ({"label2id": {"a": 1}}, "label2id has the indices [1]; expected 0 to 0."),
    ({"id2label": {"a": "b"}}, "id2label is {'a': 'b'} and label2id None; expected ints as label indices."),
    ({"label2id": {"a": [0]}}, "id2label is None and label2id {'a': [0]}; expected ints as label indices."),
    ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels is 3 but id2label names 1 labels. Give one of them, or both "
     "with the same length."),
    ({"num_labels": 3, "label2id": {"a": 0}}, "num_labels is 3 but label2id names 1 labels. Give one of them, or both "
     "with the same length."),
])  # fmt: skip
def test_values_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        ViTConfig(**values)
    assert str(error.value) == message


def test_a_numpy_int_is_refused_because_json_cannot_hold_it():
    with pytest.raises(ConfigError, match=r"num_labels is np\.int64"):
        ViTConfig(num_labels=np.int64(3))
