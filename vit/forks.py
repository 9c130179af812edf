"""What was begun before this process was forked: TensorFlow and JAX wait there for threads that only the parent has.

It is imported with the package, because nothing can tell later.
"""

from __future__ import annotations

import os
import sys

from .errors import InputError

used: set[str] = set()
"""The frameworks ("tf", "flax") that a model of this package has been used of."""

_before: set[str] = set()


def check(framework: str) -> None:
    """Refuse a framework that would wait without end.

    Raises:
        InputError: TensorFlow or JAX was used before this process was forked. PyTorch can be.
    """
    if framework in _before:
        name = {"tf": "TensorFlow", "flax": "JAX"}[framework]
        raise InputError(
            f"{name} was used before this process was forked, and its threads are not in the fork, where it would wait "
            "for them without end. Start processes by 'spawn', as with multiprocessing.get_context('spawn'), or use "
            f"{name} in them alone."
        )


def _note() -> None:
    """Also of what others than this package did; where the frameworks keep that may change."""
    if getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None):
        used.add("flax")
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if getattr(context, "_initialized", False):
        used.add("tf")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note, after_in_child=lambda: _before.update(used))
