"""The other families' processors and AutoImageProcessor against transformers 4.57.6, and what users call on them."""

import base64
import copy
import io
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import skimage.data
import torch
import transformers
from PIL import Image
from torch.nn.functional import interpolate

import vit
from tests.test_migration import rows
from vit import AutoImageProcessor, BatchFeature, CheckpointError, ConfigError, InputError
from vit.image_processing import sources
from vit.image_processing.families import CLASSES

CAT = skimage.data.chelsea()
MAP = (np.indices((300, 451)).sum(axis=0) // 7 % 200).astype(np.uint8)


def assert_same(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(found, expected)


# === The same bits ===


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 256}},
        {"size": 97, "crop_size": 101},
        {"size": {"height": 60, "width": 70}, "do_center_crop": False},
    ],
)
@pytest.mark.parametrize("form", [Image.fromarray, lambda a: a, lambda a: Image.fromarray(a).convert("RGBA")])
def test_bit_equals_transformers(form, options):
    expected = transformers.BitImageProcessor(**options)(form(CAT), return_tensors="np").pixel_values
    assert_same(vit.BitImageProcessor(**options)(form(CAT), return_tensors="np").pixel_values, expected)


@pytest.mark.parametrize("name", ["BitImageProcessor", "BeitImageProcessor"])
def test_slow_defaults_are_transformers(name):
    theirs = getattr(transformers, name)().to_dict()
    ours = getattr(vit, name)().to_dict()
    assert {key: ours.get(key) for key in theirs if key != "_processor_class"} == {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in theirs.items()
        if key != "_processor_class"
    }


def test_fast_defaults_are_the_published_ones():
    # transformers' Fast classes need torchvision, which does not import here; the numbers are from their source.
    beit, bit, deit = vit.BeitImageProcessorFast(), vit.BitImageProcessorFast(), vit.DeiTImageProcessorFast()
    assert (beit.size, beit.do_center_crop, int(beit.resample)) == ({"height": 224, "width": 224}, False, 3)
    assert (bit.size, bit.do_center_crop, bit.do_convert_rgb) == ({"shortest_edge": 224}, True, True)
    assert (deit.size, deit.crop_size) == ({"height": 256, "width": 256}, {"height": 224, "width": 224})
    dino = vit.DINOv3ViTImageProcessorFast()
    assert (dino.size, int(dino.resample), dino.do_center_crop) == ({"height": 224, "width": 224}, 2, False)
    assert dino.image_mean == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("form", [Image.fromarray, lambda a: a, lambda a: torch.from_numpy(a).permute(2, 0, 1)])
def test_dinov3_rescales_resizes_and_then_normalises(form):
    pixels = torch.from_numpy(CAT).permute(2, 0, 1) * (1 / 255)
    resized = interpolate(pixels[None], size=(224, 224), mode="bilinear", antialias=True, align_corners=False)[0]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = resized.sub(mean).div(std)[None]
    found = vit.DINOv3ViTImageProcessorFast()(form(CAT), return_tensors="pt").pixel_values
    assert torch.equal(found, expected)
    assert not torch.equal(
        found,
        vit.ViTImageProcessorFast(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])(
            form(CAT), return_tensors="pt"
        ).pixel_values,
    )


def test_dinov2s_processor_stays_one_that_transformers_reads_whichever_class_saved_it(tmp_path):
    options = {"size": {"shortest_edge": 40}, "crop_size": 32}
    vit.BitImageProcessor(**options).save_pretrained(tmp_path)
    ours = vit.ViTImageProcessor.from_pretrained(tmp_path)  # as a training of DINOv2 reads and saves it
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    assert type(theirs).__name__ == "BitImageProcessor"
    assert_same(ours(CAT, return_tensors="np").pixel_values, theirs(CAT, return_tensors="np").pixel_values)
    again = vit.ViTImageProcessor.from_pretrained(tmp_path)
    assert repr(again) == repr(ours)
    plain = vit.ViTImageProcessor(**options, do_center_crop=True, image_mean=0.5, image_std=0.5)  # of any channels
    assert repr(vit.ViTImageProcessor.from_dict(plain.to_dict())) == repr(plain)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("options", [{}, {"do_center_crop": False, "size": 50}, {"do_resize": False}, {"resample": 0}])
