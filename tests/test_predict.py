"""`vit.predict`: what it gives for each image, in which order, when, and how much it holds meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vit
from vit import CheckpointError, InputError, Prediction, ViTImageProcessor, pipeline, predict
from vit.inference import Forward
from vit.pipeline import AHEAD, CALLS, default_batch_size, vector_shape

FRAMEWORKS = ["pt", "tf", "flax"]
frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
BROKEN = 7  # the index of the image that is none


@pytest.fixture(scope="module")
def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size=16)


@pytest.fixture(scope="module")
def folder(
    random_checkpoint: Any, tiny_config: Any, processor: ViTImageProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A classifier with names for its labels."""
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"}
    config = tiny_config(id2label=names)
    folder = random_checkpoint(tmp_path_factory.mktemp("classifier"), config, head="classifier")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(
    random_checkpoint: Any, tiny_config: Any, processor: ViTImageProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with a pooler and no head."""
    folder = random_checkpoint(tmp_path_factory.mktemp("base"), tiny_config())
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (22, 20, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def paths(arrays: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """22 files, one of which is no image."""
    folder = tmp_path_factory.mktemp("images")
    files = [folder / f"{i:02}.png" for i in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        Image.fromarray(array).save(file)
    files[BROKEN].write_bytes(b"no image")
    return files


def same(found: list[Prediction], expected: list[Prediction]) -> None:
    """Every bit of them."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.path, one.labels, one.probabilities, one.error) == (
            other.index, other.path, other.labels, other.probabilities, other.error)  # fmt: skip
        np.testing.assert_array_equal(one.vector, other.vector)


# === What it gives ===


@frameworks
def test_classifies_each_image_as_processor_and_model_do_by_hand(framework, folder, paths, arrays, processor):
    found = list(predict(paths, folder, framework, batch_size=4, top_k=2))
    pixel_values = processor(list(arrays), return_tensors="np").pixel_values
    model = Forward(folder, framework)
    by_hand = processor.post_process_image_classification(model(pixel_values).logits, top_k=2, config=model.config)
    assert [prediction.index for prediction in found] == list(range(22))
    assert [prediction.path for prediction in found] == [str(path) for path in paths]
    for prediction, expected in zip(found, by_hand, strict=True):
        if prediction.index == BROKEN:
            assert prediction == Prediction(BROKEN, str(paths[BROKEN]),
                                            error="is not an image file that Pillow can read.")  # fmt: skip
            continue
        assert prediction.labels == tuple(each["label"] for each in expected)
        np.testing.assert_allclose(prediction.probabilities, [each["score"] for each in expected], atol=1e-6)
        assert (prediction.vector, prediction.error) == (None, None)
    assert len({prediction.labels[0] for prediction in found if not prediction.error}) > 1


@frameworks
@pytest.mark.parametrize("pool", ["cls", "mean", "pooler", "patches"])
def test_embeds_each_image_by_the_pool_that_is_asked_for(framework, pool, base, paths, arrays, processor):
    found = list(predict(paths, base, framework, task="embed", pool=pool, batch_size=4))
    outputs = Forward(base, "pt", head=None)(processor(list(arrays), return_tensors="np").pixel_values)
    tokens = outputs.last_hidden_state
    expected = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(axis=1), "pooler": outputs.pooler_output,
                "patches": tokens[:, 1:]}[pool]  # fmt: skip
    shape = vector_shape(Forward(base, "pt", head=None).config, pool)
    for prediction, vector in zip(found, expected, strict=True):
        assert prediction.labels == ()
        if prediction.index == BROKEN:
            assert (prediction.vector, prediction.error) == (None, "is not an image file that Pillow can read.")
        else:
            assert (prediction.vector.shape, prediction.vector.base) == (shape, None)
            np.testing.assert_allclose(prediction.vector, vector, rtol=0, atol=2e-5)


