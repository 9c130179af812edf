"""`vit inspect`: what a checkpoint is, without loading a framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import shown
from .options import DecoderHeads, Heads, Json, Quiet

if TYPE_CHECKING:
    from conversion import Inspection


def command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint: a file or a folder, of any format.")],
    source_format: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help="auto, or as in vit convert.")
    ] = "auto",
    num_attention_heads: Heads = None,
    decoder_num_attention_heads: DecoderHeads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Say what a checkpoint is.

    Its format, size, head, labels and dtype, and whether it is whole; no framework is loaded. The exit status is 1
    when it is not whole, or not a plain Vision Transformer.
    """
    import conversion

    heads = {"num_attention_heads": num_attention_heads, "decoder_num_attention_heads": decoder_num_attention_heads}
    found = conversion.inspect(path, source_format, **heads)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    elif not quiet:
        for name, value in rows(found).items():
            typer.echo(f"{name:<13} {shown(value, 2000)}")
    return 0 if found.whole else 1


def rows(found: Inspection) -> dict[str, str]:
    """What is printed, a line each."""
    sizes = {"path": str(found.path), "size": _bytes(found.size)}
    if found.config is None:
        return {**sizes, "problem": found.problem}
    config = found.config
    labels = list((config.id2label or {}).values())
    some = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
    heads = {"ForImageClassification": f"{config.num_labels} labels: {some}", "ForPreTraining": "pixels (pre-training)",
             "ForMaskedImageModeling": f"{'visual tokens' if 'vocab_size' in vars(config) else 'pixels'} (masked image "
                                       "modelling)"}  # fmt: skip
    head = next((text for task, text in heads.items() if task in found.architecture), "none")
    return {
        **sizes,
        "format": found.format,
        "architecture": f"{found.architecture} {found.variant}",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads, MLP "
                  f"{config.intermediate_size}, {config.hidden_act}, LayerNorm epsilon {config.layer_norm_eps:g}",
        "parameters": f"{found.parameters:,} in {found.tensors} tensors",
        "dtype": ", ".join(found.dtypes),
        "head": head,
        **({"assumed": "; ".join(found.said)} if found.said else {}),
        **({"left out": f"{len(found.ignored)} tensors or values"} if found.ignored else {}),
        **({"whole": "yes"} if found.whole else {"problem": found.problem}),
    }  # fmt: skip


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
