"""The server's protocols: every form of a request and of an answer, and bad ones, over a table."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import (
    BitImageProcessor,
    DeiTImageProcessor,
    Forward,
    ViTImageProcessor,
    attention_mask,
    attention_rollout,
    cls_attention,
    families,
    predict,
)
from vit.errors import ConfigError, InputError
from vit.pipeline import CALLS
from vit.serving import Limits, create_app
from vit.serving.batching import Batcher, Full, Job
from vit.serving.loading import _sizes, load
from vit.serving.models import Model
from vit.serving.open_inference import HEADER
from vit.serving.refusals import Refusal, answer

from .equivalence import tiny_config
from .served import LABELS, Client, checkpoint, onnx_file, picture

PNG, JPEG = picture(), picture(1, "jpeg")
B64 = base64.b64encode(PNG).decode()
WEBSAFE = base64.urlsafe_b64encode(JPEG).decode().rstrip("=")
PIXELS = np.asarray(Image.open(io.BytesIO(PNG)))
V1, V2 = "/v1/models/default:predict", "/v2/models/default/infer"
LIMITS = Limits(max_batch_size=4, max_queue=8, max_body=200_000, max_pixels=10_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = dict(enumerate(("ant", "bee", "cat", "dog", "elk")))
    return checkpoint(tmp_path_factory.mktemp("served") / "model", id2label=labels)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with Client(create_app(folder, "pt", limits=LIMITS, vertex=("/healthy", "/ai"))) as found:
        yield found


@pytest.fixture(scope="module")
def values(folder: Path) -> np.ndarray:
    """What the model gets of the PNG."""
    return ViTImageProcessor.from_pretrained(folder)(PNG, return_tensors="np").pixel_values


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """What `vit.predict` says of the two images: labels and probabilities, vectors."""
    classes = list(predict([PNG, JPEG], str(folder), "pt", top_k=5, batch_size=1))
    vectors = [each.vector for each in predict([PNG, JPEG], str(folder), "pt", task="embed", batch_size=1)]
    return {"labels": [list(each.labels) for each in classes], "vectors": vectors,
            "probabilities": [list(each.probabilities) for each in classes]}  # fmt: skip


def near(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# === Our own protocol ===


def test_an_image_is_classified_as_vit_predict_does(client: Client, expected: dict[str, Any]) -> None:
    answer = client.post("/classify", content=PNG, headers={"content-type": "image/png"})
    assert answer.status_code == 200
    found = answer.json()
    assert found.keys() == {"model", "results", "seconds"}
    (result,) = found["results"]
    assert (found["model"], result["name"], result["labels"]) == ("default", None, expected["labels"][0])
    near(result["probabilities"], expected["probabilities"][0])


def test_a_form_holds_many_images_and_options(client: Client, expected: dict[str, Any]) -> None:
    files = [("image", ("a.png", PNG, "image/png")), ("image", ("../../b.jpg", JPEG))]
    found = client.post("/classify", files=files, data={"top_k": "2"}).json()["results"]
    assert [each["name"] for each in found] == ["a.png", "../../b.jpg"]
    assert [each["labels"] for each in found] == [labels[:2] for labels in expected["labels"]]


@pytest.mark.parametrize("pool", ["cls", "mean", "patches"])
def test_an_embedding_is_that_of_vit_predict(client: Client, folder: Path, pool: str) -> None:
    (wanted,) = predict([PNG], str(folder), "pt", task="embed", pool=pool)
    (found,) = client.post(f"/embed?pool={pool}", content=PNG).json()["results"]
    near(found["embedding"], wanted.vector)


def test_attention_is_that_of_vit_attention(client: Client, folder: Path, values: np.ndarray) -> None:
    outputs = Forward(folder, "pt")(values, output_attentions=True)
    heads = cls_attention(outputs.attentions, (4, 3), 0)[0]
    (found,) = client.post("/attention?layer=0", content=PNG).json()["results"]
    near(found["map"], heads.mean(axis=0))
    about = {"layer": 0, "layers": 2, "head": None, "heads": 4, "rollout": False, "threshold": None, "grid": [4, 3]}
    assert about.items() <= found.items()
    assert "mask" not in found
    assert found["area"] == [0, 0, 1, 1]
    assert found["labels"][0] in ("ant", "bee", "cat", "dog", "elk")
    (one,) = client.post("/attention?layer=-2&head=3&threshold=0.6", content=PNG).json()["results"]
    near(one["map"], heads[3])
    assert one["mask"] == attention_mask(heads[3], 0.6).tolist()
    (through,) = client.post("/attention?rollout=true", content=PNG).json()["results"]
    near(np.ravel(through["map"]), attention_rollout(outputs.attentions)[0, 0, 1:])


def test_attention_as_a_picture(client: Client) -> None:
    answer = client.post("/attention?format=png", content=PNG)
    assert answer.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(answer.content))
    assert (image.size, image.mode, image.getextrema()) == ((12, 16), "L", (0, 255))


# === TF Serving ===


@pytest.mark.parametrize(
    "request_",
    [
        {"instances": [{"b64": B64}, {"b64": WEBSAFE}]},
        {"instances": [{"image_bytes": {"b64": B64}}, {"image_bytes": {"b64": WEBSAFE}}]},
        {"instances": [B64, WEBSAFE], "signature_name": "serving_default"},
        {"instances": [{"string_input": B64}, {"string_input": WEBSAFE}], "signature_name": "string_input"},
        {"instances": [{"b64": B64}, WEBSAFE], "signature_name": "classify"},
        {"inputs": {"image_bytes": [{"b64": B64}, {"b64": WEBSAFE}]}},
        {"inputs": [{"b64": B64}, {"b64": WEBSAFE}]},
    ],
)
def test_tf_serving_takes_encoded_images_in_every_form(
    client: Client, expected: dict[str, Any], request_: dict[str, Any]
) -> None:
    found = client.post(V1, json=request_).json()
    if "inputs" in request_:
        rows = [dict(zip(found["outputs"], row, strict=True)) for row in zip(*found["outputs"].values(), strict=True)]
    else:
        rows = found["predictions"]
    assert [each["labels"] for each in rows] == expected["labels"]
    near([each["probabilities"] for each in rows], expected["probabilities"])
    assert list(found) == ["outputs" if "inputs" in request_ else "predictions"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["image_uint8", "pixel_values"])
def test_tf_serving_takes_arrays(
    client: Client, expected: dict[str, Any], values: np.ndarray, kind: str, named: bool
) -> None:
    image = (PIXELS if kind == "image_uint8" else values[0]).tolist()
    for request in (
        {"instances": [{kind: image} if named else image]},
        {"inputs": {kind: [image]} if named else [image]},
    ):
        found = client.post(V1, json=request).json()
        labels = found["predictions"][0]["labels"] if "instances" in request else found["outputs"]["labels"][0]
        assert labels == expected["labels"][0]


def test_an_only_output_has_no_name_as_in_tf_serving(client: Client, expected: dict[str, Any]) -> None:
    request = {"instances": [{"b64": B64}], "signature_name": "embed"}
    near(client.post(V1, json=request).json()["predictions"], expected["vectors"][:1])
    near(client.post(V1, json={"inputs": B64, "signature_name": "embed"}).json()["outputs"], expected["vectors"][:1])


def test_tf_serving_says_what_a_model_is(client: Client) -> None:
    for path in ("/v1/models/default", "/v1/models/default/versions/1"):
        (status,) = client.get(path).json()["model_version_status"]
        assert status == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        found = client.get(f"{path}/metadata").json()
        assert found["model_spec"] == {"name": "default", "signature_name": "", "version": "1"}
        signatures = found["metadata"]["signature_def"]["signature_def"]
        assert signatures["pixel_values"]["inputs"]["pixel_values"]["tensor_shape"]["dim"][1:] == [
            {"size": size, "name": ""} for size in ("3", "16", "12")
        ]
        assert set(signatures["serving_default"]["outputs"]) == {"labels", "probabilities"}
        for signature in signatures:  # each of them works
            name = signature if "image" in signature or signature in ("string_input", "pixel_values") else "image_bytes"
            data: Any = {"image_uint8": PIXELS.tolist(), "pixel_values": np.zeros((3, 16, 12)).tolist()}.get(name, B64)
            request = {"signature_name": signature, "instances": [{name: data}]}
            assert client.post("/v1/models/default/versions/1:predict", json=request).status_code == 200, signature


# === Vertex AI ===


def test_vertex_ai_has_its_routes(client: Client, expected: dict[str, Any]) -> None:
    assert client.get("/healthy").status_code == 200
    request = {"instances": [{"b64": B64}, {"image_bytes": {"b64": WEBSAFE}}], "parameters": {"top_k": 2}}
    found = client.post("/ai", json=request).json()
    assert [each["labels"] for each in found["predictions"]] == [labels[:2] for labels in expected["labels"]]


# === Open Inference Protocol ===


def tensor(name: str, array: np.ndarray | list[str], binary: bool = False) -> tuple[dict[str, Any], bytes]:
    """A tensor of a request in JSON or as binary data."""
    if isinstance(array, list):
        blob = b"".join(struct.pack("<I", len(data)) + data for data in (base64.b64decode(each) for each in array))
        found: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(array)]}
        data: Any = array
    else:
        blob, data = array.tobytes(), array.ravel().tolist()
        datatype = {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
        found = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    return (found | {"parameters": {"binary_data_size": len(blob)}}, blob) if binary else (found | {"data": data}, b"")


def infer(client: Client, request: dict[str, Any], blob: bytes = b"", path: str = V2) -> dict[str, Any]:
    """The outputs of an answer, from JSON or binary data."""
    head = json.dumps(request).encode()
    headers = {HEADER: str(len(head))} if blob else {}
    answer = client.post(path, content=head + blob, headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(HEADER, len(answer.content)))
    found, rest = json.loads(answer.content[:length]), answer.content[length:]
    assert (found["model_name"], found["model_version"], found.get("id")) == ("default", "1", request.get("id"))
    outputs = {}
    for each in found["outputs"]:
        data = each.get("data")
        if "parameters" in each:
            size = each["parameters"]["binary_data_size"]
            part, rest = rest[:size], rest[size:]
            data = np.frombuffer(part, "<f4") if each["datatype"] == "FP32" else strings(part)
        outputs[each["name"]] = np.reshape(data, each["shape"])
    assert not rest
    return outputs


def strings(data: bytes) -> list[str]:
    found = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return found


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", ["image_bytes", "image_uint8", "pixel_values"])
def test_open_inference_takes_and_gives_tensors_in_json_and_binary(
    client: Client, expected: dict[str, Any], values: np.ndarray, name: str, binary: bool, binary_out: bool
) -> None:
    given: Any = {"image_bytes": [B64], "image_uint8": PIXELS[None], "pixel_values": values}[name]
    one, blob = tensor(name, given, binary)
    request = {"id": "x", "inputs": [one], "parameters": {"binary_data_output": binary_out, "top_k": 3}}
    found = infer(client, request, blob)
    assert found["labels"].tolist() == [expected["labels"][0][:3]]
    near(found["probabilities"][0], expected["probabilities"][0][:3])


def test_open_inference_takes_what_is_odd_and_legal(
    client: Client, expected: dict[str, Any], values: np.ndarray
) -> None:
    one, labels = tensor("image_bytes", [B64])[0], expected["labels"][0]
    pixel_values = {"name": "pixel_values", "shape": [1, 3, 16, 12], "datatype": "FP32"}
    pixels = {"name": "image_uint8", "shape": [1, *PIXELS.shape], "data": PIXELS.tolist()}
    half = values.astype("<f2").tobytes()
    in_half = {**pixel_values, "datatype": "FP16", "parameters": {"binary_data_size": len(half)}}
    head = json.dumps({"inputs": [in_half]}).encode()
    requests: list[dict[str, Any]] = [
        {"json": {"inputs": [{**one, "shape": [1, 1], "data": [[B64]]}]}},
        {"json": {"inputs": [one], "outputs": [], "parameters": {"priority": 3}}},
        {"json": {"inputs": [{**one, "parameters": {"content_type": "base64"}}], "outputs": [{"name": "labels"}]}},
        {"json": {"inputs": [{**pixel_values, "data": values.tolist()}]}},
        {"json": {"inputs": [{**pixel_values, "datatype": "FP64", "data": values.ravel().tolist()}]}},
        {"json": {"inputs": [{**pixels, "datatype": "INT64"}]}},
        {"json": {"inputs": [{**pixels, "datatype": "UINT8", "shape": list(PIXELS[None].shape)}]}},
        {"content": head + half, "headers": {HEADER: str(len(head))}},
    ]
    for request in requests:
        answer = client.post("/v2/models/default/versions/1/infer", **request)
        assert answer.status_code == 200, answer.text
        found = {each["name"]: each for each in answer.json()["outputs"]}
        assert found["labels"]["data"] == labels
    mixed = {"inputs": [one], "id": "", "parameters": {"binary_data_output": True},
             "outputs": [{"name": "labels", "parameters": {"binary_data": False}}, {"name": "logits"}]}  # fmt: skip
    answer = client.post(V2, json=mixed)
    size = int(answer.headers[HEADER])
    told = json.loads(answer.content[:size])
    assert (told["id"], told["outputs"][0]["data"]) == ("", labels)
    assert told["outputs"][1]["parameters"] == {"binary_data_size": 20}
    assert len(answer.content) - size == 20


def test_open_inference_gives_the_outputs_that_are_asked_for(
    client: Client, expected: dict[str, Any], folder: Path, values: np.ndarray
) -> None:
    outputs = [{"name": "embedding", "parameters": {"binary_data": True}}, {"name": "logits"}]
    one, _ = tensor("image_bytes", [B64])
    found = infer(client, {"inputs": [one], "outputs": outputs}, path="/v2/models/default/versions/1/infer")
    assert list(found) == ["embedding", "logits"]
    near(found["embedding"], expected["vectors"][:1])
    near(found["logits"], Forward(folder, "pt")(values).logits)


def test_open_inference_says_what_there_is(client: Client) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/default", "/v2/models/default/versions/1"):
        assert client.get(f"{path}/ready").json() == {"name": "default", "ready": True}
        found = client.get(path).json()
        assert (found["platform"], found["versions"]) == ("trivit_pt", ["1"])
        assert {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, 16, 12]} in found["inputs"]
        assert {"name": "logits", "datatype": "FP32", "shape": [-1, 5]} in found["outputs"]


# === What is refused ===


def infer_of(**changes: Any) -> dict[str, Any]:
    one, _ = tensor("image_bytes", [B64])
    return {"json": {"inputs": [{**one, **changes}]}}


def binary_of(changes: dict[str, Any], blob: bytes, length: str | None = None) -> dict[str, Any]:
    head = json.dumps({"inputs": [changes]}).encode()
    return {"content": head + blob, "headers": {HEADER: length or str(len(head))}}


def large(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "png")
    return file.getvalue()


FILE = [("image", ("a.png", PNG))]
FIRST = np.resize(PIXELS.transpose(2, 0, 1), (3, 16, 12)).tolist()  # pixels with their channels first
TWO = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
BAD: list[tuple[int, str, dict[str, Any], str]] = [
    (400, "/classify", {}, "has no image"),
    (422, "/classify", {"content": b"no image"}, "is not an image file"),
    (422, "/classify", {"content": PNG[:100]}, "cannot be read"),
    (422, "/classify", {"content": JPEG[:300]}, "cannot be read"),
    (422, "/embed", {"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "is not an image file"),
    (422, "/classify", {"content": b"/etc/passwd"}, "is not an image file"),
    (422, "/classify", {"content": b"http://127.0.0.1:1/cat.png"}, "is not an image file"),
    (413, "/classify", {"content": large((200, 200))}, "200 x 200 pixels; expected at most 10,000"),
    (413, "/classify", {"content": large((40_000, 40_000))}, "too large"),
    (413, "/classify", {"content": bytes(200_001)}, "body is too large"),
    (415, "/classify", {"content": PNG, "headers": {"content-type": "application/json"}}, "expected that of an image"),
    (415, "/classify", {"content": PNG, "headers": {"content-encoding": "gzip"}}, "Content-Encoding"),
    (415, V1, {"content": b"{}", "headers": {"content-encoding": "gzip"}}, "Content-Encoding"),
    (400, "/classify?top_k=0", {"content": PNG}, "top_k is '0'; expected an int of at least 1"),
    (400, "/classify?top_k=x", {"content": PNG}, "top_k is 'x'"),
    (400, "/classify?top_k=" + "9" * 5000, {"content": PNG}, "top_k"),
    (400, "/classify?topk=1", {"content": PNG}, "no option 'topk'; expected model, top_k"),
    (400, "/classify?top_k=1&top_k=2", {"content": PNG}, "'top_k' is given twice"),
    (400, "/classify?top_k=1", {"files": FILE, "data": {"top_k": "1"}}, "'top_k' is given twice"),
    (422, "/classify", {"files": [("image", PNG.hex().encode())]}, "is not an image file"),
    (400, "/classify", {"data": {"url": "http://x/"}, "files": FILE}, "no option 'url'"),
    (400, "/classify", {"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "form is broken"),
    (400, "/classify", {"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}}, ""),
    (413, "/classify", {"files": FILE * 9}, "too many images; expected at most 8"),
    (422, "/classify", {"files": [*FILE, ("image", ("b", b"no"))]}, "Image 1 of 2: The image is not"),
    (404, "/classify?model=other", {"content": PNG}, "no model 'other'; expected default"),
    (404, "/classify?model=../../etc/passwd", {"content": PNG}, "no model"),
    (400, "/embed?pool=pooler", {"content": PNG}, "has no pooler"),
    (400, "/embed?pool=x", {"content": PNG}, "pool is 'x'; expected cls, mean"),
    (400, "/attention?layer=2", {"content": PNG}, "layer is '2'; expected an int of -2 to 1"),
    (400, "/attention?head=4", {"content": PNG}, "head is '4'"),
    (400, "/attention?head=-1", {"content": PNG}, "head is '-1'"),
    (400, "/attention?threshold=1.5", {"content": PNG}, "threshold is '1.5'"),
    (400, "/attention?threshold=nan", {"content": PNG}, "threshold is 'nan'"),
    (400, "/attention?rollout=maybe", {"content": PNG}, "rollout is 'maybe'"),
    (400, "/attention?rollout=1&head=0", {"content": PNG}, "no head beside it"),
    (400, "/attention?format=gif", {"content": PNG}, "format is 'gif'"),
    (400, "/attention?format=png", {"files": FILE * 2}, "expected 1 for format=png"),
    (405, "GET /classify", {}, "'/classify' takes no GET; expected POST."),
    (404, "/nothing", {"content": PNG}, "no '/nothing'"),
    (404, "GET /%2e%2e/%2e%2e/etc/passwd", {}, "There is no"),
    (400, V1, {"content": b""}, "no JSON"),
    (400, V1, {"content": b"\xff\xfe{"}, "not in UTF-8"),
    (400, V1, {"content": b"[1]"}, "is a list in JSON"),
    (400, V1, {"content": b"[" * 100_000}, "nested too deeply"),
    (400, V1, {"content": b'{"instances": ' + b"9" * 5000 + b"}"}, "too long"),
    (400, V1, {"content": b'{"instances": [NaN]}'}, "NaN, which is no JSON"),
    (400, V1, {"content": b'{"instances": [], "instances": []}'}, "the key 'instances' twice"),
    (400, V1, {"json": {}}, "both instances and inputs, or neither"),
    (400, V1, {"json": {"instances": [B64], "inputs": [B64]}}, "both"),
    (400, V1, {"json": {"instances": [B64], "signature_name": "x"}}, "signature_name is 'x'; expected serving_default"),
    (400, V1, {"json": {"instances": [B64], "more": 1}}, "no key 'more'"),
    (400, V1, {"json": {"instances": {"b64": B64}}}, "instances is no list"),
    (400, V1, {"json": {"instances": []}}, "no image"),
    (400, V1, {"json": {"inputs": []}}, "no image"),
    (400, V1, {"json": {"inputs": {}}}, "inputs has 0 names"),
    (400, V1, {"json": {"inputs": {"image_bytes": [B64], "keys": [1]}}}, "inputs has 2 names; expected one of"),
    (400, V1, {"json": {"instances": [{"image_bytes": {"b64": B64}, "key": "1"}]}}, "an object of"),
    (400, V1, {"json": {"inputs": {"image_bytes": []}}}, "no image"),
    (404, "GET /v1/models/default/labels/stable", {}, "There is no"),
    (413, V1, {"json": {"instances": [B64] * 9}}, "9 images; expected at most 8"),
    (400, V1, {"json": {"instances": [None]}}, "is null"),
    (400, V1, {"json": {"instances": [5]}}, "is a number"),
    (400, V1, {"json": {"instances": [True]}}, "is a truth value"),
    (400, V1, {"json": {"instances": ["!" * 40]}}, "no base64"),
    (422, V1, {"json": {"instances": ["/etc/passwd"]}}, "is not an image file"),
    (400, V1, {"json": {"instances": ["file:///etc/passwd"]}}, "no base64"),
    (400, V1, {"json": {"instances": [B64], "signature_name": ["x"]}}, "signature_name is ['x']"),
    (400, V1, {"json": {"instances": [{"b64": 5}]}}, "b64 is a number"),
    (400, V1, {"json": {"instances": [{"b64": B64, "x": 1}]}}, "b64 alone"),
    (400, V1, {"json": {"instances": [{"url": "http://127.0.0.1/"}]}}, "no input 'url'"),
    (400, V1, {"json": {"instances": [{"a": 1, "b": 2}]}}, "an object of"),
    (400, V1, {"json": {"instances": [{"image_bytes": [1]}]}}, "image_bytes is a list"),
    (400, V1, {"json": {"instances": [{"pixel_values": B64}]}}, "pixel_values is a string"),
    (422, V1, {"json": {"instances": [[[1, 2], [3]]]}}, "no array"),
    (422, V1, {"json": {"instances": [[["a"]]]}}, "expected 3, of numbers"),
    (422, V1, {"json": {"instances": [[[[[1]]]]]}}, "axes"),
    (422, V1, {"json": {"instances": [[]]}}, ""),
    (422, V1, {"json": {"instances": [[[[300, 0, 0]]]]}}, "integers of 0 to 255"),
    (422, V1, {"json": {"instances": [[[[0.5, 0.5, 0.5]]]]}}, "integers of 0 to 255"),
    (422, V1, {"json": {"instances": [{"pixel_values": [[[1.0]]]}]}}, "came out as (1, 1, 1); the model takes"),
    (422, V1, {"json": {"instances": [{"b64": base64.b64encode(b"no image").decode()}]}}, "is not an image file"),
    (422, V1, {"json": {"instances": [B64, base64.b64encode(b"no image").decode()]}}, "Image 1 of 2"),
    (422, V1, {"json": {"instances": PIXELS[:8].tolist()}}, "Image 0 of 8: The image is an array of int64 with 2 axes"),
    (422, V1, {"json": {"inputs": {"image_uint8": PIXELS[:8].tolist()}}}, "with 2 axes; expected 3, of numbers"),
    (422, V1, {"json": {"instances": [FIRST]}}, "integers of the shape of pixel_values, (3, 16, 12); expected (height"),
    (400, V1 + "?top_k=-1", {"json": {"instances": [B64]}}, "top_k"),
    (400, V1 + "?pool=mean", {"json": {"instances": [B64]}}, "no option 'pool' in the query; expected top_k."),
    (400, V1 + "?top_k=1&top_k=2", {"json": {"instances": [B64]}}, "'top_k' is given twice"),
    (404, "/v1/models/x:predict", {"json": {"instances": [B64]}}, "no model 'x'"),
    (404, "/v1/models/default/versions/9:predict", {"json": {"instances": [B64]}}, "no version '9'"),
    (404, "GET /v1/models/x", {}, "no model 'x'"),
    (404, "GET /v1/models/default/versions/2/metadata", {}, "no version '2'"),
    (404, "GET /v1/models/..%2f..%2fetc", {}, ""),
    (400, "/ai", {"json": {"inputs": [B64]}}, "no instances"),
    (400, "/ai", {"json": {"instances": [B64], "parameters": {"x": 1}}}, "no parameter 'x'"),
    (400, "/ai", {"json": {"instances": [B64], "parameters": [1]}}, "parameters is no object"),
    (400, "/ai", {"json": {"instances": [B64], "parameters": {"top_k": 1.5}}}, "top_k is 1.5"),
    (404, "GET /v2/models/x", {}, "no model"),
    (404, "GET /v2/models/default/versions/3/ready", {}, "no version"),
    (400, V2, {"json": {}}, "inputs is no list of one tensor"),
    (400, V2, {"json": {"inputs": [1]}}, "inputs is no list of one tensor"),
    (400, V2, infer_of(name="x"), "no input 'x'"),
    (400, V2, infer_of(name=["x"]), "no input"),
    (400, V2 + "?top_k=1", infer_of(), "no option 'top_k' in the query, where this protocol has none: they are par"),
    (400, V2, {"json": {**infer_of()["json"], "parameters": {"pool": "mean"}}}, "no parameter 'pool'; expected top_k"),
    (400, V2, {"json": {**infer_of()["json"], "outputs": [{"name": "labels", "parameters": {"classification": 2}}]}},
     "Outputs have no parameter 'classification'; expected binary_data."),
    (400, V2, infer_of(name="pixel_values", datatype="UINT8", shape=[1, 3, 16, 12], data=FIRST),
     "The datatype of pixel_values is 'UINT8'; expected FP32, FP64, FP16."),
    (422, V2, infer_of(name="image_uint8", datatype="UINT8", shape=[8, 32, 3], data=PIXELS[:8].tolist()), "2 axes"),
    (400, V2, infer_of(shape=[2]), "has 1 elements; its shape says 2"),
    (400, V2, infer_of(shape=[-1]), "expected ints of at least 1"),
    (400, V2, infer_of(shape="1"), "expected ints"),
    (400, V2, infer_of(shape=[2**40]), "expected ints"),
    (400, V2, infer_of(datatype="FP32"), "expected BYTES"),
    (400, V2, infer_of(name="pixel_values", datatype=["X"], shape=[1, 3]), "The datatype of pixel_values"),
    (400, V2, {"json": {**infer_of()["json"], "outputs": [{"name": {}}]}}, "no output {}"),
    (400, V2, {"json": {**infer_of()["json"], "parameters": {"top_k": [1]}}}, "top_k is [1]"),
    (400, V2, infer_of(data="x"), "no list of strings"),
    (400, V2, infer_of(data=[[5]]), "no list of strings"),
    (400, V2, infer_of(data=[[], [[]]]), "has 0 elements"),
    (400, V2, {"json": {**infer_of()["json"], "id": {"a": 1}}}, "id is {'a': 1}; expected a string"),
    (400, V2, infer_of(name="pixel_values", datatype="BF16", shape=[1, 3, 16, 12]), "The datatype of pixel_values"),
    (400, V2, infer_of(name="pixel_values", datatype="FP32", shape=[0, 3, 16, 12], data=[]), "ints of at least 1"),
    (415, V2, {"content": b"{}", "headers": {"content-encoding": "deflate"}}, "Content-Encoding"),
    (400, V2, infer_of(data=["?"]), "no base64"),
    (400, V2, infer_of(parameters=5), "parameters is no object"),
    (400, V2, infer_of(name="pixel_values", datatype="X", shape=[1, 3, 16, 12]), "The datatype of pixel_values"),
    (400, V2, infer_of(name="pixel_values", datatype="FP32", shape=[1, 3, 16, 12], data=[1]), "1 numbers; its shape"),
    (400, V2, infer_of(name="pixel_values", datatype="FP32", shape=[1, 3, 16, 12], data=np.zeros((16, 12, 3)).tolist()),
     "The data of pixel_values are lists of the shape [16, 12, 3]; its shape says [1, 3, 16, 12]."),
    (400, V2, infer_of(name="pixel_values", datatype="FP32", shape=[1], data=[1]), "number of images first"),
    (400, V2, infer_of(name="image_uint8", datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 256]), "of UINT8"),
    (400, V2, {"json": {**infer_of()["json"], "outputs": [{"name": "x"}]}}, "no output 'x'; expected labels"),
    (400, V2, {"json": {**infer_of()["json"], "outputs": [{"name": "logits"}] * 2}}, "asked for twice"),
    (400, V2, {"json": {**infer_of()["json"], "outputs": {"name": "x"}}}, "outputs is no list"),
    (400, V2, binary_of(TWO, b"\x09\0\0\0ab"), "ends within an element"),
    (400, V2, binary_of(TWO, b"\x01\0\0\0a"), "binary_data_size is 6, and 5 bytes follow"),
    (400, V2, binary_of({**TWO, "data": [B64]}, b"\x02\0\0\0ab"), "both data and binary_data_size"),
    (400, V2, binary_of(TWO, b"", "99999"), f"{HEADER} is '99999'"),
    (400, V2, binary_of(TWO, b"", "-1"), f"{HEADER} is '-1'"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "path", "options", "said"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_what_is_refused_is_said_in_a_sentence(
    client: Client, folder: Path, status: int, path: str, options: dict[str, Any], said: str
) -> None:
    method, path = path.split(" ") if " " in path else ("POST", path)
    answer = client.request(method, path, **options)
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert (answer.status_code, list(found)) == (status, ["error"]), answer.text
    message = found["error"]
    assert said in message
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 600
    assert not re.search(rf"Traceback|{re.escape(str(folder))}|\.py|site-packages|PIL\.", message)
    assert client.post("/classify", content=PNG).status_code == 200  # and the next is answered


def test_an_app_without_a_classifier_gives_vectors(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", "dinov2", None)
    with Client(create_app({"dino": folder}, "pt")) as client:
        assert client.post("/classify", content=PNG).json()["error"] == (
            "The model dino has no task classify; expected embed, attention."
        )
        (wanted,) = predict([PNG], str(folder), "pt", task="embed", pool="pooler")
        (found,) = client.post("/embed?pool=pooler", content=PNG).json()["results"]
        near(found["embedding"], wanted.vector)
        request = {"instances": [{"b64": B64}]}
        assert len(client.post("/v1/models/dino:predict", json=request).json()["predictions"][0]) == 32
        (looks,) = client.post("/attention", content=PNG).json()["results"]
        assert "labels" not in looks
        assert np.shape(looks["map"]) == tuple(looks["grid"])


@pytest.fixture(scope="module")
def every_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, np.ndarray]]:
    """model_type -> a checkpoint, with labels where the family has them; the labels and the vector of the PNG."""
    found = {}
    for model_type in families.CONFIGS:
        kinds = families.config_class(model_type).heads.items()
        head = next((head for head, kind in kinds if "ForImageClassification" in kind.name), None)
        folder = checkpoint(tmp_path_factory.mktemp("family") / model_type, model_type, head, num_hidden_layers=1)
        labels = [each.labels for each in predict([PNG], str(folder), "pt", top_k=5)] if head else [None]
        (vector,) = predict([PNG], str(folder), "pt", task="embed", pool="mean")
        found[model_type] = folder, labels[0], vector.vector
    return found


@pytest.mark.parametrize("framework", families.PREFIXES)
def test_every_family_is_served_in_every_framework(
    framework: str, every_family: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "warm", lambda model: None)  # compiles what is not asked for here
    models = {name.replace("_", "-"): folder for name, (folder, _, _) in every_family.items()}
    with Client(create_app(models, framework, limits=Limits(max_batch_size=1), device="cpu")) as client:
        for name, (_, labels, vector) in zip(models, every_family.values(), strict=True):
            if labels is None or framework == "pt":
                (found,) = client.post(f"/embed?model={name}&pool=mean", content=PNG).json()["results"]
                np.testing.assert_allclose(found["embedding"], vector, atol=1e-5, err_msg=name)
                (looks,) = client.post(f"/attention?model={name}", content=PNG).json()["results"]
                assert np.shape(looks["map"]) == (4, 3), name
                assert np.isfinite(looks["map"]).all()
            answer = client.post(f"/classify?model={name}", content=PNG)
            assert answer.status_code == (400 if labels is None else 200)
            if labels is not None:
                assert answer.json()["results"][0]["labels"] == list(labels), name
            request = {"instances": [{"b64": B64}]}
            assert client.post(f"/v1/models/{name}:predict", json=request).status_code == 200
            one, _ = tensor("image_bytes", [B64])
            assert client.post(f"/v2/models/{name}/infer", json={"inputs": [one]}).status_code == 200


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_other_frameworks_answer_the_same(folder: Path, expected: dict[str, Any], framework: str) -> None:
    limits = Limits(max_batch_size=3)
    with Client(create_app(folder, framework, limits=limits)) as client:
        files = [("image", ("a", data)) for data in (PNG, JPEG, PNG, JPEG, PNG)]
        found = client.post("/classify", files=files).json()["results"]
        assert [each["labels"] for each in found] == (expected["labels"] * 3)[:5]
        (vector,) = client.post("/embed", content=PNG).json()["results"]
        near(vector["embedding"], expected["vectors"][0])
        assert client.post("/attention", content=PNG).status_code == 200


def test_an_export_is_served_as_the_checkpoint_is(tmp_path: Path) -> None:
    models = {"labels": onnx_file(tmp_path / "a.onnx"), "vectors": onnx_file(tmp_path / "b.onnx", "embed")}
    wanted = ViTImageProcessor(size={"height": 16, "width": 12})(PNG, return_tensors="np").pixel_values.mean((0, 2, 3))
    with Client(create_app(models)) as client:
        (found,) = client.post("/classify?top_k=2", content=PNG).json()["results"]
        assert found["labels"] == [LABELS[i] for i in np.argsort(-wanted)[:2]]
        near(found["probabilities"], np.sort(np.exp(wanted) / np.exp(wanted).sum())[:0:-1])
        one, _ = tensor("image_bytes", [B64])
        answer = client.post("/v2/models/labels/infer", json={"inputs": [one], "outputs": [{"name": "logits"}]})
        near(answer.json()["outputs"][0]["data"], wanted)
        (vector,) = client.post("/embed?model=vectors", content=PNG).json()["results"]
        near(vector["embedding"], wanted)
        request = {"instances": [{"b64": B64}]}
        near(client.post("/v1/models/vectors:predict", json=request).json()["predictions"], [wanted])
        for name, platform, task in (("labels", "onnx", "classify"), ("vectors", "onnx", "embed")):
            assert client.get(f"/v2/models/{name}").json()["platform"] == f"trivit_{platform}"
            signatures = client.get(f"/v1/models/{name}/metadata").json()["metadata"]["signature_def"]["signature_def"]
            assert set(signatures) & {"classify", "embed"} == {task}
        for path, said in (("/attention", "labels has no task attention; expected classify."),
                           ("/embed?model=vectors&pool=cls", "gives the pool mean, and no other."),
                           ("/embed", "has no task embed")):  # fmt: skip
            answer = client.post(path, content=PNG)
            assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text
    for option in ({"device": "cuda"}, {"dtype": "bfloat16"}):
        ((name, value),) = option.items()
        with pytest.raises(InputError, match=f"{name} is '{value}', which changes nothing of an export"):
            create_app(models, **option)


@pytest.mark.parametrize("vector", [(3,), (12, 3)])
def test_the_shape_of_an_exports_vectors_is_told(vector: tuple[int, ...], tmp_path: Path) -> None:
    with Client(create_app(onnx_file(tmp_path / "a.onnx", "embed", vector))) as client:
        (found,) = client.get("/v2/models/default").json()["outputs"]
        assert found == {"name": "embedding", "datatype": "FP32", "shape": [-1, *vector]}
        signatures = client.get("/v1/models/default/metadata").json()["metadata"]["signature_def"]["signature_def"]
        sizes = signatures["embed"]["outputs"]["embedding"]["tensor_shape"]["dim"]
        assert [int(each["size"]) for each in sizes] == [-1, *vector]


def test_a_sentence_of_a_refusal_is_no_longer_than_it_may_be():
    for length, shown in ((500, "a" * 500), (501, "a" * 500 + "...")):
        assert json.loads(answer(Refusal(400, "a" * length)).body) == {"error": shown}


# === Room, time, keys ===


def slow(client: Client) -> Any:
    """The tasks of a client's model, which can be made to wait."""
    return client.app.state.service.models["default"].tasks["classify"]


