"""Forward passes of every family: `python -m benchmarks families`.

In PyTorch beside transformers' class of the same checkpoint; in TensorFlow and Flax, where transformers has few of
them, beside trivit's own ViT of as many tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vit import checkpoint, families
from vit.measure import Worker, WorkerError

from .harness import Options, process, random_checkpoint, ratio, say, table, take_turns, turn
from .peers import PEERS, Peer, Runner, images

EXPLANATION = """Images a second, in float32. PyTorch runs eagerly under `inference_mode`, TensorFlow under
`tf.function`, Flax under `jax.jit`. Beside PyTorch stands its speed over transformers', with the same checkpoint, whose
outputs are compared first; beside TensorFlow and Flax their time over that of trivit's own ViT of as many tokens (of
one less than DeiT, of the registers less than with those). Heads that a ViT has not, a masked autoencoder's decoder and
BEiT's visual tokens, are measured in PyTorch alone; the encoder of the former sees 49 of 196 patches. DINOv2 has the
positions of images of 518 x 518, as published, and gets images of 224 x 224."""


class Row(NamedTuple):
    """A family's model.

    Attributes:
        head: of the class that is measured in PyTorch; and in the other frameworks, unless `encoder` says otherwise.
        size: of the checkpoint's images.
        image: of the images that it gets.
        encoder: whether the others run the base model.
        beside: the image size of the ViT that has as many tokens.
    """

    model_type: str
    head: str | None
    patch: int = 16
    size: int = 224
    image: int = 224
    encoder: bool = False
    beside: int = 224
    options: tuple[tuple[str, Any], ...] = ()


ROWS = (
    Row("deit", "teacher"),
    Row("beit", "classifier", options=(("use_relative_position_bias", True),)),
    Row(
        "beit", "lm_head", encoder=True, options=(("use_shared_relative_position_bias", True), ("use_mask_token", True))
    ),
    Row("vit_mae", "decoder", encoder=True, beside=112),
    Row("dinov2", "classifier", patch=14, size=518),
    Row("dinov2_with_registers", "classifier", patch=14, size=518),
    Row("dinov3_vit", None),
)
"""One for each family at least; the second of BEiT has one table for all layers."""

TOLERANCE = 1e-3
"""How far outputs may be apart, as a share of the largest."""


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    batch_sizes = sorted(options.batch_sizes or (1, 8))
    seconds = options.seconds or (1.0 if options.quick else 10.0)
    frameworks = options.frameworks or tuple(families.PREFIXES)
    lines: list[list[object]] = []
    for row in ROWS:
        for framework in frameworks:
            cells = [cell for size in batch_sizes for cell in measure(options, row, framework, size, seconds)]
            if any(cells):
                lines.append([title(row), names(framework), *cells])
    header = ["", "in", *(name for size in batch_sizes for name in (f"batch {size}", "beside"))]
    return "\n\n".join(["## Families", EXPLANATION, table(header, lines)])


def title(row: Row) -> str:
    """What tables call it."""
    return f"{row.model_type}, {row.head or 'base'}"


def names(framework: str) -> str:
    """A framework, with what it is compared with."""
    return {"pt": "PyTorch: speed over transformers'", "tf": "TensorFlow: time over ViT's",
            "flax": "Flax: time over ViT's"}[framework]  # fmt: skip


def measure(options: Options, row: Row, framework: str, batch_size: int, seconds: float) -> tuple[object, object]:
    """Images a second, and how that compares; "" where it cannot be measured."""
    ours = next(peer for peer in PEERS if (peer.library, peer.framework) == ("trivit", framework))
    other = next(peer for peer in PEERS if (peer.library, peer.framework) == ("transformers", "pt"))
    if framework != "pt":
        other = ours
    for peer in (ours, other):
        if peer.found() is None:
            options.absent[peer.missing] = None
            return "", ""
    say(f"{title(row)}, {framework}, batch {batch_size}")
    head = None if row.encoder and framework != "pt" else row.head
    own = folder(options, row, row.model_type, head)
    beside = own if framework == "pt" else folder(options, row, "vit", "classifier")
    arguments: dict[str, Any] = {"framework": framework, "batch_size": batch_size}
    with ExitStack() as stack:
        workers = {"own": stack.enter_context(process(ours)), "other": stack.enter_context(process(other))}
        try:
            first, second = (
                prepare(workers[name], peer, folder=path, image=image, **arguments)
                for name, peer, path, image in (
                    ("own", ours, own, row.image),
                    ("other", other, beside, row.image if framework == "pt" else row.beside),
                )
            )
        except (WorkerError, ValueError, OSError, ImportError) as error:
            options.absent[f"{row.model_type} in {framework}: {error}"] = None
            return "", ""
        if framework == "pt" and not np.abs(np.subtract(first, second)).max() <= TOLERANCE * np.abs(first).max():
            options.absent[f"{title(row)}: transformers computes something else"] = None
            return "", ""
        times = take_turns({name: partial(turn, worker) for name, worker in workers.items()}, seconds, least=5)
    quotient = ratio(times["other"], times["own"]) if framework == "pt" else ratio(times["own"], times["other"])
    return f"{batch_size / statistics.median(times['own']):#.3g}", quotient


def prepare(worker: Worker, peer: Peer, **arguments: Any) -> list[float]:
    """Make a process ready, and give the first of its outputs."""
    return worker.prepare("benchmarks.families:forward", library=peer.library, **arguments)


def folder(options: Options, row: Row, model_type: str, head: str | None) -> str:
    """A checkpoint of random weights, written when it is first asked for."""
    ours = model_type == row.model_type
    image = row.size if ours else row.beside
    path = (
        options.folder / f"{model_type}-{head}-beside-{row.model_type}-{row.head}-{options.variant.partition('/')[0]}"
    )
    if not path.exists():
        keys = {"image_size": image, **(dict(row.options) if ours else {})}
        cls = families.config_class(model_type)
        if head is None or "ForImageClassification" in cls.heads[head].name:
            keys["num_labels"] = 1000
        sizes = families.config_class(row.model_type).variants  # quick runs ask for one that not every family has
        size = options.variant.partition("/")[0]
        config = cls.variant(f"{size if size in sizes else next(iter(sizes))}/{row.patch}", **keys)
        random_checkpoint(path, config, head=head)
    return str(path)


# === In a process of its own ===


def forward(library: str, framework: str, folder: str, batch_size: int, image: int) -> Runner:
    """A forward pass of a checkpoint's own class, and the first numbers of its output."""
    opened = checkpoint.Checkpoint(folder)
    config = opened.config
    (name,) = config.architectures or ()
    head = next(key for key, each in config.heads.items() if each.name == name)
    pixels = images(config.replace(image_size=image), batch_size)
    tensors = {"pixel_values": pixels, **config.fixed_inputs(pixels.shape)}
    output = config.heads[head].output
    run = {"pt": _pt, "tf": _tf, "flax": _flax}[framework](library, folder, name, tensors, output)
    return run, [float(value) for value in np.asarray(run()).reshape(batch_size, -1)[0, :64]]


