"""What every model asks of its inputs, so that all three frameworks refuse a call in the same words."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from .config import PreTrainedConfig, to_pair
from .errors import InputError, quoted, shown, warn

IGNORED_LABEL = -100
"""A label that the single-label loss leaves out, as in PyTorch."""


_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = frozenset({"bool", "float16", "bfloat16", "float32", "float64"}) | _INTEGERS


def check_arrays(**values: Any) -> None:
    """Check that the named inputs are dense arrays of real numbers; of those but the images None is one not given.

    An array is what has a dtype and turns into one of NumPy's: NumPy's own, a framework's, a symbolic one. Nothing is
    read from a device.

    Raises:
        InputError: one is not; it is named.
    """
    for name, value in values.items():
        if value is None and name != "pixel_values":
            continue
        dtype = None if isinstance(value, type) else getattr(value, "dtype", None)
        if dtype is None or not (hasattr(value, "__array__") or hasattr(value, "__jax_array__")):
            remedy = "Convert it first, such as by numpy.asarray." if dtype is None else "Make it dense first."
            raise InputError(f"{name} is {_said(value)}; expected an array of real numbers. {remedy}")
        if str(dtype).startswith("torch."):  # PyTorch's own models look into it before: `check_tensors`
            raise InputError(
                f"{name} is {_said(value)}; expected an array of NumPy or of the model's framework. Convert it first: "
                "numpy.asarray."
            )
        if isinstance(value, np.ma.MaskedArray):
            raise InputError(f"{name} is a masked array; expected plain numbers, as its mask would be lost. Fill it.")
        if not getattr(dtype, "isnative", True):
            raise InputError(
                f"{name} has its bytes swapped; expected an array in this machine's order. Convert it first: "
                "array.astype(array.dtype.newbyteorder('='))."
            )
        _check_dtype(name, str(getattr(dtype, "name", dtype)))


def check_class_weights(value: Any) -> None:
    """Check that `class_weights` are an array, or numbers in a list; their shape is looked at afterwards.

    Raises:
        InputError: they are not, such as a dict.
    """
    if not isinstance(value, list | tuple):
        check_arrays(class_weights=value)
    elif not all(_is_number(each) or _is_scalar(each) for each in value):
        raise InputError(f"class_weights is {_said(value)}; expected a number for each label.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _is_scalar(value: object) -> bool:
    """Whether it is a framework's tensor without axes."""
    return getattr(value, "shape", None) == () and not isinstance(value, np.ndarray | np.generic)


def check_tensors(kind: Any, device: Any, **values: Any) -> None:
    """As `check_arrays`, in a framework that takes nothing but its own tensors: PyTorch.

    Args:
        kind: its tensors.
        device: of the model; where that has no values (the device "meta"), the inputs need none.
        **values: the named inputs.
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            check_arrays(**{name: value})
            if value is not None:
                expected = f"{kind.__module__}.{kind.__qualname__}"
                raise InputError(f"{name} is {_said(value)}; expected a {expected}. Convert it first: torch.as_tensor.")
            continue
        odd = None
        if value.is_nested:
            odd = "nested"
        elif str(value.layout) != "torch.strided":
            odd = f"of the layout {value.layout}"
        elif value.device.type == "meta" and device.type != "meta":
            odd = "without values, on the device meta"
        if odd is not None:
            raise InputError(f"{name} is a tensor {odd}; expected an array of real numbers. Make it dense first.")
        _check_dtype(name, str(value.dtype).removeprefix("torch."))


def _check_dtype(name: str, dtype: str) -> None:
    if name == "pixel_values" and dtype in _INTEGERS and not _is_compiling():
        _warn_of_integers(dtype)
    if dtype not in _DTYPES:
        raise InputError(
            f"{name} is of {shown(dtype)}; expected real numbers of at most 64 bits. Convert it first, such as to "
            "float32."
        )
    if dtype == "bool" and name == "labels":
        raise InputError(
            "labels is of bool; expected integers for one label an image, or floats for several. Convert it first."
        )


@cache
def _warn_of_integers(dtype: str) -> None:
    """Warn of pixels that no image processor made; once in a process, as a model and its base both look."""
    warn(
        f"pixel_values is of {dtype}, as photographs are stored; the model computes with them as they are, and expects "
        "what an image processor makes of them: floats, rescaled and normalised. Call ViTImageProcessor first, or "
        "convert them to float32 if this is meant."
    )


def _is_compiling() -> bool:
    """Whether torch.compile looks on, which takes no warnings; this file imports no framework."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def _said(value: object) -> str:
    """What was given instead of an array: small things as Python writes them, others by their type."""
    if value is None:
        return "None"
    cls = type(value)
    kind = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    if isinstance(value, str | bytes | int | float | complex | list | tuple | dict):
        return f"the {shown(kind)} {quoted(value)}"
    return f"a {shown(kind)}"


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
        raise InputError(f"device is {quoted(device)}; PyTorch sees {', '.join(seen)}.") from None


