"""What a PyTorch model computes with, under the names of its checkpoint.

Side by side with vit/tf/saving.py and vit/flax/saving.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import InputError, quoted
from ..places import check_places, check_shape
from .linear import InferenceLinear

_LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ModuleList, nn.ModuleDict, nn.Sequential)
_ABSENT = "is missing"
_PREFIXES = ("_orig_mod.", "module.")  # of every name, in the state of torch.compile's and DataParallel's models
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile, and of activation checkpointing


def parameters(model: Any, dequantize: bool = False) -> dict[str, Tensor]:
    """Every parameter of a model under its name in a checkpoint: parametrised, normed and pruned weights as computed.

    Parameters that are sharded over processes (DTensor) are gathered on the first of them; the others get none. All of
    them have to call this.

    Raises:
        CheckpointError: something that takes part in the computation has no place there.
    """
    config, head = model.config, model.head
    shapes = config.parameter_shapes(head=head, **dict.fromkeys(config.heads[head].parts, True))
    # Name -> whether it is an optional part by itself, and not one of those of an optional layer.
    optional = {config.model_name(n, head): n in config.optional for n in shapes if n.startswith(config.optional)}
    names = {config.model_name(name, head): shape for name, shape in shapes.items()}
    places = _Places(model, names, optional, dequantize)
    check_places(type(model).__name__, places.foreign, places.missing, places.extra())
    if any(_is_sharded(value) for value in places.values.values()):
        return _gathered(model)
    return places.values


LOSS = "loss_function"
"""What a user may put in its place trains the model, and is no part of what it computes."""


def gathered_elsewhere(model: Any, state: Mapping[str, Tensor], dequantize: bool = False) -> dict[str, Tensor]:
    """The parameters of a model that the caller has gathered, without the prefixes of what wrapped the model.

    Raises:
        InputError: other names or shapes than the model's, or what is no plain tensor with values.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"state_dict is {quoted(state)}; expected the parameters by their names.")
    found = {name: _dequantised(value) if dequantize else value for name, value in state.items()}
    for prefix in _PREFIXES * 2:  # either may be around the other
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    found = {name: value for name, value in found.items() if not name.startswith(f"{LOSS}.")}
    config, head = model.config, model.head
    # Not those of `state_dict()`, a call to all processes.
    shapes = config.parameter_shapes(head=head, **dict.fromkeys(config.heads[head].parts, True))
    names = {config.model_name(name, head): name for name in shapes}
    odd = sorted(name for name in found.keys() ^ names.keys()
                 if name in found or not names[name].startswith(config.optional))  # fmt: skip
    if odd:
        raise InputError(f"state_dict has other names than the model: {', '.join(odd[:8])}.")
    if unfit := [f"{name} {why}" for name, value in found.items() if (why := _unfit(value))]:
        raise InputError(f"state_dict holds what no checkpoint can: {'; '.join(unfit[:8])}.")
    if sharded := [name for name, value in found.items() if _is_sharded(value)]:
        raise InputError(
            f"state_dict is sharded over processes: {', '.join(sharded[:8])}. Gather it first "
            "(torch.distributed.checkpoint.state_dict), or leave state_dict out: save_pretrained gathers."
        )
    wrong = [f"{name} {why}" for name, value in found.items() if (why := check_shape(value.shape, shapes[names[name]]))]
    if wrong:
        raise InputError(f"state_dict has other shapes than the model: {'; '.join(wrong[:8])}.")
    return found


