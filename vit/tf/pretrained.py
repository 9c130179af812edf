"""What every Keras model inherits: from_pretrained, save_pretrained, and training with its own loss."""

from __future__ import annotations

import os
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, ClassVar, Self

import keras
import numpy as np
import optree
import tensorflow as tf

from .. import checkpoint, weights
from ..config import PreTrainedConfig, check_config, to_pair
from ..errors import ConfigError, InputError, quoted, warn
from ..inputs import check_arrays
from ..keywords import loading_keywords, saving_keywords
from ..loading import plan
from ..names import ModelNames
from ..outputs import ModelOutput, flatten, unflatten
from .fit import TENSORS, FittedModel, split_flags
from .saving import parameters


def _flatten(output: Any) -> Any:
    return *flatten(output), tuple(output)  # values, names, and the names again as the paths of the values


optree.register_pytree_node(ModelOutput, _flatten, unflatten, namespace="keras")  # type: ignore[arg-type]
InputError.ag_pass_through = True  # type: ignore[attr-defined]  # tf.function then raises it as it is
InputError._keras_call_info_injected = True  # type: ignore[attr-defined]  # Keras then adds no lines of its own


class TFPreTrainedModel(ModelNames, FittedModel):
    """A model with a configuration, whose layers form the tree that the published parameter names spell."""

    config_class: ClassVar[type[PreTrainedConfig]]
    head: ClassVar[str | None] = None  # the key of the class in the configuration's `heads`

    def __init__(self, config: PreTrainedConfig, build: bool = True, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # labels and pixels keep their dtype; `call` casts what it computes
        check_config(config)
        self.config = config
        config.mark_in_use()
        self.options = {"dtype": self.dtype_policy}
        self._build_now = build
        self._traced: dict[str, int] = {}  # function -> hash of the configuration it was traced under

    def __dir__(self) -> list[str]:
        # Keras saves what dir names: the model without its head must not be found twice, nor as a part of itself.
        return [name for name in super().__dir__() if name != "base_model"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" and name in self.__dict__:  # what is assigned holds for the layers inside
            old = self.config
            old.check_assignable(value)
            value.mark_in_use()
            for layer in self._flatten_layers(include_self=False):
                if layer.__dict__.get("config") is old:
                    layer.config = value
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self._call_signature.parameters, args, strict=False)), **dict(self.flags), **kwargs}
        inputs, flags = given.get("pixel_values"), dict(self.flags)
        if isinstance(inputs, dict):
            inputs, own = split_flags(inputs)
            flags |= own
            args, kwargs = (inputs,), {**flags, **{name: v for name, v in given.items() if name != "pixel_values"}}
            given = {**kwargs, **inputs} if "pixel_values" in inputs else {}  # `unpack` says what it lacks
        elif self.flags:
            args, kwargs = (inputs,), {name: v for name, v in given.items() if name != "pixel_values"}
        known = self._call_signature.parameters
        if unknown := flags.keys() - known:
            names = ", ".join(sorted(unknown))
            raise InputError(
                f"Unknown inputs: {names}; expected {', '.join(each for each in known if each != 'self')}."
            )
        check_arrays(**{name: given[name] for name in TENSORS if name in given})
        return super().__call__(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().compute_output_spec(*args, **kwargs)
        except InputError as error:  # Keras writes its own lines around it
            while isinstance(error.__context__, InputError):
                error = error.__context__
            raise error from None

    @property
    def base_options(self) -> dict[str, Any]:
        """The arguments, besides the configuration, of the base model under a head."""
        parts = self.config.heads[self.head].parts
        return {**parts, "build": False, "name": self.config.base_model_prefix, **self.options}

    def maybe_build(self) -> None:
        """Create the weights, whose shapes the configuration tells, unless the model was made with `build=False`."""
        if self._build_now:
            self.build((None, self.config.num_channels, *to_pair(self.config.image_size)))

    def unpack(self, inputs: dict[str, Any], **known: Any) -> list[Any]:
        """`pixel_values` and the `known` tensors of a call, from the dict that came as its first argument."""
        if unknown := inputs.keys() - {"pixel_values", *known}:
            raise InputError(
                f"Unknown inputs: {', '.join(sorted(unknown))}; expected {', '.join(['pixel_values', *known])}."
            )
        if "pixel_values" not in inputs:
            raise InputError(f"The inputs {', '.join(sorted(inputs))} lack pixel_values.")
        return [inputs["pixel_values"], *(inputs.get(name, value) for name, value in known.items())]

    framework = "tf"

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers its weights hold.

        Args:
            only_trainable: those that are trained.
            exclude_embeddings: changes nothing, as for any model of images: there is no vocabulary.
        """
        return sum(int(np.prod(each.shape)) for each in (self.trainable_weights if only_trainable else self.weights))

    @property
    def dummy_inputs(self) -> dict[str, tf.Tensor]:
        """What the model can be called with: one black image."""
        return {"pixel_values": tf.zeros((1, self.config.num_channels, *to_pair(self.config.image_size)))}

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each encoder layer in the backward pass of training, instead of keeping its activations."""
        self._stack().gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self._stack().gradient_checkpointing = False

    def _base(self) -> Any:
        return self if self.head is None else getattr(self, self.config.base_model_prefix)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "config": self.config.to_dict(), **self.parts()}
        config.pop("autocast", None)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        return cls(**{**config, "config": cls.config_class.from_dict(config["config"])})

    # === Checkpoints ===

    def export(self, filepath: str | os.PathLike[str], *args: Any, input_signature: Any = None, **kwargs: Any) -> None:
        """As keras.Model.export; the signature is `pixel_values` of any batch size, unless another is given."""
        if input_signature is None:
            shape = (None, self.config.num_channels, *to_pair(self.config.image_size))
            input_signature = [keras.InputSpec(dtype="float32", shape=shape, name="pixel_values")]
        super().export(filepath, *args, input_signature=input_signature, **kwargs)

    def parts(self) -> dict[str, bool]:
        """The optional parts of a base model: which of them it has."""
        return {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: Any = None,
        attn_implementation: str | None = None,
        device: str | None = None,
        ignore_mismatched_sizes: bool = False,
        **config_overrides: Any,
    ) -> Any:
        """Load a checkpoint.

        Args:
            pretrained_model_name_or_path: a checkpoint folder, or the name of a model on the hub.
            dtype: of the parameters and the computation, or a policy such as "mixed_bfloat16"; None for the
                checkpoint's, computed as Keras's global policy says where that has the same parameters.
            attn_implementation: "sdpa" or "eager", which TensorFlow computes alike; None for the configuration's.
            device: such as "CPU:0" or "GPU:0"; None for TensorFlow's default device.
            ignore_mismatched_sizes: let mis-shaped parameters start fresh, with a warning.
            **config_overrides: any key of the configuration (another number of labels gives a fresh head, another
                image_size resamples the position embeddings), the other arguments of a model without a head, such as
                `add_pooling_layer`, and `revision`, `token`, `cache_dir` and `local_files_only` of the hub.
                transformers' other keywords are taken, too: `torch_dtype`, `config`, `device_map` to one device, and
                `output_loading_info`, with which (model, information) is returned.

        Raises:
            CheckpointError: no checkpoint there, a broken one, or one that does not fit.
            ConfigError: impossible values in its config.json or the overrides.
            InputError: a device that is not there.
        """
        dtype, device, with_info = loading_keywords(config_overrides, dtype, device)
        policy = _policy(dtype, config_overrides.pop("param_dtype", None))
        fit = plan(
            pretrained_model_name_or_path,
            cls.head,
            policy and policy.variable_dtype,
            attn_implementation,
            ignore_mismatched_sizes,
            cls.config_class,
            **config_overrides,
        )
        if policy is None:
            policy = keras.config.dtype_policy()
            if policy.variable_dtype != fit.dtype.name:
                policy = keras.dtype_policies.get(fit.dtype.name)
        # A caller's own device stands.
        with nullcontext() if device is None else tf.device(_device(device)), checkpoint.garbage_uncollected():
            arrays = fit.start_reading("tf")
            model = cls(fit.config, **fit.model_options, dtype=policy, build=False)
            # Each weight is created with the checkpoint's value: no random one is made first, nor a second copy.
            given = {name: model._owner(name) for name in fit.stored}
            initializers = {name: getattr(layer, f"{leaf}_initializer") for name, (layer, leaf) in given.items()}
            for name, (layer, leaf) in given.items():
                setattr(layer, f"{leaf}_initializer", _Stored(arrays[name]))
            model._build_now = True
            model.maybe_build()
            for name, (layer, leaf) in given.items():
                setattr(layer, f"{leaf}_initializer", initializers[name])
        if message := fit.warning():
            warn(message)
        return (model, fit.loading_info()) if with_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        saved_model: bool = False,
        *,
        max_shard_size: int | str = "5GB",
        is_main_process: bool = True,
        push_to_hub: bool = False,
        dequantize: bool = False,
        **keywords: Any,
    ) -> None:
        """Write config.json and model.safetensors (or shards of at most `max_shard_size`) into a folder.

        The old files stay whole until the new ones are complete. transformers and the other frameworks read the result.

        Args:
            save_directory: the folder, made if needed.
            saved_model: False; `export` writes a SavedModel.
            max_shard_size: bytes, or a number with KB, MB or GB.
            is_main_process: False in the processes that are to write nothing.
            push_to_hub: whether to upload it as well, as `push_to_hub` does, to `repo_id` or the folder's name.
            dequantize: write the weights that those quantised to int8 and int4 stand for, instead of refusing them.
            **keywords: those of `push_to_hub`; and transformers' others, which change nothing or are refused.

        Raises:
            InputError: a keyword that cannot be honoured.
        """
        options = saving_keywords({**keywords, "saved_model": saved_model})
        if not is_main_process:
            return
        shapes = self.config.parameter_shapes(head=self.head, **self._base().parts())
        found = parameters(self, dequantize)
        dtype = checkpoint.dtype_of(self.variable_dtype)
        stored = {self.config.model_name(name, self.head): name for name in shapes}
        checkpoint.write(
            save_directory,
            self.config.replace(architectures=(type(self).__name__.removeprefix("TF"),), dtype=dtype.name),
            {name: (shapes[full], dtype) for name, full in stored.items()},
            lambda name: weights.from_local(
                name, np.asarray(found[name].numpy()), shapes[stored[name]], "tf"),
            max_shard_size,
        )  # fmt: skip
        if push_to_hub:
            self._push(save_directory, options)

    def _parameter(self, name: str) -> keras.Variable:
        """The variable of a canonical parameter."""
        return getattr(*self._owner(name))

    def _owner(self, name: str) -> tuple[keras.layers.Layer, str]:
        """The layer that holds a canonical parameter, and the attribute it holds it in."""
        node: Any = self
        *path, leaf = weights.local_name(self.config.model_name(name, self.head), "tf").split(".")
        for part in path:
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        return node, leaf