def test_segmentation_maps_equal_transformers(options, reduce):
    maps, before = [MAP, Image.fromarray(MAP[::-1].copy())], MAP.copy()
    options = {**options, "do_reduce_labels": reduce}
    # transformers reduces in place: it gets a copy
    expected = transformers.BeitImageProcessor()([CAT, CAT], [MAP.copy(), maps[1]], return_tensors="np", **options)
    found = vit.BeitImageProcessor()([CAT, CAT], maps, return_tensors="np", **options)
    assert_same(found.labels, expected.labels)
    assert_same(found.pixel_values, expected.pixel_values)
    assert np.array_equal(MAP, before)
    fast = vit.BeitImageProcessorFast()([CAT, CAT], maps, return_tensors="pt", **options).labels
    assert (fast.dtype, fast.ndim) == (torch.int64, 3)
    tensors = [torch.from_numpy(np.array(each)) for each in maps]
    for kind, of in (("np", np.ndarray), ("pt", torch.Tensor)):
        again = vit.BeitImageProcessorFast()([CAT, CAT], tensors, return_tensors=kind, **options).labels
        assert isinstance(again, of)
        assert np.array_equal(again, fast)
    assert (fast.min() >= 0) & (fast.max() <= 255)
    whole = vit.BeitImageProcessor(do_resize=False, do_center_crop=False, do_reduce_labels=True)(CAT, MAP)
    assert np.array_equal(whole.labels[0], np.where(MAP == 0, 255, MAP.astype(int) - 1))
    for cls in (vit.BeitImageProcessor, vit.BeitImageProcessorFast):  # labels of 16 bits are no brightness
        wide = cls(do_resize=False, do_center_crop=False)(CAT, MAP.astype(np.uint16) + 900)
        assert np.array_equal(wide.labels[0], MAP.astype(int) + 900)


@pytest.mark.parametrize(
    "bad",
    [
        CAT[None],
        np.full((9, 9), 0.5),
        np.full((9, 9), 300),
        np.full((9, 9), -1),
        np.zeros((0, 9)),
        np.full((9, 9), "a"),
        None,
        np.full((9, 9), np.nan),
    ],
)
def test_maps_that_are_none_are_named(bad):
    if bad is None:
        assert "labels" not in vit.BeitImageProcessor()(CAT, bad)
        return
    with pytest.raises(InputError, match=r"^Segmentation map 1 "):
        vit.BeitImageProcessor()([CAT, CAT], [MAP, [bad]])


# === Reading and writing ===

FILES = {
    "deit": {
        "size": {"height": 27, "width": 27},
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "DeiTImageProcessor",
    },
    "beit": {
        "size": {"height": 24, "width": 24},
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": False,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_reduce_labels": False,
        "image_processor_type": "BeitImageProcessor",
    },
    "beit old": {
        "crop_size": 224,
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "BeitFeatureExtractor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "size": 224,
    },
    "dinov2": {
        "size": {"shortest_edge": 27},
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": True,
        "resample": 3,
        "do_convert_rgb": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "BitImageProcessor",
    },
    "mae": {
        "size": {"height": 24, "width": 24},
        "resample": 2,
        "do_convert_rgb": None,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "ViTImageProcessor",
    },
    "mae old": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 224,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    },
}