class _Places:
    """A model's tree, held against the names and shapes of its checkpoint."""

    def __init__(
        self, model: nn.Module, names: dict[str, tuple[int, ...]], optional: dict[str, bool], dequantize: bool
    ) -> None:
        self.model, self.dequantize = model, dequantize
        self.values: dict[str, Tensor] = {}
        self.missing: dict[str, str] = {}
        self.foreign = {
            path: f"a {kind.__module__}.{kind.__qualname__}"
            for path, module in model.named_modules()
            if path and not path.startswith(LOSS) and not self._is_ours(module, kind := _kind(module))
        }
        self.placed: set[int] = set()  # ids of parameters and buffers
        for name, shape in names.items():
            why, owner_is_there = self._place(name, shape)
            if why and not (why == _ABSENT and name in optional and (optional[name] or not owner_is_there)):
                self.missing[name] = why

    def _is_ours(self, module: nn.Module, kind: type) -> bool:
        if isinstance(module, InferenceLinear):
            return False
        if isinstance(module, nn.LayerNorm) and module.eps != self.model.config.layer_norm_eps:
            return False
        root = kind.__module__.startswith((f"{__package__}.", "torch.nn.utils.parametr"))
        return kind in _LAYERS or root or kind.__name__ in ("OptimizedModule", "CheckpointWrapper")

    def _place(self, name: str, shape: tuple[int, ...]) -> tuple[str | None, bool]:
        """Find the value of a canonical parameter; why there is none, and whether there is a layer for it."""
        *path, leaf = name.split(".")
        owner: Any = self.model
        for part in path:
            owner = _unwrapped(owner)
            owner = getattr(owner, part, None)  # "0" too, in a ModuleList
        owner = _unwrapped(owner)
        return self._found(name, shape, _computed(owner, leaf, self.placed)), owner is not None

    def _found(self, name: str, shape: tuple[int, ...], value: Any) -> str | None:
        if value is None:
            return _ABSENT
        value = _dequantised(value) if self.dequantize else value
        if why := _unfit(value):
            return why
        self.values[name] = value
        return check_shape(value.shape, shape)

    def extra(self) -> list[str]:
        """The names of the parameters and buffers that are in no place."""
        held = self.model.state_dict(keep_vars=True)  # without buffers that are not to be stored
        return [name for name, value in held.items() if id(value) not in self.placed and not name.startswith(LOSS)]


def _dequantised(value: Any) -> Any:
    return value.dequantize().detach() if "torchao" in type(value).__module__ else value


def _unfit(value: Any) -> str | None:
    """Why something is no plain tensor with values, such as a checkpoint holds; None if it is one."""
    if type(value) not in (Tensor, nn.Parameter) and not _is_sharded(value):
        return f"is a {type(value).__module__}.{type(value).__qualname__}"
    if value.is_meta:
        return "is on the meta device: it has no values"
    if value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
        return f"is a {value.dtype} tensor of the layout {value.layout}"
    return None


def _kind(module: nn.Module) -> type:
    """The class of a module before `parametrize` or `fully_shard` made it one of theirs."""
    kind = parametrize.type_before_parametrizations(module)
    return kind.__bases__[1] if kind.__bases__[0].__name__ == "FSDPModule" else kind


def _unwrapped(module: Any) -> Any:
    while wrapped := next((name for name in _WRAPPERS if name in getattr(module, "_modules", {})), None):
        module = module._modules[wrapped]
    return module


def _computed(owner: Any, leaf: str, placed: set[int]) -> Tensor | None:
    """The value that a layer computes with under a name, and in `placed` the parameters and buffers it is made of."""
    if not isinstance(owner, nn.Module):
        return None
    if parametrize.is_parametrized(owner, leaf):
        made_of: Any = owner.parametrizations[leaf]
        placed.update(map(id, (*made_of.parameters(), *made_of.buffers())))
        training = made_of.training
        with torch.no_grad():
            made_of.eval()  # spectral_norm goes on with its iteration in training, whenever somebody looks
            value = getattr(owner, leaf)
            made_of.train(training)
        return value
    for hook in owner._forward_pre_hooks.values():
        name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
        if name == leaf and isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod):
            parts = {**owner._parameters, **owner._buffers}
            placed.update(id(value) for key, value in parts.items() if key.startswith(f"{leaf}_"))
            with torch.no_grad():
                if isinstance(hook, prune.BasePruningMethod):
                    return hook.apply_mask(owner)
                if isinstance(hook, SpectralNorm):
                    return hook.compute_weight(owner, do_power_iteration=False)
                return hook.compute_weight(owner)
    value = owner._parameters.get(leaf)
    placed.add(id(value))
    return value


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # torch.distributed.tensor.DTensor, whose import takes long


def _gathered(model: nn.Module) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
