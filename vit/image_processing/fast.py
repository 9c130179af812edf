"""ViTImageProcessorFast: photographs to `pixel_values` with PyTorch, on a CPU or GPU, to the bit what transformers and
torchvision compute.

PyTorch resizes 8-bit images several times faster than Pillow, and rounds differently: see docs/image_processing.md.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import platform
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..budgets import one_image
from ..errors import missing_framework
from ..inputs import check_torch_device
from .batch import BatchFeature
from .inputs import FIRST, Frame, flatten, to_bytes
from .processor import (
    Batch,
    Resized,
    ViTImageProcessor,
    check_channels,
    check_crop,
    make_reader,
    number_of_threads,
    resized_size,
    spread,
)

if TYPE_CHECKING:
    import torch

_MODES = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.LANCZOS: "lanczos",
}
"""Filters that torch has; Pillow does the others, on the CPU."""


class ViTImageProcessorFast(ViTImageProcessor):
    """ViTImageProcessor with PyTorch: tensors stay on their device, and a GPU can do the work.

    The options are those of ViTImageProcessor. The results differ slightly, as those of transformers' two do.

    Raises:
        ConfigError: an unknown option, or an impossible value.
        MissingFrameworkError: PyTorch is not installed.
    """

    is_fast = True
    rescale_first = False  # whether floats are resized, as DINOv3's are, rather than 8 bits

    def __init__(self, **options: Any) -> None:
        if importlib.util.find_spec("torch") is None:
            raise missing_framework("ViTImageProcessorFast", "pt")
        super().__init__(**options)

    def preprocess(
        self,
        images: Any,
        *,
        return_tensors: str | None = None,
        data_format: str = FIRST,
        input_data_format: str | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Make `pixel_values` of one image or a batch.

        Args:
            images: as ViTImageProcessor takes them. Floats are resized as floats, whatever their range.
            return_tensors: None for a list of torch tensors, or "np", "pt", "tf" or "jax".
            data_format: "channels_first" or "channels_last", of the result.
            input_data_format: the same of the arrays passed; inferred from each shape when None.
            device: where to compute and leave the result; where each tensor is, else the CPU, when None.
            threads: at most so many that take images, on the CPU; as many as torch has when None.
            **overrides: options for this call.

        Returns:
            A dict with attribute access: `pixel_values`, (batch, channels, height, width) float32; uint8 where neither
            `do_rescale` nor `do_normalize` asks for floats.

        Raises:
            InputError: an image that cannot be used; its index is named. Fewer than one thread.
            ConfigError: an unknown option, or an impossible value.
            MissingFrameworkError: the framework of `return_tensors` is not installed.
        """
        import torch

        options = self._options(overrides, return_tensors, data_format, input_data_format)
        check_torch_device(torch, device)
        reader = make_reader(options, input_data_format, keep_torch=True)
        sources = flatten(images)
        threads = number_of_threads(threads, torch.get_num_threads)
        if device is not None and torch.device(device).type != "cpu":
            threads = 1
        first = options["rescale_factor"] if self.rescale_first and options["do_rescale"] else None
        later = options if first is None else {**options, "do_rescale": False}
        mean, std = _constants(later)
        memory = torch.contiguous_format if data_format == FIRST else torch.channels_last
        batch = Batch(
            len(sources),
            lambda shape, dtype, device: torch.empty(shape, dtype=dtype, device=device, memory_format=memory),
        )

        def process(i: int) -> Frame:
            with one_image():
                frame = reader.read(*sources[i])
                pixels, channels, _ = _resize_and_crop(frame, options, device, first)
                shape = (channels, *pixels.shape[1:])
                _write(pixels, batch.place(i, shape, _dtype(pixels.dtype, later), pixels.device), later, mean, std)
                return frame.without_pixels()

        frames = spread(process, range(len(sources)), threads)
        return batch.finish(frames, options, return_tensors, data_format)


def _resize_and_crop(
    frame: Frame, options: Mapping[str, Any], device: str | torch.device | None, factor: float | None
) -> Resized:
    pixels = _tensor(frame)
    if device is not None:
        pixels = pixels.to(device)
    if factor is not None:
        pixels = pixels * factor
    if options["do_resize"]:
        channels, height, width = pixels.shape
        num_bytes = channels * max(4, pixels.element_size())  # as floats, which some machines need for uint8
        size = resized_size(frame.name, height, width, channels, num_bytes, options)
        if size != tuple(pixels.shape[1:]):
            pixels = _resize(pixels, size, options["resample"])
    if isinstance(frame.pixels, Image.Image):
        pixels = pixels[: len(frame.pixels.getbands())]  # without the fourth byte of shared memory
    if options["do_center_crop"]:
        check_crop(frame.name, pixels.shape[0], options)
        pixels = _center_crop(pixels, options["crop_size"]["height"], options["crop_size"]["width"])
    channels = 3 if frame.grey else pixels.shape[0]
    check_channels(frame.name, channels, options)
    return Resized(pixels, channels)


def _tensor(frame: Frame) -> torch.Tensor:
    """The pixels as a tensor (channels, height, width), sharing their memory where they let it."""
    import torch

    pixels = frame.pixels
    if isinstance(pixels, torch.Tensor):
        return (pixels.to(torch.uint8) if pixels.dtype == torch.bool else pixels).permute(2, 0, 1)
    if isinstance(pixels, Image.Image):
        pixels = _shared(pixels)
    elif pixels.dtype in (np.uint16, np.bool_):
        pixels, _ = to_bytes(frame)
    if any(stride < 0 for stride in pixels.strides):  # a flipped view, which torch does not have
        pixels = pixels.copy()
    if not pixels.flags.writeable:  # torch warns of what it could write to; nothing here writes
        address = pixels.__array_interface__["data"][0]
        pixels = np.asarray(_Lent(pixels, {**pixels.__array_interface__, "data": (address, False)}))
    return torch.from_numpy(pixels).permute(2, 0, 1)


