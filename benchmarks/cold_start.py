"""From process start to the first classified image, and the memory of loading: `python -m benchmarks.cold_start`.

Every figure is that of a process of its own; trivit and transformers 4.57.6 take turns, and a ratio is the median of
the pairwise ratios. The checkpoint has the shape of google/vit-base-patch16-224 and random float32 weights; its file is
in the page cache. Memory is the peak resident set after loading, less that of a process that imports the framework.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vit import ViTConfig

from .inference import random_checkpoint

FRAMEWORKS = {
    "pt": ("torch", "ViTForImageClassification"),
    "tf": ("tensorflow", "TFViTForImageClassification"),
    "flax": ("jax.numpy, flax.nnx", "FlaxViTForImageClassification"),
}

IMPORT = """
import resource, time, sys, json
start = time.perf_counter()
import {modules}
seconds = {{"framework": time.perf_counter() - start}}
memory = {{"framework": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}}
"""

CLASSIFY = """
import numpy as np
from PIL import Image
folder, from_pt = sys.argv[1], "{library}" == "transformers" and "{framework}" == "tf"
start = time.perf_counter()
from {library} import ViTImageProcessor, {cls}
seconds["import"] = time.perf_counter() - start
start = time.perf_counter()
model = {cls}.from_pretrained(folder, **({{"from_pt": True}} if from_pt else {{}}))
seconds["load"] = time.perf_counter() - start
memory["load"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
processor = ViTImageProcessor.from_pretrained(folder)
image = Image.open(folder + "/image.png")
inputs = processor(image, return_tensors="{tensors}")
logits = model(**inputs).logits
answer = int(np.argmax(logits.detach().numpy() if "{framework}" == "pt" else np.asarray(logits)))
seconds["classify"] = time.perf_counter() - start
memory["classify"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds["end"] = time.time()
print(json.dumps({{"seconds": seconds, "memory": memory, "answer": answer}}))
"""


def run(library: str, framework: str, folder: str) -> dict:
    """Seconds of each stage and from process start to answer, and peak memory in KiB after each stage."""
    modules, cls = FRAMEWORKS[framework]
    tensors = {"pt": "pt", "tf": "tf", "flax": "jax" if library == "transformers" else "np"}[framework]
    # trivit imports the framework with its model; transformers would, too: neither is charged twice.
    code = IMPORT.format(modules=modules)
    code += CLASSIFY.format(library=library, framework=framework, cls=cls, tensors=tensors)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error"}
    environment |= {"USE_TF": "1" if framework == "tf" else "0", "USE_FLAX": "1" if framework == "flax" else "0"}
    start = time.time()
    process = subprocess.run([sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr)
    result = json.loads(process.stdout.strip().splitlines()[-1])
    result["seconds"]["total"] = result["seconds"]["end"] - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=FRAMEWORKS, action="append", help="default: all three")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = ViTConfig.variant("B/16", num_labels=1000)
    print("| framework | stage | trivit | transformers 4.57.6 | ratio |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint(folder, config)
        from PIL import Image

        from vit import ViTImageProcessor

        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(Path(folder) / "image.png")
        ViTImageProcessor().save_pretrained(folder)
        weights = (Path(folder) / "model.safetensors").stat().st_size
        for framework in args.framework or FRAMEWORKS:
            for library in ("vit", "transformers"):  # fills the page cache and the byte code caches
                run(library, framework, folder)
            pairs = [
                [run(library, framework, folder) for library in ("vit", "transformers")] for _ in range(args.repeats)
            ]
            assert all(ours["answer"] == theirs["answer"] for ours, theirs in pairs)
            for stage in ("framework", "import", "load", "classify", "total"):
                ours, theirs = ([run["seconds"][stage] for run in runs] for runs in zip(*pairs, strict=True))
                ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
                ours_text, theirs_text = (f"{statistics.median(values):.2f} s" for values in (ours, theirs))
                print(f"| {framework} | {stage} | {ours_text} | {theirs_text} | {ratio:.2f} |", flush=True)
            for stage in ("load", "classify"):
                ours, theirs = (
                    [(run["memory"][stage] - run["memory"]["framework"]) * 1024 / weights for run in runs]
                    for runs in zip(*pairs, strict=True)
                )
                ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
                texts = (f"{statistics.median(values):.2f} x weights" for values in (ours, theirs))
                print(f"| {framework} | peak memory, {stage} | {' | '.join(texts)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
