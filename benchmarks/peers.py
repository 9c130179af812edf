"""Who is measured, and how each is built: the table `PEERS`, and the functions that run in a process of their own.

A peer that is not in this environment may lie in a folder of its own, from which nobody else imports:

    pip install --no-deps --target .venv/peers/openvino openvino openvino-telemetry

`TRIVIT_PEERS` may name another place than the `peers` beside this Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .products import products_flax, products_pt, products_tf

Runner = tuple[Callable[[], Any], Any]  # what is timed, and what is known of it

SITES = (Path(os.environ.get("TRIVIT_PEERS", Path(sys.prefix) / "peers")), Path(sys.prefix))
FLOATS = ("float32", "bfloat16", "float16")


class Peer(NamedTuple):
    """Somebody to measure: a library in a framework.

    Attributes:
        library: who builds the model.
        framework: "pt", "tf" or "flax"; or the name of a runtime, which runs the graph that trivit exported.
        needs: distributions whose modules must be found, the first of which gives the version.
        site: a folder of its own below `SITES`, if it has one.
        dtypes: those that it is measured in.
        install: what pip takes, where it is not part of `trivit[test]`.
    """

    library: str
    framework: str
    needs: tuple[str, ...]
    site: str | None = None
    dtypes: tuple[str, ...] = FLOATS
    install: str = ""

    @property
    def path(self) -> list[str]:
        """The folders that its process looks into first."""
        return [str(site / self.site) for site in SITES if self.site and (site / self.site).is_dir()][:1]

    def found(self) -> str | None:
        """Its version; None where it is not installed."""
        path = [*self.path, *sys.path]
        if not all(PathFinder.find_spec(name.replace("-", "_"), path) for name in self.needs):
            return None
        versions = [found.version for found in distributions(name=self.needs[0], path=path)]
        try:
            return versions[0] if versions else version(self.needs[0])
        except PackageNotFoundError:  # TensorFlow's distribution has several names
            return ""

    @property
    def name(self) -> str:
        """Library, version and framework, as tables have them."""
        framework = {"pt": " PyTorch", "tf": " TensorFlow", "flax": " Flax"}.get(self.framework, "")
        number = "" if self.library == "trivit" else f" {self.found() or ''}"
        return f"{self.library}{number}{framework}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its process: transformers would import every framework that it finds."""
        if self.library != "transformers":
            return {}
        variables = {"pt": "USE_TORCH", "tf": "USE_TF", "flax": "USE_FLAX"}
        return {name: str(int(framework == self.framework)) for framework, name in variables.items()}

    @property
    def missing(self) -> str:
        """What to say where it is not installed."""
        site = SITES[0] / (self.site or "")
        site = site.relative_to(Path.cwd()) if site.is_relative_to(Path.cwd()) else site
        target = f"--no-deps --target {site} " if self.site else ""
        return (
            f"{self.library} ({self.framework}) is not installed: pip install {target}{self.install or self.needs[0]}"
        )


PEERS = (
    Peer("trivit", "pt", ("torch",), dtypes=(*FLOATS, "int8")),
    Peer("transformers", "pt", ("transformers", "torch"), install="transformers==4.57.6"),
    Peer("transformers", "pt", ("transformers", "torch"), "transformers5", install="'transformers>=5' huggingface_hub"),
    Peer("timm", "pt", ("timm", "torchvision", "torch"), "timm", install="timm (and torchvision)"),
    Peer("trivit", "tf", ("tensorflow", "keras"), install="'trivit[tf]'"),
    Peer("transformers", "tf", ("transformers", "tf-keras", "tensorflow", "torch"), install="transformers==4.57.6"),
    Peer("keras-hub", "tf", ("keras-hub", "tensorflow"), "keras_hub"),
    Peer("trivit", "flax", ("flax", "jax"), install="'trivit[flax]'"),
    Peer("transformers", "flax", ("transformers", "flax", "jax"), install="transformers==4.57.6"),
    Peer("OpenVINO", "openvino", ("openvino",), "openvino", install="openvino openvino-telemetry"),
    Peer("ONNX Runtime", "onnxruntime", ("onnxruntime", "onnx", "onnxscript"), "onnxruntime", ("float32", "int8"),
         "onnxruntime onnx onnxscript onnx-ir"),
)  # fmt: skip
"""In the order of the tables; trivit stands before those that it is compared with."""

CLASSES = {"pt": "ViTForImageClassification", "tf": "TFViTForImageClassification",
           "flax": "FlaxViTForImageClassification"}  # fmt: skip
"""The name of a classifier, in trivit and in transformers."""
RUNTIMES = ("openvino", "onnxruntime")
SAME_WEIGHTS = ("trivit", "transformers", "OpenVINO", "ONNX Runtime")
"""Who reads the checkpoint; the others have the shape, and weights of their own."""


# === In the peer's process: models ===


def images(config: Any, batch_size: int) -> np.ndarray:
    """(batch_size, channels, height, width) float32, the same for everyone."""
    from vit.config import to_pair

    shape = (batch_size, config.num_channels, *to_pair(config.image_size))
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def read_config(checkpoint: str) -> Any:
    """The checkpoint's ViTConfig."""
    from vit import ViTConfig

    return ViTConfig.from_pretrained(checkpoint)


