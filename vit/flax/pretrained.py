"""What every Flax model inherits: from_pretrained and save_pretrained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import graphlib
from jax.typing import DTypeLike

from .. import checkpoint, weights
from ..config import PreTrainedConfig, check_config
from ..errors import InputError, quoted, warn
from ..keywords import loading_keywords, saving_keywords
from ..loading import plan
from ..names import ModelNames
from ..outputs import ModelOutput, flatten, unflatten
from .saving import parameters

jax.tree_util.register_pytree_with_keys(
    ModelOutput,
    lambda output: (tuple((jax.tree_util.DictKey(name), output[name]) for name in output), tuple(output)),
    unflatten,
    flatten,
)
jax.export.register_pytree_node_serialization(
    ModelOutput,
    serialized_name="vit.ModelOutput",
    serialize_auxdata=lambda names: json.dumps(names).encode(),
    deserialize_auxdata=lambda names: tuple(json.loads(names)),
)


class Fixed(nnx.Variable):
    """What a checkpoint holds and training leaves as it is."""


@cache
def register_config(cls: type[PreTrainedConfig]) -> None:
    """Make a configuration a node of NNX's graphs and JAX's trees, without leaves, that holds a snapshot of its values.

    A model's modules share it, and it may be assigned to. As a static attribute, it would change inside the keys under
    which JAX keeps what it compiled for its old values.
    """

    def init(config: Any, attributes: Any) -> None:
        ((_, snapshot),) = attributes
        config.__dict__ = snapshot.restored().__dict__

    graphlib.register_graph_node_type(
        cls,
        flatten=lambda config: ([("values", graphlib.StaticElem(config.snapshot()))], type(config)),
        set_key=lambda config, _, snapshot: init(config, [("values", snapshot)]),
        pop_key=lambda config, _: config.snapshot(),
        create_empty=lambda kind: kind.__new__(kind),
        clear=lambda config: None,  # `init` follows
        init=init,
    )
    jax.tree_util.register_pytree_node(
        cls, lambda config: ((), config.snapshot()), lambda snapshot, _: snapshot.restored()
    )


class FlaxPreTrainedModel(ModelNames, nnx.Module):
    """A model with a configuration, whose modules form the tree that the published parameter names spell."""

    config_class: ClassVar[type[PreTrainedConfig]]
    head: ClassVar[str | None] = None  # the key of the class in the configuration's `heads`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" in vars(cls):
            register_config(cls.config_class)

    def __init__(self, config: PreTrainedConfig, dtype: DTypeLike) -> None:
        check_config(config)
        self.config = config
        config.mark_in_use()
        self.dtype = jnp.dtype(dtype)  # of the computation

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" and name in vars(self):  # what is assigned holds for the modules inside
            old = self.config
            old.check_assignable(value)
            value.mark_in_use()
            for _, module in nnx.iter_modules(self):
                if module is not self and vars(module).get("config") is old:
                    module.config = value
        elif name == "dtype" and name in vars(self):
            value = jnp.dtype(value)
            for _, module in nnx.iter_modules(self):
                if module is not self and "dtype" in vars(module):
                    module.dtype = value
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.config.mark_in_use()  # of a copy, that of a model, too

    framework = "flax"

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers its parameters hold.

        Args:
            only_trainable: those that are trained, nnx.Param.
            exclude_embeddings: changes nothing, as for any model of images: there is no vocabulary.
        """
        kinds = (nnx.Param,) if only_trainable else (nnx.Param, Fixed)
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self, nnx.Any(*kinds))))

    def enable_gradient_checkpointing(self) -> None:
        """`gradient_checkpointing_enable`, by the name of transformers' Flax models."""
        self.gradient_checkpointing_enable()

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each encoder layer in the backward pass, instead of keeping its activations (`nnx.remat`)."""
        self._stack().gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self._stack().gradient_checkpointing = False

    def _base(self) -> Any:
        return self if self.head is None else getattr(self, self.config.base_model_prefix)

    def parts(self) -> dict[str, bool]:
        """The optional parts of a base model: which of them it has."""
        return {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: DTypeLike | None = None,
        *,
        param_dtype: DTypeLike | None = None,
        attn_implementation: str | None = None,
        device: jax.Device | jax.sharding.Sharding | str | None = None,
        ignore_mismatched_sizes: bool = False,
        **config_overrides: Any,
    ) -> Any:
        """Load a checkpoint, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a checkpoint folder, or the name of a model on the hub.
            dtype: of the parameters and the computation; None for the checkpoint's.
            param_dtype: of the parameters, where `dtype` is to be that of the computation alone.
            attn_implementation: "sdpa" or "eager"; None for the configuration's.
            device: a device, a sharding, or a name such as "cpu" or "gpu:1"; None for JAX's default device.
            ignore_mismatched_sizes: let mis-shaped parameters start fresh, with a warning.
            **config_overrides: any key of the configuration (another number of labels gives a fresh head, another
                image_size resamples the position embeddings), the other arguments of a model without a head, such as
                `add_pooling_layer`, and `revision`, `token`, `cache_dir` and `local_files_only` of the hub.
                transformers' other keywords are taken, too: `torch_dtype`, `config`, `device_map` to one device, and
                `output_loading_info`, with which (model, information) is returned.

        Raises:
            CheckpointError: no checkpoint there, a broken one, or one that does not fit.
            ConfigError: impossible values in its config.json or the overrides.
            InputError: float64 while JAX has it switched off, or a device that is not there.
        """
        dtype, device, with_info = loading_keywords(config_overrides, dtype, device)
        fit = plan(
            pretrained_model_name_or_path,
            cls.head,
            dtype if param_dtype is None else param_dtype,
            attn_implementation,
            ignore_mismatched_sizes,
            cls.config_class,
            **config_overrides,
        )
        if jax.dtypes.canonicalize_dtype(fit.dtype) != fit.dtype:
            raise InputError(
                f"dtype is {fit.dtype.name}, which JAX has off: call jax.config.update('jax_enable_x64', True) "
                "first, or pass dtype='float32'."
            )
        device = _device(device)
        arrays = fit.start_reading("flax")
        build: Any = cls
        computed = None if param_dtype is None or dtype is None else checkpoint.dtype_of(dtype)
        options = {**fit.model_options, "dtype": computed, "param_dtype": fit.dtype, "rngs": _NoKeys()}
        with checkpoint.garbage_uncollected():
            # No array is made, and, what would take longer, no random one traced.
            model = nnx.eval_shape(lambda: build(fit.config, **options))
            rngs = nnx.Rngs(0) if fit.fresh else None
            for name in (*fit.stored, *fit.fresh):
                variable = model._parameter(name)
                if name in fit.stored:
                    array = arrays.pop(name).result()
                else:
                    array = _initialise(name, variable.get_value().shape, fit.dtype, rngs, fit.config)
                variable.set_value(jax.device_put(array, device))
        if message := fit.warning():
            warn(message)
        model.eval()
        return (model, fit.loading_info()) if with_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        params: nnx.State | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        *,
        is_main_process: bool = True,
        **keywords: Any,
    ) -> None:
        """Write config.json and model.safetensors (or shards of at most `max_shard_size`) into a folder.

        The old files stay whole until the new ones are complete. transformers and the other frameworks read the result.

        Args:
            save_directory: the folder, made if needed.
            params: another state of the model to save, such as `nnx.state(model, nnx.Param)`; None for its own.
            push_to_hub: whether to upload it as well, as `push_to_hub` does, to `repo_id` or the folder's name.
            max_shard_size: bytes, or a number with KB, MB or GB.
            is_main_process: False in the processes that are to write nothing.
            **keywords: those of `push_to_hub`; and transformers' others, which change nothing or are refused.

        Raises:
            InputError: a keyword that cannot be honoured.
        """
        options = saving_keywords(keywords)
        if not is_main_process:
            return
        if params is not None:
            if not isinstance(params, Mapping):
                raise InputError(f"params is {quoted(params)}; expected nnx.state(model), or None for the model's own.")
            graphdef, own = nnx.split(self)
            held, given = dict(nnx.to_flat_state(own)), dict(nnx.to_flat_state(nnx.State(params)))
            if not given:
                raise InputError("params holds nothing; expected nnx.state(model), or None for the model's own.")
            if odd := [".".join(map(str, path)) for path in given if path not in held]:
                raise InputError(f"params has what the model has not: {', '.join(odd[:8])}; expected nnx.state(model).")
            other = nnx.merge(graphdef, nnx.from_flat_state({**held, **given}))
            options |= {"max_shard_size": max_shard_size, "push_to_hub": push_to_hub}
            return other.save_pretrained(save_directory, **options)
        shapes = self.config.parameter_shapes(head=self.head, **self._base().parts())
        found = parameters(self)
        dtype = np.dtype(self._base().embeddings.cls_token.dtype)
        stored = {self.config.model_name(name, self.head): name for name in shapes}
        checkpoint.write(
            save_directory,
            self.config.replace(architectures=(type(self).__name__.removeprefix("Flax"),), dtype=dtype.name),
            {name: (shapes[full], dtype) for name, full in stored.items()},
            lambda name: weights.from_local(
                name, np.asarray(found[name]), shapes[stored[name]], "flax"),
            max_shard_size,
        )  # fmt: skip
        if push_to_hub:
            self._push(save_directory, options)

    def _parameter(self, name: str) -> nnx.Variable:
        """The variable of a canonical parameter."""
        node: Any = self
        for part in weights.local_name(self.config.model_name(name, self.head), "flax").split("."):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        return node


class _NoKeys:
    """In the place of `nnx.Rngs` where nothing is to be drawn."""

    def params(self) -> None:
        return None


def _initialise(name: str, shape: tuple[int, ...], dtype: np.dtype, rngs: Any, config: PreTrainedConfig) -> jax.Array:
    value = config.initial_value(name)
    if value is None:
        return jax.nn.initializers.truncated_normal(config.initializer_range)(rngs.params(), shape, dtype)
    if isinstance(value, str):  # "xavier_uniform"
        return jax.nn.initializers.glorot_uniform()(rngs.params(), shape, dtype)
    return jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def _device(device: Any) -> Any:
    if not isinstance(device, str):
        return device
    platform, _, index = device.lower().partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError):
        known = ", ".join(f"{d.platform}:{d.id}" for d in jax.devices())
        raise InputError(f"device is {quoted(device)}; JAX sees {known}.") from None
