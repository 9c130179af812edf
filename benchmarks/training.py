"""Training steps, their time and their memory: `python -m benchmarks training`.

A step is a forward pass with the loss, a backward pass and an update by AdamW, compiled as each framework's users do.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vit.flops import training_flops
from vit.measure import Worker, WorkerError

from .harness import Bar, Options, Ratio, bars, color, process, ratio, say, table, take_turns, turn
from .peers import SAME_WEIGHTS, Peer, Runner, images, model_flax, model_pt, model_tf, read_config, torch_device

SETTINGS: dict[bool, dict[str, Any]] = {
    True: {"batch_sizes": (8,), "seconds": 1.0},
    False: {"batch_sizes": (8,), "seconds": 30.0},
}
"""What is measured unless the command line says otherwise, quick or not."""

EXPLANATION = """Forward pass, loss, backward pass and AdamW. Memory is the most that the process held during steps,
the framework itself included. The floor of the time counts the passes alone; recomputing adds a forward pass to it. The
floor of the memory is weights, gradients and two moments in float32. PyTorch runs eagerly, TensorFlow by Keras's
`train_on_batch`, Flax under `jax.jit` with donated weights. Before steps are timed, two losses are compared."""

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
CHECKPOINTING = {("trivit", "pt"), ("trivit", "tf"), ("trivit", "flax"), ("transformers", "pt"), ("timm", "pt")}
"""Who can recompute activations instead of keeping them."""


class Cell(NamedTuple):
    """What was measured of a peer."""

    seconds: list[float]
    memory: int  # bytes, at the peak of a step
    slower: Ratio | None = None  # its time over trivit's
    larger: float | None = None  # its memory over trivit's


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    settings = SETTINGS[options.quick]
    dtypes = options.dtypes or ("float32",)
    batch_sizes = options.batch_sizes or settings["batch_sizes"]
    options.measure_rates(dtypes)
    found = {
        each: measure(options, *each, options.seconds or settings["seconds"])
        for each in itertools.product(dtypes, batch_sizes, (False,) if options.quick else (False, True))
    }
    options.measure_rates(dtypes)
    weights = 4 * sum(int(np.prod(shape)) for shape in options.config.parameter_shapes(head="classifier").values())
    blocks, panels = [], {}
    for (dtype, batch_size, recompute), cells in found.items():
        rate = options.rates[dtype][0] if dtype in options.rates else float("nan")
        floor = training_flops(options.config) * batch_size / rate * (4 / 3 if recompute else 1)
        how = ", activations recomputed (gradient checkpointing)" if recompute else ""
        title = f"{dtype}, batch {batch_size}{how}"
        blocks += [f"### {title}", show(cells, floor, 4 * weights)]
        panels[f"{title}: seconds"] = [
            Bar(peer.name, [(statistics.median(cell.seconds), color(peer.library))], _seconds(cell.seconds))
            for peer, cell in cells.items()
        ]
        panels[f"{title}: GB"] = [
            Bar(peer.name, [(cell.memory / 1e9, color(peer.library))], f"{cell.memory / 1e9:.2f}")
            for peer, cell in cells.items()
        ]
    title = f"ViT-{options.variant}: a training step, seconds and memory"
    return "\n\n".join(["## Training", EXPLANATION, *blocks, bars(options.plot("training"), title, panels)]).strip()


def measure(options: Options, dtype: str, batch_size: int, recompute: bool, seconds: float) -> dict[Peer, Cell]:
    """The peers' cells; those of a framework take turns."""
    found: dict[Peer, Cell] = {}
    everyone = [peer for peer in options.present() if dtype in peer.dtypes]
    for framework in ("pt", "tf", "flax"):
        group = [peer for peer in everyone if peer.framework == framework]
        if recompute:
            group = [peer for peer in group if (peer.library, framework) in CHECKPOINTING]
        if not group:
            continue
        say(f"{dtype}, {'recomputing, ' * recompute}batch {batch_size}: "
            f"{', '.join(peer.name for peer in group)}")  # fmt: skip
        with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            workers = {peer: stack.enter_context(process(peer)) for peer in group}
            arguments = {
                "checkpoint": options.checkpoint, "dtype": dtype, "batch_size": batch_size,
                "device": options.device, "recompute": recompute}  # fmt: skip
            losses = dict(zip(group, pool.map(
                lambda peer: _prepare(options, peer, workers[peer], arguments), group), strict=True))  # noqa: B023  # fmt: skip
            ready = [peer for peer in group if _agrees(options, peer, losses)]
            if not ready:
                continue
            for peer in ready:
                workers[peer].peak_memory(reset=True)
            runs = {peer: partial(turn, workers[peer]) for peer in ready}
            times = take_turns(runs, seconds, least=3, absent=options.absent)
            memory = {peer: _memory(options, peer, workers[peer]) for peer in times}
        ours = next((peer for peer in times if peer.library == "trivit"), None)
        for peer in times:
            if ours is None or peer == ours:
                found[peer] = Cell(times[peer], memory[peer])
            else:
                found[peer] = Cell(times[peer], memory[peer], ratio(times[peer], times[ours]),
                                   memory[peer] / memory[ours])  # fmt: skip
    return found


def _prepare(options: Options, peer: Peer, worker: Worker, arguments: dict[str, Any]) -> list[float] | None:
    """The first two losses; None where a peer cannot be measured, which is noted."""
    try:
        return worker.prepare(
            "benchmarks.training:step", library=peer.library, framework=peer.framework, **arguments
        )  # fmt: skip
    except (WorkerError, ValueError, ImportError, OSError) as error:
        options.absent[f"{peer.name}, training: {error}"] = None
        return None