def _pt(library: str, folder: str, name: str, tensors: dict[str, np.ndarray], output: str) -> Callable[[], Any]:
    import torch

    if library == "trivit":
        import vit as module
    else:
        import transformers as module  # type: ignore[no-redef]
    model = getattr(module, name).from_pretrained(folder).eval()
    inputs = {key: torch.from_numpy(value) for key, value in tensors.items()}

    @torch.inference_mode()
    def run() -> Any:
        return model(**inputs)[output].numpy()

    return run


def _tf(library: str, folder: str, name: str, tensors: dict[str, np.ndarray], output: str) -> Callable[[], Any]:
    import tensorflow as tf

    import vit

    model = getattr(vit, f"TF{name}").from_pretrained(folder)
    inputs = {key: tf.constant(value) for key, value in tensors.items()}
    run = tf.function(lambda tensors: model(**tensors, training=False)[output])
    return lambda: run(inputs).numpy()


def _flax(library: str, folder: str, name: str, tensors: dict[str, np.ndarray], output: str) -> Callable[[], Any]:
    import jax
    from flax import nnx

    import vit

    graphdef, state = nnx.split(getattr(vit, f"Flax{name}").from_pretrained(folder))
    run = jax.jit(lambda state, tensors: nnx.merge(graphdef, state)(**tensors)[output])
    inputs = jax.device_put(tensors)
    return lambda: np.asarray(run(state, inputs))


if __name__ == "__main__":
    from .__main__ import main

    main(["families"])
