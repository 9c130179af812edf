"""From process start to the first classified image, stage by stage: `python -m benchmarks cold-start`.

Every figure is that of a process of its own. The checkpoint's file is in the page cache, and everybody's byte code is
compiled: a first round of everyone does not count.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit.measure import ROOT, WorkerError

from .harness import ENVIRONMENT, STAGES, Bar, Options, bars, ratio, say, table, take_turns
from .peers import CLASSES, Peer

SETTINGS: dict[bool, dict[str, Any]] = {
    True: {"seconds": 1.0, "least": 1},
    False: {"seconds": 60.0, "least": 5},
}
"""How long and how often, unless the command line says otherwise, quick or not."""

EXPLANATION = """A process starts, imports, loads, reads a picture of 640 x 480 and classifies it, eagerly; files are in
the page cache. The floor is the start up to the framework's import, and one steady classification, which nothing gets
under; "over the floor" is what trivit and its peers add to it."""

IMPORTS = {"pt": "torch", "tf": "tensorflow", "flax": "jax.numpy, flax.nnx"}
TENSORS = {("trivit", "pt"): "pt", ("trivit", "tf"): "tf", ("trivit", "flax"): "np", ("transformers", "pt"): "pt",
           ("transformers", "tf"): "tf", ("transformers", "flax"): "jax"}  # fmt: skip

STAGE_NAMES = {
    "start": "Python, and the framework's import",
    "import": "the library's import, NumPy and Pillow",
    "load": "the weights",
    "classify": "the first image",
    "total": "process start to answer",
}

PROGRAM = """
import json, sys, time
import {framework}
seconds = {{"start": time.time() - float(sys.argv[2])}}

def stage(name, since):
    now = time.perf_counter()
    seconds[name] = now - since
    return now

now = time.perf_counter()
import numpy as np
from PIL import Image
from {library} import ViTImageProcessor, {cls}
now = stage("import", now)
model = {cls}.from_pretrained(sys.argv[1]{options}){move}
now = stage("load", now)
processor = ViTImageProcessor.from_pretrained(sys.argv[1])

def classify():
    inputs = processor(Image.open(sys.argv[1] + "/image.png"), return_tensors="{tensors}")
    logits = model(**{{name: value{move} for name, value in inputs.items()}}).logits
    return int(np.argmax(logits.detach().cpu().numpy() if hasattr(logits, "detach") else np.asarray(logits)))

answer = classify()
now = stage("classify", now)
seconds["total"] = time.time() - float(sys.argv[2])
again = []
for _ in range(3):
    now = time.perf_counter()
    classify()
    again.append(time.perf_counter() - now)
seconds["steady"] = min(again)  # the garbage collector may come in one of them
print(json.dumps({{"seconds": seconds, "answer": answer}}))
"""
"""Both libraries import the framework with their models; it is imported before, so that neither is charged with it."""


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    settings = SETTINGS[options.quick]
    blocks: list[str] = []
    panels: dict[str, list[Bar]] = {}
    write_image(options.checkpoint)
    for framework in IMPORTS:
        peers = [peer for peer in options.present()
                 if (peer.library, framework) in TENSORS and peer.framework == framework]  # fmt: skip
        if not peers:
            continue
        say(", ".join(peer.name for peer in peers))
        runs = {peer: partial(start, options, peer, options.checkpoint) for peer in peers}
        found = take_turns(runs, options.seconds or settings["seconds"], settings["least"], most=10,
                           absent=options.absent)  # fmt: skip
        for peer in list(found)[1:]:  # the first is trivit, where it runs
            answers = [{sample["answer"] for sample in found[each]} for each in (peers[0], peer) if each in found]
            if len(set.union(*answers)) > 1:
                options.absent[f"{peer.name}: it gives another answer"] = None
                del found[peer]
        seconds = {
            peer: {stage: [sample["seconds"][stage] for sample in samples] for stage in samples[0]["seconds"]}
            for peer, samples in found.items()
        }
        name = peers[0].name.split()[-1]
        blocks += [f"### {name}", show(seconds)]
        panels[name] = _bars(seconds)
    legend = dict(zip(list(STAGE_NAMES.values())[:-1], STAGES, strict=False))
    title = f"ViT-{options.variant}: seconds from process start to the first answer"
    picture = bars(options.plot("cold-start"), title, panels, legend)
    return "\n\n".join(["## Cold start", EXPLANATION, *blocks, picture]).strip()


def write_image(folder: str) -> None:
    """Put a picture and an image processor beside a checkpoint."""
    from PIL import Image

    from vit import ViTConfig, ViTImageProcessor
    from vit.config import to_pair

    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(Path(folder) / "image.png")
    height, width = to_pair(ViTConfig.from_pretrained(folder).image_size)
    ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)


def start(options: Options, peer: Peer, folder: str) -> dict[str, Any]:
    """Seconds of each stage of a process, and its answer."""
    code = PROGRAM.format(
        framework=IMPORTS[peer.framework],
        library={"trivit": "vit"}.get(peer.library, peer.library),
        cls=CLASSES[peer.framework],
        options=", from_pt=True" if (peer.library, peer.framework) == ("transformers", "tf") else "",
        move='.to("cuda")' if (options.device, peer.framework) == ("gpu", "pt") else "",
        tensors=TENSORS[peer.library, peer.framework],
    )
    environment = os.environ | ENVIRONMENT | peer.environment
    environment["PYTHONPATH"] = os.pathsep.join([*peer.path, str(ROOT)])
    command = [sys.executable, "-c", code, folder, repr(time.time())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise WorkerError(f"its process ended with status {done.returncode}: {''.join(reason)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(seconds: dict[Peer, dict[str, list[float]]]) -> str:
    """The table of a framework: stages of each peer, and trivit's time over the peer's."""
    ours = next((peer for peer in seconds if peer.library == "trivit"), None)
    header = ["seconds"]
    for peer in seconds:
        header += [peer.name] if peer == ours or ours is None else [peer.name, "trivit's time over it"]
    rows: list[list[object]] = []
    for stage, name in STAGE_NAMES.items():
        rows.append([name])
        for peer, found in seconds.items():
            rows[-1].append(f"{statistics.median(found[stage]):.2f}")
            if ours is not None and peer != ours:
                rows[-1].append(ratio(seconds[ours][stage], found[stage]))
    floors = {peer: [s + t for s, t in zip(found["start"], found["steady"], strict=True)]
              for peer, found in seconds.items()}  # fmt: skip
    for name, values in {
        "the floor": floors,
        "over the floor": {peer: [total - floor for total, floor in zip(found["total"], floors[peer], strict=True)]
                           for peer, found in seconds.items()},
    }.items():  # fmt: skip
        rows.append([name])
        for peer, value in values.items():
            rows[-1] += [f"{statistics.median(value):.2f}"] + [""] * (ours is not None and peer != ours)
    return table(header, rows)


def _bars(seconds: dict[Peer, dict[str, list[float]]]) -> list[Bar]:
    stages = list(STAGE_NAMES)[:-1]
    return [
        Bar(peer.name, [(statistics.median(found[stage]), color) for stage, color in zip(stages, STAGES, strict=False)],
            f"{statistics.median(found['total']):.2f} s")
        for peer, found in seconds.items()
    ]  # fmt: skip


if __name__ == "__main__":
    from .__main__ import main

    main(["cold-start"])
