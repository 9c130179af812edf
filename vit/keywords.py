"""Keywords of transformers' from_pretrained that are no configuration: honoured, without effect, or refused."""

from __future__ import annotations

from typing import Any

from .errors import ConfigError, InputError, quoted

WITHOUT_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "weights_only",
                  "offload_state_dict", "mirror", "_fast_init", "_from_auto", "_from_pipeline", "_commit_hash",
                  "_do_init")  # fmt: skip
"""Each asks for what is done anyway: no second copy, no random weights first, nothing unpickled."""

REFUSED = {
    "quantization_config": "load the model and use vit.pt.quantize, or torchao's quantize_",
    "load_in_8bit": "load the model and use vit.pt.quantize",
    "load_in_4bit": "load the model and use torchao's quantize_",
    "offload_folder": "weights are mapped to their file until they are used",
    "max_memory": "a model stands on one device: pass device",
    "tp_plan": "a model stands on one device: pass device",
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
        if keywords.pop(name, None) not in (None, False):
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