def torch_device(device: str) -> str:
    """What PyTorch calls it."""
    return "cuda" if device == "gpu" else device


def between_int8() -> str:
    """The dtype of what trivit computes between integer products: bfloat16, where the CPU multiplies it."""
    import torch

    from vit.pt.linear import has_kernel

    return "bfloat16" if has_kernel(torch.bfloat16) else "float32"


def model_pt(library: str, checkpoint: str, dtype: str, device: str, attention: str | None) -> Any:
    """A classifier, in evaluation mode, that gives logits or an output that has them."""
    import torch

    device = torch_device(device)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if library == "trivit":
        import vit.pt

        floating = between_int8() if dtype == "int8" else dtype
        model = vit.pt.ViTForImageClassification.from_pretrained(checkpoint, dtype=floating, device=device, **options)
        if dtype == "int8":
            from vit.pt import quantize

            return quantize(model, "int8")
        return model
    if library == "transformers":
        from transformers import ViTForImageClassification

        model = ViTForImageClassification.from_pretrained(checkpoint, dtype=getattr(torch, dtype), **options)
        return model.eval().to(device)
    from timm.models.vision_transformer import VisionTransformer

    config = read_config(checkpoint)
    model = VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, num_classes=config.num_labels,
        embed_dim=config.hidden_size, depth=config.num_hidden_layers, num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
    )  # fmt: skip
    return model.eval().to(device, getattr(torch, dtype))


def model_tf(library: str, checkpoint: str, dtype: str, device: str) -> Any:
    """A classifier that gives logits or an output that has them."""
    import tensorflow as tf

    with tf.device(f"{device.upper()}:0"):
        if library == "trivit":
            import vit.tf

            return vit.tf.TFViTForImageClassification.from_pretrained(checkpoint, dtype=dtype)
        if library == "transformers":
            import tf_keras
            from transformers import TFViTForImageClassification

            if dtype != "float32":
                tf_keras.mixed_precision.set_global_policy(f"mixed_{dtype}")  # it knows no other way
            return TFViTForImageClassification.from_pretrained(checkpoint, from_pt=True)  # its own reader is broken
        import keras_hub

        config = read_config(checkpoint)
        height, width = config.grid_size[0] * config.patch_size, config.grid_size[1] * config.patch_size
        backbone = keras_hub.models.ViTBackbone(
            (height, width, config.num_channels), config.patch_size, config.num_hidden_layers,
            config.num_attention_heads, config.hidden_size, config.intermediate_size, dtype=dtype,
        )  # fmt: skip
        return keras_hub.models.ViTImageClassifier(backbone, config.num_labels)


def model_flax(library: str, checkpoint: str, dtype: str) -> tuple[Any, Callable[..., Any]]:
    """(weights, function of weights and pixel values that gives logits)."""
    import jax.numpy as jnp

    if library == "trivit":
        from flax import nnx

        import vit.flax

        model = vit.flax.FlaxViTForImageClassification.from_pretrained(checkpoint, dtype=dtype)
        graphdef, state = nnx.split(model)
        return state, lambda state, x: nnx.merge(graphdef, state)(x).logits
    from transformers import FlaxViTForImageClassification

    theirs = FlaxViTForImageClassification.from_pretrained(checkpoint, dtype=jnp.dtype(dtype))
    if dtype == "bfloat16":
        theirs.params = theirs.to_bf16(theirs.params)
    if dtype == "float16":
        theirs.params = theirs.to_fp16(theirs.params)
    return theirs.params, lambda params, x: theirs(x, params=params).logits


# === In the peer's process: forward passes ===


def inference(**arguments: Any) -> Runner:
    """`forward` of the arguments, and the logits of its first image; compiled, because it has run."""
    run = forward(**arguments)
    return run, [float(value) for value in np.asarray(run())[0]]


def forward(
    library: str,
    framework: str,
    checkpoint: str,
    dtype: str,
    batch_size: int,
    device: str,
    attention: str | None = None,
    compiled: bool = False,
    prepacked: bool = False,
    products: bool = False,
) -> Callable[[], Any]:
    """A forward pass of a batch that lies on the device; returns when the logits are there.

    Args:
        library: of a `Peer`; so is `framework`.
        checkpoint: its folder; for a runtime, the exported graph lies there too.
        dtype: of weights and computation.
        batch_size: images.
        device: "cpu" or "gpu".
        attention: "sdpa" or "eager", where a library has both; None for its default.
        compiled: whether PyTorch compiles the model, with CUDA graphs on a GPU.
        prepacked: whether the weights of trivit's PyTorch model are prepacked for the batch size.
        products: whether only the linear layers of trivit's encoder run, and what the last one gives is returned.
    """
    arguments: dict[str, Any] = {
        "checkpoint": checkpoint, "dtype": dtype, "batch_size": batch_size, "device": device}  # fmt: skip
    if framework in RUNTIMES:
        return {"openvino": _infer_openvino, "onnxruntime": _infer_onnxruntime}[framework](**arguments)
    if framework == "pt":
        return _infer_pt(library, **arguments, products=products, attention=attention, compiled=compiled,
                         prepacked=prepacked)  # fmt: skip
    return {"tf": _infer_tf, "flax": _infer_flax}[framework](library, **arguments, products=products)


