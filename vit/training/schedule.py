"""What an optimiser step depends on besides the gradients: the learning rate, each parameter's share of it, and seeds.

All three frameworks take these numbers from here, in double precision.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import NamedTuple

from ..config import PreTrainedConfig
from ..errors import ConfigError
from ..weights import is_matrix
from .recipe import Recipe

EMA_WARMUP = 10  # steps; Martin Abadi et al. 2016: TensorFlow's ExponentialMovingAverage with num_updates


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step, from 0: a line up over the warm-up, then half a cosine down.

    Args:
        recipe: its learning_rate, final_learning_rate and warmup.
        step: 0 to `steps` - 1.
        steps: of the whole run.
    """
    high, low = recipe.learning_rate, recipe.final_learning_rate
    warmup = math.ceil(recipe.warmup * steps)
    if step < warmup:
        return high * (step + 1) / warmup
    return low + (high - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def ema_decay(recipe: Recipe, step: int) -> float:
    """How much of the average of the weights a step keeps: at first less, as there is nothing in it yet."""
    return min(recipe.ema, (1 + step) / (EMA_WARMUP + step))


def seed_of(recipe: Recipe, *place: int | str) -> int:
    """A seed of its own (63 bits) for what is drawn at a place, such as a step or the name of a parameter."""
    text = "/".join(map(str, (recipe.seed, *place))).encode()
    return zlib.crc32(text) | (zlib.crc32(b"high" + text) & 0x7FFFFFFF) << 32


class Group(NamedTuple):
    """What an optimiser does with a parameter.

    Attributes:
        weight_decay: how much of itself each step takes away, times the learning rate.
        scale: its part of the learning rate.
    """

    weight_decay: float
    scale: float


def parameter_groups(config: PreTrainedConfig, head: str, recipe: Recipe) -> dict[str, Group]:
    """The parameters of a model with a head that a recipe trains, by their canonical names, and how.

    Weight decay spares all that is no matrix: biases, norms, tokens, positions, layer scale and relative position
    biases. The layer-wise decay counts as Bao et al. 2022 do: the embeddings are layer 0, the encoder's first layer is
    layer 1, and what comes after the encoder has the whole learning rate. Left out are positions that are sines and
    cosines, and the biases of keys: they change no output, so that their gradients are rounding errors alone, which
    AdamW would make as large as any.

    Raises:
        ConfigError: it trains none.
    """
    shapes = config.parameter_shapes(head=head, **config.heads[head].parts)
    last = config.num_hidden_layers + 1
    if recipe.freeze_layers > config.num_hidden_layers:
        raise ConfigError(f"freeze_layers is {recipe.freeze_layers}; the encoder has {config.num_hidden_layers}.")
    groups = {}
    for name in shapes:
        layer = _layer_of(name, config)
        in_head = not name.startswith(f"{config.base_model_prefix}.")
        frozen = recipe.freeze_layers > 0 and layer <= recipe.freeze_layers
        if frozen or (recipe.freeze_backbone and not in_head) or _is_inert(name, config):
            continue
        decay = recipe.weight_decay if is_matrix(name) else 0.0
        groups[name] = Group(decay, recipe.layer_decay ** (last - layer))
    if not groups:
        raise ConfigError("The recipe trains nothing: the model has no head, and freeze_backbone is set.")
    return groups


def _layer_of(name: str, config: PreTrainedConfig) -> int:
    base = config.base_model_prefix
    if name.startswith(f"{base}.embeddings."):
        return 0
    match = re.match(rf"{re.escape(f'{base}.{config.layers}')}\.(\d+)\.", name)
    return int(match[1]) + 1 if match else config.num_hidden_layers + 1


def _is_inert(name: str, config: PreTrainedConfig) -> bool:
    """Whether training leaves a parameter as it is: the biases of keys, and positions that are computed."""
    if name.endswith(".attention.key.bias"):
        return True
    return name.endswith(config.grid_parameters) and hasattr(config.initial_value(name), "shape")  # an array