def test_takes_images_of_any_kind_and_a_single_one(folder, paths, arrays):
    images = [arrays[0], Image.fromarray(arrays[1]), str(paths[2]), paths[3]]
    expected = [each.labels for each in predict(paths[:4], folder, "pt")]
    found = list(predict(images, folder, "pt"))
    assert [each.labels for each in found] == expected
    assert [each.path for each in found] == [None, None, str(paths[2]), str(paths[3])]
    assert [each.labels for each in predict(arrays[:4], folder, "pt")] == expected
    for image, labels in zip(images, expected, strict=True):
        assert [each.labels for each in predict(image, folder, "pt")] == [labels]


def test_no_images_give_nothing(folder):
    assert list(predict([], folder, "pt")) == []


def test_a_model_without_names_for_its_labels_gives_their_indices(random_checkpoint, tiny_config, processor, tmp_path,
                                                                  paths):  # fmt: skip
    random_checkpoint(tmp_path, tiny_config(), head="classifier")
    processor.save_pretrained(tmp_path)
    (found,) = predict(paths[0], tmp_path, "pt", top_k=9)
    assert sorted(found.labels) == ["0", "1", "2", "3", "4"]


def test_several_labels_an_image_have_probabilities_of_their_own(random_checkpoint, tiny_config, processor, tmp_path,
                                                                 paths):  # fmt: skip
    random_checkpoint(tmp_path, tiny_config(problem_type="multi_label_classification"), head="classifier")
    processor.save_pretrained(tmp_path)
    (found,) = predict(paths[0], tmp_path, "pt")
    assert sum(found.probabilities) != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_what_the_model_makes_of_an_image_may_be_no_number_without_harm_to_the_others(task, folder, base, paths,
                                                                                      processor):  # fmt: skip
    forward = Forward(folder, "pt") if task == "classify" else Forward(base, "pt", head=None, add_pooling_layer=False)
    call = forward._call

    @torch.inference_mode()
    def spoilt(*arguments: Any) -> Any:
        outputs = call(*arguments)
        outputs[0][1] = float("nan")
        return outputs

    expected = list(predict(paths[:4], forward, processor=processor, task=task))
    forward._call = spoilt
    found = list(predict(paths[:4], forward, processor=processor, task=task))
    assert found[1].error.startswith("came out of the model as values that are NaN or infinite")
    same([found[0], *found[2:]], [expected[0], *expected[2:]])


# === The same values, however it is cut ===


@frameworks
@pytest.mark.parametrize("batch_size", [3, 8])
def test_going_on_after_any_number_of_images_gives_every_bit_that_one_run_gives(framework, batch_size, folder, paths,
                                                                                processor):  # fmt: skip
    forward = Forward(folder, framework)
    whole = list(predict(paths, forward, processor=processor, batch_size=batch_size))
    for start in (1, 2, 3, 8, 13, 20, 21):
        rest = predict(paths[start:], forward, processor=processor, batch_size=batch_size, start=start)
        same(list(rest), whole[start:])


@frameworks
def test_going_on_within_the_only_batch_gives_every_bit_too(framework, base, paths, processor):
    forward = Forward(base, framework, head=None, add_pooling_layer=False)
    options = {"processor": processor, "task": "embed", "pool": "patches", "batch_size": 64}
    whole = list(predict(paths, forward, **options))
    same(list(predict(paths[5:], forward, start=5, **options)), whole[5:])


@frameworks
def test_a_broken_image_changes_no_bit_of_its_neighbours(framework, folder, paths, processor, arrays):
    forward = Forward(folder, framework)
    found = list(predict(paths, forward, processor=processor, batch_size=4))
    whole = list(predict(arrays, forward, processor=processor, batch_size=4))
    for one, other in zip(found, whole, strict=True):
        assert one.probabilities == (() if one.index == BROKEN else other.probabilities)


