"""What no model can compute with is refused in the same words by every class of every family in every framework."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vit import InputError, families
from vit import inputs as checks
from vit.inputs import check_arrays, check_labels_shape, check_pixel_values

from .tiny import HEADS, tiny_family

ARGUMENTS = {"pixel_values": (2, 3, 16, 12), "labels": (2,), "bool_masked_pos": (2, 12), "noise": (2, 12)}
"""Every argument of a call that is an array, and a shape that it may have."""

Make = Callable[[tuple[int, ...]], Any]
NO_ARRAY = "; expected an array of real numbers. Convert it first, such as by numpy.asarray."
SPARSE = "; expected an array of real numbers. Make it dense first."
WRONG_DTYPE = "; expected real numbers of at most 64 bits. Convert it first, such as to float32."

ANYWHERE: dict[str, tuple[Make, str]] = {
    "text": (lambda shape: "cat", "is the str 'cat'" + NO_ARRAY),
    "long text": (lambda shape: "x" * 10**6, "is the str 'xxx"),
    "bytes": (lambda shape: b"cat", "is the bytes b'cat'" + NO_ARRAY),
    "a number": (lambda shape: 3, "is the int 3" + NO_ARRAY),
    "a huge number": (lambda shape: 10**5000, "is the int a value of type int" + NO_ARRAY),
    "a complex number": (lambda shape: 1j, "is the complex 1j" + NO_ARRAY),
    "a truth value": (lambda shape: True, "is the bool True" + NO_ARRAY),
    "a list": (lambda shape: np.zeros(shape).tolist(), "is the list ["),
    "a ragged list": (lambda shape: [[1.0], [1.0, 2.0]], "is the list [[1.0], [1.0, 2.0]]" + NO_ARRAY),
    "a tuple of arrays": (lambda shape: (np.zeros(shape[1:]),) * 2, "is the tuple ("),
    "a set": (lambda shape: {1}, "is a set" + NO_ARRAY),
    "an object": (lambda shape: Ellipsis, "is a ellipsis" + NO_ARRAY),
    "a type": (lambda shape: np.float32, "is a type"),
    "complex numbers": (lambda shape: np.zeros(shape, np.complex64), "is of complex64" + WRONG_DTYPE),
    "objects": (lambda shape: np.full(shape, None), "is of object" + WRONG_DTYPE),
    "texts": (lambda shape: np.full(shape, "x"), "is of str32" + WRONG_DTYPE),
    "times": (lambda shape: np.zeros(shape, "M8[s]"), "is of datetime64[s]" + WRONG_DTYPE),
    "records": (lambda shape: np.zeros(shape, [("r", "f4"), ("g", "f4")]), "is of void64" + WRONG_DTYPE),
    "swapped bytes": (lambda shape: np.zeros(shape, ">f4"), "has its bytes swapped; expected an array in this machine"),
    "wide floats": (lambda shape: np.zeros(shape, np.longdouble), WRONG_DTYPE),
    "a mask": (lambda shape: np.ma.masked_array(np.zeros(shape, "f4")), "is a masked array; expected plain numbers"),
    "a sparse matrix": (lambda shape: _scipy(), "is a scipy.sparse." ),
}  # fmt: skip


def _scipy() -> Any:
    import scipy.sparse

    return scipy.sparse.csr_array(np.eye(3, dtype=np.float32))


def _torch(make: Callable[[Any, tuple[int, ...]], Any]) -> Make:
    def made(shape: tuple[int, ...]) -> Any:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental says so
            return make(torch, shape)

    return made


def _tf(make: Callable[[Any, tuple[int, ...]], Any]) -> Make:
    return lambda shape: make(__import__("tensorflow"), shape)


def _jax(make: Callable[[Any, tuple[int, ...]], Any]) -> Make:
    return lambda shape: make(__import__("jax"), shape)


def _bcoo(jax: Any, shape: tuple[int, ...]) -> Any:
    from jax.experimental import sparse

    return sparse.BCOO.fromdense(jax.numpy.ones(shape))


OTHER = "is a torch.Tensor; expected an array of NumPy or of the model's framework. Convert it first: numpy.asarray."
OWN: dict[str, dict[str, tuple[Make, str]]] = {
    "pt": {
        "an array": (lambda shape: np.zeros(shape, "f4"),
                     "is a numpy.ndarray; expected a torch.Tensor. Convert it first: torch.as_tensor."),
        "sparse": (_torch(lambda torch, shape: torch.zeros(shape).to_sparse()),
                   "is a tensor of the layout torch.sparse_coo" + SPARSE),
        "sparse rows": (_torch(lambda torch, shape: torch.eye(3).to_sparse_csr()), "layout torch.sparse_csr" + SPARSE),
        "meta": (_torch(lambda torch, shape: torch.zeros(shape, device="meta")),
                 "is a tensor without values, on the device meta" + SPARSE),
        "quantised": (_torch(lambda torch, shape: torch.quantize_per_tensor(torch.zeros(shape), 1.0, 0, torch.qint8)),
                      "is of qint8" + WRONG_DTYPE),
        "nested": (_torch(lambda torch, shape: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
                   "is a tensor nested" + SPARSE),
        "complex": (_torch(lambda torch, shape: torch.zeros(shape, dtype=torch.complex64)), "is of complex64"),
        "8 bits": (_torch(lambda torch, shape: torch.zeros(shape).to(torch.float8_e4m3fn)), "is of float8_e4m3fn"),
    },
    "tf": {
        "sparse": (_tf(lambda tf, shape: tf.sparse.from_dense(tf.ones(shape))), "SparseTensor" + SPARSE),
        "ragged": (_tf(lambda tf, shape: tf.ragged.constant([[1.0], [1.0, 2.0]])), "RaggedTensor" + SPARSE),
        "text": (_tf(lambda tf, shape: tf.fill(shape, "x")), "is of string" + WRONG_DTYPE),
        "complex": (_tf(lambda tf, shape: tf.zeros(shape, tf.complex64)), "is of complex64" + WRONG_DTYPE),
        "quantised": (_tf(lambda tf, shape: tf.quantization.quantize(tf.zeros(shape), 0, 1, tf.qint8).output),
                      "is of qint8" + WRONG_DTYPE),
        "torch": (_torch(lambda torch, shape: torch.zeros(shape)), OTHER),
        "torch, sparse": (_torch(lambda torch, shape: torch.zeros(shape).to_sparse()), OTHER),
    },
    "flax": {
        "sparse": (_jax(_bcoo), "BCOO" + SPARSE),
        "a shape": (_jax(lambda jax, shape: jax.ShapeDtypeStruct(shape, "float32")), "ShapeDtypeStruct" + SPARSE),
        "complex": (_jax(lambda jax, shape: jax.numpy.zeros(shape, "complex64")), "is of complex64" + WRONG_DTYPE),
        "8 bits": (_jax(lambda jax, shape: jax.numpy.zeros(shape, "float8_e4m3fn")), "is of float8_e4m3fn"),
        "a key": (_jax(lambda jax, shape: jax.random.key(0)), "is of key<fry>" + WRONG_DTYPE),
        "torch": (_torch(lambda torch, shape: torch.zeros(shape)), OTHER),
        "torch, meta": (_torch(lambda torch, shape: torch.zeros(shape, device="meta")), OTHER),
    },
}  # fmt: skip
"""What a framework's own users might give; and each is given its neighbours'."""


def model_of(framework: str, model_type: str, head: str | None) -> Any:
    """A fresh small model with all its parts."""
    config = tiny_family(model_type)
    parts = {} if head else dict.fromkeys(config.heads[head].parts, True)
    if framework == "flax":
        from flax import nnx

        model = families.model_class(framework, model_type, head)(config, **parts, rngs=nnx.Rngs(0))
        model.eval()
        return model
    return families.model_class(framework, model_type, head)(config, **parts)


def native(framework: str, array: np.ndarray) -> Any:
    module = {"pt": "torch", "tf": "tensorflow", "flax": "jax.numpy"}[framework]
    make = {"pt": "as_tensor", "tf": "convert_to_tensor", "flax": "asarray"}[framework]
    return getattr(__import__(module, fromlist=[make]), make)(array)


def arguments_of(model: Any, framework: str) -> list[str]:
    call = getattr(model, {"pt": "forward", "tf": "call", "flax": "__call__"}[framework])
    return [name for name in ARGUMENTS if name in inspect.signature(call).parameters]


def good_inputs(model: Any, framework: str) -> dict[str, Any]:
    """What the class computes with: images, and what its other arguments need."""
    arrays = {"pixel_values": np.zeros(ARGUMENTS["pixel_values"], "f4"), **model.config.fixed_inputs((2, 3, 16, 12))}
    if model.head == "lm_head":
        arrays["bool_masked_pos"] = np.arange(24).reshape(2, 12) < 2  # two labels
    return {name: native(framework, array) for name, array in arrays.items()}


def refused(model: Callable[..., Any], **inputs: Any) -> str:
    with pytest.raises(InputError) as error:
        model(**inputs)
    assert type(error.value) is InputError
    message = str(error.value)
    assert message.isprintable(), message
    assert len(message) < 450, message
    assert "; expected " in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(("model_type", "head"), HEADS)
@pytest.mark.parametrize("framework", families.PREFIXES)
def test_what_is_no_array_of_numbers_or_of_another_rank_is_refused_in_the_same_words(framework, model_type, head):
    model = model_of(framework, model_type, head)
    good = good_inputs(model, framework)
    model(**{name: good.get(name) for name in arguments_of(model, framework)})  # None is an argument that is not given
    for name in arguments_of(model, framework):
        for kind, (make, expected) in {**ANYWHERE, **OWN[framework]}.items():
            message = refused(model, **{**good, name: make(ARGUMENTS[name])})
            assert message.startswith(f"{name} "), (kind, message)
            assert expected in message, (kind, message)
        for shape in ((2,) * rank for rank in range(7) if rank != len(ARGUMENTS[name])):
            dtype = {"labels": "i4", "bool_masked_pos": "bool"}.get(name, "f4")
            message = refused(model, **{**good, name: native(framework, np.zeros(shape, dtype))})
            assert message.startswith(f"{name} has the shape {shape}; expected ("), message
    assert refused(model, **{**good, "pixel_values": None}) == "pixel_values is None" + NO_ARRAY
    if "labels" in arguments_of(model, framework):
        message = refused(model, **{**good, "labels": native(framework, np.array([True, False]))})
        assert message == (
            "labels is of bool; expected integers for one label an image, or floats for several. Convert it first."
        )


# === Options of the loss ===

FACTORS = {name: row for name, row in ANYWHERE.items() if name != "a list"}  # which is five factors
WEIGHTS: dict[str, tuple[Any, str]] = {
    "a dict": ({0: 1.0, 1: 2.0}, "class_weights is the dict {0: 1.0, 1: 2.0}"),
    "a dict of texts": ({"cat": "much"}, "class_weights is the dict {'cat': 'much'}"),
    "texts": (["1"] * 5, "class_weights is the list ['1', '1', '1', '1', '1']; expected a number for each label."),
    "a list of None": ([None] * 5, "class_weights is the list [None, None, None, None, None]; expected a number"),
    "a list of lists": (
        [[1.0]] * 5,
        "class_weights is the list [[1.0], [1.0], [1.0], [1.0], [1.0]]; expected a number",
    ),
    "too few": ([1.0] * 4, "class_weights has the shape (4,); expected (5,), one a label."),
    "no list": (np.ones((5, 1)), "class_weights has the shape (5, 1); expected (5,), one a label."),
}
SMOOTHING: list[Any] = ["0.1", None, {}, [0.1], 1j, True, 1.0, -0.1, float("nan"), 10**400, np.array([0.1])]


@pytest.mark.parametrize("framework", families.PREFIXES)
def test_options_of_the_loss_that_mean_nothing_are_refused_in_the_same_words(framework):
    loss = __import__(f"vit.{framework}.loss", fromlist=["loss"]).classification_loss
    labels, logits = (native(framework, array) for array in (np.array([0, 1]), np.zeros((2, 5), "f4")))

    def refused_option(**options: Any) -> str:
        return refused(lambda: loss(labels, logits, tiny_family("vit"), **options))

    for name in ("class_weights", "sample_weight"):
        rows = {**(FACTORS if name == "class_weights" else ANYWHERE), **OWN[framework]}
        if name == "class_weights":
            rows.pop("an array", None)  # PyTorch takes one of NumPy as well
        for kind, (make, _) in rows.items():
            message = refused_option(**{name: make((5,) if name == "class_weights" else (2,))})
            assert message.startswith(f"{name} "), (kind, message)
    for kind, (value, expected) in WEIGHTS.items():
        message = refused_option(class_weights=value)
        assert message.startswith(expected), (kind, message)
    for value in SMOOTHING:
        message = refused_option(label_smoothing=value)
        assert message.startswith("label_smoothing is "), message
        assert message.endswith("; expected a share of at least 0 and less than 1."), message
    for fine in ([1, 2.0, np.float32(3), np.int64(4), native(framework, np.array(5.0))], (1,) * 5, np.ones(5, "f2")):
        assert np.isfinite(float(loss(labels, logits, tiny_family("vit"), class_weights=fine, label_smoothing=0)))


CLASS_WEIGHT = [[1.0] * 5, 3, "balanced", {"cat": 1.0}, {9: 1.0}, {-1: 1.0}, {True: 1.0}, {0.5: 1.0}, {0: "much"},
                {0: None}, {0: [1.0]}]  # fmt: skip


def test_class_weight_of_fit_is_looked_at_before_anything_is_trained(keras_model):
    keras_model.compile("sgd")
    images, labels = np.zeros((2, 3, 16, 12), "f4"), np.array([0, 1])
    for value in CLASS_WEIGHT:
        for x, y in ((images, labels), ({"pixel_values": images, "labels": labels}, None)):
            message = refused(lambda x=x, y=y, v=value: keras_model.fit(x, y, class_weight=v, verbose=0))
            assert message.endswith("; expected a dict of label -> number, with labels of 0 to 4."), message
        message = refused(lambda v=value: keras_model.train_on_batch(images, labels, class_weight=v))
    keras_model.fit(images, labels, class_weight={np.int64(0): np.float32(2), 4: 1}, verbose=0)


# === Pixels as they are stored ===


@pytest.mark.parametrize("framework", families.PREFIXES)
def test_integer_pixels_are_warned_of_once_with_the_remedy(framework):
    model = model_of(framework, "vit", "classifier")
    checks._warn_of_integers.cache_clear()
    bytes_, floats = (native(framework, np.zeros(ARGUMENTS["pixel_values"], kind)) for kind in ("u1", "f4"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(floats)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            model(bytes_)
    (warning,) = caught
    assert warning.category is UserWarning
    assert str(warning.message).startswith("pixel_values is of uint8, as photographs are stored; ")
    assert "Call ViTImageProcessor first" in str(warning.message)


def test_a_compiled_model_takes_integer_pixels_as_it_takes_floats():
    import tensorflow as tf
    import torch
    from flax import nnx

    images = np.full((1, 3, 16, 12), 3, "u1")
    pt, keras_model, flax = (model_of(framework, "vit", "classifier") for framework in ("pt", "tf", "flax"))
    compiled = torch.compile(pt.eval(), fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "pt": (compiled(torch.from_numpy(images)), pt(torch.from_numpy(images).float())),
            "tf": (tf.function(lambda x: keras_model(x))(tf.constant(images)), keras_model(images.astype("f4"))),
            "flax": (nnx.jit(lambda model, x: model(x))(flax, images), flax(images.astype("f4"))),
        }
    for name, (ours, expected) in found.items():
        difference = abs(np.asarray(ours.logits.detach() if name == "pt" else ours.logits) -
                         np.asarray(expected.logits.detach() if name == "pt" else expected.logits))  # fmt: skip
        assert difference.max() < 1e-4, name


def test_a_tensor_without_values_is_what_a_model_without_values_takes():
    import torch

    with torch.device("meta"):
        model = model_of("pt", "vit", "classifier")
        assert model(torch.zeros(2, 3, 16, 12), labels=torch.zeros(2, dtype=torch.int64)).logits.shape == (2, 5)


def test_what_stands_for_an_array_in_a_graph_is_an_array():
    import jax
    import keras
    import tensorflow as tf

    flax = model_of("flax", "vit", "classifier")
    assert jax.eval_shape(lambda x: flax(x).logits, jax.ShapeDtypeStruct((2, 3, 16, 12), "float32")).shape == (2, 5)
    model = model_of("tf", "vit", "classifier")
    assert model(keras.Input((3, 16, 12))).logits.shape == (None, 5)
    compiled = tf.function(lambda images: model(images).logits)
    assert compiled(tf.Variable(tf.zeros((2, 3, 16, 12)))).shape == (2, 5)
    assert model(keras.Variable(np.zeros((2, 3, 16, 12), "f4"))).logits.shape == (2, 5)


# === Keras adds nothing ===

WRONG = "pixel_values is 17 x 12; the model expects 16 x 12. Resize the images, or pass interpolate_pos_encoding=True."


def _fit(model: Any, images: np.ndarray, eagerly: bool, method: str) -> None:
    model.compile("sgd", run_eagerly=eagerly)
    arguments = (images, np.zeros(len(images), "i4")) if method not in ("predict", "predict_on_batch") else (images,)
    getattr(model, method)(*arguments, **({} if method.endswith("on_batch") else {"verbose": 0}))


WAYS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "a call": lambda model, images: model(images),
    "a call of tensors": lambda model, images: model(__import__("tensorflow").constant(images)),
    "a dict": lambda model, images: model({"pixel_values": images}),
    "symbolic": lambda model, images: model(__import__("keras").Input(images.shape[1:])),
    "tf.function": lambda model, images: __import__("tensorflow").function(lambda x: model(x))(images),
    "tf.function of the model": lambda model, images: __import__("tensorflow").function(model)(images),
    "nested tf.function": lambda model, images: __import__("tensorflow").function(
        __import__("tensorflow").function(lambda x: model(x)))(images),
    "tf.function without AutoGraph": lambda model, images: __import__("tensorflow").function(
        lambda x: model(x), autograph=False)(images),
    **{f"{method}{', eagerly' * eagerly}": lambda model, images, method=method, eagerly=eagerly: _fit(
        model, images, eagerly, method)
       for method in ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")
       for eagerly in (False, True)},
}  # fmt: skip


@pytest.fixture(scope="module")
def keras_model() -> Any:
    return model_of("tf", "vit", "classifier")


@pytest.mark.parametrize("way", WAYS)
def test_keras_and_tensorflow_add_nothing_to_an_error(way, keras_model):
    with pytest.raises(InputError) as error:
        WAYS[way](keras_model, np.zeros((2, 3, 17, 12), "f4"))
    assert type(error.value) is InputError
    assert str(error.value) == WRONG
    assert error.value.__cause__ is None


@pytest.mark.parametrize("eagerly", [False, True])
def test_labels_that_fit_is_given_are_looked_at_as_well(eagerly, keras_model):
    keras_model.compile("sgd", run_eagerly=eagerly)
    with pytest.raises(InputError, match=r"^labels is of bool; expected integers for one label an image"):
        keras_model.fit(np.zeros((2, 3, 16, 12), "f4"), np.array([True, False]), verbose=0)


def test_an_unknown_number_of_axes_is_refused_with_the_remedy(keras_model):
    import tensorflow as tf

    images, labels = tf.zeros((2, 3, 16, 12)), tf.zeros((2,), tf.int32)
    for name, inputs in (("pixel_values", (None, labels.shape)), ("labels", (images.shape, None))):
        specs = [tf.TensorSpec(shape, kind) for shape, kind in zip(inputs, (tf.float32, tf.int32), strict=True)]
        call = tf.function(lambda x, y: keras_model(x, labels=y).loss, input_signature=specs)
        with pytest.raises(InputError, match=f"^{name} has an unknown number of axes .*: tf.ensure_shape"):
            call(images, labels)


def test_the_checks_know_shapes_alone():
    config = tiny_family("vit")
    assert check_pixel_values(config, (None, 3, None, None), False) == (4, 3)
    check_labels_shape("single_label_classification", (None,), (2, 5))
    check_arrays(pixel_values=np.zeros(2), labels=None, noise=np.float16(1))
