"""Train the classifier that `vit demo` runs: a small ViT on scikit-learn's handwritten digits, in PyTorch, on one core.

    python examples/train_digits.py --output digits-vit

It writes a whole checkpoint folder: config.json, model.safetensors, preprocessor_config.json, held-out scans as PNG
files and a model card with the held-out accuracy that it measured. The same seed gives the same bytes on the same
machine. The network is trained on what `ViTImageProcessor` makes of an 8-bit greyscale scan, so it meets nothing new
when it is given a PNG file.
"""

from __future__ import annotations

import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from vit import ViTConfig, ViTForImageClassification, ViTImageProcessor, __version__

CONFIG = ViTConfig(
    image_size=32,
    patch_size=4,  # 8 x 8 patches: one for each pixel of the scan
    encoder_stride=4,
    num_channels=1,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=256,
    initializer_range=0.1,  # the published 0.02 suits 768 wide; so narrow a network starts too slowly with it
    id2label={digit: str(digit) for digit in range(10)},
)

HELD_OUT = 0.2
SPLIT_SEED = 0  # the split is the same for every --seed
IMAGES_PER_DIGIT = 3  # PNG files beside the checkpoint

BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WARMUP = 0.1  # part of the steps
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
CLIP_NORM = 1.0
ROTATION, ZOOM, SHEAR, SHIFT = math.radians(12), 0.12, 0.12, 0.1  # the most in either direction; SHIFT is of the width
THREADS = 1  # more would add up in another order, to other last bits, and gain nothing at this size


class Digits(NamedTuple):
    """The scans of scikit-learn's `load_digits` as 8-bit images, and which of them are never trained on."""

    scans: np.ndarray  # (1797, 8, 8) uint8, white on black
    labels: np.ndarray  # (1797,) int64
    training: np.ndarray  # indices
    held_out: np.ndarray  # indices


def digits() -> Digits:
    """Read the scans and split them, every digit in proportion."""
    data = load_digits()
    scans = np.rint(data.images * (255 / 16)).astype(np.uint8)  # the published values are 0 to 16
    training, held_out = train_test_split(
        np.arange(len(scans)), test_size=HELD_OUT, stratify=data.target, random_state=SPLIT_SEED
    )
    return Digits(scans, data.target.astype(np.int64), np.sort(training), np.sort(held_out))


def to_pixel_values(processor: ViTImageProcessor, scans: np.ndarray) -> Tensor:
    """What the processor makes of scans (N, 8, 8): (N, 1, 32, 32) float32."""
    images = [Image.fromarray(scan) for scan in scans]
    return torch.from_numpy(processor(images, return_tensors="np").pixel_values)


