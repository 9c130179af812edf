"""`vit attention`: where a model looks in an image, as a picture."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .. import picture
from .convert import _size
from .frameworks import DIGITS, check_default, choose_one, open_model
from .options import CacheDir, Device, DType, Force, Framework, Json, Model, Quiet, Revision, Token

if TYPE_CHECKING:
    import numpy as np

    from ..config import PreTrainedConfig
    from ..image_processing import ViTImageProcessor


def command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the picture goes: a .png, .svg or .pdf file.")
    ] = Path("vit-attention.png"),
    layer: Annotated[int, typer.Option(metavar="N", help="Which layer: from 0, or negative from the last.")] = -1,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Attention rollout through the layers up to that one, in place of heads.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Masks: the fewest patches that hold this share of the attention, 0 to 1."),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Run at another size, for a finer map. [default: the checkpoint's]"),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Framework = None,
    device: Device = None,
    dtype: DType = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw where a model looks in an image.

    The attention of the CLS token over the image, of each head and their mean, or rollout; that of registers and of a
    distillation token, where there are any; with the model's answer, where it has labels. What is drawn over is the
    image as the checkpoint's processor resizes and crops it.
    """
    from ..attention import check_layer, check_threshold
    from ..checkpoint import Checkpoint, head_of, parts_of
    from ..hub import resolve
    from ..image_processing import ViTImageProcessor

    picture.check_output(output, force)
    picture.require("vit attention")
    if threshold is not None:
        check_threshold(threshold)
    size = _size(image_size)
    extra = choose_one(framework, "vit attention")
    if model is None:
        check_default(image)

    from rich.console import Console

    with open(os.dup(2), "w") as stderr, Console(file=stderr, quiet=quiet).status("Starting") as status:
        checkpoint = Checkpoint(resolve(model or DIGITS, revision=revision, token=token, cache_dir=cache_dir))
        check_layer(layer, checkpoint.config.num_hidden_layers)
        processor = ViTImageProcessor.from_pretrained(checkpoint.folder)
        pixels = preprocess(image, processor, checkpoint.config, size)
        head = head_of(checkpoint, "ForImageClassification")
        parts = {} if head else parts_of(checkpoint)
        status.update("Loading the model")
        forward = open_model(checkpoint.folder, extra, device=device, dtype=dtype, head=head, **parts)
        status.update("Running the model")
        outputs = forward(pixels.values, interpolate_pos_encoding=size is not None, output_attentions=True)
        view = look(outputs.attentions, pixels, layer, rollout, threshold, forward.config)
        view.model = picture.name_of(model)
        view.answers = answers(processor, forward.config, outputs.logits) if head else []
        status.update("Drawing")
        draw(output, view)
    if as_json:
        given = {"image": str(image), "model": str(model or DIGITS), "framework": extra, "picture": str(output)}
        typer.echo(json.dumps({**given, **view.to_dict()}, indent=2))
    elif not quiet:
        typer.echo(", ".join(f"{answer.label} ({answer.shown})" for answer in view.answers) or "no labels")
        typer.echo(f"Picture: {output}")


# === The computation ===


class Pixels(NamedTuple):
    """An image, ready for the model and for the eye.

    Attributes:
        values: (1, channels, height, width) float32.
        shown: (rows, columns, 3) in 0..1: the part that the patches cover, finer than the model gets it.
        grid: (rows, columns) of patches.
        about: what was made of the file.
    """

    values: np.ndarray
    shown: np.ndarray
    grid: tuple[int, int]
    about: str


