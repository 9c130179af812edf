"""`vit train` and `vit evaluate` as a user types them: options, signals, kills, tables of labels."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTImageProcessor, checkpoint, cli
from vit.training import Recipe
from vit.training.run import train

from .command import vit
from .equivalence import random_checkpoint, tiny_config

OPTIONS = ["--batch-size", "4", "--steps", "6", "--evaluate-every", "1", "--validation", "0.25", "--log-every", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in (("blue", (40, 60, 200)), ("red", (200, 40, 50))):
        (folder / name).mkdir()
        for i in range(8):
            pixels = np.clip(rng.normal(colour, 30, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_checkpoint(folder, tiny_config(), "classifier")
    ViTImageProcessor(size=16).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    opened = checkpoint.Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


def test_every_field_of_the_recipe_is_an_option_and_reaches_the_run(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {
        "optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.1, "gradient_checkpointing": True, "seed": 3,
        "randaugment": 1, "teacher": "nobody", "epochs": 2.5,
    }  # fmt: skip
    given = [text for name, value in changed.items() if value is not True
             for text in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    assert vit("train", photos, "-m", model, "-f", "pt", "-o", tmp_path / "run", *OPTIONS, *given,
               "--gradient-checkpointing", "--json") == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["steps"], told["done"], told["broken"]) == (6, 6, True, {})
    begun = {"batch_size": 4, "steps": 6, "evaluate_every": 1.0, "validation": 0.25, "log_every": 1}
    assert Recipe.from_json_file(tmp_path / "run" / "recipe.json") == Recipe(**begun, **changed)
    assert vit("train", photos, "-f", "pt", "-o", tmp_path / "run", "--resume", "--seed", "4") == 2
    assert "another recipe: seed was 3, now 4." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "tunables", "program", "expected"),
    [
        ("always [madvise] never", None, "/bin/vit", "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "a.b=1", "/a/vit/__main__.py", "a.b=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "/bin/vit", None),
        ("[always] madvise never", None, "/bin/vit", None),
        (None, None, "/bin/vit", None),
        ("always [madvise] never", None, "/a/pytest/__main__.py", None),
    ],
)  # fmt: skip
def test_the_command_takes_memory_in_large_pages_where_it_has_to_ask_for_them(
    says: str | None, tunables: str | None, program: str, expected: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    begun: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: begun.append(arguments))
    monkeypatch.setattr("vit.cli.train.PAGES", tmp_path / "enabled")
    monkeypatch.setattr(sys, "argv", [program, "--debug", "train", "--help"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "vit", "--debug", "train", "--help"])
    if says is not None:
        (tmp_path / "enabled").write_text(says + "\n")
    if tunables is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    again = [sys.executable, "-m", "vit", "--debug", "train", "--help"]
    assert [(each[:2], each[2]["GLIBC_TUNABLES"]) for each in begun] == [((sys.executable, again), expected)] * bool(
        expected
    )
    begun.clear()
    for typed, arguments in ((["demo"], None), (["classify", "train"], None), (["train"], ["train", "--help"])):
        monkeypatch.setattr(sys, "argv", [program, *typed, "--help"])
        with pytest.raises(SystemExit, match="0"):
            cli.main(arguments)  # another command, one whose images lie in a folder train, and a call from Python
    assert not begun


def test_a_log_gets_a_line_for_each_evaluation_where_there_is_no_terminal_for_a_bar(
    photos: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for quiet, steps in ((), ["3", "6"]), (("--quiet",), []):
        assert vit("train", photos, "-m", model, "-f", "pt", "-o", tmp_path / "run", *OPTIONS, "--force", *quiet) == 0
        said = capfd.readouterr().err
        assert re.findall(r"^Step (\d) of 6\. Epoch [\d.]+, loss [\d.]+, top1 [\d.]+%, ", said, re.MULTILINE) == steps


def test_photographs_for_the_bundled_digits_are_refused_before_anything_begins(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vit("train", photos, "-o", tmp_path / "run", *OPTIONS) == 2
    said = capsys.readouterr().err
    assert f"{photos / 'blue' / '0.png'} is in colour." in said
    assert "--model" in said
    assert "--variant Ti/16" in said
    assert not (tmp_path / "run").exists()


def test_a_preset_a_variant_and_another_family_begin_from_fresh_weights(photos: Path, tmp_path: Path) -> None:
    small = ["--batch-size", "4", "--steps", "1", "--image-size", "32", "-q"]
    sized = ["--variant", "Ti/16", "--preset", "deit", *small]
    assert vit("train", photos, *sized, "-f", "pt", "-o", tmp_path / "ti") == 0
    config = checkpoint.read_config(tmp_path / "ti" / "last")
    assert (config.hidden_size, config.image_size, list(config.id2label.values())) == (192, 32, ["blue", "red"])
    assert Recipe.from_json_file(tmp_path / "ti" / "recipe.json").mixup == 0.8
    mae = ["--variant", "B/16", "--family", "vit_mae", "--preset", "mae", *small]
    assert vit("train", photos, *mae, "-f", "pt", "-o", tmp_path / "mae", "--recipe", "x") == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--preset", "resnet"], "preset is 'resnet'"), (["--epochs", "0"], "epochs is 0"),
    (["--accumulate", "3"], "does not divide"), (["--objective", "distillation"], "needs a teacher"),
    (["--drop-path", "0.1"], "A vit model has no drop_path_rate"), (["--freeze-layers", "9"], "the encoder has 2"),
    (["--variant", "Ti/16"], "leave --model out"), (["--preset", "deit", "--recipe", "x"], "give one"),
    (["--resume"], "holds no run to resume"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vit("train", photos, "-m", model, "-f", "pt", "-o", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# === Signals and kills ===


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    code = "import sys; from vit.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment)


def wait_for(path: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and (not path.exists() or len(path.read_text().splitlines()) < rows):
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_a_process_that_is_killed_or_stopped_is_resumed_to_the_same_weights(
    kind: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    many = [*OPTIONS, "--steps", "24", "--evaluate-every", "2", "--dropout", "0.1", "--ema", "0.9"]
    assert vit("train", photos, "-m", model, "-f", "pt", "-o", tmp_path / "whole", *many, "-q") == 0
    run = tmp_path / "run"
    for rows in (8, 15):
        again = ["--resume"] if run.exists() else many
        process = start("train", photos, "-m", model, "-f", "pt", "-o", run, *again, "-q")
        wait_for(run / "metrics.jsonl", rows, process)
        process.send_signal(signal.SIGKILL if kind == "killed" else signal.SIGTERM)
        assert process.wait() == (-signal.SIGKILL if kind == "killed" else 128 + signal.SIGTERM)
    assert vit("train", photos, "-f", "pt", "-o", run, "--resume", "-q") == 0
    for name in ("last", "best"):
        expected = weights(tmp_path / "whole" / name)
        assert all(np.array_equal(array, expected[key]) for key, array in weights(run / name).items())
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))


# === Tables ===

TABLES = {
    "classes": (["red", "blue", "red", "blue"], ["blue", "red"], "single_label_classification"),
    "numbers that are classes": ([10, 9, 10, 9], ["9", "10"], "single_label_classification"),
    "several labels": (["sky|sea", "sea", "sky", "sun"], ["sea", "sky", "sun"], "multi_label_classification"),
    "a regression": ([0.5, 1.0, -2.25, 3.0], ["value"], "regression"),
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_tells_the_problem_by_its_labels(name: str, suffix: str, photos: Path, tmp_path: Path) -> None:
    from vit.training.examples import read

    values, names, problem_type = TABLES[name]
    rows = [{"path": str(photos / "red" / f"{i}.png"), "label": value} for i, value in enumerate(values)]
    path = tmp_path / f"table{suffix}"
    if suffix == ".csv":
        path.write_text("path,label\n" + "".join(f"{row['path']},{row['label']}\n" for row in rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    split = read(path, 0.25, 0)
    assert (list(split.training.names), split.training.problem_type) == (names, problem_type)
    assert len(split.training) + len(split.validation) == 4
    found = {Path(each.images[i]).stem: each.targets[i] for each in (split.training, split.validation)
             for i in range(len(each))}  # fmt: skip
    if problem_type == "regression":
        assert [found[str(i)][0] for i in range(4)] == values
    else:
        told = [{names[k] for k in np.flatnonzero(found[str(i)])} for i in range(4)]
        assert told == [set(str(value).split("|")) for value in values]


def test_what_the_command_is_not_told_is_what_the_function_takes_by_default() -> None:
    command = inspect.signature(importlib.import_module("vit.cli.train").command).parameters
    function = inspect.signature(train).parameters
    shared = {"resume", "force", "strict", "shard", "workers", "device", "from_scratch"}
    assert {name: command[name].default for name in shared} == {name: function[name].default for name in shared}


def test_of_a_folder_the_first_image_alone_is_looked_at_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = importlib.import_module("vit.cli.train")
    looked: list[str] = []

    def find(sources: list[str]) -> Iterator[str]:
        yield f"{sources[0]}/first.png"
        raise AssertionError("a second one is looked for")

    def begin(extra: str) -> None:
        raise InterruptedError

    monkeypatch.setattr(command, "find", find)
    monkeypatch.setattr(command, "check_default", lambda path, remedy: looked.append(path))
    monkeypatch.setattr(command, "import_quietly", begin)
    with pytest.raises(InterruptedError):
        command.command(str(tmp_path), tmp_path / "run", framework=["pt"])
    assert looked == [f"{tmp_path}/first.png"]