def test_the_images_of_a_request_are_taken_on_together_or_not_at_all() -> None:
    gate = threading.Event()

    class Task:
        most = 4

        def __call__(self, images: list[np.ndarray], alone: bool) -> Any:
            return {}

    task = Task()

    def jobs(count: int) -> list[Job]:
        return [Job(lambda: np.zeros(int(gate.wait(30))), task, lambda outputs, row: "done") for _ in range(count)]

    async def submitted() -> None:
        batcher = Batcher(most=4, delay=0, ahead=4, observe=lambda *batch: None)
        taken = jobs(3)
        batcher.submit(taken)
        with pytest.raises(Full):
            batcher.submit(jobs(2))  # one of them would have a place
        assert batcher.pending == 3
        taken += (last := jobs(1))
        batcher.submit(last)
        gate.set()
        assert await asyncio.gather(*(job.result for job in taken)) == ["done"] * 4
        await batcher.drained()
        batcher.close()

    asyncio.run(submitted())


def test_a_batch_is_told_whether_it_has_the_cores_to_itself() -> None:
    told: list[tuple[int, bool]] = []

    class Task:
        most = 2

        def __call__(self, images: list[np.ndarray], alone: bool) -> Any:
            told.append((len(images), alone))
            return {}

    async def submitted() -> None:
        batcher = Batcher(most=8, delay=0, ahead=8, observe=lambda *batch: None)
        task = Task()
        for count in (1, 6):
            jobs = [Job(lambda: np.zeros(1), task, lambda outputs, row: "done") for _ in range(count)]
            batcher.submit(jobs)
            await asyncio.gather(*(job.result for job in jobs))
        batcher.close()

    asyncio.run(submitted())
    assert told[0] == (1, True)
    assert not told[1][1]  # others are on their way, however many of them share this batch