@pytest.mark.parametrize("name", FILES)
def test_auto_reads_what_transformers_reads(tmp_path, name):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FILES[name]))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    ours = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(ours).__name__ == type(theirs).__name__
    assert_same(ours(CAT, return_tensors="np").pixel_values, theirs(CAT, return_tensors="np").pixel_values)
    fast = AutoImageProcessor.from_pretrained(tmp_path, use_fast=True)
    assert fast.is_fast
    assert type(fast).__name__ == type(theirs).__name__ + "Fast"
    assert AutoImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json", size=8).size != ours.size


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("vit", "ViT"),
        ("vit_mae", "ViT"),
        ("deit", "DeiT"),
        ("beit", "Beit"),
        ("dinov2", "Bit"),
        ("dinov2_with_registers", "Bit"),
        ("dinov3_vit", "DINOv3ViT"),
    ],
)
def test_auto_goes_by_the_model_where_the_file_has_no_type(tmp_path, model_type, name):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    expected = CLASSES.get((name, False)) or CLASSES[name, True]
    if model_type == "vit":
        vit.ViTConfig().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is expected
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="no image_processor_type"):
        AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", CLASSES.values())
def test_every_class_goes_round_by_every_way(tmp_path, cls):
    call = cls(size=30, image_mean=[0.1, 0.2, 0.3])
    assert call.save_pretrained(tmp_path / "a") == [str(tmp_path / "a" / "preprocessor_config.json")]
    call.to_json_file(tmp_path / "any.json")
    ways = [
        cls.from_pretrained(tmp_path / "a"),
        cls.from_dict(call.to_dict()),
        cls.from_json_file(tmp_path / "any.json"),
        cls(**call.to_dict()),
        AutoImageProcessor.from_pretrained(tmp_path / "a"),
        copy.deepcopy(call),
        pickle.loads(pickle.dumps(call)),
    ]
    for each in ways:
        assert (type(each), each.to_json_string()) == (cls, call.to_json_string())
    assert cls.is_fast == cls.__name__.endswith("Fast")
    other, rest = cls.from_dict(call.to_dict(), size=31, nothing=1, return_unused_kwargs=True)
    assert (31 in other.size.values(), rest) == (True, {"nothing": 1})
    with pytest.raises(ConfigError, match="Unknown option 'nothing'"):
        cls.from_dict(call.to_dict(), nothing=1)
    if not cls.is_fast:
        theirs = getattr(transformers, cls.__name__).from_pretrained(tmp_path / "a")
        options = {"return_tensors": "np"}
        assert_same(theirs(CAT, **options).pixel_values, call(CAT, **options).pixel_values)


# === BatchFeature ===


def test_batch_feature_is_made_and_converted_as_in_transformers():
    arrays = [np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)]
    for kind in ("np", "pt", "tf", "jax"):
        found = BatchFeature({"pixel_values": arrays}, tensor_type=kind)
        assert np.array_equal(np.asarray(found.pixel_values), np.stack(arrays))
        whole = BatchFeature({"pixel_values": np.stack(arrays)}, tensor_type=kind).pixel_values
        assert type(whole) is type(found.pixel_values)
        assert np.array_equal(np.asarray(whole), np.stack(arrays))
    batch = BatchFeature(data={"a": arrays}).convert_to_tensors("pt")
    assert list(batch.keys()) == ["a"]
    assert batch.data["a"] is batch["a"]
    batch["names"] = ["x", "y"]
    assert batch.to(torch.float16).a.dtype == torch.float16
    assert batch.names == ["x", "y"]
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.a, batch.a)
    with pytest.raises(InputError, match="a makes no tensor"):
        BatchFeature({"a": [np.ones(2), np.ones(3)]}, "np")
    with pytest.raises(InputError, match="return_tensors is 'torch'"):
        BatchFeature({"a": arrays}, "torch")


# === Images from elsewhere ===


def png(image=CAT[:40, :50]):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


class Stream(io.RawIOBase):
    def __init__(self, data):
        self.file = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.file.read(size)


