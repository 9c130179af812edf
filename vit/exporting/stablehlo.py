"""StableHLO: one program for CPUs, CUDA and TPUs, as `jax.export` serialises it.

The file is those bytes, which `jax.export.deserialize` reads as they are, and behind them a zip archive with what is
known about the program: a reader of the one looks at the beginning, of the other at the end.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..budgets import JSON
from ..errors import CheckpointError, quoted, shown
from .formats import NAME, Artifact, Job, parse

PLATFORMS = ("cpu", "cuda", "tpu")
DIALECTS = {"builtin", "chlo", "func", "stablehlo"}
"""The first part of the names of operations."""
CALLS = {"shape_assertion"}
"""What a program may call beside them: JAX checks sizes by that."""


def write(job: Job, path: Path) -> None:
    """Write what `jax.export.export` makes of the model."""
    import jax
    import jax.export

    from ..flax.export import served, served_images
    from ..image_processing.steps import Steps

    # In float16 JAX's own attention asks for products that it has on GPUs alone.
    options = {"attn_implementation": "eager"} if job.dtype == "float16" else {}
    run = served(job.model("flax", **options), job.task, job.pool)
    batch, height, width = jax.export.symbolic_shape("batch, height, width")
    example = jax.ShapeDtypeStruct((batch, *job.image), np.float32)
    if job.images:
        run = served_images(run, Steps.of(job.processor))
        example = jax.ShapeDtypeStruct((batch, height, width, job.image[0]), np.uint8)
    program = jax.export.export(jax.jit(run), platforms=PLATFORMS)(example)
    path.write_bytes(program.serialize())
    known = {"platforms": list(PLATFORMS), "jax": jax.__version__,
             "calling_convention": program.calling_convention_version}  # fmt: skip
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(NAME, json.dumps(job.metadata(**known)))


def load(path: Path) -> Artifact:
    """Load it with `jax.export.deserialize`, which unpickles nothing, for JAX's default device.

    A program that calls functions of this process by their names, as those that run Python are, is refused.
    """
    import jax
    import jax.export

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(NAME).file_size > JSON:
                raise CheckpointError(f"{shown(path)} says more about itself than {JSON:,} bytes hold.")
            metadata = parse(archive.read(NAME), path)
    except (zipfile.BadZipFile, KeyError):
        raise CheckpointError(f"{shown(path)} does not say what it is; expected what 'vit export' wrote.") from None
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    _check(exported.mlir_module_serialized, path)
    program = jax.jit(exported.call)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        (array,) = inputs.values()
        return {name: np.asarray(value) for name, value in program(array).items()}

    return Artifact("stablehlo", path, metadata, run)


def _check(module: bytes, path: Path) -> None:
    """Refuse a program that is more than computation.

    Raises:
        CheckpointError: it is.
    """
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo
    from jax.interpreters import mlir

    others = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        name = operation.name
        if name == "stablehlo.custom_call":
            name = ir.StringAttr(operation.attributes["call_target_name"]).value
        if name not in CALLS and name.partition(".")[0] not in DIALECTS:
            others.append(name)
        return ir.WalkResult.ADVANCE

    with mlir.make_ir_context() as context:
        stablehlo.deserialize_portable_artifact(context, module).operation.walk(visit)
    if others:
        raise CheckpointError(f"{shown(path)} calls {quoted(others[0], 60)}, which no export does; it was not loaded.")
