"""One way in for every family: the class that reads a checkpoint is chosen by the model_type of its config.json.

No framework is imported until a model is made.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

from . import families, hub
from .config import PreTrainedConfig, check_config
from .errors import CheckpointError

TASKS = {
    "": "Model",
    "ForImageClassification": "ModelForImageClassification",
    "ForMaskedImageModeling": "ModelForMaskedImageModeling",
    "ForPreTraining": "ModelForPreTraining",
}
"""What follows the family in the name of a class -> what follows Auto in that of the class that chooses it."""


class AutoConfig:
    """The configuration of a checkpoint of any family."""

    def __init__(self) -> None:
        raise TypeError("AutoConfig has no instances; use AutoConfig.from_pretrained or AutoConfig.for_model.")

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read the configuration of a checkpoint, as the family's own class does.

        Args:
            name_or_folder: a checkpoint folder, or the name of a model on the hub.
            **kwargs: as those of `ViTConfig.from_pretrained`.

        Raises:
            CheckpointError: no config.json there, or one that is no JSON.
            ConfigError: impossible values, or those of no family here; the file is named.
        """
        return PreTrainedConfig.from_pretrained(name_or_folder, **kwargs)

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> Any:
        """The configuration of a model_type with some values, such as `for_model("beit", image_size=384)`.

        Raises:
            ConfigError: no family has the model_type, an unknown key, or an impossible value.
        """
        return families.config_class(model_type)().replace(**values)


class _AutoModel:
    """What the classes that choose a model share."""

    framework: ClassVar[str]
    task: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        raise TypeError(f"{cls.__name__} has no instances; use {cls.__name__}.from_pretrained or .from_config.")

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **options: Any) -> Any:
        """Load a checkpoint of any family, with the family's class for the task.

        Args:
            name_or_folder: a checkpoint folder, or the name of a model on the hub.
            **options: as those of `from_pretrained` of that class.

        Raises:
            CheckpointError: no checkpoint there, a broken one, or one of a family that has no such class.
            ConfigError: impossible values in its config.json or the options, or a model_type of no family here.
            ImportError: the framework is not installed.
        """
        config = options.get("config")
        if not isinstance(config, PreTrainedConfig):
            path = os.path.expanduser(name_or_folder)
            source = os.path.dirname(os.path.abspath(path)) if os.path.isfile(path) else name_or_folder
            source = config if isinstance(config, str | os.PathLike) else source
            config = PreTrainedConfig.from_pretrained(source, **hub.split_options(options)[0])
        return cls._class_of(config, os.fspath(name_or_folder)).from_pretrained(name_or_folder, **options)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **options: Any) -> Any:
        """Make a model with fresh weights from a configuration of any family.

        Args:
            config: its shape.
            **options: as the class takes them, such as `rngs` in Flax.

        Raises:
            CheckpointError: a configuration of a family that has no such class.
            ConfigError: no configuration.
            ImportError: the framework is not installed.
        """
        check_config(config)
        return cls._class_of(config, f"The {type(config).__name__}")(config, **options)

    @classmethod
    def _class_of(cls, config: PreTrainedConfig, what: str) -> Any:
        heads = families.heads_for(config, cls.task)
        if not heads:
            known = [
                f"{families.PREFIXES[cls.framework]}Auto{name}"
                for task, name in TASKS.items()
                if families.heads_for(config, task)
            ]
            raise CheckpointError(
                f"{what} is of model_type {config.model_type!r}, which has "
                f"{', '.join(each.name for each in config.heads.values())} only: take {' or '.join(known)}."
            )
        return families.model_class(cls.framework, config.model_type, heads[0])


class AutoModel(_AutoModel):
    """A model without a head of any family, in PyTorch."""

    framework = "pt"


class AutoModelForImageClassification(AutoModel):
    """A classifier of any family that has one, in PyTorch."""

    task = "ForImageClassification"


class AutoModelForMaskedImageModeling(AutoModel):
    """A masked image model of any family that has one, in PyTorch."""

    task = "ForMaskedImageModeling"


class AutoModelForPreTraining(AutoModel):
    """A masked autoencoder with its decoder, in PyTorch."""

    task = "ForPreTraining"


class TFAutoModel(_AutoModel):
    """A model without a head of any family, in TensorFlow."""

    framework = "tf"


class TFAutoModelForImageClassification(TFAutoModel):
    """A classifier of any family that has one, in TensorFlow."""

    task = "ForImageClassification"


class TFAutoModelForMaskedImageModeling(TFAutoModel):
    """A masked image model of any family that has one, in TensorFlow."""

    task = "ForMaskedImageModeling"


class TFAutoModelForPreTraining(TFAutoModel):
    """A masked autoencoder with its decoder, in TensorFlow."""

    task = "ForPreTraining"


class FlaxAutoModel(_AutoModel):
    """A model without a head of any family, in Flax."""

    framework = "flax"


class FlaxAutoModelForImageClassification(FlaxAutoModel):
    """A classifier of any family that has one, in Flax."""

    task = "ForImageClassification"


class FlaxAutoModelForMaskedImageModeling(FlaxAutoModel):
    """A masked image model of any family that has one, in Flax."""

    task = "ForMaskedImageModeling"


class FlaxAutoModelForPreTraining(FlaxAutoModel):
    """A masked autoencoder with its decoder, in Flax."""

    task = "ForPreTraining"
