"""What every model asks of its inputs, so that all three frameworks refuse a call in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import PreTrainedConfig, to_pair
from .errors import InputError

IGNORED_LABEL = -100
"""A label that the single-label loss leaves out, as in PyTorch."""


def check_tensors(kind: type, **values: object) -> None:
    """Check that the named inputs that are given are tensors, where the framework does not make them so by itself.

    Raises:
        InputError: one is not; it is named.
    """
    for name, value in values.items():
        if value is None and name == "pixel_values":
            raise InputError("pixel_values is None; expected an array of numbers.")
        if value is not None and not isinstance(value, kind):
            given = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            expected = f"{kind.__module__}.{kind.__qualname__}"
            raise InputError(f"{name} is a {given}; expected a {expected}. Convert it first.")


_DTYPES = frozenset(
    ["bool", "float16", "bfloat16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


def check_arrays(**values: object) -> None:
    """Check that the named inputs that are given are real numbers that every framework takes, and the images given.

    What has no dtype is a list of numbers, which NumPy reads. Nothing is read from a device.

    Raises:
        InputError: one is not; it is named.
    """
    for name, value in values.items():
        if value is None:
            if name == "pixel_values":
                raise InputError("pixel_values is None; expected an array of numbers.")
            continue
        if isinstance(value, list | tuple):
            try:
                value = np.asarray(value)
            except ValueError:  # rows of different lengths
                raise InputError(f"{name} is a {type(value).__name__}; expected an array of numbers.") from None
        dtype = getattr(value, "dtype", None)
        if dtype is None and not isinstance(value, int | float):
            raise InputError(f"{name} is a {type(value).__name__}; expected an array of numbers.")
        if dtype is not None and not getattr(dtype, "isnative", True):
            raise InputError(f"{name} has its bytes swapped; expected an array in this machine's order.")
        dtype_name = str(getattr(dtype, "name", dtype))  # on its own line: TensorFlow's AutoGraph reads no ":="
        if dtype is not None and dtype_name not in _DTYPES:
            raise InputError(f"{name} is of {dtype_name}; expected real numbers of at most 64 bits.")


def check_torch_device(torch: Any, device: Any) -> None:
    """Check that PyTorch, given as its module, has a device; None is its default one.

    Raises:
        InputError: it has not; those it sees are named.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError):  # each backend has its own
        backends = [(kind, getattr(torch, kind)) for kind in ("cuda", "xpu", "mps")]
        counts = [(kind, backend.device_count() if backend.is_available() else 0) for kind, backend in backends]
        seen = ["cpu", *(f"{kind}:{i}" for kind, count in counts for i in range(count))]
        raise InputError(f"device is {device!r}; PyTorch sees {', '.join(seen)}.") from None


def check_pixel_values(
    config: PreTrainedConfig, shape: Sequence[int | None], interpolate_pos_encoding: bool
) -> tuple[int, int]:
    """Check the shape of `pixel_values`, (batch, channels, height, width), and return its grid (rows, columns).

    A None in `shape` is a size that a TensorFlow graph does not know yet; it is taken to be the configured one.

    Raises:
        InputError: not four axes, another number of channels, or another size without `interpolate_pos_encoding`.
    """
    if len(shape) != 4:
        raise InputError(f"pixel_values has the shape {tuple(shape)}; expected (batch, channels, height, width).")
    _, channels, height, width = shape
    (expected_height, expected_width), (patch_height, patch_width) = (
        to_pair(config.image_size),
        to_pair(config.patch_size),
    )
    if channels not in (None, config.num_channels):
        channels_last = " It looks like channels last; transpose it." if width == config.num_channels else ""
        raise InputError(
            f"pixel_values has {channels} channels (shape {tuple(shape)}); the model expects {config.num_channels}, as "
            f"(batch, channels, height, width).{channels_last}"
        )
    if interpolate_pos_encoding:
        if height is None or width is None:
            raise InputError(
                "interpolate_pos_encoding needs the height and width of pixel_values when the graph is built; "
                f"the shape is {tuple(shape)}."
            )
        if height < patch_height or width < patch_width:
            raise InputError(
                f"pixel_values is {height} x {width}, smaller than one patch of {patch_height} x {patch_width}."
            )
        return height // patch_height, width // patch_width
    if height not in (None, expected_height) or width not in (None, expected_width):
        raise InputError(
            f"pixel_values is {height} x {width}; the model expects {expected_height} x {expected_width}. Resize the "
            "images, or pass interpolate_pos_encoding=True."
        )
    return config.grid_size