def preprocess(
    image: Path, processor: ViTImageProcessor, config: PreTrainedConfig, image_size: int | tuple[int, int] | None = None
) -> Pixels:
    """Read an image and prepare it as the checkpoint's processor says.

    Args:
        image: the file.
        processor: of the checkpoint.
        config: of the checkpoint.
        image_size: (height, width) for the model in place of the configured one; the processor's sizes, such as the
            resize before a crop, change in proportion.

    Raises:
        InputError: no image, or one that does not come out as the model expects it.
    """
    import numpy as np

    from ..config import to_pair
    from ..errors import InputError
    from ..image_processing.sources import open_image
    from ..inputs import check_pixel_values

    sizes: dict[str, Any] = {} if image_size is None else resized(processor, *to_pair(image_size))
    values = processor(image, return_tensors="np", **sizes).pixel_values
    height, width = values.shape[2:]
    if image_size is None and not config.any_size and (height, width) != to_pair(config.image_size):
        expected = "x".join(map(str, to_pair(config.image_size)))
        raise InputError(
            f"The checkpoint's image processor makes {height}x{width} (height x width) of {image}, but its model "
            f"expects {expected}. Say with --image-size which to use, such as --image-size {expected}."
        )
    rows, columns = check_pixel_values(config, values.shape, image_size is not None or config.any_size)

    found_width, found_height = open_image(image).size
    # The same once more, without arithmetic and as large as the file allows: a model's 224 pixels are few for a slide.
    # Where nothing is cropped, in the proportions of the file, which the model's square would squash.
    enough = min(FINE, found_height) if processor.do_resize or sizes else 1
    finer = -(-enough // height)
    used = {"crop_size": processor.crop_size} if processor.do_center_crop else {}
    current = {"size": processor.size, **used, **sizes}
    large = {name: {edge: length * finer for edge, length in size.items()} for name, size in current.items()
             if isinstance(size, dict)}  # fmt: skip
    if {"height", "width"} <= set(large.get("size", ())) and not processor.do_center_crop:
        aspect = min(max(found_width / found_height, 1 / WIDEST), WIDEST)
        large["size"]["width"] = max(1, round(large["size"]["height"] * aspect))
    colours = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": True, "data_format": "channels_last"}
    (shown,) = processor(image, **{**sizes, **large, **colours}).pixel_values
    shown = shown / 255 if shown.dtype == np.uint8 else shown.clip(0, 1)  # floats are of an image that was in 0..1
    # Patches that do not fit in leave a margin at the right and at the bottom.
    patch_height, patch_width = to_pair(config.patch_size)
    bottom = round(shown.shape[0] * rows * patch_height / height)
    right = round(shown.shape[1] * columns * patch_width / width)
    cut = " and cropped" if processor.do_center_crop else ""
    about = (
        f"{image.name}, {found_height} x {found_width}, resized{cut} to what the model gets: {height} x {width}, in "
        f"{rows} x {columns} patches"
    )
    return Pixels(values, shown[:bottom, :right], (rows, columns), about)


FINE = 720  # pixels of height that a panel has use for
WIDEST = 3  # width over height, and the reverse: beyond it a photograph is squashed after all, or its panels are strips


def resized(processor: ViTImageProcessor, height: int, width: int) -> dict[str, Any]:
    """The options that make a processor's results of another height and width, in its own proportions."""
    wanted = {"height": height, "width": width}
    if not processor.do_center_crop:
        return {"do_resize": True, "size": wanted}
    factors = {edge: length / processor.crop_size[edge] for edge, length in wanted.items()}
    size = {edge: round(length * factors.get(edge, max(factors.values()))) for edge, length in processor.size.items()}
    return {"size": size, "crop_size": wanted}


class Answer(NamedTuple):
    """What the model says.

    Attributes:
        label: its name; its index where the checkpoint names none.
        score: the probability, or the value of a regression.
        shown: the score as people read it.
    """

    label: str
    score: float
    shown: str


def answers(processor: ViTImageProcessor, config: PreTrainedConfig, logits: np.ndarray, top_k: int = 3) -> list[Answer]:
    """The best answers first; of a regression every value, in its order."""
    unnamed = {name: str(i) for i, name in config.id2label.items() if name == f"LABEL_{i}"}
    names = [unnamed.get(name, name) for name in config.id2label.values()]
    if config.gives_numbers:
        return [Answer(name, float(value), f"{value:.4g}") for name, value in zip(names, logits[0], strict=True)]
    (best,) = processor.post_process_image_classification(logits, top_k=top_k, config=config)
    named = [(unnamed.get(each["label"], each["label"]), each["score"]) for each in best]
    return [Answer(name, score, f"{score:.1%}") for name, score in named]


@dataclass
class View:
    """Where a model looks in an image.

    Attributes:
        pixels: the image.
        summary: (rows, columns), the mean of the heads, or rollout.
        parts: (heads or layers, rows, columns): each head, or rollout through each layer.
        layer: which, from 0.
        layers: how many the model has.
        rollout: whether this is rollout.
        threshold: the share that masks keep; None for heat.
        model: its name.
        answers: none of a model without labels.
        others: (tokens, rows, columns): as the summary, of each token between CLS and the patches.
        others_name: what the tokens between CLS and the patches are.
    """

    pixels: Pixels
    summary: np.ndarray
    parts: np.ndarray
    layer: int
    layers: int
    rollout: bool
    threshold: float | None
    model: str = ""
    answers: list[Answer] | tuple[()] = ()
    others: np.ndarray | tuple[()] = ()
    others_name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        part = "layer" if self.rollout else "head"
        others = {f"{self.others_name.replace(' ', '_')}s": [self.describe(heat) for heat in self.others]}
        return {
            "answers": [{"label": answer.label, "score": answer.score} for answer in self.answers],
            "layer": self.layer,
            "rollout": self.rollout,
            "threshold": self.threshold,
            "grid": list(self.pixels.grid),
            "rollout" if self.rollout else "mean": self.describe(self.summary),
            f"{part}s": [self.describe(heat) for heat in self.parts],
            **(others if len(self.others) else {}),
        }

    def describe(self, heat: np.ndarray) -> dict[str, Any]:
        """A map in numbers: what all patches hold, the weakest and the strongest, and how many a mask keeps."""
        from ..attention import attention_mask

        row, column = divmod(int(heat.argmax()), heat.shape[1])
        kept = {} if self.threshold is None else {"kept": int(attention_mask(heat, self.threshold).sum())}
        ends = {"least": float(heat.min()), "most": float(heat.max())}
        return {"sum": float(heat.sum()), **ends, "uniform": float(heat.mean()), "row": row, "column": column, **kept}


def look(
    attentions: tuple[np.ndarray, ...], pixels: Pixels, layer: int = -1, rollout: bool = False,
    threshold: float | None = None, config: PreTrainedConfig | None = None,
) -> View:  # fmt: skip
    """Make the maps of one image.

    Args:
        attentions: for each layer (1, heads, tokens, tokens).
        pixels: the image.
        layer: which one, or the last of a rollout.
        rollout: rollout through every layer up to that one, in place of its heads.
        threshold: the share of the attention that masks keep; None for heat.
        config: of the model; None where nothing but CLS precedes the patches.

    Raises:
        InputError: there is no such layer, or the attention is NaN.
    """
    import numpy as np

    from ..attention import attention_rollout, check_layer, cls_attention
    from ..errors import InputError

    check_layer(layer, len(attentions))
    layer %= len(attentions)
    prefix, name = (1, "") if config is None else (config.prefix_tokens, config.prefix_name)
    if rollout:
        means = [attention.mean(axis=1, keepdims=True) for attention in attentions[: layer + 1]]
        rows = [attention_rollout(means[: i + 1], tokens=range(prefix)) for i in range(len(means))]
        maps = np.concatenate(rows)[:, :, prefix:].reshape(len(means), prefix, *pixels.grid)
        parts, summary, others = maps[:, 0], maps[-1, 0], maps[-1, 1:]
    else:
        maps = np.concatenate([cls_attention(attentions, pixels.grid, layer, prefix, i) for i in range(prefix)])
        parts, summary, others = maps[0], maps[0].mean(axis=0), maps[1:].mean(axis=1)
    if not np.isfinite(maps).all():
        raise InputError("The attention has values that are NaN or infinite; try --dtype float32, or vit verify.")
    found = View(pixels, summary, parts, layer, len(attentions), rollout, threshold)
    found.others, found.others_name = others, name
    return found


# === The picture ===

STACKED, BETWEEN = 0.62, 0.36  # inches from a panel to the one below its caption; between the large and the small

Place = tuple[float, float, float, float]
"""(left, top, width, height) of a panel."""


def layout(view: View) -> tuple[Place, Place, list[Place]]:
    """Where the image, the summary and the parts lie, the other tokens last; of parts that are one head, its own mean,
    none."""
    image = view.pixels.shown
    aspect = image.shape[1] / image.shape[0]
    mains = [picture.Block(1, 2, aspect, gap=0.2), picture.Block(2, 1, aspect, drop=STACKED)]
    parts = len(panels(view))
    height, (main, *others) = picture.arrange(mains, parts, aspect, BETWEEN)
    first, second = main.places(picture.MARGIN, picture.TOP, height)
    left = picture.MARGIN + main.width(height) + BETWEEN
    places = [place for block in others for place in block.places(left, picture.TOP, height)]
    return first, second, places[:parts]


def panels(view: View) -> list[tuple[str, np.ndarray]]:
    """What the small panels show, and how each is labelled."""
    parts = [(str(i), heat) for i, heat in enumerate(view.parts)] if len(view.parts) > 1 else []
    numbered = len(view.others) > 1
    return parts + [(view.others_name + f" {i}" * numbered, heat) for i, heat in enumerate(view.others)]


def strongest(maps: np.ndarray) -> str:
    """How much more the strongest patch of each map gets than the mean: what a map that is stretched does not tell."""
    peaks = maps.max(axis=(1, 2)) / maps.mean(axis=(1, 2)).clip(1e-30)
    least, most = f"{peaks.min():.2g}", f"{peaks.max():.2g}"
    return f"{least} x" if least == most else f"{least} to {most} x"


def draw(path: Path, view: View) -> None:
    """Draw the image, the summary and its parts, and write the file.

    Raises:
        InputError: it cannot be written.
    """
    import numpy as np

    from ..attention import attention_mask

    first, second, places = layout(view)
    bottom = second[1] + second[3]
    slide = picture.Slide(bottom + picture.UNDER + picture.FOOT)
    image = view.pixels.shown

    def show(place: Place, heat: np.ndarray | None) -> None:
        tall = math.ceil(place[3] * picture.DPI)
        if heat is None:
            pixels = np.stack([picture.enlarge(image[..., i], image, tall) for i in range(3)], axis=-1)
        elif view.threshold is None:
            pixels = picture.overlay(image, heat, slide.colormap, tall)
        else:
            pixels = picture.cutout(image, attention_mask(heat, view.threshold), tall)
        slide.panel(*place).imshow(pixels, aspect="auto", interpolation="antialiased")

    slide.heading(*heading(view))
    show(first, None)
    slide.caption(first[0], first[1] + first[3], first[2], "image")
    show(second, view.summary)
    slide.caption(second[0], bottom, second[2], caption(view))
    for place, (label, heat) in zip(places, panels(view), strict=True):
        show(place, heat)
        slide.label(*place[:2], label)
    if places:
        text = "rollout through each layer" if view.rollout else "each head"
        text = text if len(view.parts) > 1 else ""
        if len(view.others):
            several = f"each {view.others_name}" if len(view.others) > 1 else f"the {view.others_name}"
            text = f"{text}{', and ' * bool(text)}{several}"
        slide.caption(places[0][0], bottom, picture.WIDTH - picture.MARGIN - places[0][0], text)
    slide.foot(legend(view), view.pixels.about, bar=view.threshold is None)
    slide.save(path)


def heading(view: View) -> tuple[str, str, str]:
    """The title, what stands beside it, and what below."""
    if view.rollout:
        what = f"attention rollout through layers 0 to {view.layer}"
    elif view.layer == view.layers - 1:
        what = f"attention of the last of {view.layers} layers"
    else:
        what = f"attention of layer {view.layer} of 0 to {view.layers - 1}"
    if not view.answers:
        return f"Where {view.model} looks", "", what[0].upper() + what[1:]
    best, *others = view.answers
    rest = ", ".join(f"{first_name(answer.label)} ({answer.shown})" for answer in others)
    return first_name(best.label), best.shown, f"{view.model}, {what}" + (f".   Other answers: {rest}" if rest else "")


def first_name(label: str) -> str:
    """The first of the synonyms that ImageNet's labels are, such as "promontory, headland, head, foreland"."""
    return label.split(", ")[0]


def caption(view: View) -> str:
    """What stands under the summary."""
    from ..attention import attention_mask

    text = "rollout" if view.rollout else f"mean of {len(view.parts)} heads" if len(view.parts) > 1 else "its only head"
    if view.threshold is None:
        return f"{text}: {view.summary.min():.2%} to {view.summary.max():.2%}"
    return f"{text}: {attention_mask(view.summary, view.threshold).mean():.0%} of the patches"


def legend(view: View) -> str:
    """What the colours mean."""
    what = "what reaches the CLS token of the image" if view.rollout else "the CLS token's attention to the patches"
    if view.threshold is None:
        uniform = f"were all patches alike, each had {view.summary.mean():.2%}"
        reach = (
            f"; the {'layers' if view.rollout else 'heads'} reach {strongest(view.parts)} that"
            if len(view.parts) > 1
            else ""
        )
        return f"{what}, from the least to the most in each panel; {uniform}{reach}"
    return f"in colour: the fewest patches that hold {100 * view.threshold:.4g}% of {what}, in each panel"