def test_batches_that_are_computed_side_by_side_share_the_threads(folder: Path) -> None:
    import torch

    task = load("default", folder, "pt").tasks["classify"]
    threads: list[int] = []
    run = task.run
    task.run = lambda batch: threads.append(torch.get_num_threads()) or run(batch)  # type: ignore[func-returns-value]

    every = torch.get_num_threads()
    for alone in (True, False, True):
        task([np.zeros(task.model.shape, np.float32)], alone)
    assert threads == [every, max(1, every // 2), every]
    task([np.zeros(task.model.shape, np.float32)], False)
    with ThreadPoolExecutor(1) as begins_now:
        later = begins_now.submit(load, "again", folder, "pt").result().tasks["classify"]
    later([np.zeros(task.model.shape, np.float32)], True)
    assert torch.get_num_threads() == every


class Noted:
    """A task that notes its batches, and passes `gate` in each."""

    most = 4

    def __init__(self, name: str, batches: list[tuple[str, int]]) -> None:
        self.name, self.batches = name, batches
        self.gate = threading.Semaphore(100)

    def __call__(self, images: list[np.ndarray], alone: bool) -> Any:
        self.batches.append((self.name, len(images)))
        self.gate.acquire(timeout=30)
        return {}


def batched(test: Any, delay: float, ahead: int = 16) -> list[tuple[str, int]]:
    """What a batcher of an image that is read at once makes of what `test(batcher, submit, tasks)` submits."""
    batches: list[tuple[str, int]] = []
    observed: list[tuple[str, int]] = []

    async def run() -> None:
        batcher = Batcher(64, delay, ahead, lambda task, size, seconds: observed.append((task.name, size)))

        def submit(task: Noted, count: int) -> list[Job]:
            jobs = [Job(lambda: np.zeros(1), task, lambda outputs, row: row) for _ in range(count)]
            batcher.submit(jobs)
            return jobs

        await test(batcher, submit, [Noted(name, batches) for name in "ab"])
        await batcher.drained()
        assert batcher.pending == 0
        batcher.close()

    asyncio.run(run())
    assert sorted(observed) == sorted(batches)
    return batches


def test_a_full_batch_waits_for_nothing_and_one_that_is_not_for_its_delay() -> None:
    async def full(batcher: Batcher, submit: Any, tasks: list[Noted]) -> None:
        jobs = submit(tasks[0], 8)
        assert await asyncio.gather(*(job.result for job in jobs)) == [0, 1, 2, 3] * 2

    assert batched(full, delay=1e6) == [("a", 4)] * 2

    async def few(batcher: Batcher, submit: Any, tasks: list[Noted]) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        jobs = submit(tasks[0], 3)
        await asyncio.gather(*(job.result for job in jobs))
        assert loop.time() - begin >= 0.1

    assert batched(few, delay=0.1) == [("a", 3)]


async def fill(submit: Any, task: Noted) -> None:
    """Have the model compute as many batches as it can at a time, which wait."""
    task.gate = threading.Semaphore(0)
    for calls in range(CALLS):
        submit(task, 1)
        while len(task.batches) == calls:
            await asyncio.sleep(0.001)


def test_while_the_model_computes_the_next_batches_fill_and_who_waited_longest_is_next() -> None:
    async def busy(batcher: Batcher, submit: Any, tasks: list[Noted]) -> None:
        first, second = tasks
        await fill(submit, first)
        waiting = []
        for task, count in ((second, 2), (first, 3), (second, 1)):
            waiting += submit(task, count)
            while not waiting[-1].ready_at:
                await asyncio.sleep(0.001)
        waiting[3].result.cancel()  # given up while it waits
        for done in range(1, 5):
            first.gate.release()
            while len(first.batches) < min(CALLS + done, CALLS + 2):
                await asyncio.sleep(0.001)
        await asyncio.gather(*(job.result for job in waiting), return_exceptions=True)

    assert batched(busy, delay=0.0) == [*[("a", 1)] * CALLS, ("b", 3), ("a", 2)]


def test_no_more_images_are_read_ahead_than_are_wanted() -> None:
    async def ahead(batcher: Batcher, submit: Any, tasks: list[Noted]) -> None:
        await fill(submit, tasks[0])
        waiting = submit(tasks[0], 9)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert sum(job.ready_at > 0 for job in waiting) == 5
        waiting[7].result.cancel()
        tasks[0].gate.release(100)

    assert sum(size for _, size in batched(ahead, delay=0.0, ahead=5)) == CALLS + 8


AREAS = {
    "resized": (ViTImageProcessor(size=32), (3, 32, 32), 1, [0, 0, 1, 1]),
    "cropped": (DeiTImageProcessor(size=40, crop_size=32), (3, 32, 32), 1, [0.1, 0.1, 0.9, 0.9]),
    "the shorter side": (BitImageProcessor(size={"shortest_edge": 36}, crop_size=(28, 32)), (3, 28, 32), 1,
                         [2 / 36, 13 / 54, 34 / 36, 41 / 54]),
    "turned": (BitImageProcessor(size={"shortest_edge": 36}, crop_size=(28, 32)), (3, 28, 32), 6,
               [11 / 54, 4 / 36, 43 / 54, 32 / 36]),
    "upside down": (BitImageProcessor(size={"shortest_edge": 36}, crop_size=(28, 32)), (3, 28, 32), 4,
                    [2 / 36, 13 / 54, 34 / 36, 41 / 54]),
    "turned last": (BitImageProcessor(size={"shortest_edge": 36}, crop_size=(28, 32)), (3, 28, 32), 8,
                    [11 / 54, 4 / 36, 43 / 54, 32 / 36]),
    "not whole patches": (ViTImageProcessor(size=(30, 35)), (3, 30, 35), 1, [0, 0, 32 / 35, 28 / 30]),
    "as it is": (ViTImageProcessor(do_resize=False), (3, 60, 40), 1, [0, 0, 1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", AREAS)
def test_the_area_is_the_part_of_the_image_that_the_patches_cover(name: str) -> None:
    processor, shape, orientation, expected = AREAS[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    model = Model("m", 1, "pt", tiny_config(patch_size=4), processor, shape)
    assert model.area(picture(size=(60, 40), exif=exif)) == pytest.approx(expected)
    assert model.grid == (shape[1] // 4, shape[2] // 4)


def test_past_a_full_queue_requests_are_told_to_come_again(folder: Path) -> None:
    limits = Limits(max_batch_size=2, max_queue=4)
    with Client(create_app(folder, "pt", limits=limits)) as client:
        service, task = client.app.state.service, slow(client)
        gate, run = threading.Event(), task.run

        def wait(batch: np.ndarray) -> Any:
            gate.wait(30)
            return run(batch)

        task.run = wait

        async def all_of_them() -> list[Any]:
            calls = [client._client.post("/classify", content=PNG) for _ in range(12)]
            waiting = [asyncio.ensure_future(call) for call in calls]
            while sum(each.done() for each in waiting) < 8:
                await asyncio.sleep(0.005)
            assert service.batcher.pending == 4
            full = await client._client.post(V1, json={"instances": [B64]})
            assert full.status_code == 503
            assert "vit_queue_length 4.0" in (await client._client.get("/metrics")).text
            gate.set()
            return await asyncio.gather(*waiting)

        answers = client.run(all_of_them())
        assert sorted(each.status_code for each in answers) == [200] * 4 + [503] * 8
        for each in answers:
            if each.status_code == 503:
                assert (each.headers["retry-after"], each.json()) == (
                    "1", {"error": "4 images are waiting already; try again later."},
                )  # fmt: skip
        assert service.batcher.pending == service.bodies == 0
        assert client.post("/classify", content=PNG).status_code == 200


def test_a_request_that_takes_too_long_is_answered_and_not_computed_later(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    with Client(create_app(folder, "pt", limits=Limits(max_batch_size=1, deadline=0.2))) as client:
        task = slow(client)
        gate, run, computed = threading.Event(), task.run, []

        def wait(batch: np.ndarray) -> Any:
            gate.wait(30)
            computed.append(len(batch))
            return run(batch)

        task.run = wait
        two = {"files": FILE * 2}
        answers = client.at_once(*[("POST", "/classify", {"content": PNG})] * 6, *[("POST", "/classify", two)] * 2)
        assert {each.status_code for each in answers} == {503}
        assert {each.json()["error"] for each in answers} == {"The request was not answered within 0.2 seconds."}
        gate.set()
        client.run(client.app.state.service.batcher.drained())
        assert len(computed) <= 2  # those that the model had already
        del answers
        gc.collect()
        assert not caplog.text  # nothing is left that nobody asked for
        assert client.app.state.service.bodies == 0


def test_requests_at_the_same_time_share_batches(client: Client) -> None:
    sizes, task = [], slow(client)
    run = task.run
    task.run = lambda batch: (sizes.append(len(batch)), run(batch))[1]
    try:
        answers = client.at_once(*[("POST", "/classify", {"content": PNG})] * 8)
    finally:
        task.run = run
    assert {each.status_code for each in answers} == {200}
    assert sum(sizes) == 8
    assert 1 < max(sizes) <= 4


def test_a_model_that_fails_is_no_traceback_for_clients(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    task = slow(client)
    run = task.run

    def fail(batch: np.ndarray) -> Any:
        raise RuntimeError(f"in {__file__}")

    task.run = fail
    try:
        answer = client.post("/classify", content=PNG)
    finally:
        task.run = run
    assert (answer.status_code, answer.json()) == (500, {"error": "The server failed; its log says why."})
    assert "RuntimeError" in caplog.text
    assert client.post("/classify", content=PNG).status_code == 200


def test_a_key_is_asked_for_everywhere_but_for_health(folder: Path) -> None:
    with Client(create_app(folder, "pt", api_key="s3cret", vertex=("/alive", "/predict"))) as client:
        routes = [(path, method.upper()) for path, each in client.app.openapi()["paths"].items() for method in each]
        for path, method in routes:
            answer = client.request(method, path)
            if path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/alive"):
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "has no API key" in answer.json()["error"]
        for headers, status in (
            ({"authorization": "Bearer s3cret"}, 200), ({"x-api-key": "s3cret"}, 200),
            ({"authorization": "bearer  s3cret"}, 200), ({"authorization": "Bearer s3cre"}, 401),
            ({"authorization": "Basic s3cret"}, 401), ({"x-api-key": "\xe9".encode()}, 401),
            ({"x-api-key": "s3cret", "authorization": "Bearer x"}, 401), ({"x-api-key": ""}, 401),
        ):  # fmt: skip
            assert client.post("/classify", content=PNG, headers=headers).status_code == status, headers


def test_the_description_names_every_route_and_its_page_needs_no_other_host(client: Client) -> None:
    described = client.get("/openapi.json").json()
    assert {"/classify", "/embed", "/attention", "/v1/models/{name}:predict", "/v2/models/{name}/infer", "/metrics",
            "/health/live", "/health/ready", "/ai", "/healthy"} <= described["paths"].keys()  # fmt: skip
    given = {str(status) for status, *_ in BAD} - {"405"} | {"401", "503"}
    assert described["paths"]["/classify"]["post"]["responses"].keys() - {"200"} == given
    page = client.get("/docs").text
    assert all(f"<code>{path}</code>" in page for path in described["paths"])
    assert "503" in page
    assert not re.search(r"<script|src=|//|@import|url\(", page)


def test_metrics_count_routes_and_not_paths(client: Client) -> None:
    client.get("/no/such/path/7")
    client.request("BREW", "/classify")
    text = client.get("/metrics").text
    assert re.search(r'vit_requests_total\{method="GET",route="none",status="404"\} ', text)
    assert re.search(r'vit_requests_total\{method="POST",route="/classify",status="200"\} ', text)
    assert 'vit_batch_size_bucket{le="4.0",model="default",task="classify"}' in text
    assert "vit_ready 1.0" in text
    assert not re.search("such|BREW", text)


# === Models ===


def test_models_are_loaded_one_after_another():
    loading, running = create_app({"a": "nowhere"}).state.service._loading, []

    def load_() -> int:
        running.append(None)
        time.sleep(0.05)
        count = len(running)
        running.pop()
        return count

    assert [future.result() for future in [loading.submit(load_) for _ in range(3)]] == [1, 1, 1]
    loading.stop()


def test_batches_are_compiled_for_in_few_sizes_of_which_none_is_more_than_half_padding():
    assert [_sizes(most) for most in (1, 2, 3, 8, 12)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 12)]


def test_several_models_are_asked_for_by_name_and_a_changed_one_is_taken_up(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b", seed=1)
    with Client(create_app({"one": first, "two": second}, "pt")) as client:
        one, two = (client.post(f"/classify?model={name}", content=PNG).json()["results"] for name in ("one", "two"))
        assert one != two
        assert client.post("/classify", content=PNG).json()["model"] == "one"
        service = client.app.state.service
        assert client.run(service.reload()) == []
        checkpoint(tmp_path / "a", seed=1)
        assert client.run(service.reload()) == ["one"]
        assert client.post("/classify?model=one", content=PNG).json()["results"] == two
        assert client.get("/v1/models/one").json()["model_version_status"][0]["version"] == "2"
        (tmp_path / "b" / "config.json").write_text("{")
        assert client.run(service.reload()) == []
        assert client.post("/classify?model=two", content=PNG).json()["results"] == two


def test_before_the_models_are_there_the_server_lives_and_is_not_ready(folder: Path) -> None:
    app = create_app(folder, "pt", wait=False)
    client = Client(app)
    app.state.service.start = lambda: asyncio.sleep(0)
    with client:
        assert client.get("/health/live").status_code == 200
        for path in ("/health/ready", "/v2/health/ready"):
            assert client.get(path).status_code == 503
        for answer in (client.post("/classify", content=PNG), client.get("/v1/models/default")):
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


@pytest.mark.parametrize("limits", [{"max_queue": 0}, {"deadline": -1.0}, {"max_body": True}, {"max_batch_size": 0},
                                    {"max_delay_ms": float("nan")}])  # fmt: skip
def test_impossible_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Limits(**limits)


@pytest.mark.parametrize("models", [{}, {"a/b": "x"}, {"": "x"}, {"a" * 101: "x"}])
def test_impossible_names_of_models_are_refused(models: dict[str, str]) -> None:
    with pytest.raises(InputError):
        create_app(models)