def check_bool_masked_pos(
    shape: Sequence[int | None], batch: int | None, num_patches: int, has_mask_token: bool
) -> None:
    """Check the shape of `bool_masked_pos`, (batch, patches).

    Raises:
        InputError: another shape, or a model without a mask token.
    """
    if not has_mask_token:
        raise InputError("bool_masked_pos needs a mask token: build the model with use_mask_token=True.")
    check_patch_values("bool_masked_pos", shape, batch, num_patches)


def check_patch_values(name: str, shape: Sequence[int | None], batch: int | None, num_patches: int) -> None:
    """Check the shape of an input with a value for each patch, (batch, patches).

    Raises:
        InputError: another shape; the input is named.
    """
    fits = len(shape) == 2 and shape[1] in (None, num_patches) and (None in (batch, shape[0]) or shape[0] == batch)
    if not fits:
        expected = f"({'batch' if batch is None else batch}, {num_patches})"
        raise InputError(f"{name} has the shape {tuple(shape)}; expected {expected}, one value for each patch.")


def check_patches(
    config: PreTrainedConfig, shape: Sequence[int | None], image_size: tuple[int, int] | None
) -> tuple[int, int]:
    """Check the shape of cut-up images, (batch, patches, numbers of a patch), and return their grid (rows, columns).

    Raises:
        InputError: another shape than that of images of `image_size`, or of the configuration's if that is None.
    """
    (height, width), (patch_height, patch_width) = to_pair(image_size or config.image_size), to_pair(config.patch_size)
    rows, columns = height // patch_height, width // patch_width
    expected = rows * columns, patch_height * patch_width * config.num_channels
    if len(shape) != 3 or shape[1] not in (None, expected[0]) or shape[2] not in (None, expected[1]):
        raise InputError(
            f"patches has the shape {tuple(shape)}; expected (batch, {expected[0]}, {expected[1]}) of images of "
            f"{height} x {width}. Say another size as original_image_size=(height, width)."
        )
    return rows, columns


def resolve_problem_type(config: PreTrainedConfig, labels_are_integers: bool) -> str:
    """The loss that labels select: the configured one, or by the number of labels and their dtype."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "single_label_classification" if labels_are_integers else "multi_label_classification"


def check_labels_shape(problem_type: str, labels: Sequence[int | None], logits: Sequence[int | None]) -> None:
    """Check that labels of this shape fit logits of that shape, (batch, num_labels).

    Raises:
        InputError: they do not.
    """
    batch, num_labels = logits
    allowed = [[batch, num_labels]]
    if problem_type == "single_label_classification":
        allowed = [[batch]]
    elif problem_type == "regression" and num_labels == 1:
        allowed = [[batch], [batch, 1]]
    if not any(
        len(labels) == len(shape)
        and all(None in pair or pair[0] == pair[1] for pair in zip(labels, shape, strict=True))
        for shape in allowed
    ):
        expected = " or ".join(str(tuple("batch" if size is None else size for size in shape)) for shape in allowed)
        raise InputError(f"labels has the shape {tuple(labels)}; expected {expected} for {problem_type}.")


def check_label_values(labels: np.ndarray, num_labels: int) -> None:
    """Check that labels name existing classes; called where the values are at hand (not in a compiled graph).

    Raises:
        InputError: a label that is neither a class nor `IGNORED_LABEL`.
    """
    is_class = (labels >= 0) & (labels < num_labels) & (labels == np.trunc(labels))  # false for NaN, too
    wrong = labels[~is_class & (labels != IGNORED_LABEL)]
    if wrong.size:
        raise InputError(
            f"labels holds {wrong.flat[0]}; expected 0 to {num_labels - 1} (num_labels is {num_labels}), or "
            f"{IGNORED_LABEL} for an image that the loss leaves out."
        )


def check_visual_tokens(labels: Sequence[int | None], masked: int | None, has_mask: bool) -> None:
    """Check that there is a label for each masked patch.

    Args:
        labels: their shape.
        masked: how many patches are masked; None where that is not at hand (in a compiled graph).
        has_mask: whether any can be.

    Raises:
        InputError: there is not.
    """
    if not has_mask:
        raise InputError("labels are those of masked patches; pass bool_masked_pos, too.")
    if len(labels) != 1 or (None not in (masked, labels[0]) and labels[0] != masked):
        expected = "masked patches" if masked is None else masked
        raise InputError(f"labels has the shape {tuple(labels)}; expected ({expected},), one for each masked patch.")
