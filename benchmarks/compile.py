"""The first call of a compiled model, with and without a cache on disk: `python -m benchmarks compile`."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from typing import Any

from vit.measure import WorkerError, seconds

from .harness import Bar, Options, bars, color, process, ratio, say, table, take_turns
from .peers import Peer, forward

SETTINGS: dict[bool, dict[str, Any]] = {
    True: {"seconds": 1.0, "least": 1},
    False: {"seconds": 60.0, "least": 3},
}
"""How long and how often, unless the command line says otherwise, quick or not."""

COMPILERS = {"pt": "torch.compile", "tf": "tf.function", "flax": "jax.jit"}
CACHES = {"pt": "TORCHINDUCTOR_CACHE_DIR", "flax": "JAX_COMPILATION_CACHE_DIR"}
"""The variable that says where a framework keeps what it compiled; TensorFlow's graphs are kept nowhere."""

EXPLANATION = """Seconds of the first call with a batch of one, less those of a steady one: tracing and compiling.
"Again" is the same in a new process that finds what the first one left on disk."""


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    settings = SETTINGS[options.quick]
    rows: list[list[object]] = []
    panels: dict[str, list[Bar]] = {}
    for framework, compiler in COMPILERS.items():
        peers = [peer for peer in options.present()
                 if peer.framework == framework and peer.library in ("trivit", "transformers", "timm")]  # fmt: skip
        if not peers:
            continue
        say(f"{compiler} of {', '.join(peer.name for peer in peers)}")
        runs = {peer: partial(compile_in_processes, options, peer) for peer in peers}
        found = take_turns(runs, options.seconds or settings["seconds"], settings["least"], most=10, warm=False,
                           absent=options.absent)  # fmt: skip
        ours = next((samples for peer, samples in found.items() if peer.library == "trivit"), None)
        panels[compiler] = []
        for peer, samples in found.items():
            middle = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
            beside: object = ""
            if ours and samples is not ours:
                beside = ratio([sample["first"] for sample in ours], [sample["first"] for sample in samples])
            again = f"{middle['again']:.2f}" if "again" in middle else ""
            rows.append([peer.name, compiler, f"{middle['first']:.2f}", beside, again, f"{middle['steady']:.3f}"])
            bar = Bar(peer.name, [(middle["first"], color(peer.library))], f"{middle['first']:.2f} s")
            panels[compiler].append(bar)
    header = ["", "by", "seconds", "trivit's time over it", "again", "a steady call"]
    picture = bars(options.plot("compile"), f"ViT-{options.variant}: seconds to compile a forward pass", panels)
    return "\n\n".join(["## Compiling", EXPLANATION, table(header, rows), picture]).strip()


def compile_in_processes(options: Options, peer: Peer) -> dict[str, float]:
    """Seconds of compiling with an empty cache, and again in a new process, and of a steady call."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        variable = CACHES.get(peer.framework)
        # JAX keeps, by default, only what took it a second
        variables = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **({variable: folder} if variable else {})}
        found: dict[str, float] = {}
        for name in ("first", "again") if variable and not options.quick else ("first",):
            with process(peer, variables) as worker:
                try:
                    first, steady = worker.prepare(
                        "benchmarks.compile:first_and_steady", library=peer.library, framework=peer.framework,
                        checkpoint=options.checkpoint, device=options.device,
                    )  # fmt: skip
                except (ValueError, ImportError, OSError) as error:
                    raise WorkerError(str(error)) from error
            found |= {name: first - steady, "steady": steady}
        return found


def first_and_steady(library: str, framework: str, checkpoint: str, device: str) -> tuple[float, float]:
    """Seconds of the first call and of a later one."""
    run = forward(library, framework, checkpoint, "float32", 1, device, compiled=True)
    first = seconds(run)
    return first, statistics.median(seconds(run) for _ in range(5))


if __name__ == "__main__":
    from .__main__ import main

    main(["compile"])