def test_bytes_files_data_uris_and_base64_are_images(tmp_path):
    data = png()
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for cls in (vit.ViTImageProcessor, vit.ViTImageProcessorFast):
        expected = cls()(CAT[:40, :50], return_tensors="np").pixel_values
        with open(tmp_path / "a.png", "rb") as file:
            given = [
                data,
                bytearray(data),
                memoryview(data),
                io.BytesIO(data),
                file,
                Stream(data),
                tmp_path / "a.png",
                str(tmp_path / "a.png"),
                text,
                lines,
                f"data:image/png;base64,{text}",
            ]
            for image in given:
                assert np.allclose(cls()(image, return_tensors="np").pixel_values, expected, atol=0.02)
            file.seek(0)
            again = cls()([file, file, data], return_tensors="np").pixel_values
            assert np.array_equal(again[0], again[2])


@pytest.mark.parametrize(
    "bad",
    [
        "data:image/png;base64,!!!",
        "data:,",
        "data:",
        "data:image/png;base64," + "A" * 40,
        b"",
        b"x",
        io.BytesIO(b""),
        io.StringIO("x"),
        "A" * 64,
        "http://",
        "https://[",
        "file:///etc/passwd",
    ],
)
def test_what_holds_no_image_is_named(bad):
    with pytest.raises(InputError, match=r"^Image 1 of the batch "):
        vit.ViTImageProcessor()([CAT, bad])


class Pages(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        where = {"/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/x", "/round": "/round", "/moved": "/cat.png"}
        if self.path in where:
            self.send_response(302)
            self.send_header("Location", where[self.path])
            self.end_headers()
            return
        if self.path not in ("/cat.png", "/large", "/cut"):
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/cut":
            self.send_header("Content-Length", str(10**6))
        self.end_headers()
        self.wfile.write(b"\0" * 10**6 if self.path == "/large" else png())


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("VIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls_are_fetched_within_limits(site, monkeypatch):
    call = vit.ViTImageProcessor()
    expected = call(png(), return_tensors="np").pixel_values
    for page in ("/cat.png", "/moved"):
        assert_same(call(site + page, return_tensors="np").pixel_values, expected)
    monkeypatch.setattr(sources, "URL_BYTES", 10**5)
    reasons = {
        "/file": "cannot be fetched",
        "/ftp": "cannot be fetched",
        "/round": "cannot be fetched",
        "/none": "answers 404",
        "/large": "more than 100,000 bytes",
        "/cut": "cannot be read|not received whole",
    }
    for page, reason in reasons.items():
        with pytest.raises(InputError, match=rf"^The image \({site}{page}\) .*({reason})"):
            call(site + page)
    for name in ("VIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
        with pytest.raises(InputError, match="is not fetched, as VIT_OFFLINE"):
            call(site + "/cat.png")
        monkeypatch.delenv(name)


def test_predict_takes_one_image_in_any_form(reference, tmp_path):
    folder, call = reference / "hf_torch", vit.ViTImageProcessor(size={"height": 20, "width": 24})
    config = vit.ViTConfig.from_pretrained(folder)
    call = vit.ViTImageProcessor(size=config.image_size)
    data = png()
    (tmp_path / "a.png").write_bytes(data)
    results = []
    for image in (
        data,
        io.BytesIO(data),
        tmp_path / "a.png",
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ):
        (found,) = vit.predict(image, folder, "pt", processor=call)
        assert found.error is None
        results.append(found.probabilities)
    assert len(set(results)) == 1
    (bad,) = vit.predict("data:image/png;base64,AAAA", folder, "pt", processor=call)
    assert (bad.path, bad.error) == (None, "is not an image file that Pillow can read.")


# === The page ===


def test_every_public_name_of_transformers_processors_is_on_the_page():
    from transformers.image_processing_utils_fast import BaseImageProcessorFast

    table = rows("Image processors")
    for peer, ours in ((BaseImageProcessorFast, vit.ViTImageProcessorFast), (transformers.BatchFeature, BatchFeature)):
        public = {name for name in dir(peer) if not name.startswith("_")} - set(dir(dict))
        for name in public:
            assert name in table, f"{name} of {peer.__name__} is not in docs/migration.md"
            found = hasattr(ours(), name)
            assert found == (table[name] != "not"), name