@frameworks
def test_the_number_of_threads_changes_no_bit(framework, folder, paths, processor):
    forward = Forward(folder, framework)
    same(list(predict(paths, forward, processor=processor, batch_size=4, workers=1)),
         list(predict(paths, forward, processor=processor, batch_size=4, workers=7)))  # fmt: skip


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_where_a_shape_costs_a_compilation_the_last_batch_has_that_of_the_others(framework, folder, paths, processor):
    forward, shapes = Forward(folder, framework), set()
    call = forward._call
    forward._call = lambda pixel_values, *flags: shapes.add(pixel_values.shape) or call(pixel_values, *flags)
    assert len(list(predict(paths, forward, processor=processor, batch_size=4))) == 22
    assert shapes == {(4, 3, 16, 16)}
    shapes.clear()
    assert len(list(predict(paths[:3], forward, processor=processor, batch_size=4))) == 3
    assert shapes == {(3, 3, 16, 16)}  # few images are not made many


# === A pipeline ===


class Slow:
    """An image that says when it is read, and may wait."""

    def __init__(self, array: np.ndarray, on_read: Any = lambda: None) -> None:
        self.array, self.on_read = array, on_read
        self.shape = array.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.on_read()
        return self.array


def test_order_is_kept_where_reading_takes_different_times(folder, arrays, processor):
    forward = Forward(folder, "pt")
    naps = np.random.default_rng(1).permutation(len(arrays)) / 500
    images = [Slow(array, lambda nap=nap: time.sleep(nap)) for array, nap in zip(arrays, naps, strict=True)]
    found = list(predict(images, forward, processor=processor, batch_size=4, workers=5))
    expected = list(predict(arrays, forward, processor=processor, batch_size=4))
    same(found, expected)


def test_images_are_read_while_the_model_computes(folder, arrays, processor):
    forward = Forward(folder, "pt")
    later, call = threading.Event(), forward._call

    def wait_for_a_later_image(*arguments: Any) -> Any:
        assert later.wait(20)
        return call(*arguments)

    forward._call = wait_for_a_later_image
    images = [Slow(array, later.set if i == 2 * CALLS else lambda: None) for i, array in enumerate(arrays)]
    found = list(predict(images, forward, processor=processor, batch_size=2, workers=1))
    assert [each.error for each in found] == [None] * len(arrays)


def test_so_many_batches_are_in_the_model_at_a_time(folder, arrays, processor):
    forward = Forward(folder, "pt")
    together, call = threading.Barrier(CALLS), forward._call

    def meet(*arguments: Any) -> Any:
        together.wait(20)
        return call(*arguments)

    forward._call = meet
    assert len(list(predict(arrays[:8], forward, processor=processor, batch_size=2))) == 8


def test_of_endless_images_a_few_batches_are_taken_in_advance(folder, arrays, processor):
    taken = 0

    def endless() -> Any:
        nonlocal taken
        for taken in count(1):
            yield arrays[taken % len(arrays)]

    found = predict(endless(), Forward(folder, "pt"), processor=processor, batch_size=4)
    assert taken == 0
    for done in range(1, 60):
        next(found)
        assert taken - done < 4 * (CALLS + AHEAD + 1)
    found.close()
    assert taken < 60 + 4 * (CALLS + AHEAD + 1)


def test_closing_it_ends_its_threads_without_reading_what_was_queued(folder, arrays, processor):
    read, hold = [], threading.Event()
    images = [Slow(arrays[0], lambda i=i: (read.append(i), i > 3 and hold.wait(20))) for i in range(16)]
    found = predict(images, Forward(folder, "pt"), processor=processor, batch_size=4, workers=1)
    next(found)
    hold.set()
    found.close()
    assert len(read) < 16
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vit-")]


def test_an_error_of_the_model_is_raised_and_not_taken_for_one_of_an_image(folder, arrays, processor):
    forward = Forward(folder, "pt")

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    forward._call = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        list(predict(arrays, forward, processor=processor))


# === Images that cannot be used ===