def _sizes(name: str, shape: Sequence[int | None]) -> Sequence[int | None]:
    """A shape, whose number of axes has to be known: in a TensorFlow graph it may not be."""
    try:
        len(shape)
    except ValueError:
        raise InputError(
            f"{name} has an unknown number of axes when the graph is built. Give it its shape first: tf.ensure_shape."
        ) from None
    return shape


def check_pixel_values(
    config: PreTrainedConfig, shape: Sequence[int | None], interpolate_pos_encoding: bool
) -> tuple[int, int]:
    """Check the shape of `pixel_values`, (batch, channels, height, width), and return its grid (rows, columns).

    A None in `shape` is a size that a TensorFlow graph does not know yet; it is taken to be the configured one.

    Raises:
        InputError: not four axes, another number of channels, or another size without `interpolate_pos_encoding`.
    """
    shape = _sizes("pixel_values", shape)
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
    shape = _sizes(name, shape)
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
    shape = _sizes("patches", shape)
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
    labels = _sizes("labels", labels)
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


def check_loss_options(
    problem_type: str,
    logits: Sequence[int | None],
    label_smoothing: float,
    class_weights: Sequence[int | None] | None,
    sample_weight: Sequence[int | None] | None,
) -> None:
    """Check the options of a loss of logits of that shape, (batch, num_labels); of arrays, their shapes.

    Raises:
        InputError: classes of a regression weighted or smoothed, no share, or another number of weights.
    """
    if problem_type == "regression" and (class_weights is not None or label_smoothing):
        raise InputError(
            "A regression has no classes to weight or smooth: leave class_weights and label_smoothing out."
        )
    if not (_is_number(label_smoothing) and 0 <= label_smoothing < 1):
        raise InputError(
            f"label_smoothing is {quoted(label_smoothing)}; expected a share of at least 0 and less than 1."
        )
    if class_weights is not None and list(class_weights) != [logits[1]]:
        raise InputError(f"class_weights has the shape {tuple(class_weights)}; expected ({logits[1]},), one a label.")
    if sample_weight is not None:
        fits = len(sample_weight) in (1, 2) and (None in (sample_weight[0], logits[0]) or sample_weight[0] == logits[0])
        if not fits or list(sample_weight[1:]) not in ([], [1]):
            batch = "batch" if logits[0] is None else logits[0]
            raise InputError(f"sample_weight has the shape {tuple(sample_weight)}; expected ({batch},), one an image.")


def check_class_weight(class_weight: Any, num_labels: int) -> None:
    """Check the `class_weight` of Keras's `fit`: a factor for the labels that it names by their numbers.

    Raises:
        InputError: no dict, a key that is no label, or a factor that is no number.
    """
    expected = f"expected a dict of label -> number, with labels of 0 to {num_labels - 1}."
    if not isinstance(class_weight, Mapping):
        raise InputError(f"class_weight is {_said(class_weight)}; {expected}")
    for label, factor in class_weight.items():
        is_label = isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label < num_labels
        if not is_label or not _is_number(factor):
            raise InputError(f"class_weight has {quoted({label: factor})}; {expected}")


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
    labels = _sizes("labels", labels)
    if len(labels) != 1 or (None not in (masked, labels[0]) and labels[0] != masked):
        expected = "masked patches" if masked is None else masked
        raise InputError(f"labels has the shape {tuple(labels)}; expected ({expected},), one for each masked patch.")