class _Lent:
    """Memory by its NumPy array interface; what is made of it keeps the owner alive."""

    def __init__(self, owner: Any, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


class _ArrowArray(ctypes.Structure):
    """The head of the ArrowArray of the Arrow C data interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


@cache
def _get_pointer() -> Any:
    signature = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return signature(("PyCapsule_GetPointer", ctypes.pythonapi))


def _shared(image: Image.Image) -> np.ndarray:
    """A Pillow image as (height, width, bytes of a pixel): its own memory, four bytes for RGB, where that is possible.

    A copy costs half as much as the whole resize. Pillow lends its memory through Arrow, from 11.2 on and where an
    image lies in one piece, which those of more than 16 MiB do not.
    """
    num_bytes = {"L": 1, "RGB": 4, "RGBA": 4, "CMYK": 4}.get(image.mode)
    try:
        if num_bytes:
            _, capsule = image.__arrow_c_array__()
            array = _ArrowArray.from_address(_get_pointer()(capsule, b"arrow_array"))
            values = array.children[0].contents if array.n_children else array
            shape = (image.height, image.width, num_bytes)
            if values.length == math.prod(shape) and values.offset == array.offset == 0:
                data = (values.buffers[1], False)
                interface = {"shape": shape, "typestr": "|u1", "data": data, "version": 3}
                return np.asarray(_Lent((image, capsule), interface))
    except (AttributeError, ValueError):  # an older Pillow, no ctypes.pythonapi, more than one piece
        pass
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _resize(pixels: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """torchvision's resize of (channels, height, width), antialiased; integers are rounded."""
    import torch
    from torch.nn.functional import interpolate

    mode = _MODES.get(resample)
    if mode is None or (mode == "lanczos" and not _has_lanczos()):
        bands = [Image.fromarray(band.numpy()) for band in (pixels if _is_uint8(pixels) else pixels.float()).cpu()]
        resized = np.stack([np.asarray(band.resize(size[::-1], resample)) for band in bands])
        return torch.from_numpy(resized).to(pixels.device)
    native = pixels.dtype in (torch.float32, torch.float64) or (_is_uint8(pixels) and _resizes_uint8(pixels, mode))
    smooth = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    resized = interpolate((pixels if native else pixels.float())[None], size=size, mode=mode, **smooth)[0]
    if native:
        return resized
    if _is_uint8(pixels) and mode in ("bicubic", "lanczos"):  # which overshoot
        resized = resized.clamp_(0, 255)
    return (resized if pixels.is_floating_point() else resized.round_()).to(pixels.dtype)


def _is_uint8(pixels: torch.Tensor) -> bool:
    return str(pixels.dtype) == "torch.uint8"


def _resizes_uint8(pixels: torch.Tensor, mode: str) -> bool:
    """Whether torchvision leaves uint8 to torch, which is several times faster than through float32."""
    import torch

    if mode == "nearest-exact":
        return True
    if pixels.device.type != "cpu":
        return False
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return mode != "bilinear" or vectorised or platform.machine() in ("aarch64", "arm64")


@cache
def _has_lanczos() -> bool:
    import torch
    from torch.nn.functional import interpolate

    try:
        interpolate(torch.zeros(1, 1, 2, 2), size=(1, 1), mode="lanczos", antialias=True, align_corners=False)
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return True


def _center_crop(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle of (channels, height, width), zeros around what is smaller: where that is odd, one pixel off the NumPy
    processor's."""
    from torch.nn.functional import pad

    more_height, more_width = max(height - pixels.shape[1], 0), max(width - pixels.shape[2], 0)
    if more_height or more_width:
        pixels = pad(pixels, (more_width // 2, (more_width + 1) // 2, more_height // 2, (more_height + 1) // 2))
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _constants(options: Mapping[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """image_mean and image_std, (channels, 1, 1), for pixels that have not been rescaled: both steps in one."""
    import torch

    if not options["do_normalize"]:
        return None, None
    scale = 1.0 / options["rescale_factor"] if options["do_rescale"] else 1.0
    mean, std = (
        torch.tensor(options[name], dtype=torch.float32, device="cpu") * scale for name in ("image_mean", "image_std")
    )
    return mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)


def _dtype(pixels: torch.dtype, options: Mapping[str, Any]) -> torch.dtype:
    import torch

    to_floats = options["do_rescale"] and not pixels.is_floating_point
    return torch.float32 if options["do_normalize"] or to_floats else pixels


def _write(
    pixels: torch.Tensor,
    out: torch.Tensor,
    options: Mapping[str, Any],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> None:
    """Put the values of an image into its place, (channels, height, width)."""
    if mean is None or std is None:
        out.copy_(pixels * options["rescale_factor"] if options["do_rescale"] else pixels)
    elif _by_numpy(out, pixels):
        # The same arithmetic as below; NumPy's, as torch would start threads within each of the threads here.
        array = out.numpy()
        np.subtract(pixels.numpy(), mean.numpy(), out=array, dtype=np.float32)
        np.divide(array, std.numpy(), out=array)
    else:
        out.copy_(pixels).sub_(mean.to(out.device)).div_(std.to(out.device))


def _by_numpy(out: torch.Tensor, pixels: torch.Tensor) -> bool:
    return out.device.type == pixels.device.type == "cpu" and str(pixels.dtype) != "torch.bfloat16"