@lru_cache(maxsize=1)
def _loaded(function: Callable[..., Any], *arguments: Any) -> Any:
    """A model, kept for the next batch size."""
    return function(*arguments)


def _infer_pt(
    library: str, checkpoint: str, dtype: str, batch_size: int, device: str, products: bool, attention: str | None,
    compiled: bool, prepacked: bool,
) -> Callable[[], Any]:  # fmt: skip
    import torch

    where = torch_device(device)
    if prepacked:  # for one batch size
        from vit.pt import prepack

        model = prepack(model_pt(library, checkpoint, dtype, device, attention), batch_size)
    else:
        model = _loaded(model_pt, library, checkpoint, dtype, device, attention)
    floating = getattr(torch, between_int8() if dtype == "int8" else dtype)
    inputs = torch.from_numpy(images(read_config(checkpoint), batch_size)).to(where, floating)

    def logits(x: Any) -> Any:
        outputs = model(x)
        return getattr(outputs, "logits", outputs)

    if products:
        inputs, logits = products_pt(model, batch_size)
    if compiled:
        torch._dynamo.reset()  # an earlier batch size would make it compile for any
        logits = torch.compile(logits, mode="reduce-overhead" if device == "gpu" else "default", dynamic=False)

    @torch.inference_mode()
    def run() -> Any:
        return logits(inputs).float().cpu().numpy()  # waits for a GPU

    return run


def _infer_tf(
    library: str, checkpoint: str, dtype: str, batch_size: int, device: str, products: bool
) -> Callable[[], Any]:
    import tensorflow as tf

    model = _loaded(model_tf, library, checkpoint, dtype, device)
    pixel_values = images(read_config(checkpoint), batch_size)
    if library == "keras-hub":
        pixel_values = pixel_values.transpose(0, 2, 3, 1)  # its layout

    def logits(x: Any) -> Any:
        outputs = model(x, training=False)
        return getattr(outputs, "logits", outputs)

    with tf.device(f"{device.upper()}:0"):
        inputs = tf.constant(pixel_values)
        if products:
            inputs, logits = products_tf(model, batch_size)
    run = tf.function(lambda x: tf.cast(logits(x), tf.float32))
    return lambda: run(inputs).numpy()


def _infer_flax(
    library: str, checkpoint: str, dtype: str, batch_size: int, device: str, products: bool
) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    if products:
        weights, inputs, function = products_flax(checkpoint, dtype, batch_size)
    else:
        weights, function = _loaded(model_flax, library, checkpoint, dtype)
        inputs = jax.device_put(images(read_config(checkpoint), batch_size), jax.devices(device)[0])
    logits = jax.jit(lambda weights, x: function(weights, x).astype(jnp.float32))
    return lambda: np.asarray(logits(weights, inputs))


def _infer_openvino(checkpoint: str, dtype: str, batch_size: int, device: str) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    graph = core.read_model(f"{checkpoint}/openvino.xml")
    inputs = images(read_config(checkpoint), batch_size)
    graph.reshape(list(inputs.shape))
    precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(graph, device.upper(), options).create_infer_request()

    def run() -> Any:
        request.infer([inputs])
        return request.get_output_tensor(0).data

    return run


def _infer_onnxruntime(checkpoint: str, dtype: str, batch_size: int, device: str) -> Callable[[], Any]:
    import onnxruntime

    providers = ["CUDAExecutionProvider"] if device == "gpu" else ["CPUExecutionProvider"]
    file = {"float32": "model.onnx", "int8": "model.int8.onnx"}[dtype]
    session = onnxruntime.InferenceSession(f"{checkpoint}/{file}", providers=providers)
    if providers[0] not in session.get_providers():  # it would go on with the CPU
        raise ValueError(f"this ONNX Runtime has no {providers[0]}: install onnxruntime-gpu")
    inputs = {session.get_inputs()[0].name: images(read_config(checkpoint), batch_size)}
    return lambda: session.run(None, inputs)[0]


def export(framework: str, checkpoint: str) -> None:
    """Write the graph of trivit's PyTorch model beside the checkpoint, for a runtime.

    ONNX Runtime gets its own dynamic int8, too: weights beforehand, activations as they come.
    """
    import torch

    config = read_config(checkpoint)
    model = model_pt("trivit", checkpoint, "float32", "cpu", None)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values, return_dict=False)[0]

    example = torch.from_numpy(images(config, 2))
    if framework == "openvino":
        import openvino

        graph = openvino.convert_model(Logits().eval(), example_input=example)
        openvino.save_model(graph, f"{checkpoint}/openvino.xml", compress_to_fp16=False)
        return
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        Logits().eval(), (example,), f"{checkpoint}/model.onnx", dynamo=True, opset_version=18,
        dynamic_shapes=({0: batch},), verbose=False,
    )  # fmt: skip
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(f"{checkpoint}/model.onnx", f"{checkpoint}/model.int8.onnx")
