"""The processes that train one model together: who they are, as their launcher says, and what they tell each other.

Each sees its part of every batch, all of them take the same steps, and the first alone writes the run folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError, quoted


class Processes:
    """Processes that train together; this one alone, unless those of a framework say otherwise.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        devices: of each process, which share its part of a batch.
    """

    devices = 1

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, array: np.ndarray) -> np.ndarray:
        """(size, *shape): the array of every process, of one shape, and of int32 or floats. All of them call it."""
        return array[None]

    def told(self, value: Any) -> list[Any]:
        """What every process says, which JSON can hold. All of them call it."""
        if self.size == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
        lengths = self.gather(np.array([len(text)], np.int32))[:, 0]
        padded = np.zeros(lengths.max(), np.int32)
        padded[: len(text)] = text
        return [json.loads(bytes(each[:n].tolist())) for each, n in zip(self.gather(padded), lengths, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so. All of them call it."""
        return flag if self.size == 1 else bool(self.gather(np.array([flag], np.int32)).any())

    def by_first(self, function: Callable[[], object]) -> None:
        """Let the first process do something and wait until it is done; where it fails, all do. All of them call it.

        Raises:
            InputError: it failed in the first process, whose own error it is there.
        """
        failed = None
        if self.is_first:
            try:
                function()
            except BaseException as error:
                failed = error
        said = self.told(None if failed is None else str(failed) or type(failed).__name__)[0]
        if failed is not None:
            raise failed
        if said is not None:
            raise InputError(said)


ALONE = Processes()


# === What a launcher says ===


def _of_torchrun(environment: Mapping[str, str]) -> tuple[int, int]:
    return int(environment["RANK"]), int(environment["WORLD_SIZE"])


def _of_tf_config(environment: Mapping[str, str]) -> tuple[int, int]:
    config = json.loads(environment["TF_CONFIG"])
    cluster, task = config["cluster"], config["task"]
    places = [(kind, i) for kind in ("chief", "worker") for i in range(len(cluster.get(kind, ())))]
    return places.index((task["type"], int(task["index"]))), len(places)


def _of_jax(environment: Mapping[str, str]) -> tuple[int, int]:
    return int(environment["JAX_PROCESS_ID"]), int(environment["JAX_NUM_PROCESSES"])


LAUNCHED: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, str]], tuple[int, int]]]] = {
    "pt": (("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), _of_torchrun),
    "tf": (("TF_CONFIG",), _of_tf_config),
    "flax": (("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), _of_jax),
}
"""Framework -> the variables that say which process this is, the first of which none lacks; and how they say it."""


def place(framework: str) -> tuple[int, int]:
    """(rank, size) of this process, of those that were launched to train together in a framework.

    Raises:
        ConfigError: the launcher's variables say nothing that makes sense.
    """
    names, read = LAUNCHED[framework]
    if names[0] not in os.environ:
        return 0, 1
    try:
        rank, size = read(os.environ)
        if not 0 <= rank < size or any(name not in os.environ for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        said = ", ".join(f"{name}={quoted(os.environ[name])}" for name in names if name in os.environ)
        raise ConfigError(
            f"{said}: expected {', '.join(names)}, as a launcher of several processes sets them."
        ) from None
    return rank, size
