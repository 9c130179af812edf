"""Keywords of transformers' from_pretrained that are no configuration: honoured, without effect, or refused."""

from __future__ import annotations

import difflib
from typing import Any

from .errors import ConfigError, InputError, quoted, shown

WITHOUT_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "weights_only",
                  "offload_state_dict", "offload_buffers", "mirror", "_fast_init", "_from_auto", "_from_pipeline",
                  "_commit_hash", "commit_hash", "_do_init", "code_revision", "generation_config",
                  "adapter_name")  # fmt: skip
"""Each asks for what is done anyway: no second copy, no random weights first, nothing unpickled; or is of what no
model here has: code of its own, text, an adapter."""

REFUSED = {
    "quantization_config": "load the model and use vit.pt.quantize, or torchao's quantize_",
    "load_in_8bit": "load the model and use vit.pt.quantize",
    "load_in_4bit": "load the model and use torchao's quantize_",
    "offload_folder": "weights are mapped to their file until they are used",
    "max_memory": "a model stands on one device: pass device",
    "tp_plan": "a model stands on one device: pass device",
    "tp_size": "a model stands on one device: pass device",
    "device_mesh": "a model stands on one device: pass device, and shard it once it is loaded",
    "distributed_config": "a model stands on one device: pass device, and shard it once it is loaded",
    "state_dict": "load or make the model, then give it those weights",
    "key_mapping": "rename the weights in their file",
    "use_kernels": "the framework's own are used",
    "use_flash_attention_2": "pass attn_implementation='sdpa', which takes the fastest attention there is",
    "return_unused_kwargs": "it is an option of a configuration's from_pretrained",
    "gguf_file": "convert it with vit convert",
    "variant": "copy the file to model.safetensors",
    "adapter_kwargs": "load the model, then the adapter with peft",
}
"""Keyword -> what to do instead."""


def loading_keywords(
    keywords: dict[str, Any], dtype: Any, device: Any, accelerator: str | None = None
) -> tuple[Any, Any, bool]:
    """Take what is no override of the configuration out of the `keywords` of from_pretrained.

    Args:
        keywords: of the call; changed.
        dtype: as the call has it.
        device: as the call has it.
        accelerator: what `device_map="auto"` means; None where the framework's default device is it.

    Returns:
        dtype, device (also under their other names, `torch_dtype` and `device_map`), and `output_loading_info`.

    Raises:
        ConfigError: a keyword that cannot be honoured; what to do instead is named.
        InputError: a `device_map` of several devices.
    """
    for name in WITHOUT_EFFECT:
        keywords.pop(name, None)
    for name, remedy in REFUSED.items():
        if not _is_unset(keywords.pop(name, None)):
            raise ConfigError(f"{name} cannot be honoured; {remedy}.")
    torch_dtype = keywords.pop("torch_dtype", None)
    device_map = keywords.pop("device_map", None)
    if isinstance(device_map, dict):
        if len(set(map(str, device_map.values()))) != 1 or set(device_map) != {""}:
            raise InputError(
                f"device_map is {quoted(device_map)}; a model stands on one device: pass device='cuda:0' or the like."
            )
        device_map = device_map[""]
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        device_map = accelerator
    return (
        torch_dtype if dtype is None else dtype,
        device_map if device is None else device,
        bool(keywords.pop("output_loading_info", False)),
    )


def _is_unset(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, dict | str) and not value)


SAVING_WITHOUT_EFFECT = ("save_function", "save_peft_format", "signatures", "version", "use_temp_dir", "_internal_call")
"""Keywords of save_pretrained: files are written whole or not at all, by nobody else."""

SAVING_REFUSED = {
    "variant": "save it, and give the file another name",
    "saved_model": "use model.export(folder), which writes a SavedModel",
    "quantization_config": "save the model before it is quantised",
    "save_original_format": "the names are the published ones",
    "state_dict": "save the model whose state it is",
    "params": "put them into the model first: nnx.update(model, params)",
}
HUB = ("repo_id", "commit_message", "commit_description", "private", "token", "use_auth_token", "revision", "create_pr",
       "tags")  # fmt: skip
"""Keywords of push_to_hub."""


def saving_keywords(keywords: dict[str, Any], call: str = "save_pretrained") -> dict[str, Any]:
    """The options of the hub among the `keywords` of save_pretrained or push_to_hub that are no arguments of it.

    Raises:
        InputError: a keyword that cannot be honoured, with what to do instead; or one that nobody knows.
    """
    if not keywords.pop("safe_serialization", True):
        raise InputError("safe_serialization is False, but nothing is pickled here; leave it out.")
    for name, remedy in SAVING_REFUSED.items():
        if not _is_unset(keywords.pop(name, None)):
            raise InputError(f"{name} cannot be honoured; {remedy}.")
    known = {*HUB, *SAVING_WITHOUT_EFFECT, *SAVING_REFUSED, "is_main_process", "max_shard_size", "push_to_hub"}
    for name in keywords.keys() - {*HUB, *SAVING_WITHOUT_EFFECT}:
        near = difflib.get_close_matches(name, sorted(known - {name}), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"{call} has no argument {shown(name)!r}{hint}")
    return {name: value for name, value in keywords.items() if name in HUB}


def file_keywords(keywords: dict[str, Any], call: str = "save_pretrained") -> dict[str, Any]:
    """As `saving_keywords`, of what is one small file: nothing of it is cut into shards, and it gets no card."""
    keywords = {name: value for name, value in keywords.items() if name != "max_shard_size"}
    return {name: value for name, value in saving_keywords(keywords, call).items() if name != "tags"}
