"""`vit embed`: a vector for each image, few or millions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import batch
from .options import (
    BatchSize,
    CacheDir,
    Device,
    DType,
    Force,
    Framework,
    Images,
    Json,
    Model,
    Quiet,
    Resume,
    Revision,
    Strict,
    Token,
    Workers,
)

SUFFIXES = (".npy", ".parquet")


def command(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .npy file, with .jsonl beside it, or .parquet.")
    ],
    pool: Annotated[
        str, typer.Option(metavar="cls|mean|pooler|patches", help="The vector: CLS token, mean of patches, ...")
    ] = "cls",
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Framework = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    resume: Resume = False,
    force: Force = False,
    strict: Strict = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Turn images into vectors.

    Row i of a .npy file belongs to line i of the .jsonl file beside it, NaN where an image cannot be read. The rows are
    written while the run goes on. The exit status is 1 when there are such images; --resume continues a stopped run.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    return batch.run(
        images, "embed", {"pool": pool}, model=model, hub=hub, framework=framework, device=device, dtype=dtype,
        batch_size=batch_size, workers=workers, output=output, suffixes=SUFFIXES, resume=resume, force=force,
        strict=strict, as_json=as_json, quiet=quiet,
    )  # fmt: skip
