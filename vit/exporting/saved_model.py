"""A SavedModel of TensorFlow: a folder of versions, as TensorFlow Serving takes it, of which it holds the first.

Each input has a signature of its name; "serving_default" is that of the first one.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..budgets import MB, read_whole
from ..errors import CheckpointError, InputError, quoted, shown
from ..image_processing.steps import Steps
from .formats import NAME, Artifact, Job, parse

VERSION = "1"
METADATA = f"assets/{NAME}.json"
WARM_UP = "assets.extra/tf_serving_warmup_requests"
"""Where TensorFlow Serving looks for requests that it answers before it says that it is ready."""
BATCHES = (1, 8)
"""Of warm-up requests."""


def write(job: Job, path: Path) -> None:
    """Write the model, its weights in the dtype of the job."""
    import tensorflow as tf

    from ..tf.export import served, signatures

    model = job.model("tf")
    names = list(job.config.id2label.values()) if job.task == "classify" else None
    run = served(model, job.task, job.pool, names)
    functions = signatures(run, job.image, Steps.of(job.processor) if job.images else None)
    functions = {name: functions[name] for name in job.inputs}
    module = tf.Module()
    module.parameters = [each.value for each in model.variables]
    folder = path / VERSION
    with tempfile.TemporaryDirectory() as temporary:
        described = Path(temporary) / Path(METADATA).name
        described.write_text(json.dumps(job.metadata(tensorflow=tf.__version__), indent=1), encoding="utf-8")
        module.metadata = tf.saved_model.Asset(str(described))
        default = functions[next(iter(job.inputs))]
        tf.saved_model.save(module, str(folder), {"serving_default": default, **functions})
    extra = folder / WARM_UP
    extra.parent.mkdir()
    with tf.io.TFRecordWriter(str(extra)) as file:
        for name in job.inputs:
            for size in BATCHES:
                file.write(_request(name, _example(name, size, job.image).SerializeToString()))


def load(path: Path) -> Artifact:
    """Load it in TensorFlow, on its default device; a graph of other operations than `OPERATIONS` is refused."""
    described = path / VERSION / METADATA
    metadata = parse(read_whole(described) if described.is_file() else None, path)
    _check(path)
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path / VERSION))

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: tf.constant(array) for name, array in inputs.items()}
        try:
            found = loaded.signatures[next(iter(inputs))](**tensors)
        except tf.errors.InvalidArgumentError as error:  # of files that are no images
            raise InputError(f"{shown(path)} cannot use {', '.join(inputs)}: {_sentence(error)}") from None
        return {name: value.numpy() for name, value in found.items()}

    return Artifact("saved-model", path, metadata, run)


def _sentence(error: Exception) -> str:
    """What a graph says of what it cannot use: what the check in it says that failed, or what a decoder does."""
    text = str(error)
    if found := re.search(r"assertion failed: \[(.*?)\]", text):
        return found[1]
    lines = [line.strip() for line in text.partition("[[")[0].splitlines() if line.strip()]
    return shown(lines[-1] if lines else text).rstrip(".") + "."


# === What a graph may do ===

GRAPH = 256 * MB
"""Bytes of a graph, without its weights, at most."""
PURE = """
    Abs Add AddN AddV2 All Any ArgMax Assert AssignVariableOp BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd
    BroadcastTo Cast Ceil ConcatV2 Const Conv2D Cos Cumsum DecodeBase64 DecodeBmp DecodeGif DecodeImage DecodeJpeg
    DecodePng DecodeRaw DisableCopyOnRead DivNoNan Einsum Elu EnsureShape Equal Erf Erfc Exp ExpandDims Expm1 Fill
    Floor FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual Identity IdentityN If Less LessEqual Log Log1p
    LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max Maximum Mean Min Minimum Mul Neg NoOp NotEqual OneHot
    OnesLike Pack Pad PadV2 PartitionedCall Placeholder Pow Prod Range Rank ReadVariableOp RealDiv Relu Relu6
    Reshape ReverseV2 Roll Round Rsqrt Select SelectV2 Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split
    Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf StatelessWhile StopGradient
    StridedSlice Sub Substr Sum Tanh TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem
    TensorListStack Tile TopKV2 Transpose Unpack VarHandleOp VarIsInitializedOp Where While ZerosLike
"""
OPERATIONS = {*PURE.split()}
"""What a graph may do: nothing that reads or writes files, asks others, or runs Python."""
STORING = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename", "StaticRegexFullMatch", "StringJoin"}
"""And in the functions that TensorFlow keeps for reading and writing weights, which nothing else here calls."""
STORES = re.compile(r"__inference__traced_(save|restore)_\d+")


def _check(path: Path) -> None:
    """Refuse a graph that would do more than to compute.

    Raises:
        CheckpointError: it would.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    data = read_whole(path / VERSION / "saved_model.pb", GRAPH)
    for graph in saved_model_pb2.SavedModel.FromString(data).meta_graphs:
        library = graph.graph_def.library.function
        names = {each.signature.name for each in library}
        stores = {name for name in names if STORES.fullmatch(name)} - graph.object_graph_def.concrete_functions.keys()
        bodies = [(each.signature.name, each.node_def) for each in library]
        for name, nodes in [*bodies, ("", graph.graph_def.node)]:
            known = OPERATIONS | names | (STORING if name in stores else set())
            if name:  # from the graph outside of all functions, which is not run, they may be called
                known -= stores
            for node in nodes:
                if node.op not in known or (name and not stores.isdisjoint(_called(node))):
                    what = f"the operation {quoted(node.op, 60)}"
                    raise CheckpointError(f"{shown(path)} has {what}, which no export has; nothing of it was loaded.")


def _called(node: Any) -> Iterator[str]:
    """The functions that a node is told to call."""
    for value in node.attr.values():
        yield value.func.name
        yield from (each.name for each in value.list.func)


# === Warm-up ===


def _example(name: str, size: int, image: tuple[int, ...]) -> Any:
    """An input of that name, of a batch of that size: black images, as a TensorProto."""
    import tensorflow as tf

    if name == "pixel_values":
        return tf.make_tensor_proto(0, tf.float32, (size, *image))
    channels, height, width = image
    if name == "image_uint8":
        return tf.make_tensor_proto(0, tf.uint8, (size, height, width, channels))
    file = tf.io.encode_jpeg(tf.zeros((height, width, channels), tf.uint8))
    file = tf.io.encode_base64(file) if name == "string_input" else file
    return tf.make_tensor_proto([file.numpy()] * size)


def _request(name: str, tensor: bytes) -> bytes:
    """A PredictionLog of TensorFlow Serving, with a request to the signature of an input.

    Written field by field (apis/prediction_log.proto, predict.proto and model.proto of tensorflow/serving), because the
    package that has these messages is for few systems.
    """
    model = _field(3, name.encode())  # ModelSpec.signature_name
    entry = _field(1, name.encode()) + _field(2, tensor)  # of the map PredictRequest.inputs
    request = _field(1, model) + _field(2, entry)
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number: int, value: bytes) -> bytes:
    """A field of a protocol buffer: bytes, a string or a message."""
    head, length = bytearray([number << 3 | 2]), len(value)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + value