def _agrees(options: Options, peer: Peer, losses: dict[Peer, list[float] | None]) -> bool:
    """Whether a peer can be measured, and computes the losses that trivit does, where it has the same weights."""
    own = losses[peer]
    ours = next((found for other, found in losses.items() if other.library == "trivit" and found), None)
    if own is None or ours is None or peer.library not in SAME_WEIGHTS or np.allclose(own, ours, rtol=0.01):
        return own is not None
    options.absent[f"{peer.name}, training: its first losses are {own}, trivit's {ours}"] = None
    return False


def _memory(options: Options, peer: Peer, worker: Worker) -> int:
    if options.device == "gpu":
        return worker.prepare("benchmarks.training:device_memory", framework=peer.framework)
    return worker.peak_memory()


def show(cells: dict[Peer, Cell], floor: float, memory_floor: int) -> str:
    """The table of one setting."""
    header = ["", "seconds a step", "the floor's share", "its time over trivit's", "GB", "its memory over trivit's"]
    rows: list[list[object]] = []
    for peer, cell in cells.items():
        share = f"{floor / statistics.median(cell.seconds):.0%}"
        larger = "" if cell.larger is None else f"{cell.larger:.2f}"
        memory = f"{cell.memory / 1e9:.2f}"
        rows.append([peer.name, _seconds(cell.seconds), share, cell.slower or "", memory, larger])
    rows.append(["the floor", f"{floor:.3g}", "", "", f"{memory_floor / 1e9:.2f}", ""])
    return table(header, rows)


def _seconds(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):#.3g}"


# === In the peer's process ===


def step(
    library: str, framework: str, checkpoint: str, dtype: str, batch_size: int, device: str, recompute: bool
) -> Runner:
    """A training step, which returns when it is done, and the losses of the first two."""
    run = {"pt": _step_pt, "tf": _step_tf, "flax": _step_flax}[framework](
        library, checkpoint, dtype, batch_size, device, recompute
    )
    return run, [run(), run()]


def _labels(batch_size: int, config: Any) -> np.ndarray:
    return np.random.default_rng(2).integers(0, config.num_labels, batch_size)


def _step_pt(
    library: str, checkpoint: str, dtype: str, batch_size: int, device: str, recompute: bool
) -> Callable[[], float]:
    import torch

    config, where = read_config(checkpoint), torch_device(device)
    model = model_pt(library, checkpoint, dtype, device, None).train()
    if recompute:
        model.set_grad_checkpointing() if library == "timm" else model.gradient_checkpointing_enable()
    inputs = torch.from_numpy(images(config, batch_size)).to(where, getattr(torch, dtype))
    labels = torch.from_numpy(_labels(batch_size, config)).to(where)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def run() -> float:
        optimizer.zero_grad()
        if library == "timm":
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        else:
            loss = model(inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if device == "gpu":
            torch.cuda.synchronize()
        return loss.item()

    return run


def _step_tf(
    library: str, checkpoint: str, dtype: str, batch_size: int, device: str, recompute: bool
) -> Callable[[], float]:
    import tensorflow as tf

    config = read_config(checkpoint)
    model = model_tf(library, checkpoint, dtype, device)
    if recompute:
        model.gradient_checkpointing_enable()
    keras: Any = __import__("tf_keras" if library == "transformers" else "keras")
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    with tf.device(f"{device.upper()}:0"):
        inputs = tf.constant(images(config, batch_size))
        labels = tf.constant(_labels(batch_size, config))
    if library == "keras-hub":
        inputs = tf.transpose(inputs, (0, 2, 3, 1))
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=[])
    else:
        model.compile(optimizer)  # each has a loss of its own
    arguments = ({"pixel_values": inputs, "labels": labels},) if library == "transformers" else (inputs, labels)

    def run() -> float:
        model.reset_metrics()
        return float(np.mean(model.train_on_batch(*arguments, return_dict=True)["loss"]))

    return run


def _step_flax(
    library: str, checkpoint: str, dtype: str, batch_size: int, device: str, recompute: bool
) -> Callable[[], float]:
    import jax
    import optax

    config = read_config(checkpoint)
    where = jax.devices(device)[0]
    inputs = jax.device_put(images(config, batch_size), where)
    labels = jax.device_put(_labels(batch_size, config), where)
    if library == "trivit":
        from flax import nnx

        import vit.flax

        model = vit.flax.FlaxViTForImageClassification.from_pretrained(checkpoint, dtype=dtype)
        model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        graphdef, params = nnx.split(model)
        del model

        def loss_of(params: Any) -> Any:
            return nnx.merge(graphdef, params)(inputs, labels=labels).loss
    else:
        params, logits = model_flax(library, checkpoint, dtype)

        def loss_of(params: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels).mean()

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def update(params: Any, moments: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))
    state = [jax.device_put(params, where), optimizer.init(params)]
    del params

    def run() -> float:
        *state[:], loss = compiled(*state)
        return float(loss)

    return run


def device_memory(framework: str) -> int:
    """The most bytes of the first GPU's memory that the framework has held at once."""
    if framework == "pt":
        import torch

        return torch.cuda.max_memory_allocated()
    if framework == "tf":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    import jax

    return jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"]


if __name__ == "__main__":
    from .__main__ import main

    main(["training"])
