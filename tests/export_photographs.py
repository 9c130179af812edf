"""Every family in every format over 40 photographs: `python -m tests.export_photographs [FORMAT ...] [--few]`.

Prints, for each format and family, how far the export is from its model: the largest difference of `pixel_values`
exports (as a share of the largest value, or of 1), and with the image processor in the graph the share of the values
that are at most a grey level off, the largest difference of the output, and the share of the images that keep their
most probable label, or the largest number of their vector.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from vit import AutoImageProcessor, families
from vit.exporting import FORMATS, engine, export, load
from vit.exporting.engine import _uint8
from vit.image_processing.families import BeitImageProcessor, BitImageProcessor, DeiTImageProcessor
from vit.image_processing.processor import ViTImageProcessor
from vit.inference import Forward

from .tiny import tiny_checkpoint

PROCESSORS: dict[str, Any] = {"deit": DeiTImageProcessor, "beit": BeitImageProcessor, "dinov2": BitImageProcessor,
                              "dinov2_with_registers": BitImageProcessor}  # fmt: skip
"""Family -> the published processor; ViT's for the others."""
NAMES = ("astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "immunohistochemistry", "moon",
         "page", "retina", "rocket", "brick", "grass", "gravel", "cell")  # fmt: skip


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format, **options)
        return file.getvalue()


def photographs(few: bool = False) -> dict[str, bytes]:
    """Name -> file: photographs as they come, and as cameras, screens and editors store them."""
    images = {name: Image.fromarray(getattr(skimage.data, name)()) for name in (("chelsea",) if few else NAMES)}
    if not few:
        images |= {f"sample {i}": Image.fromarray(each) for i, each in enumerate(load_sample_images().images)}
    files = {name: encoded(each, *(("JPEG",) if i % 2 else ("PNG",))) for i, (name, each) in enumerate(images.items())}
    cat = images["chelsea"]
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files[f"turned {turn}"] = encoded(cat.crop((0, 0, 300, 240)), "JPEG", quality=90, exif=exif)
    deep = encoded(Image.fromarray(np.asarray(cat.convert("L"), np.uint16) * 257), "PNG")
    if few:
        return {"turned 6": files["turned 6"], "alpha": encoded(cat.convert("RGBA"), "PNG"), "16 bits": deep}
    china = images["sample 0"]
    files |= {
        "12 megapixels": encoded(china.resize((4000, 3000), Image.Resampling.BICUBIC), "JPEG", quality=85),
        "12 megapixels, upright": encoded(china.resize((3000, 4000), Image.Resampling.BICUBIC), "JPEG", quality=60),
        "grey": encoded(china.convert("L"), "JPEG"),
        "grey png": encoded(cat.convert("L"), "PNG"),
        "alpha": encoded(cat.convert("RGBA"), "PNG"),
        "grey alpha": encoded(cat.convert("LA"), "PNG"),
        "palette": encoded(china.quantize(200), "PNG"),
        "gif": encoded(cat.quantize(100), "GIF"),
        "bmp": encoded(cat, "BMP"),
        "progressive": encoded(china, "JPEG", progressive=True, quality=40),
        "full colour": encoded(china, "JPEG", subsampling="4:4:4"),
        "small": encoded(cat.resize((90, 60)), "JPEG"),
        "wide": encoded(china.crop((0, 100, 640, 200)), "PNG"),
        "black and white": encoded(cat.convert("1"), "PNG"),
        "16 bits": deep,
    }
    assert len(files) >= 40, len(files)
    return files


@contextmanager
def telling_pixels() -> Iterator[None]:
    """Within, exports give the `pixel_values` that are computed in them, too."""
    from vit.exporting.engine import _outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_outputs", lambda config, task, pool, image, framework: {
            **_outputs(config, task, pool, image, framework),
            "given": {"shape": [None, *image], "dtype": "float32"},
        })  # fmt: skip
        _also_in_torch(patch)
        for framework in ("tf", "flax"):
            module = __import__(f"vit.{framework}.export", fromlist=["served"])

            def served(*arguments: Any, original: Any = module.served) -> Any:
                run = original(*arguments)
                return lambda pixel_values: {**run(pixel_values), "given": pixel_values + 0}

            patch.setattr(module, "served", served)
        yield


def _also_in_torch(patch: pytest.MonkeyPatch) -> None:
    from vit.pt.export import Served

    forward = Served.forward
    patch.setattr(Served, "forward", lambda self, pixel_values: {
        **forward(self, pixel_values), "given": pixel_values + 0})  # fmt: skip


def compared(model_type: str, name: str, files: dict[str, bytes], folder: Path, **processing: Any) -> dict[str, float]:
    """How an export of a small model of a family differs from it, over files of images.

    Args:
        model_type: the family.
        name: of the format.
        files: name -> an image file.
        folder: for the model and its exports.
        **processing: of the image processor, beside what is published.
    """
    head = next((head for head, kind in families.config_class(model_type).heads.items()
                 if "ForImageClassification" in kind.name), None)  # fmt: skip
    model = folder / model_type
    processor = PROCESSORS.get(model_type, ViTImageProcessor)(**processing)
    size = processor.crop_size if processor.do_center_crop else processor.size
    if not model.exists():
        tiny_checkpoint(model, model_type, head, image_size=(size["height"], size["width"]), patch_size=16)
        processor.save_pretrained(model)
    processor = AutoImageProcessor.from_pretrained(model)
    options: dict[str, Any] = {"to": name, "task": "classify" if head else "embed", "verify": False}
    output = "logits" if head else "embedding"
    pixel_values = [processor(file, return_tensors="np").pixel_values for file in files.values()]
    forward = Forward(model, FORMATS[name].framework, **({} if head else {"head": None}))
    outputs = [forward(each) for each in pixel_values]
    expected = [each.logits if head else each.last_hidden_state[:, 0] for each in outputs]
    target = folder / f"{model_type}-{name}{FORMATS[name].ending or ''}"
    export(model, target, **options)
    artifact = load(target)
    found = [artifact({"pixel_values": each})[output] for each in pixel_values]
    scale = max(1.0, max(float(np.abs(each).max()) for each in expected))
    result = {"difference": max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / scale}
    if not FORMATS[name].images:
        return result
    with telling_pixels():
        export(model, target, images=True, force=True, **options)
    artifact = load(target)
    kind = FORMATS[name].images[0]
    levels = np.reshape(processor.image_std, (3, 1, 1)) / processor.rescale_factor
    close = total = same = 0
    worst = 0.0
    for file, values, logits in zip(files.values(), pixel_values, expected, strict=True):
        given = np.array([file], object) if kind == "image_bytes" else _uint8(file, 3)[None]
        answer = artifact({kind: given})
        off = np.abs(answer["given"] - values) * levels
        close, total = close + int((off < 1.01).sum()), total + off.size
        worst = max(worst, float(np.abs(answer[output] - logits).max()) / scale)
        same += int(answer[output].argmax() == logits.argmax())
    return {**result, "within a level": close / total, "difference with images": worst, "same": same / len(files)}


def main(arguments: Sequence[str]) -> None:
    few = "--few" in arguments
    files = photographs(few)
    print(f"{len(files)} images", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in [each for each in arguments if each in FORMATS] or FORMATS:
            for model_type in families.CONFIGS:
                found = compared(model_type, name, files, Path(folder))
                print(f"{name:12} {model_type:22} " + ", ".join(f"{k} {v:.3g}" if "diff" in k else f"{k} {v:.3%}"
                                                              for k, v in found.items()), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