def test_broken_images_are_rows_with_their_reasons(folder, arrays, tmp_path):
    good, cut, folder_, wide = (tmp_path / name for name in ("good.png", "cut.jpg", "folder.png", "wide.npy"))
    Image.fromarray(arrays[0]).save(good)
    Image.fromarray(arrays[0]).resize((300, 300)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    folder_.mkdir()
    np.save(wide, arrays[0])
    images = [good, cut, folder_, wide, tmp_path / "gone.png", 3, arrays[0][..., :0], good]
    found = list(predict(images, folder, "pt"))
    errors = [each.error for each in found]
    assert (errors[0], errors[-1]) == (None, None)
    beginnings = ("cannot be read: image file is truncated", "cannot be read: it is a folder", "is not an image file",
                  "does not exist", "is a int; expected", "has the shape (20, 24, 0)")  # fmt: skip
    for error, beginning in zip(errors[1:-1], beginnings, strict=True):
        assert error.startswith(beginning), error
    assert [each.labels for each in found[1:-1]] == [()] * 6


def test_whatever_a_decoder_raises_is_the_row_of_its_image(folder, arrays, processor):
    def fail() -> None:
        raise ZeroDivisionError("in a decoder")

    found = list(predict([arrays[0], Slow(arrays[1], fail)], Forward(folder, "pt"), processor=processor))
    assert [each.error for each in found] == [
        None,
        "is a Slow that does not become a NumPy array (in a decoder); expected numbers in a dense array or tensor.",
    ]


def test_an_image_that_comes_out_in_another_shape_is_a_row_with_the_shapes(folder, arrays):
    processor = ViTImageProcessor(size={"shortest_edge": 16})
    found = list(predict([arrays[0][:, :20], arrays[0]], Forward(folder, "pt"), processor=processor))
    assert found[0].error is None
    assert found[1].error == (
        "came out of the image processor as 1 x 3 x 16 x 19 (batch x channels x height x width); the model takes "
        "1 x 3 x 16 x 16."
    )


def test_raising_gives_those_before_and_then_the_error_with_the_path(folder, paths):
    found = predict(paths, folder, "pt", batch_size=4, on_error="raise")
    assert [each.index for each in islice(found, BROKEN)] == list(range(BROKEN))
    with pytest.raises(InputError, match=r"07\.png is not an image file that Pillow can read"):
        next(found)


def test_what_is_no_file_is_a_row_and_not_waited_for(folder, paths, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.png"))
        odd = [tmp_path / "pipe.png", tmp_path / "link.png", tmp_path / "socket.png", "/dev/zero", "nul\0.png"]
        found = list(predict([*odd, paths[0]], folder, "pt"))
    assert [each.error for each in found][:4] == ["is a pipe, no file.", "is a pipe, no file.", "is a socket, no file.",
                                                  "is a device, no file."]  # fmt: skip
    assert found[4].error
    assert found[5].labels


def test_a_read_that_hangs_keeps_nobody_from_leaving(folder, arrays, processor, monkeypatch):
    monkeypatch.setattr(pipeline, "PATIENCE", 0.2)
    hang = threading.Event()
    images = [Slow(array, hang.wait if i == 4 else lambda: None) for i, array in enumerate(arrays)]
    found = predict(images, Forward(folder, "pt"), processor=processor, batch_size=2, workers=2)
    assert [each.index for each in islice(found, 4)] == [0, 1, 2, 3]
    begun = time.process_time()
    found.close()
    assert time.process_time() - begun < 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vit-model")]
    hang.set()


def python(source: str, folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, which must end."""
    environment = os.environ | {"PYTHONPATH": str(Path(vit.__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, "-c", source, str(folder), *map(str, arguments)], env=environment, text=True,
                          capture_output=True, timeout=120)  # fmt: skip


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os.kill(os.getpid(), 2)", "found.close()"])
def test_a_process_ends_with_results_that_nobody_took(end, folder, paths):
    source = f"""
import os, sys
from vit import pipeline, predict
found = predict(iter(sys.argv[2:] * 40), sys.argv[1], "pt", batch_size=2)
next(found)
{end}
"""
    ended = python(source, folder, *paths[:5])
    expected = {"": 0, "sys.exit(3)": 3, "os.kill(os.getpid(), 2)": -2, "found.close()": 0}[end]
    assert ended.returncode == expected, ended.stderr


@pytest.mark.parametrize(("framework", "begin"), [
    ("flax", "import jax; jax.devices()"),
    ("tf", "import tensorflow as tf; tf.constant(1)"),
    ("flax", "list(vit.predict(sys.argv[2], sys.argv[1], framework))"),
    ("tf", "list(vit.predict(sys.argv[2], sys.argv[1], framework))"),
])  # fmt: skip
def test_a_framework_that_does_not_live_on_in_a_fork_is_refused_there(framework, begin, folder, paths):
    source = f"""
import os, signal, sys, vit
framework = {framework!r}
{begin}
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
try:
    list(vit.predict(sys.argv[2], sys.argv[1], framework))
except vit.InputError as error:
    print(error, flush=True)
    os._exit(7)
"""
    ended = python(source, folder, paths[0])
    assert ended.returncode == 7, ended.stderr
    assert "was used before this process was forked" in ended.stdout
    assert "get_context('spawn')" in ended.stdout


@pytest.mark.parametrize(("framework", "begin"), [
    ("pt", "list(vit.predict(sys.argv[2], sys.argv[1], 'pt'))"),
    ("tf", "import tensorflow"),  # as imported alone
    ("flax", "import jax, flax"),
])  # fmt: skip
def test_a_fork_of_what_was_only_imported_and_any_of_pytorch_predicts(framework, begin, folder, paths):
    source = f"""
import os, signal, sys, vit
{begin}
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
found = list(vit.predict(sys.argv[2], sys.argv[1], {framework!r}))
os._exit(7 if found[0].labels else 1)
"""
    ended = python(source, folder, paths[0])
    assert ended.returncode == 7, ended.stderr


# === What is refused ===


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "detect"}, "task is 'detect'; expected one of classify, embed"),
        ({"pool": "max"}, "pool is 'max'; expected one of cls, mean, pooler, patches"),
        ({"on_error": "skip"}, "on_error is 'skip'; expected 'row' or 'raise'"),
        ({"batch_size": 0}, "batch_size is 0; expected an int of at least 1"),
        ({"workers": -1}, "workers is -1; expected an int of at least 1"),
        ({"workers": 1.5}, "workers is 1.5; expected an int"),
        ({"top_k": True}, "top_k is True; expected an int of at least 1"),
        ({"start": -1}, "start is -1; expected an int of at least 0"),
        ({"framework": "theano"}, "framework is 'theano'"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_impossible_arguments_are_refused_before_an_image_is_taken(options, message, folder):
    def images() -> Any:
        raise AssertionError("an image was taken")
        yield

    with pytest.raises(InputError, match=message):
        predict(images(), folder, **{"framework": "pt", **options})


def test_a_checkpoint_without_what_the_task_needs_is_refused(folder, base, paths, random_checkpoint, tiny_config,
                                                             tmp_path):  # fmt: skip
    with pytest.raises(CheckpointError, match="has no classification head"):
        predict(paths, base, "pt")
    with pytest.raises(CheckpointError, match="has no weights for the pool 'pooler'; take one of cls, mean, patches"):
        predict(paths, folder, "pt", task="embed", pool="pooler")
    random_checkpoint(tmp_path, tiny_config(num_labels=1), head="classifier")
    with pytest.raises(InputError, match=r"predicts a number \(a regression\), not labels"):
        predict(paths, tmp_path, "pt")


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "regression"}])
def test_numbers_are_no_probabilities_of_a_model_that_is_loaded_either(options, paths, processor, tiny_config):
    model = vit.ViTForImageClassification(tiny_config(**options)).eval()
    with pytest.raises(InputError, match=r"ViTForImageClassification predicts a number \(a regression\), not labels"):
        predict(paths, model, processor=processor)
    with pytest.raises(InputError, match="whose logits are numbers and make no probabilities"):
        processor.post_process_image_classification(np.zeros((1, options["num_labels"]), np.float32), 1, model.config)


def test_one_label_that_an_image_may_have_has_a_probability(paths, processor, tiny_config):
    config = tiny_config(problem_type="multi_label_classification", id2label={0: "ant"})
    model = vit.ViTForImageClassification(config).eval()
    logit = Forward(model)(processor(paths[0], return_tensors="np").pixel_values).logits[0, 0]
    (found,) = predict(paths[:1], model, processor=processor)
    assert (found.labels, found.probabilities) == (("ant",), (pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6),))


def test_a_classifier_is_embedded_without_its_head_and_without_a_warning(folder, paths, recwarn):
    assert len(list(predict(paths, folder, "pt", task="embed", pool="mean"))) == 22
    assert not recwarn.list


def test_a_loaded_model_needs_its_processor_and_the_head_of_the_task(folder, base, paths, processor):
    model = vit.ViTForImageClassification.from_pretrained(folder)
    with pytest.raises(InputError, match="needs its image processor"):
        predict(paths, model)
    with pytest.raises(InputError, match=r"is a ViTForImageClassification; task='embed' needs one without a head"):
        predict(paths, model, processor=processor, task="embed")
    with pytest.raises(InputError, match=r"is a ViTModel; task='classify' needs one with a classification head"):
        predict(paths, vit.ViTModel.from_pretrained(base), processor=processor)
    expected = list(predict(paths, folder, "pt", batch_size=4))
    same(list(predict(paths, model, processor=processor, batch_size=4)), expected)
    same(list(predict(paths, Forward(folder, "pt"), processor=processor, batch_size=4)), expected)


@pytest.mark.parametrize("options", [{"size": 24}, {"size": 16, "image_mean": [0.5], "image_std": [0.5]}])
def test_an_image_processor_that_does_not_go_with_the_model_is_refused(options, folder, paths):
    with pytest.raises(InputError, match=r"3 x 24 x 24, and the model takes 3 x 16 x 16|has 3 channel\(s\)"):
        predict(paths, Forward(folder, "pt"), processor=ViTImageProcessor(**options))


def test_threads_are_waited_for_until_a_time_and_not_beyond_it():
    threads, waited = pipeline.Threads("test", 2), []
    threads._threads = [SimpleNamespace(join=waited.append)]
    for end in (-5, 0, 60):
        threads.join(time.monotonic() + end)
    assert waited[:2] == [0, pytest.approx(0, abs=0.1)]
    assert 50 < waited[2] <= 60


def test_images_of_any_size_have_a_patch_at_least():
    config = vit.Dinov2Config(patch_size=(4, 6))
    for size, fits in (((4, 6), True), ((3, 6), False), ((4, 5), False), ((99, 7), True)):
        with nullcontext() if fits else pytest.raises(InputError, match=f"gives images of 3 x {size[0]} x {size[1]}"):
            found = pipeline.shape_of_images(ViTImageProcessor(size=size), config)
            assert found == (3, *size)
    with pytest.raises(InputError):
        pipeline.shape_of_images(ViTImageProcessor(size=(4, 6)), config.replace(num_channels=4))


def test_the_batch_size_that_is_chosen_keeps_activations_small_on_a_cpu(random_checkpoint, tiny_config, tmp_path):
    forward = Forward(random_checkpoint(tmp_path, tiny_config(), head="classifier"), "pt")
    sizes = {}
    for name in ("Ti/16", "S/16", "B/16", "L/16"):
        forward.config = vit.ViTConfig.variant(name)
        sizes[name] = default_batch_size(forward)
    assert sizes == {"Ti/16": 8, "S/16": 4, "B/16": 2, "L/16": 2}
    forward.config = vit.Dinov2Config.variant("S/14", image_size=518)
    assert [default_batch_size(forward, image) for image in (None, (3, 518, 518), (3, 224, 224))] == [2, 2, 4]
    forward.device_type = "cuda"
    assert default_batch_size(forward) == 64
