"""The benchmarks: turns, ratios, the peers' table, the file of results, and a run of it beside transformers."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as program
from benchmarks import cold_start, finetune, harness, inference, load, peers, products, training
from benchmarks.harness import Bar, Options, Ratio
from benchmarks.peers import PEERS, Peer, read_config
from vit import FlaxViTForImageClassification, ViTConfig, measure
from vit.measure import Worker, WorkerError

OURS = [peer for peer in PEERS if peer.library == "trivit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the harness's kind, of a small model."""
    path = tmp_path_factory.mktemp("benchmarks") / "tiny"
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                       image_size=32, patch_size=8, encoder_stride=8, num_labels=7)  # fmt: skip
    harness.random_checkpoint(path, config)
    return path


@pytest.fixture
def options(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Of a run in which every size is the small model."""
    monkeypatch.setattr(Options, "checkpoint", str(folder))
    monkeypatch.setattr(harness, "TURN", 0.01)
    rates = {"float32": (1e11, "pt"), "bfloat16": (2e11, "tf")}
    options = Options(folder.parent, tmp_path / "plots", "Ti/16", quick=True, seconds=0.01)
    options.times_rated = 0

    def measure_rates(self: Options, dtypes: Iterable[str]) -> None:
        self.rates.update(rates)
        self.times_rated += 1

    monkeypatch.setattr(Options, "measure_rates", measure_rates)
    return options


class Here:
    """Does what a worker does, but in this process, where everything is imported once."""

    lock = Lock()  # a worker's questions come one by one

    def prepare(self, function: str, **arguments: Any) -> Any:
        module, _, name = function.partition(":")
        with Here.lock:
            found = getattr(importlib.import_module(module), name)(**arguments)
        self.call, told = found if isinstance(found, tuple) else (None, found)
        return told

    def run(self, seconds: float = 0.0, least: int = 1) -> list[float]:
        return measure.repeat(self.call, seconds, least)

    def peak_memory(self, reset: bool = False) -> int:
        return measure.peak_memory()

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        return None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever would run in processes of its own runs here, and XLA compiles it quickly rather than well."""
    import jax

    for module in (harness, inference):
        monkeypatch.setattr(module, "Worker", lambda *place, **environment: Here())
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# === Turns and ratios ===


def test_runs_alternate_in_both_directions_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    counts: dict[str, Iterator[int]] = {name: iter(range(100)) for name in "abc"}

    def run(name: str) -> int:
        calls.append(name)
        return next(counts[name])

    found = harness.take_turns({name: lambda name=name: run(name) for name in "abc"}, seconds=0, least=4)
    assert "".join(calls) == "cba" + "abc" + "cba" + "abc" + "cba"
    assert found == {name: [1, 2, 3, 4] for name in "abc"}
    assert harness.take_turns({"a": lambda: 5}, seconds=0, least=2, warm=False) == {"a": [5, 5]}


def test_a_run_that_fails_leaves_the_others_theirs() -> None:
    def fail() -> int:
        raise WorkerError("out of memory")

    with pytest.raises(WorkerError, match="out of memory"):
        harness.take_turns({"a": int, "b": fail}, seconds=0)
    absent: dict[str, None] = {}
    assert harness.take_turns({OURS[0]: int, OURS[1]: fail}, seconds=0, least=3, absent=absent) == {OURS[0]: [0, 0, 0]}
    assert list(absent) == ["trivit TensorFlow: out of memory"]
    assert harness.take_turns({"b": fail}, seconds=0, absent=absent) == {}


def test_short_runs_are_repeated_for_the_time_given_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(clock)))  # each run takes half a second
    assert len(harness.take_turns({"a": int}, seconds=4.9, least=1)["a"]) == 10
    assert len(harness.take_turns({"a": int}, seconds=100, least=1, most=7)["a"]) == 7


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians() -> None:
    slow_then_fast, twice = [10.0, 1.0, 1.0, 8.0, 2.0], [20.0, 2.0, 2.0, 16.0, 4.0]
    assert harness.ratio(twice, slow_then_fast) == Ratio(2, 2, 2)
    found = harness.ratio([1, 2, 3, 4, 100], [1, 1, 1, 1, 1])
    assert found == Ratio(3, 2, 4)
    assert str(found) == "3.00 (2.00 to 4.00)"
    assert harness.ratio([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


def test_a_turn_does_not_count_the_first_of_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        def __init__(self, times: list[float]) -> None:
            self.times = times

        def run(self, seconds: float) -> list[float]:
            assert seconds == harness.TURN
            return self.times

    assert harness.turn(Held([9.0, 1.0, 3.0, 2.0])) == 2.0  # type: ignore[arg-type]
    assert harness.turn(Held([9.0])) == 9.0  # type: ignore[arg-type]


# === Peers ===


def test_every_framework_of_trivit_is_there_and_comes_before_its_peers() -> None:
    assert [peer.framework for peer in OURS] == ["pt", "tf", "flax"]
    for framework in ("pt", "tf", "flax"):
        assert next(peer for peer in PEERS if peer.framework == framework).library == "trivit"
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_a_peer_that_is_not_installed_is_named_with_the_line_that_installs_it_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Peer("absent", "pt", ("no-such-distribution",), "its_folder", install="absent-package")
    monkeypatch.setattr(peers, "SITES", (tmp_path,))
    monkeypatch.setattr(harness, "PEERS", (OURS[0], absent))
    options = Options(tmp_path, tmp_path)
    assert options.present() == [OURS[0]]
    (line,) = options.absent
    assert line == (
        f"absent (pt) is not installed: pip install --no-deps --target {tmp_path}/its_folder absent-package"
    )


def test_a_peer_in_a_folder_of_its_own_is_found_there_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SITES", (tmp_path,))
    own = Peer("transformers", "pt", ("transformers",), "own")
    (tmp_path / "own/transformers").mkdir(parents=True)
    (tmp_path / "own/transformers/__init__.py").write_text("")
    (tmp_path / "own/transformers-9.8.7.dist-info").mkdir()
    (tmp_path / "own/transformers-9.8.7.dist-info/METADATA").write_text("Name: transformers\nVersion: 9.8.7\n")
    assert own.found() == "9.8.7"
    assert own.name == "transformers 9.8.7 PyTorch"
    with Worker(own.path) as worker:
        assert worker.prepare("importlib.metadata:version", distribution_name="transformers") == "9.8.7"


def test_only_what_is_asked_for_is_measured_and_a_quick_run_takes_one_peer_of_each_framework(tmp_path: Path) -> None:
    asked = Options(tmp_path, tmp_path, frameworks=["flax"], peers=["transformers"]).present()
    assert [(peer.library, peer.framework) for peer in asked] == [("trivit", "flax"), ("transformers", "flax")]
    quick = Options(tmp_path, tmp_path, quick=True, frameworks=["pt"]).present()
    assert [peer.library for peer in quick] == ["trivit", "transformers"]
    assert quick[1].site is None


@pytest.mark.parametrize("peer", OURS, ids=lambda peer: peer.framework)
def test_every_framework_of_trivit_computes_the_same_logits_in_the_harness(peer: Peer, folder: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        arguments: dict[str, Any] = {"library": "trivit", "framework": peer.framework, "checkpoint": str(folder)}
        run, logits = peers.inference(**arguments, dtype=dtype, batch_size=3, device="cpu")
        assert run().shape == (3, 7)
        assert inference._difference(inference._expected(str(folder)), logits) <= inference.TOLERANCE[dtype]


def test_weights_are_prepacked_for_every_batch_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vit.pt

    prepack, sizes = vit.pt.prepack, []
    monkeypatch.setattr(vit.pt, "prepack", lambda model, size: sizes.append(size) or prepack(model, size))
    for size in (1, 3):
        logits = peers.forward("trivit", "pt", str(folder), "float32", size, "cpu", prepacked=True)()
        assert len(logits) == size
    assert sizes == [1, 3]


def test_transformers_imports_no_other_framework_than_its_own() -> None:
    assert peers.PEERS[1].environment == {"USE_TORCH": "1", "USE_TF": "0", "USE_FLAX": "0"}
    assert OURS[0].environment == {}
    with harness.process(Peer("transformers", "tf", ()), {"MORE": "here"}) as worker:
        found = {name: worker.prepare("os:getenv", key=name) for name in ("USE_TORCH", "USE_TF", "USE_FLAX", "MORE")}
    assert found == {"USE_TORCH": "0", "USE_TF": "1", "USE_FLAX": "0", "MORE": "here"}


# === Suites ===


def numbers(section: str) -> dict[str, list[str]]:
    """The rows of every table of a section: name -> cells."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_inference_is_measured_beside_transformers_and_the_floor(options: Options) -> None:
    options.frameworks, options.batch_sizes = ["pt"], [1, 2]
    section = inference.run(options)
    rows = numbers(section)
    theirs = next(name for name in rows if name.startswith("transformers "))
    for name in ("trivit PyTorch", theirs):
        for cell in rows[name][::2]:
            assert re.fullmatch(r"[\d.,]+ · \d+%", cell)
    assert rows["trivit PyTorch"][1] == ""
    share = rows["trivit PyTorch, its products alone"]
    for cell in (rows[theirs][1], rows[theirs][3], share[1], share[3]):
        assert re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", cell)
    floor = float(rows["the floor"][0].replace(",", ""))
    rate = options.rates["float32"][0]
    assert floor == pytest.approx(rate / inference.forward_flops(ViTConfig.variant("Ti/16", num_labels=1000)), rel=0.01)
    assert options.times_rated == 2  # before and after
    assert (options.plots / "inference-cpu-Ti-16.png").exists()
    assert "(plots/inference-cpu-Ti-16.png)" in section


def test_a_runtime_is_raced_by_the_fastest_of_all_lines(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    present = [*OURS[:2], Peer("OpenVINO", "openvino", ("numpy",))]
    monkeypatch.setattr(Options, "present", lambda self: present)
    plain, prepacked, alone = inference.subjects(options, "float32")[:3]
    tensorflow, its_products, runtime = inference.subjects(options, "float32")[3:]
    assert [each.name for each in (prepacked, alone)] == [
        "trivit PyTorch, prepacked",
        "trivit PyTorch, its products alone",
    ]
    seconds = {plain: 2.0, prepacked: 1.0, alone: 0.5, tensorflow: 1.5, its_products: 0.1, runtime: 3.0}
    raced = []

    def race(options: Options, groups: dict[int, list[Any]], seconds_each: float) -> dict[int, dict[Any, list[float]]]:
        raced.append(groups)
        return {size: {each: [seconds[each]] * 3 for each in group} for size, group in groups.items()}

    monkeypatch.setattr(inference, "race", race)
    cells = inference.compare_peers(options, "float32", [1], 0)
    assert raced == [{1: [plain, prepacked, alone]}, {1: [tensorflow, its_products]}, {1: [prepacked, runtime]}]
    found = {each: by_batch[1].beside and by_batch[1].beside.median for each, by_batch in cells.items()}
    shares = {alone: 0.25, its_products: 0.1 / 1.5}  # of the plain model's time
    assert found == pytest.approx({plain: None, prepacked: None, tensorflow: None, **shares, runtime: 3.0})


@pytest.mark.parametrize(
    ("framework", "dtype"), [("pt", "float32"), ("pt", "int8"), ("tf", "bfloat16"), ("flax", "float32")]
)
def test_products_are_all_linear_layers_of_the_encoder(folder: Path, framework: str, dtype: str) -> None:
    if framework == "pt":
        model = peers.model_pt("trivit", str(folder), dtype, "cpu", None)
    elif framework == "tf":
        model = peers.model_tf("trivit", str(folder), dtype, "cpu")
    else:
        model = FlaxViTForImageClassification.from_pretrained(str(folder), dtype=dtype)
    output = "dense_output" if framework == "tf" else "output"
    layers = products.layers_of(model, output)
    assert len(set(map(id, layers))) == len(layers) == 6 * model.config.num_hidden_layers
    run = peers.forward("trivit", framework, str(folder), dtype, 2, "cpu", products=True)
    assert run().shape == (2 * (model.config.num_patches + 1), model.config.hidden_size)
    assert np.isfinite(run()).all()
    assert run().std() > 0


def test_other_dtypes_stand_beside_the_first_with_what_they_cost(options: Options, here: None) -> None:
    options.frameworks, options.batch_sizes, options.dtypes, options.peers = ["flax"], [1], ["float32", "bfloat16"], []
    section = inference.run(options)
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| trivit Flax")]
    float32, bfloat16 = rows[-2:]
    assert (float32[1], bfloat16[1]) == ("float32", "bfloat16")
    assert 1e-5 < float(bfloat16[2]) < inference.TOLERANCE["bfloat16"]
    assert re.match(r"\d+\.\d\d \(", bfloat16[4])


def test_a_peer_that_computes_something_else_is_left_out(
    options: Options, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options.frameworks, options.batch_sizes, options.peers = ["pt"], [1], []
    monkeypatch.setattr(inference, "_difference", lambda expected, logits: 0.5)
    section = inference.run(options)
    assert "trivit PyTorch" not in numbers(section)
    assert any("its logits are off by 5.0e-01 of the largest" in line for line in options.absent)


def test_a_peer_that_cannot_be_imported_is_left_out_with_the_reason(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    subject = inference.Subject(Peer("transformers", "pt", ("transformers",)), "float32")
    assert not inference.prepare(options, subject, 1, Here())  # type: ignore[arg-type]
    (line,) = options.absent
    assert re.fullmatch(r"transformers 4.* PyTorch float32: import of transformers halted.*", line)


@pytest.fixture
def ended() -> Iterator[None]:
    """The runs that stand still are ended."""
    yield
    for paused in list(finetune.Paused.left):
        paused.end()


def test_a_run_goes_on_by_turns_and_says_why_it_cannot(ended: None) -> None:
    done: list[int] = []

    def run(pause: Any) -> None:
        for number in range(3):
            done.append(number)
            pause()
        raise ValueError("no more")

    paused = finetune.Paused(run)
    assert done == [0]
    paused()
    assert done == [0, 1]
    paused()
    with pytest.raises(ValueError, match="no more"):
        paused()
    with pytest.raises(ValueError, match="not at all"):
        finetune.Paused(lambda pause: (_ for _ in ()).throw(ValueError("not at all")).send(None))


def test_fine_tuning_is_measured_whole_and_in_parts_beside_its_peers(
    options: Options, folder: Path, here: None, ended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Options, "config", read_config(str(folder)))
    monkeypatch.setattr(finetune, "IMAGES", 8)
    monkeypatch.setitem(finetune.STEPS, "Ti/16", 2)
    rows_of = finetune.rows_of

    def some(peer: Peer, with_parts: bool, workers: int) -> list[finetune.Row]:
        found = rows_of(peer, with_parts and peer.framework == "pt", 0)
        return found if peer.library == "trivit" else found[:1]

    monkeypatch.setattr(finetune, "rows_of", some)
    options.batch_sizes, options.peers = [2], ["transformers 4"]
    section = finetune.run(options)
    assert not options.absent
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:4] == "| tr"]
    names = [f"trivit PyTorch{part}" for part in ("", ", data alone", ", steps alone")]
    names += [f"transformers {PEERS[1].found()} PyTorch"]
    names += [f"{peer} {framework}" for framework in ("TensorFlow", "Flax") for peer in ("trivit", names[3][:-8])]
    assert [row[0] for row in rows] == names
    assert all(float(row[1]) > 0 for row in rows)
    for column, filled in ((2, [3, 5, 7]), (3, [0])):  # the peers' ratios, and the share of the whole
        assert [i for i, row in enumerate(rows) if re.match(r"\d+\.\d\d \(", row[column])] == filled


def test_the_share_is_of_the_slower_part_and_the_ratio_of_the_whole() -> None:
    ours, theirs = PEERS[:2]
    rows = [*finetune.rows_of(ours, True, 2), finetune.Row(theirs, "", "trainer", 0)]
    times = dict(zip(rows, ([4.0, 8.0], [2.0, 7.2], [3.6, 3.6], [8.0, 16.0]), strict=True))
    whole, data, steps, trainer = finetune.cells(times, 12).values()
    assert (whole.speed, whole.faster, whole.share) == (2, None, Ratio(0.9, 0.9, 0.9))
    assert (data.speed, data.share, steps.faster) == (12 / 4.6, None, None)
    assert (trainer.speed, trainer.faster) == (1, Ratio(2, 2, 2))
    assert [row.function for row in finetune.rows_of(ours, False, 2)] == ["whole"]
    assert not finetune.rows_of(Peer("timm", "pt", ("timm",)), True, 2)


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_training_steps_of_trivit_and_transformers_lose_the_same(
    framework: str, options: Options, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Here, "peak_memory", lambda self, reset=False: int(1e9))
    options.frameworks = [framework]
    cells = training.measure(options, "float32", 2, False, 0)
    assert [peer.library for peer in cells] == ["trivit", "transformers"], options.absent
    ours, theirs = cells.values()
    assert min(ours.seconds) > 0
    assert theirs.slower is not None
    assert (ours.memory, theirs.larger) == (1e9, 1)


def test_steps_that_recompute_activations_train_the_same(folder: Path) -> None:
    losses = [training.step("trivit", "pt", str(folder), "float32", 2, "cpu", recompute)[1]
              for recompute in (False, True)]  # fmt: skip
    assert np.allclose(*losses, rtol=1e-5)
    assert losses[0][1] < losses[0][0]  # a step lowers it


def test_losses_that_differ_leave_a_peer_out(options: Options) -> None:
    ours, theirs = OURS[0], Peer("transformers", "pt", ("transformers",))
    losses: dict[Peer, list[float] | None] = {ours: [2.0, 1.0], theirs: [2.0, 1.5]}
    assert training._agrees(options, ours, losses)
    assert not training._agrees(options, theirs, losses)
    assert any("its first losses are [2.0, 1.5], trivit's [2.0, 1.0]" in line for line in options.absent)


def test_a_cold_start_is_the_sum_of_its_stages(options: Options, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold_start.write_image(str(folder))
    found = cold_start.start(options, OURS[0], str(folder))
    assert 0 <= found["answer"] < 7
    seconds = found["seconds"]
    stages = sum(seconds[stage] for stage in ("start", "import", "load", "classify"))
    assert stages == pytest.approx(seconds["total"], abs=0.1)
    assert 0 < seconds["steady"] < seconds["total"]
    monkeypatch.setitem(cold_start.IMPORTS, "pt", "no_such_module")
    with pytest.raises(WorkerError, match=r"ended with status 1: .* No module named 'no_such_module'"):
        cold_start.start(options, OURS[0], str(folder))


def test_cold_starts_that_fail_or_answer_otherwise_are_left_out(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(options: Options, peer: Peer, folder: str) -> dict[str, Any]:
        if (peer.library, peer.framework) == ("transformers", "tf"):
            raise WorkerError("out of memory")
        answer = 1 + ((peer.library, peer.framework) == ("transformers", "pt"))
        seconds = dict.fromkeys([*cold_start.STAGE_NAMES, "steady"], 1.0)
        return {"answer": answer, "seconds": seconds}

    monkeypatch.setattr(cold_start, "start", start)
    tables = cold_start.run(options).split("### ")[1:]
    assert [name in text for text in tables for name in ("trivit", "| transformers")] == [True, False] * 2 + [True] * 2
    assert any(re.fullmatch("transformers 4.* PyTorch: it gives another answer", line) for line in options.absent)
    assert any(re.fullmatch("transformers 4.* TensorFlow: out of memory", line) for line in options.absent)


def test_loading_counts_the_memory_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ViTConfig(hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=1024)
    harness.random_checkpoint(tmp_path / "model", config)
    size = (tmp_path / "model/model.safetensors").stat().st_size
    monkeypatch.setattr(Options, "checkpoint", str(tmp_path / "model"))
    found = load.load_in_a_process(Options(tmp_path, tmp_path), OURS[0], "float32")
    assert 0 < found["loaded"] <= found["touched"]
    assert size < found["memory"] < size + 150e6
    assert load.read_seconds(tmp_path / "model/model.safetensors") > 0


# === The file of results ===


def test_a_section_replaces_its_own_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    harness.write_results(path, ["load", "cpu"], "## Loading\n\nold")
    harness.write_results(path, ["inference", "cpu", "L/16"], "## Inference: large")
    harness.write_results(path, ["inference", "cpu", "S/16"], "## Inference: small")
    harness.write_results(path, ["load", "cpu"], "## Loading\n\nnew")
    text = path.read_text()
    titles = ["## Inference: small", "## Inference: large", "## Loading\n\nnew", "## On a GPU"]
    assert sorted(titles, key=text.index) == titles
    assert "\nold" not in text
    assert "Not measured: no GPU was there." in text
    harness.write_results(path, ["gpu", "gpu"], "## In one command on a GPU")
    harness.write_results(path, ["inference", "gpu", "S/16"], "## Inference on a GPU\n\nfast")
    text = path.read_text()
    titles = [*titles[:3], "## Inference on a GPU", "## In one command on a GPU"]
    assert sorted(titles, key=text.index) == titles
    assert "Not measured" not in text
    assert text.count("<!-- section: ") == text.count("<!-- end -->") == 5


def test_the_table_is_markdown() -> None:
    rows = [["a|b", 1], ["c", Ratio(1, 0.5, 2)]]
    assert harness.table(["", "x"], rows).splitlines() == [
        "|  | x |", "| --- | ---: |", "| a/b | 1 |", "| c | 1.00 (0.50 to 2.00) |"]  # fmt: skip


def test_bars_are_as_long_as_their_figures(tmp_path: Path) -> None:
    red, blue = "#ff0000", "#0000ff"
    panels = {"above": [Bar("one", [(1.0, red), (2.0, blue)], "1 + 2"), Bar("four", [(4.0, red)], "4")], "empty": []}
    markdown = harness.bars(tmp_path / "plots/some.png", "A title", panels, {"red": "#00ff00"})
    assert markdown == "![A title](plots/some.png)"
    pixels = np.asarray(Image.open(tmp_path / "plots/some.png").convert("RGB")).astype(int)

    def longest(color: tuple[int, int, int], rows: slice) -> int:
        return int((np.abs(pixels[rows] - color).max(axis=2) < 30).sum(axis=1).max())

    reds = (np.abs(pixels - (255, 0, 0)).max(axis=2) < 30).sum(axis=1)
    (bottom,) = np.flatnonzero(reds == reds.max())[:1]
    upper = slice(0, bottom)
    unit = longest((255, 0, 0), slice(None)) / 4
    assert longest((255, 0, 0), upper) == pytest.approx(unit, abs=2)
    assert longest((0, 0, 255), slice(None)) == pytest.approx(2 * unit, abs=2)
    assert harness.bars(tmp_path / "none.png", "Nothing", {"empty": []}) == ""


def test_rates_are_the_best_of_the_frameworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"pt": iter([1e9, 1e9, 3e9]), "tf": iter([2e9, 1e9])}

    class Told:
        def __init__(self, **options: Any) -> None:
            assert options["environment"] == harness.ENVIRONMENT

        def __enter__(self) -> Told:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def prepare(self, function: str, framework: str, dtype: str, device: str) -> float:
            assert function == "vit.measure:matrix_rate"
            if framework == "flax":
                raise WorkerError("no such product")
            return next(rates[framework])

    monkeypatch.setattr(harness, "Worker", Told)
    options = Options(tmp_path, tmp_path, rates={"float16": (7e9, "pt")})
    options.measure_rates(["float32", "int8"])
    assert options.rates == {"float32": (2e9, "tf"), "int8": (1e9, "pt"), "float16": (7e9, "pt")}
    options.measure_rates(["float32"])  # again, when the machine may be less slowed
    assert options.rates == {"float32": (3e9, "pt"), "int8": (1e9, "pt"), "float16": (7e9, "pt")}
    assert any("no such product" in line for line in options.absent)


# === The command ===


def test_the_command_writes_sections_and_goes_on_after_a_suite_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "run", lambda options: f"## Inference\n\nfigures of {options.variant}")
    monkeypatch.setattr(load, "run", lambda options: 1 / 0)
    monkeypatch.setattr(training, "run", lambda options: "## Training\n\nmore figures")
    output = tmp_path / "RESULTS.md"
    arguments = ["--quick", "inference", "load", "training", "--output", str(output)]
    with pytest.raises(SystemExit, match="failed: load Ti/16"):
        program.main(arguments)
    out, err = capsys.readouterr()
    assert "load Ti/16 failed: ZeroDivisionError" in err
    text = output.read_text()
    assert "## Inference" in out
    for line in (
        "## Inference: ViT-Ti/16",
        "figures of Ti/16",
        "## Training",
        "more figures",
        "python -m benchmarks --quick inference",
    ):
        assert line in text
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in text
    assert "transformers 4.57.6" in text
    for written in (output, *program.FOLDER.glob(output.name)):  # those that are committed, too
        _says_where_it_is_from(written)


def _says_where_it_is_from(results: Path) -> None:
    text = results.read_text()
    sections = text.split("<!-- section: ")[1:]
    for section in sections:
        assert re.search(r"^`python -m benchmarks.*` on \d{4}-\d\d-\d\d; ", section, re.MULTILINE), results
    measured_gpu = any(
        section.startswith(tuple(f"{suite} gpu" for suite in (*program.SUITES, "gpu"))) for section in sections
    )
    assert measured_gpu or "Not measured: no GPU was there." in text
    for picture in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (results.parent / picture).exists()


def test_an_unknown_suite_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["speed"])
    assert (
        "unknown suite 'speed'; expected some of inference, families, training, finetune, cold-start"
        in capsys.readouterr().err
    )


def test_a_program_gets_the_options_that_it_takes_and_no_other(tmp_path: Path) -> None:
    options = Options(tmp_path, tmp_path, "B/16", frameworks=["pt"], dtypes=["int8"], seconds=2.0)
    assert program.command_line("preprocess", options) == ["-m", "benchmarks.preprocess", "--seconds", "2.0"]
    assert program.command_line("convert", options) == ["-m", "benchmarks.convert", "--variant", "B/16"]
    assert program.command_line("pipeline", options)[2:] == ["--variant", "B/16", "--framework", "pt"]


def test_every_suite_has_its_sizes() -> None:
    assert program.plan(["inference", "preprocess", "training"], None, False) == [
        *(("inference", size) for size in ("Ti/16", "S/16", "B/16", "L/16")), ("preprocess", ""), ("training", "B/16"),
    ]  # fmt: skip
    assert program.plan(["pipeline", "convert", "compile"], None, False) == [
        ("pipeline", "Ti/16"), ("convert", "L/16"), ("compile", "B/16")]  # fmt: skip
    assert program.plan(["inference", "preprocess"], None, True) == [("inference", "Ti/16"), ("preprocess", "")]
    assert program.plan(["load", "preprocess"], ["S/16", "L/16"], False) == [
        ("load", "S/16"), ("load", "L/16"), ("preprocess", "")]  # fmt: skip


def test_a_program_of_cpus_is_left_out_on_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program.main(["--device", "gpu", "--output", str(tmp_path / "results.md"), "convert"])
    assert "convert runs on CPUs: left out" in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()


def test_a_program_s_table_goes_into_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = Options(tmp_path, tmp_path, quick=True)
    monkeypatch.setattr(program, "PROGRAMS", {"convert": ("Title", ["--help"], [])})
    assert program.run_program("convert", options).startswith("## Title\n\n```\nusage: ")
    monkeypatch.setattr(program, "PROGRAMS", {"convert": ("Title", ["--no-such-option"], [])})
    with pytest.raises(RuntimeError, match="ended with status 2"):
        program.run_program("convert", options)