class _Stored(keras.initializers.Initializer):
    """The initial value that a checkpoint gives."""

    def __init__(self, array: Future[np.ndarray]) -> None:
        self.array = array

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        array = self.array.result()
        if array.dtype.name == "bfloat16":  # NumPy hands it to no one
            return tf.convert_to_tensor(array)
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())  # takes the memory over, without a copy


def _policy(dtype: Any, param_dtype: Any = None) -> Any:
    if param_dtype is not None and dtype is not None:
        names = tuple(checkpoint.dtype_of(each).name for each in (dtype, param_dtype))
        if names[0] != names[1] and names not in (("bfloat16", "float32"), ("float16", "float32")):
            raise ConfigError(
                f"Keras has no policy that computes in {names[0]} with parameters in {names[1]}; there are "
                "'mixed_bfloat16' and 'mixed_float16'."
            )
        dtype = names[0] if names[0] == names[1] else f"mixed_{names[0]}"
    dtype = param_dtype if dtype is None else dtype
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    if isinstance(dtype, keras.DTypePolicy) or (isinstance(dtype, str) and dtype.startswith("mixed_")):
        return keras.dtype_policies.get(dtype)
    return keras.dtype_policies.get(checkpoint.dtype_of(dtype).name)


def _device(device: str) -> str:
    known = [logical.name.removeprefix("/device:") for logical in tf.config.list_logical_devices()]
    name = str(device).upper().removeprefix("/").removeprefix("DEVICE:")
    name = name if ":" in name else f"{name}:0"
    if name not in known:
        raise InputError(f"device is {quoted(device)}; TensorFlow sees {', '.join(known)}.")
    return name