def augment(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, zoom, shear and shift each image of (B, C, height, width) a little, at random; outside is black (-1)."""
    batch = len(pixel_values)
    angle, zoom, shear, *shift = (2 * torch.rand(5, batch, generator=generator) - 1) * torch.tensor(
        [[ROTATION], [ZOOM], [SHEAR], [2 * SHIFT], [2 * SHIFT]]  # an image is two units wide
    )
    cos, sin, zoom = angle.cos(), angle.sin(), zoom.exp()
    first = torch.stack([zoom * cos, zoom * (shear * cos - sin), shift[0]], dim=-1)
    second = torch.stack([zoom * sin, zoom * (shear * sin + cos), shift[1]], dim=-1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(pixel_values.shape), align_corners=False)
    return F.grid_sample(pixel_values + 1, grid, align_corners=False) - 1


def train(pixel_values: Tensor, labels: Tensor, epochs: int, seed: int, config: ViTConfig = CONFIG,
          console: Console | None = None) -> ViTForImageClassification:  # fmt: skip
    """Train from scratch.

    Args:
        pixel_values: (N, channels, height, width) float32.
        labels: (N,) int64.
        epochs: passes over all N.
        seed: of the first weights, the order of the images and their augmentation.
        config: the network.
        console: where the progress is shown.

    Returns:
        The model after the last step, in evaluation mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ViTForImageClassification(config).train()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim in (2, 4)]
    others = [parameter for parameter in model.parameters() if parameter.ndim not in (2, 4)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}], LEARNING_RATE
    )
    steps = epochs * math.ceil(len(labels) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("Training", total=epochs)
        for _ in range(epochs):
            losses = []
            for batch in torch.randperm(len(labels), generator=generator).split(BATCH_SIZE):
                logits = model(augment(pixel_values[batch], generator)).logits
                loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            progress.update(task, advance=1, description=f"Training, loss {np.mean(losses):.3f}")
    return model.eval()


@torch.inference_mode()
def predict(model: ViTForImageClassification, pixel_values: Tensor) -> np.ndarray:
    """The logits (N, labels) of images (N, channels, height, width)."""
    return torch.cat([model(part).logits for part in pixel_values.split(256)]).numpy()


class Evaluation(NamedTuple):
    """How a checkpoint does on the held-out scans."""

    labels: np.ndarray  # (N,) the truth
    answers: np.ndarray  # (N,)

    @property
    def accuracy(self) -> float:
        return float((self.labels == self.answers).mean())


def evaluate(folder: Path, data: Digits) -> Evaluation:
    """Classify every held-out scan with the checkpoint and the image processor of a folder."""
    pixel_values = to_pixel_values(ViTImageProcessor.from_pretrained(folder), data.scans[data.held_out])
    logits = predict(ViTForImageClassification.from_pretrained(folder), pixel_values)
    return Evaluation(data.labels[data.held_out], logits.argmax(axis=1))


def write_images(folder: Path, data: Digits, seed: int) -> list[Path]:
    """Write some held-out scans of each digit, drawn by lot, as digit-<label>-<index in load_digits>.png."""
    for old in folder.glob("digit-*.png"):
        old.unlink()
    generator = np.random.default_rng(seed)
    files = []
    for digit in range(10):
        candidates = data.held_out[data.labels[data.held_out] == digit]
        for index in sorted(generator.choice(candidates, IMAGES_PER_DIGIT, replace=False)):
            files.append(folder / f"digit-{digit}-{index:04}.png")
            Image.fromarray(data.scans[index]).save(files[-1], optimize=True)
    return files


CARD = """\
---
license: apache-2.0
library_name: trivit
pipeline_tag: image-classification
tags: [vision, vit, digits]
metrics: [accuracy]
---

# Handwritten digits, a small Vision Transformer

The checkpoint that `vit demo` classifies handwritten digits with, in PyTorch, TensorFlow and Flax. It is there to show
that one checkpoint gives the same answers in all three; it was trained by `examples/train_digits.py`, which also wrote
this card. `digit-<label>-<index>.png` are {images} of the held-out scans, {per_digit} of each digit, drawn by lot.

**Held-out accuracy: {accuracy:.2%}** ({correct} of {held_out} scans)

## Data

Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
[doi:10.24432/C50P49](https://doi.org/10.24432/C50P49)), licensed
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/), as scikit-learn distributes it (`load_digits`: {total} scans,
the part that UCI calls the test set, from 13 writers). Changes made here: the 8 x 8 counts of 0 to 16 became 8-bit grey
values (times 255 / 16, rounded). The PNG files beside this card are such scans; index is the row in `load_digits`. They
stay under CC BY 4.0; the weights have the licence of this project, Apache-2.0.

Split: {held_out} scans ({part:.0%}, every digit in proportion, `train_test_split` with random_state {split_seed}) were
held out. They had no part in the training or in the choice of its settings, which was made on a quarter of the other
{training} scans. The weights are those after the last step, whatever their accuracy.

## Network

`ViTForImageClassification`, {parameters:,} parameters, float32: {layers} layers of width {width}, {heads} heads, MLP
width {mlp}, images of {size} x {size} with 1 channel, patches of {patch} x {patch}: {patches} tokens, one for each
pixel of the scan, and CLS. `ViTImageProcessor` resizes a greyscale PNG to {size} x {size} (bilinear), keeps its one
channel and normalises it to -1..1.

## Training

`python examples/train_digits.py --seed {seed} --epochs {epochs}`

| | |
|---|---|
| Optimizer | AdamW, weight decay {decay} on matrices, gradient norm clipped at {clip} |
| Learning rate | up to {rate} over the first {warmup:.0%} of the steps, then down to 0, both along a cosine |
| Batch, epochs | {batch}, {epochs} |
| Loss | cross-entropy, label smoothing {smoothing} |
| Augmentation | rotation to {rotation:.0f} degrees, zoom and shear to {zoom:.0%}, shifts to {shift:.0%} of the width |
| Seed | {seed} |
| Versions | {versions} |

The same seed gives the same weights, bit for bit, with the same versions on the same kind of processor.

## Held-out scans by digit

Rows are the true digit, columns the answer.

{confusion}

## Use and limits

For demonstrations and tests. It knows single digits, light on dark, centred and filling the image, coarse as 8 x 8
pixels; it has no answer for anything else and will name a digit all the same, often with confidence. Training and
held-out scans come from the same 13 writers, so the accuracy above says little about the handwriting of others. Its
probabilities were trained with label smoothing and are lower than its accuracy on easy scans.
"""


def write_card(folder: Path, data: Digits, result: Evaluation, model: ViTForImageClassification, seed: int,
               epochs: int) -> None:  # fmt: skip
    """Write the model card, README.md."""
    config = model.config
    table = np.zeros((10, 10), int)
    np.add.at(table, (result.labels, result.answers), 1)
    rows = [f"| **{digit}** | " + " | ".join(str(n or "") for n in row) + " |" for digit, row in enumerate(table)]
    versions = {"Python": platform.python_version(), "trivit": __version__, "PyTorch": torch.__version__}
    versions |= {name: version(name) for name in ("numpy", "pillow", "scikit-learn")}
    text = CARD.format(
        images=10 * IMAGES_PER_DIGIT,
        per_digit=IMAGES_PER_DIGIT,
        accuracy=result.accuracy,
        correct=int((result.labels == result.answers).sum()),
        held_out=len(data.held_out),
        training=len(data.training),
        total=len(data.scans),
        part=HELD_OUT,
        split_seed=SPLIT_SEED,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        size=config.image_size,
        patch=config.patch_size,
        patches=config.num_patches,
        seed=seed,
        epochs=epochs,
        decay=WEIGHT_DECAY,
        clip=CLIP_NORM,
        rate=LEARNING_RATE,
        warmup=WARMUP,
        batch=BATCH_SIZE,
        smoothing=LABEL_SMOOTHING,
        rotation=math.degrees(ROTATION),
        zoom=ZOOM,
        shift=SHIFT,
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        confusion="\n".join(
            ["| | " + " | ".join(map(str, range(10))) + " |", "|---" * 11 + "|", *rows],
        ),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def main(
    output: Annotated[Path, typer.Option(help="Where the checkpoint folder goes.")] = Path("digits-vit"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training scans.")] = 75,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the order and the augmentation.")] = 0,
) -> None:
    """Train a small ViT on handwritten digits and write it, with held-out scans and a model card."""
    torch.set_num_threads(THREADS)
    console = Console()
    start = time.perf_counter()
    data = digits()
    processor = ViTImageProcessor(size=CONFIG.image_size, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)
    pixel_values = to_pixel_values(processor, data.scans[data.training])
    model = train(pixel_values, torch.from_numpy(data.labels[data.training]), epochs, seed, console=console)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    write_images(output, data, seed)
    result = evaluate(output, data)  # of what was written
    write_card(output, data, result, model, seed, epochs)
    console.print(
        f"{output}: held-out accuracy {result.accuracy:.2%} of {len(data.held_out)} scans, "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
