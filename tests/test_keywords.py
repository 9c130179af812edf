"""from_pretrained takes transformers' keywords: honoured, without effect, or refused with what to do instead."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest

import vit
from vit import ConfigError, InputError
from vit.errors import FRAMEWORKS
from vit.keywords import HUB, REFUSED, SAVING_REFUSED, SAVING_WITHOUT_EFFECT, WITHOUT_EFFECT

PREFIXES = ("", "TF", "Flax")


@pytest.fixture
def load(tiny_config: Any, random_checkpoint: Any, tmp_path: Any) -> Any:
    random_checkpoint(tmp_path, tiny_config(), "classifier")
    return lambda prefix, **keywords: getattr(vit, f"{prefix}ViTForImageClassification").from_pretrained(
        tmp_path, **keywords
    )


@pytest.mark.parametrize("prefix", PREFIXES)
def test_keywords_that_change_nothing_are_taken(prefix: str, load: Any, tmp_path: Any):
    model = load(prefix, **dict.fromkeys(WITHOUT_EFFECT, True), device_map="cpu", trust_remote_code=True)
    assert model.config == load(prefix).config
    cls = type(model)
    assert cls.from_pretrained(pretrained_model_name_or_path=tmp_path).config == model.config


@pytest.mark.parametrize("keyword", REFUSED)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_keywords_that_cannot_be_honoured_are_refused_with_what_to_do_instead(prefix: str, keyword: str, load: Any):
    with pytest.raises(ConfigError, match=f"^{keyword} cannot be honoured; "):
        load(prefix, **{keyword: {"a": 1}})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_keywords_that_cannot_be_honoured_are_taken_while_they_ask_for_nothing(prefix: str, load: Any):
    for unset in (None, False, {}, ""):
        load(prefix, **dict.fromkeys(REFUSED, unset))


def test_every_keyword_of_transformers_is_known(load: Any):
    import inspect
    import re

    from transformers import PreTrainedModel

    source = inspect.getsource(PreTrainedModel.from_pretrained)
    taken = re.findall(r'\bkwargs\.pop\("(\w+)", None|\bkwargs\.pop\("(\w+)", False', source)
    named = inspect.signature(PreTrainedModel.from_pretrained).parameters.values()
    names = {a or b for a, b in taken} | {each.name for each in named if each.default is None or each.default is False}
    assert {"state_dict", "tp_size", "key_mapping", "use_safetensors", "config"} <= names
    load("", **dict.fromkeys(names))


def test_a_configuration_gives_back_the_keywords_that_it_has_no_use_for(load: Any, tmp_path: Any):
    options = {"output_attentions": True, "foo": 3, "torch_dtype": "float16", "is_decoder": False}
    for config, unused in (
        vit.ViTConfig.from_pretrained(tmp_path, return_unused_kwargs=True, _from_auto=True, **options),
        vit.AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **options),
        vit.ViTConfig.from_dict({"hidden_size": 24, "num_attention_heads": 2}, return_unused_kwargs=True, **options),
    ):
        assert unused == {"foo": 3}
        assert (config.output_attentions, config.dtype) == (True, "float16")
    with pytest.raises(ConfigError, match="Unknown configuration key 'foo'"):
        vit.ViTConfig.from_dict({}, return_unused_kwargs=False, foo=3)


def test_small_files_are_saved_with_the_keywords_of_models(tmp_path: Any):
    taken = dict.fromkeys((*SAVING_WITHOUT_EFFECT, *HUB, "max_shard_size"), "x")
    for each, file in ((vit.ViTConfig(), "config.json"), (vit.ViTImageProcessor(), "preprocessor_config.json")):
        each.save_pretrained(tmp_path, push_to_hub=False, **taken)
        assert (tmp_path / file).exists()
        with pytest.raises(InputError, match="push_to_hub has no argument 'tokn'; did you mean 'token'"):
            each.push_to_hub("me/mine", tokn="x")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_other_names_of_dtype_and_device_are_honoured(prefix: str, load: Any):
    for keywords in ({"torch_dtype": "torch.float16"}, {"dtype": "torch.float16"}, {"torch_dtype": "float16"}):
        model = load(prefix, **keywords, device_map={"": "cpu"})
        assert model.config.dtype == "float16"
    with pytest.raises(InputError, match="a model stands on one device"):
        load(prefix, device_map={"layer.0": 0, "layer.1": 1})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_given_configuration_is_the_models(prefix: str, load: Any, tiny_config: Any):
    model = load(prefix, config=tiny_config(problem_type="regression"), output_attentions=True)
    assert (model.config.problem_type, model.config.output_attentions) == ("regression", True)
    with pytest.raises(ConfigError, match="config is a int"):
        load(prefix, config=3)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_file_of_a_configuration_is_as_good_as_its_folder(prefix: str, load: Any, tiny_config: Any, tmp_path: Any):
    file = tmp_path / "other" / "mine.json"
    file.parent.mkdir()
    tiny_config(problem_type="regression").to_json_file(file)
    assert load(prefix, config=file).config.problem_type == "regression"
    auto = getattr(vit, f"{prefix}AutoModelForImageClassification")
    (tmp_path / "config.json").unlink()
    assert auto.from_pretrained(tmp_path, config=str(file)).config.problem_type == "regression"


def test_a_configuration_is_read_from_a_file_of_any_name(tmp_path: Any):
    file = tmp_path / "mine.json"
    vit.BeitConfig(drop_path_rate=0.25).to_json_file(file)
    for cls in (vit.BeitConfig, vit.AutoConfig):
        config = cls.from_pretrained(file, image_size=32)
        assert (config.model_type, config.drop_path_rate, config.image_size) == ("beit", 0.25, 32)
        assert config.name_or_path == str(file)
    assert vit.BeitConfig.get_config_dict(str(file))[0]["drop_path_rate"] == 0.25
    with pytest.raises(ConfigError, match=r"mine\.json: model_type is 'beit', which BeitConfig reads"):
        vit.ViTConfig.from_pretrained(file)


@pytest.mark.parametrize("name", ["Model", "ForImageClassification"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_configuration_of_transformers_is_told_from_ours(prefix: str, name: str, load: Any):
    import flax.nnx
    import transformers

    told = r"a transformers\.ViTConfig; expected one of vit: .*vit\.ViTConfig\.from_dict\(config\.to_dict\(\)\)"
    theirs = transformers.ViTConfig()
    rngs = {"rngs": flax.nnx.Rngs(0)} if prefix == "Flax" else {}
    for call in (
        lambda: getattr(vit, f"{prefix}ViT{name}")(theirs, **rngs),
        lambda: getattr(vit, f"{prefix}Auto{name}".replace("AutoFor", "AutoModelFor")).from_config(theirs),
        lambda: load(prefix, config=theirs),
    ):
        with pytest.raises(ConfigError, match=told):
            call()
    vit.ViTConfig.from_dict(theirs.to_dict())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_loading_info_names_what_is_missing_and_what_has_another_shape(prefix: str, load: Any):
    _, info = load(prefix, output_loading_info=True)
    assert not any(info.values())
    with pytest.warns(UserWarning, match="freshly initialised"):
        model, info = load(prefix, output_loading_info=True, num_labels=9)
    assert info["mismatched_keys"] == ["classifier.bias", "classifier.weight"]
    assert info["missing_keys"] == info["unexpected_keys"] == []
    assert np.shape(model(np.ones((1, 3, 16, 16), np.float32)).logits if prefix else [[0] * 9]) == (1, 9)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_keyword_that_nobody_knows_is_still_an_error_with_the_nearest_name(prefix: str, load: Any):
    with pytest.raises(ConfigError, match="Unknown configuration key 'num_label'; did you mean 'num_labels'"):
        load(prefix, num_label=3)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_models_have_the_names_that_transformers_users_know(prefix: str, load: Any):
    model = load(prefix)
    assert model.base_model is model.vit
    assert (model.base_model_prefix, model.main_input_name, model.num_labels) == ("vit", "pixel_values", 5)
    assert model.get_input_embeddings() is model.vit.embeddings.patch_embeddings
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.supports_gradient_checkpointing
    assert model.is_gradient_checkpointing
    model.set_attn_implementation("eager")
    assert model.vit.config.attn_implementation == "eager"
    model.num_labels, model.name_or_path = 5, "mine"
    assert model.config.name_or_path == model.name_or_path == "mine"
    with pytest.raises(
        ConfigError, match=r"num_labels has 9 labels, but there are 5\. Another number needs another head"
    ):
        model.num_labels = 9


def test_the_number_of_parameters_is_that_of_transformers(load: Any, tmp_path: Any):
    import transformers

    ours, theirs = load(""), transformers.ViTForImageClassification.from_pretrained(tmp_path)
    ours.classifier.requires_grad_(False)
    theirs.classifier.requires_grad_(False)
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True)


def test_accelerates_documented_call_saves_the_state_it_gives_in_the_main_process_alone(load: Any, tmp_path: Any):
    model = load("")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", is_main_process=False, save_function=print, state_dict=state)
    model.save_pretrained(tmp_path / "other", is_main_process=False, state_dict={})  # as FSDP gives it there
    model.state_dict = None  # to ask for it is a call to every process, which would wait
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "saved", is_main_process=True, save_function=print, state_dict=state)
    saved = load("").from_pretrained(tmp_path / "saved").state_dict()
    assert all(saved[name].equal(value) for name, value in state.items())
    with pytest.raises(InputError, match="state_dict has other names than the model: more"):
        model.save_pretrained(tmp_path / "saved", state_dict={**state, "more": state["classifier.bias"]})
    with pytest.raises(InputError, match=r"other shapes .*: classifier\.bias has the shape \(1,\), not \(5,\)"):
        model.save_pretrained(tmp_path / "other", state_dict={**state, "classifier.bias": state["classifier.bias"][:1]})
    assert not (tmp_path / "other").exists()
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."):
        halves = {f"{prefix}{name}": value.half() for name, value in state.items()}
        model.save_pretrained(tmp_path / "saved", state_dict=halves)
        saved = load("").from_pretrained(tmp_path / "saved")
        assert saved.config.dtype == "float16"
        assert all(saved.state_dict()[name].equal(value.half()) for name, value in state.items())
    with pytest.raises(InputError, match="is_main_process is '1GB'; expected True or False"):
        model.save_pretrained(tmp_path / "saved", "1GB")  # no size of a shard
    with pytest.raises(InputError, match="nothing is pickled"):
        model.save_pretrained(tmp_path / "saved", safe_serialization=False)


def test_arguments_that_are_given_by_place_are_those_of_transformers(load: Any, tmp_path: Any):
    import inspect

    import transformers
    from flax import nnx

    def by_place(function: Any) -> list[str]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
        return [name for name, each in inspect.signature(function).parameters.items() if each.kind in kinds]

    for prefix in PREFIXES:
        ours, theirs = (getattr(each, f"{prefix}ViTForImageClassification") for each in (vit, transformers))
        for name in ("save_pretrained", "from_pretrained", "push_to_hub"):
            own = by_place(getattr(ours, name))
            assert own == by_place(getattr(theirs, name))[: len(own)], (prefix, name)
    model, flax = load(""), load("Flax", dtype="float16")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", True, state)
    assert load("").from_pretrained(tmp_path / "saved").classifier.bias.equal(state["classifier.bias"])
    model.save_pretrained(tmp_path / "not", False)
    with pytest.raises(InputError, match="saved_model cannot be honoured; use model"):
        load("TF").save_pretrained(tmp_path / "not", True)
    with pytest.raises(InputError, match="params is True; expected nnx"):
        flax.save_pretrained(tmp_path / "not", True)
    assert not (tmp_path / "not").exists()
    flax.save_pretrained(tmp_path / "flax", nnx.state(flax, nnx.Param), False, "1KB")
    assert len(list((tmp_path / "flax").glob("*.safetensors"))) > 1
    assert type(flax).from_pretrained(tmp_path / "flax", "float32").dtype == "float32"


def test_a_state_without_values_or_of_codes_is_refused_by_name(load: Any, tmp_path: Any):
    import torch

    model = load("")
    state, bias = model.state_dict(), torch.zeros(5)
    for value, said in (
        (bias.to("meta"), "classifier.bias is on the meta device: it has no values"),
        (bias.numpy(), "classifier.bias is a numpy.ndarray"),
        (bias.to_sparse(), "classifier.bias is a torch.float32 tensor of the layout torch.sparse_coo"),
        (bias.long(), "classifier.bias is a torch.int64 tensor"),
        (torch.quantize_per_tensor(bias, 1.0, 0, torch.qint8), "classifier.bias is a torch.qint8 tensor"),
        (None, "classifier.bias is a builtins.NoneType"),
    ):
        with pytest.raises(InputError, match=said):
            model.save_pretrained(tmp_path / "not", state_dict={**state, "classifier.bias": value})
    with pytest.raises(InputError, match="state_dict is 3; expected the parameters by their names"):
        model.save_pretrained(tmp_path / "not", state_dict=3)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_saving_takes_what_changes_nothing_and_refuses_the_rest_with_what_to_do(prefix: str, load: Any, tmp_path: Any):
    model, folder = load(prefix), tmp_path / "saved"
    taken = dict.fromkeys((*SAVING_WITHOUT_EFFECT, *HUB), "x") | {"safe_serialization": True, "variant": None}
    model.save_pretrained(save_directory=folder, is_main_process=False, **taken)
    assert not folder.exists()
    own = {"": "state_dict", "Flax": "params"}.get(prefix)
    for name in SAVING_REFUSED:
        if name != own:
            with pytest.raises(InputError, match=f"^{name} cannot be honoured; "):
                model.save_pretrained(folder, **{name: {"a": 1}})
    for keyword, said in (({"safe_serialization": False}, "nothing is pickled"),
                          ({"is_main": True}, "'is_main_process'")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            model.save_pretrained(folder, **keyword)
    assert not folder.exists()
    model.save_pretrained(folder, is_main_process=True, **taken)
    assert type(model).from_pretrained(folder).config == model.config


def test_flax_saves_the_parameters_it_is_given(load: Any, tmp_path: Any):
    import jax
    from flax import nnx

    model = load("Flax")
    params = jax.tree.map(lambda value: value + 1, nnx.state(model, nnx.Param))
    model.save_pretrained(tmp_path / "saved", params=params)
    with pytest.raises(InputError, match="params holds nothing"):
        model.save_pretrained(tmp_path / "saved", params={"params": {}})
    with pytest.raises(InputError, match="params has what the model has not: more"):
        model.save_pretrained(tmp_path / "saved", params={"more": nnx.Param(1)})
    saved = load("Flax").from_pretrained(tmp_path / "saved")
    for value, before in zip(*(jax.tree.leaves(nnx.state(each, nnx.Param)) for each in (saved, model)), strict=True):
        np.testing.assert_allclose(value, before + 1, rtol=1e-6)


def test_half_precision_is_computed_over_full_parameters(load: Any):
    import jax.numpy as jnp
    import keras
    import torch

    x = np.ones((1, 3, 16, 16), np.float32)
    flax = load("Flax", dtype=jnp.bfloat16, param_dtype="float32")
    assert (flax(x).logits.dtype, flax.classifier.kernel.dtype, flax.config.dtype) == (
        jnp.bfloat16,
        "float32",
        "float32",
    )
    alone = load("Flax", param_dtype="float16")
    assert (alone(x).logits.dtype, alone.classifier.kernel.dtype) == (jnp.float16, jnp.float16)
    tf = load("TF", dtype="bfloat16", param_dtype="float32")
    assert tf.dtype_policy == keras.DTypePolicy("mixed_bfloat16")
    assert load("TF", param_dtype="float16").dtype_policy.name == "float16"
    with pytest.raises(ConfigError, match="no policy that computes in float32 with parameters in float16"):
        load("TF", dtype="float32", param_dtype="float16")
    with pytest.raises(ConfigError, match="compute under torch"):
        load("", dtype="bfloat16", param_dtype="float32")
    with pytest.raises(ConfigError, match="compute under torch"):
        load("", param_dtype="float32")
    assert load("", dtype="float16", param_dtype=torch.float16).dtype is torch.float16


OFF = {
    "antialias", "checkpointing", "coarse", "dequantize", "drop_path_rate", "dropout_p", "exclude_embeddings", "force",
    "interpolate_pos_encoding", "label_smoothing", "little", "offset", "only_trainable", "output_attentions",
    "output_hidden_states", "pre_logits", "push_to_hub", "recompute", "saved_model", "shard", "step", "training",
    "use_mask_token",
}  # fmt: skip
ON = {"add_pooling_layer", "build", "enable", "is_main_process", "prefetch", "return_buffers", "shuffle", "trainable"}
OTHER_NUMBERS = {"batch_size", "otherwise", "size"}
REVERSED = {"FittedModel.compute_loss.training", "TorchNames.floating_point_ops.exclude_embeddings"}
"""As Keras and transformers have them."""


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_not_said_is_off_or_on_alike_in_all_functions(framework: str) -> None:
    package, functions = importlib.import_module(f"vit.{framework}"), []
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"vit.{framework}.{found.name}")
        own = [each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__]
        functions += filter(inspect.isfunction, own)
        functions += [
            each for cls in filter(inspect.isclass, own) for each in filter(inspect.isfunction, vars(cls).values())
        ]
    assert len(functions) > 100
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if isinstance(parameter.default, bool | int | float) and name not in OTHER_NUMBERS:
                assert name in OFF | ON, f"{function}: {name}"
                is_reversed = f"{function.__qualname__}.{name}" in REVERSED
                assert bool(parameter.default) == ((name in ON) != is_reversed), f"{function}: {name}"
