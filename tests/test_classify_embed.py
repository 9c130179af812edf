"""`vit classify` and `vit embed`: tables, files of rows, broken images, interruptions and wrong arguments."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from vit import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor, locks, predict
from vit.cli import batch, frameworks, images, journal, main, tables
from vit.errors import install_line

ROOT = Path(__file__).parents[1]
DIGITS = frameworks.DIGITS
SCANS = sorted(DIGITS.glob("*.png"))
MAIN = [sys.executable, "-c", "from vit.cli import main; main()"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """12 scans in two folders, one broken file, and what is no image or hidden."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, scan in enumerate(SCANS[::3] + SCANS[:2]):
        shutil.copy(scan, folder / ("more" if i % 3 == 0 else ".") / f"{i:02}.png")
    (folder / "05b.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden.png").write_bytes(b"nor this")
    (folder / ".git").mkdir()
    shutil.copy(SCANS[0], folder / ".git" / "a.png")
    return folder


NAMES = ["01.png", "02.png", "04.png", "05.png", "05b.png", "07.png", "08.png", "10.png", "11.png", "more/00.png",
         "more/03.png", "more/06.png", "more/09.png"]  # fmt: skip
BROKEN = NAMES.index("05b.png")


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command in this process, by PyTorch."""
    options = () if {"--framework", "-f"} & set(arguments) else ("-f", "pt")
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments), *options])
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


def process(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*MAIN, *map(str, arguments), "-f", "pt"], env=environment, **options)


def answers(paths: list[Path], top_k: int) -> list[Any]:
    """What the library function says, as the rows of a .jsonl file have it."""
    found = predict(paths, DIGITS, "pt", top_k=top_k, batch_size=4)
    return [
        {"path": each.path, "labels": list(each.labels), "probabilities": list(each.probabilities), "error": each.error}
        for each in found
    ]


# === Files ===


def test_a_jsonl_file_has_an_object_an_image_with_what_the_library_gives(photos, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    status, out, err = run(capsys, "classify", photos, "-o", output, "-k", 3, "-b", 4)
    assert (status, err) == (1, "")
    assert out.startswith(f"{output}: 13 images, 1 with an error; ")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows == answers([photos / name for name in NAMES], 3)
    assert rows[BROKEN] == {"path": str(photos / "05b.png"), "labels": [], "probabilities": [],
                            "error": "is not an image file that Pillow can read."}  # fmt: skip


def test_csv_and_parquet_files_hold_the_same_as_jsonl(photos, tmp_path, capsys):
    for suffix in ("jsonl", "csv", "parquet"):
        status, _, _ = run(capsys, "classify", photos, "-o", tmp_path / f"rows.{suffix}", "-k", 3, "-b", 4)
        assert status == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.to_pylist() == rows
    assert list(map(str, table.schema.types)) == ["string", "list<element: string>", "list<element: double>", "string"]
    with open(tmp_path / "rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["path", "label_1", "probability_1", "label_2", "probability_2", "label_3",
                              "probability_3", "error"]  # fmt: skip
    for line, row in zip(lines, rows, strict=True):
        assert (line["path"], line["error"]) == (row["path"], row["error"] or "")
        labels = [line[f"label_{i}"] for i in (1, 2, 3)]
        assert labels == (row["labels"] or [""] * 3)
        assert [float(line[f"probability_{i}"]) for i in (1, 2, 3) if line["label_1"]] == row["probabilities"]
    left = {path.name for path in tmp_path.iterdir()} - {"photos"}
    assert left == {f"rows.{suffix}{more}" for suffix in ("jsonl", "csv", "parquet") for more in ("", ".run")}


def test_any_name_of_a_file_is_kept_and_continued(tmp_path, capsys):
    names = [b'a,"b".png', b"new\nline.png", b'odd " quote\n.png', b"car\rriage.png", b"not-utf-8-\xff.png"]
    for name in names:
        shutil.copyfile(SCANS[3], os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "list").write_bytes(b"")
    output = tmp_path / "rows.csv"
    assert run(capsys, "classify", tmp_path, "-o", output, "-k", 1)[0] == 0
    with open(output, newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = [os.path.basename(os.fsencode(row["path"])) for row in csv.DictReader(file)]
    assert found == sorted(names)
    status, out, _ = run(capsys, "classify", tmp_path, "-o", output, "-k", 1, "--resume")
    assert (status, out) == (0, f"{output}: 5 images, 5 of them from before\n")
    for name in ("r.jsonl", "r.parquet", "v.npy", "v.parquet"):
        arguments = ("classify" if name[0] == "r" else "embed", tmp_path, "-o", tmp_path / name, "--resume")
        assert "5 images; " in run(capsys, *arguments)[1]
        status, out, _ = run(capsys, *arguments)
        assert (status, out) == (0, f"{tmp_path / name}: 5 images, 5 of them from before\n")
    for name in ("r.parquet", "v.parquet"):
        rows = parquet.read_table(tmp_path / name).to_pylist()
        assert [os.path.basename(row["path"]) for row in rows] == [
            os.fsdecode(name).replace("\udcff", "\ufffd") for name in sorted(names)
        ]


def test_more_labels_than_there_are_gives_all_of_them(tmp_path, capsys):
    output = tmp_path / "rows.csv"
    assert run(capsys, "classify", SCANS[0], "-o", output, "-k", 50)[0] == 0
    (row,) = csv.DictReader(io.StringIO(output.read_text()))
    assert sorted(row[f"label_{i}"] for i in range(1, 11)) == [str(i) for i in range(10)]
    assert len(row) == 22
    assert sum(float(row[f"probability_{i}"]) for i in range(1, 11)) == pytest.approx(1)


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_other_frameworks_give_the_same_labels(framework, photos, tmp_path, capsys):
    for name in ("pt", framework):
        run(capsys, "classify", photos, "-o", tmp_path / f"{name}.jsonl", "-k", 1, "-f", name)
    rows = [[json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            for name in ("pt", framework)]  # fmt: skip
    for one, other in zip(*rows, strict=True):
        assert (one["path"], one["labels"], one["error"]) == (other["path"], other["labels"], other["error"])
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)
    assert journal.Journal(tmp_path / f"{framework}.jsonl").settings([tmp_path])["framework"] == framework


# === The terminal and JSON ===


def test_few_images_are_a_table_of_their_labels(photos, capsys):
    status, out, err = run(capsys, "classify", photos / "01.png", photos / "05b.png", "-k", 2)
    assert (status, err) == (1, "")
    cells = [[cell.strip() for cell in line[1:-1].split("│")] for line in out.splitlines() if "│" in line]
    one, _ = answers([photos / "01.png", photos / "05b.png"], 2)
    assert cells == [
        [str(photos / "01.png"), one["labels"][0], f"{one['probabilities'][0]:.2%}"],
        ["", one["labels"][1], f"{one['probabilities'][1]:.2%}"],
        [str(photos / "05b.png"), "is not an image file that Pillow can read.", ""],
    ]


def test_many_images_are_tables_of_so_many_each(photos, monkeypatch, capsys):
    monkeypatch.setattr(batch, "TABLE_ROWS", 5)
    _, out, _ = run(capsys, "classify", photos, "-k", 1)
    assert out.count("Probability") == 3
    assert [name for name in NAMES if name in out] == NAMES


def test_quiet_prints_nothing(photos, tmp_path, capsys):
    assert run(capsys, "classify", photos, "-q") == (1, "", "")
    assert run(capsys, "classify", photos, "-q", "-o", tmp_path / "rows.csv") == (1, "", "")


def test_json_is_one_document_with_the_rows_and_what_was_used(photos, tmp_path, capsys):
    status, out, err = run(capsys, "classify", photos, "--json", "-q", "-k", 1, "-b", 3)
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert found.pop("results") == answers([photos / name for name in NAMES], 1)
    assert found.pop("seconds") > 0
    assert found.pop("images_per_second") > 0
    expected = {"model": "the bundled digits", "framework": "pt", "device": "cpu", "dtype": "float32", "batch_size": 3,
                "top_k": 1, "images": 13, "failed": 1, "output": None}  # fmt: skip
    assert found == expected
    output = tmp_path / "rows.csv"
    found = json.loads(run(capsys, "classify", photos, "--json", "-k", 1, "-b", 3, "-o", output)[1])
    assert {name: found[name] for name in expected} == {**expected, "output": str(output)}


def test_a_terminal_gets_a_progress_bar_with_images_a_second_and_time_left(photos, tmp_path):
    leader, follower = pty.openpty()
    with process("classify", photos, "-o", tmp_path / "rows.csv", stderr=follower, stdout=subprocess.PIPE) as running:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # what Linux says at the end
                break
            if not part:
                break
            shown += part
        out = running.stdout.read()
    text = shown.decode()
    assert running.returncode == 1
    assert "13/13" in text
    assert "images/s" in text
    assert "0:00:00" in text
    assert b"images/s" in out
    assert b"\x1b" not in out


def test_a_pipe_that_closes_ends_it_without_a_word(photos):
    with process("classify", *[photos] * 2, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode != 0


@pytest.mark.parametrize("more", [(), ("--json",), ("-q", "--output", "rows.jsonl")])
def test_photographs_without_a_model_are_answered_with_what_to_do(more, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    Image.new("RGB", (64, 48), "green").save("photo.jpg")
    shutil.copy("photo.jpg", "another.jpg")
    status, out, err = run(capsys, "classify", "01.png", "photo.jpg", "another.jpg", *more)
    assert (status, err) == (
        1,
        "vit: The bundled model reads grey digits of 8 x 8 pixels; for photographs give a --model, such as "
        "google/vit-base-patch16-224 or a checkpoint folder.\n",
    )
    rows = Path("rows.jsonl").read_text() if "-q" in more else out
    assert rows.count("has 3 channel(s); expected 1") == 2
    assert run(capsys, "classify", "photo.jpg", *more[:1], "-m", DIGITS)[2] == ""  # chosen, so known
    assert run(capsys, "classify", "05b.png", *more[:1])[2] == ""  # another error


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_a_photograph_without_a_model_is_answered_with_what_to_do_before_anything_is_loaded(
    mode, photos, capsys, monkeypatch
):
    monkeypatch.chdir(photos)
    name = "photo.png" if mode == "RGBA" else "photo.jpg"
    Image.new(mode, (64, 48), "green").save(name)
    with monkeypatch.context() as patched:
        patched.setattr(batch, "open_model", None)
        message = refused(capsys, name)
    assert message.startswith(f"{name} is in colour. The bundled model reads grey digits")
    assert message.endswith(
        " for photographs give a --model, such as google/vit-base-patch16-224 or a checkpoint folder."
    )
    assert "--model" not in refused(capsys, name, "--strict", "-m", DIGITS)


def test_a_checkpoint_without_labels_is_answered_by_indices(photos, random_checkpoint, tiny_config, tmp_path, capsys):
    folder = random_checkpoint(tmp_path / "model", tiny_config(num_labels=30), head="classifier")
    ViTImageProcessor(size=16).save_pretrained(folder)
    status, out, _ = run(capsys, "classify", photos / "01.png", "-m", folder, "-k", 50, "--json")
    assert status == 0
    assert sorted(json.loads(out)["results"][0]["labels"], key=int) == [str(i) for i in range(30)]


# === Which images ===


def test_folders_files_patterns_and_lists_name_each_image_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    listed = io.TextIOWrapper(io.BytesIO(b"02.png\r\n\n./01.png\nmore/00.png\ngone.png\nnotes.txt\n"))
    monkeypatch.setattr(sys, "stdin", listed)
    assert list(images.find(["."])) == [f"./{name}" for name in NAMES]
    assert list(images.find(["02.png", "more", "*.png", "more/../02.png"])) == [
        "02.png", *NAMES[-4:], "01.png", *NAMES[2:-4]]  # fmt: skip
    assert list(images.find(["**/0[0-2].png", "notes.txt"])) == ["01.png", "02.png", "more/00.png", "notes.txt"]
    assert list(images.find(["*"])) == [*NAMES[:-4], *NAMES[-4:], "notes.txt"]
    assert list(images.find(["01.png", "-"])) == ["01.png", "02.png", "more/00.png", "gone.png", "notes.txt"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_a_list_is_of_lines_or_as_find_print0_writes_it(end, piece, monkeypatch):
    class Pieces(io.BytesIO):
        def read1(self, most):
            return self.read(piece)

    names = ["a b.png", "ü.png", *(["two\nlines.png"] if end == "\0" else []), "x" * 4000]
    for text in (end.join(names), end.join(names) + end, end + end.join(names)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pieces(text.encode())))
        assert list(images._stdin()) == names


@pytest.mark.parametrize("end", ["\n", "\0"])
@pytest.mark.parametrize("place", range(3))
def test_a_path_of_a_list_is_as_long_as_a_path_can_be(place, end, monkeypatch):
    for length in (images.LINE - 1, images.LINE):
        names = ["a.png", "b.png"]
        names.insert(place, "x" * length)
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(end.join([*names, ""]).encode())))
        )
        with nullcontext() if length < images.LINE else pytest.raises(InputError, match="without the end of a path"):
            assert list(images._stdin()) == names


@pytest.mark.parametrize("byte", [b"\n", b"\0", b"a"])
def test_a_list_without_paths_that_never_ends_is_refused(byte, monkeypatch):
    class Endless(io.BytesIO):
        def read1(self, most):
            return byte * most

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Endless()))
    with pytest.raises(InputError, match="65,536 bytes without the end of a path"):
        list(images._stdin())


@pytest.mark.parametrize("more", [(), ("--quiet",), ("--json",)])
def test_files_that_are_no_images_by_their_names_are_counted_by_ending(more, photos, capsys):
    for name in ("a.heic", "more/b.HEIC", "more/raw", "more/.hidden"):
        (photos / name).write_bytes(b"")
    _, _, err = run(capsys, "classify", photos, *more)
    said = "vit: passed over 3 files that are no images by their names: .heic (2), no ending (1).\n"
    assert err == ("" if "--quiet" in more else said)


def test_a_folder_without_images_says_what_it_holds(tmp_path, capsys):
    (tmp_path / "a.cr2").write_bytes(b"")
    assert f"no images in {tmp_path} (passed over 1 file that is no image by its name: .cr2 (1)); expected" in (
        refused(capsys, tmp_path)
    )


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    file = tmp_path / "a[1].png"
    shutil.copy(SCANS[0], file)
    assert list(images.find([str(file)])) == [str(file)]


def test_a_link_to_a_folder_is_not_followed_and_one_to_a_file_is(photos):
    (photos / "more" / "back").symlink_to(photos, target_is_directory=True)
    (photos / "more" / "link.png").symlink_to(SCANS[0])
    assert [os.path.relpath(path, photos) for path in images.find([str(photos)])] == [*NAMES, "more/link.png"]


def test_a_file_that_a_list_names_twice_or_that_is_gone_is_one_row(photos, tmp_path):
    listed = "\n".join([f"{photos}/01.png", f"{photos}/gone.png", f"{photos}/more/../01.png", f"{photos}/02.png"])
    output = tmp_path / "rows.jsonl"
    with process("classify", "-", "-o", output, stdin=subprocess.PIPE) as running:
        running.communicate(listed.encode())
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert running.returncode == 1
    assert [os.path.basename(row["path"]) for row in rows] == ["01.png", "gone.png", "02.png"]
    assert rows[1]["error"] == "does not exist; expected the path of an image file."


# === Going on ===


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_cut_at_any_byte_and_resumed_a_file_is_the_same_to_the_byte(suffix, photos, tmp_path, capsys):
    output = tmp_path / f"rows.{suffix}"
    arguments = ("classify", photos, "-o", output, "-k", 2, "-b", 4)
    run(capsys, *arguments)
    whole = output.read_bytes()
    lines = len(whole.splitlines())
    for end in (0, 1, 30, *np.linspace(60, len(whole), 9, dtype=int)):
        output.write_bytes(whole[:end])
        status, out, err = run(capsys, *arguments, "--resume")
        assert (status, err) == (1, "")
        assert output.read_bytes() == whole
        kept = max(whole[:end].count(b"\n") - (suffix == "csv"), 0)
        assert (f"{kept} of them from before" in out) == (kept > 0)
        assert f"{lines - (suffix == 'csv')} images" in out


def test_a_finished_parquet_file_is_left_alone(photos, tmp_path, capsys):
    output = tmp_path / "rows.parquet"
    arguments = ("classify", photos, "-o", output, "-b", 4)
    run(capsys, *arguments)
    before = output.stat().st_mtime_ns
    assert "13 of them from before" in run(capsys, *arguments, "--resume")[1]
    assert output.stat().st_mtime_ns == before
    output.unlink()
    assert "from before" not in run(capsys, *arguments, "--resume")[1]
    assert output.exists()


def test_images_that_come_after_the_others_are_added_and_before_them_refused(photos, tmp_path, capsys):
    output = tmp_path / "rows.csv"
    arguments = ("classify", photos, "-o", output, "-q")
    run(capsys, *arguments)
    shutil.copy(SCANS[5], photos / "zebra.png")
    assert run(capsys, *arguments, "--resume")[0] == 1
    assert len(output.read_text().splitlines()) == 15
    shutil.copy(SCANS[5], photos / "00.png")
    kept = output.read_bytes()
    status, _, err = run(capsys, *arguments, "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert f"Row 1 of the output is of {photos}/01.png, where the images have {photos}/00.png" in err
    (photos / "00.png").unlink()
    (photos / "zebra.png").unlink()
    assert "where the images have an end" in run(capsys, *arguments, "--resume")[2]
    assert output.read_bytes() == kept


def test_a_finished_parquet_file_takes_no_more_images(photos, tmp_path, capsys):
    arguments = ("classify", photos, "-o", tmp_path / "rows.parquet")
    run(capsys, *arguments)
    shutil.copy(SCANS[5], photos / "zebra.png")
    status, _, err = run(capsys, *arguments, "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert "is finished without" in err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("-k", 2), "was begun with top_k 1, and now it is 2"),
        (("-f", "flax"), "was begun with framework pt, and now it is flax"),
        (("--dtype", "bfloat16"), "was begun with dtype float32, and now it is bfloat16"),
        (("-b", 8), "was begun with batch_size 4, and now it is 8"),
        (("-m", "other"), "was begun with model_sha256 "),
    ],
)
def test_what_was_begun_otherwise_is_not_continued(changed, message, photos, tmp_path, capsys):
    shutil.copytree(DIGITS, tmp_path / "other")
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    processor.resample = 3
    processor.save_pretrained(tmp_path / "other")
    output = tmp_path / "rows.csv"
    run(capsys, "classify", photos, "-o", output, "-k", 1, "-b", 4)
    kept = output.read_bytes()
    changed = tuple(str(tmp_path / "other") if each == "other" else each for each in changed)
    given = ("classify", photos, "-o", output, "-k", 1, *changed, "--resume")
    status, out, err = run(capsys, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert output.read_bytes() == kept


def test_weights_of_any_form_that_changed_are_not_continued_with(photos, tmp_path, capsys):
    folder, output = tmp_path / "model", tmp_path / "rows.csv"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(DIGITS / name, folder)
    weights = ViTForImageClassification.from_pretrained(DIGITS).state_dict()
    torch.save(weights, folder / "last.pth")
    run(capsys, "classify", photos, "-o", output, "-m", folder)
    torch.save({name: -tensor for name, tensor in weights.items()}, folder / "last.pth")
    status, _, err = run(capsys, "classify", photos, "-o", output, "-m", folder, "--resume")
    assert (status, "was begun with model_sha256 " in err) == (2, True)


def test_the_same_model_elsewhere_continues_and_the_batch_size_is_remembered(photos, tmp_path, capsys):
    shutil.copytree(DIGITS, tmp_path / "copy")
    output = tmp_path / "rows.csv"
    run(capsys, "classify", photos, "-o", output, "-b", 4)
    whole = output.read_bytes()
    output.write_bytes(whole[:200])
    found = json.loads(run(capsys, "classify", photos, "-o", output, "-m", tmp_path / "copy", "--resume", "--json")[1])
    assert (output.read_bytes(), found["batch_size"], found["images"]) == (whole, 4, 13)


def test_nothing_to_resume_is_a_beginning(photos, tmp_path, capsys):
    output = tmp_path / "rows.csv"
    assert run(capsys, "classify", photos, "-o", output, "--resume", "-q")[0] == 1
    assert len(output.read_text().splitlines()) == 14


def test_an_output_that_vit_did_not_write_is_not_continued(photos, tmp_path, capsys):
    output = tmp_path / "rows.csv"
    output.write_text("mine\n")
    _, _, err = run(capsys, "classify", photos, "-o", output, "--resume")
    assert "does not say how it was begun" in err
    assert output.read_text() == "mine\n"
    run(capsys, "classify", photos, "-o", output, "--force")
    whole = output.read_bytes()
    for text, message in ((b"other,columns\n", "does not begin as it was written"),
                          (whole.replace(b",0.", b",1.", 2), "row 1 has been changed since it was written"),
                          (whole + b"mine\n", "was finished, and has more after its last row")):  # fmt: skip
        output.write_bytes(text)
        status, _, err = run(capsys, "classify", photos, "-o", output, "--resume")
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
        assert output.read_bytes() == text


def test_force_begins_again(photos, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    output.write_text("old\n" * 50)
    run(capsys, "classify", photos, "-o", output, "--force", "-b", 4)
    assert [json.loads(line) for line in output.read_text().splitlines()] == answers([photos / n for n in NAMES], 5)


@pytest.mark.parametrize(
    ("task", "output", "other"),
    [
        ("classify", "rows.csv", "rows.csv"),
        ("embed", "rows.npy", "rows.jsonl"),  # which is its index
        ("classify", "rows.jsonl", "rows.npy"),
        ("embed", "v.parquet", "v.parquet.part.npy"),
    ],
)
def test_two_processes_do_not_write_one_file(task, output, other, photos, tmp_path, capsys):
    output = tmp_path / output
    with locks.locked(tables.files(tmp_path / other)):
        for more in ((), ("--resume",), ("--force",)):
            status, _, err = run(capsys, task, photos, "-o", output, *more)
            assert (status, err.count("\n")) == (2, 1)
            assert " is being written by another process; wait for it, or stop it." in err
    assert run(capsys, task, photos, "-o", output)[0] == 1
    assert not list(tmp_path.glob("*.lock"))


def test_what_another_run_wrote_meanwhile_is_not_replaced(photos, tmp_path, capsys, monkeypatch):
    """Between the check and the lock."""
    output, locked = tmp_path / "rows.npy", locks.locked

    def late(paths: list[Path]) -> Any:
        (tmp_path / "rows.jsonl").write_text("of another run")
        return locked(paths)

    monkeypatch.setattr(batch, "locked", late)
    status, _, err = run(capsys, "embed", photos, "-o", output)
    assert (status, err) == (2, f"vit: {tmp_path}/rows.jsonl exists; --resume continues an interrupted run, --force "
                                "begins again.\n")  # fmt: skip
    assert (tmp_path / "rows.jsonl").read_text() == "of another run"


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_two_outputs_that_share_a_file_keep_it(more, photos, tmp_path, capsys):
    run(capsys, "classify", photos, "-o", tmp_path / "r.jsonl")
    rows = (tmp_path / "r.jsonl").read_bytes()
    assert run(capsys, "embed", photos, "-o", tmp_path / "r.npy", *more)[0] == 2
    assert (tmp_path / "r.jsonl").read_bytes() == rows
    assert not (tmp_path / "r.npy").exists()
    run(capsys, "embed", photos, "-o", tmp_path / "r.npy", "--force")
    index = (tmp_path / "r.jsonl").read_bytes()
    status, _, err = run(capsys, "classify", photos, "-o", tmp_path / "r.jsonl", "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert (tmp_path / "r.jsonl").read_bytes() == index


# === Vectors ===


@pytest.mark.parametrize("pool", ["cls", "mean", "pooler", "patches"])
def test_vectors_lie_in_the_order_of_their_index(pool, photos, tmp_path, capsys, with_pooler):
    output = tmp_path / "vectors.npy"
    status, out, err = run(capsys, "embed", photos, "-o", output, "--pool", pool, "-b", 4, "-m", with_pooler)
    assert (status, err) == (1, "")
    assert out.startswith(f"{output}: 13 images, 1 with an error; ")
    paths = [photos / name for name in NAMES]
    expected = list(predict(paths, with_pooler, "pt", task="embed", pool=pool, batch_size=4))
    vectors = np.load(output, mmap_mode="r")
    assert (vectors.dtype, vectors.shape) == (
        np.float32,
        (13, *{"patches": (64, 64), "pooler": (48,)}.get(pool, (64,))),
    )
    for vector, prediction in zip(vectors, expected, strict=True):
        assert np.isnan(vector).all() if prediction.error else (vector == prediction.vector).all()
    index = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text().splitlines()]
    assert index == [{"path": str(path), "row": i, "error": each.error}
                     for i, (path, each) in enumerate(zip(paths, expected, strict=True))]  # fmt: skip


@pytest.fixture(scope="session")
def with_pooler(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Any) -> Path:
    """A model of the shape of the digits', with a pooler."""
    folder = random_checkpoint(
        tmp_path_factory.mktemp("pooler"), ViTConfig.from_pretrained(DIGITS).replace(pooler_output_size=48)
    )
    ViTImageProcessor.from_pretrained(DIGITS).save_pretrained(folder)
    return folder


def test_a_parquet_file_is_written_in_pieces_of_megabytes():
    assert 2**20 <= tables.CHUNK <= 2**25  # smaller ones would be slow to read, and larger ones fill the memory


@pytest.mark.parametrize(("pool", "kind"), [
    ("cls", "fixed_size_list<element: float>[64]"),
    ("patches", "fixed_size_list<element: fixed_size_list<element: float>[64]>[64]"),
])  # fmt: skip
def test_a_parquet_file_of_vectors_holds_those_of_the_npy_file(pool, kind, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 4 * 64 * 4)  # so that it is written in several pieces
    for suffix in ("npy", "parquet"):
        assert run(capsys, "embed", photos, "-o", tmp_path / f"v.{suffix}", "--pool", pool, "-b", 4)[0] == 1
    vectors = np.load(tmp_path / "v.npy")
    with parquet.ParquetFile(tmp_path / "v.parquet") as file:
        assert file.num_row_groups > 1
        table = file.read()
    assert table.schema.names == ["path", "vector", "error"]
    assert str(table.schema.field("vector").type) == kind
    rows = table.to_pylist()
    assert rows[BROKEN] == {"path": str(photos / "05b.png"), "vector": None,
                            "error": "is not an image file that Pillow can read."}  # fmt: skip
    assert [row["path"] for row in rows] == [str(photos / name) for name in NAMES]
    for row, vector in zip(rows, vectors, strict=True):
        if row["error"] is None:
            np.testing.assert_array_equal(np.array(row["vector"], np.float32), vector)
    assert sorted(path.name for path in tmp_path.glob("v.parquet*")) == ["v.parquet", "v.parquet.run"]


def test_float64_vectors_stay_so(photos, tmp_path, capsys):
    output = tmp_path / "v.npy"
    assert run(capsys, "embed", photos / "01.png", "-o", output, "--dtype", "float64")[0] == 0
    (expected,) = predict(photos / "01.png", DIGITS, "pt", task="embed", dtype="float64")
    vectors = np.load(output)
    assert (vectors.dtype, vectors.tolist()) == (np.float64, [expected.vector.tolist()])


def test_a_npy_file_is_whole_while_it_is_written(photos, tmp_path, capsys, monkeypatch):
    output, sizes, flush = tmp_path / "v.npy", [], journal.Journal.flush

    def look(self: Any) -> None:
        flush(self)
        if output.exists():
            sizes.append(len(np.load(output)))

    monkeypatch.setattr(journal, "INTERVAL", 0)
    monkeypatch.setattr(journal.Journal, "flush", look)
    run(capsys, "embed", photos, "-o", output, "-b", 4)
    assert sizes[:4] == [4, 8, 12, 13]


def test_cut_anywhere_and_resumed_vectors_and_index_are_the_same_to_the_byte(photos, tmp_path, capsys):
    output, index = tmp_path / "v.npy", tmp_path / "v.jsonl"
    arguments = ("embed", photos, "-o", output, "-b", 4)
    run(capsys, *arguments)
    vectors, lines = output.read_bytes(), index.read_bytes()
    header, row = len(vectors) - 13 * 256, 256
    assert header == 128
    for data, text, kept in ((0, 0, 0), (50, None, 0), (128, 0, 0), (header + 5 * row + 3, None, 5),
                             (header + 5 * row, 300, lines[:300].count(b"\n")), (None, 500, lines[:500].count(b"\n")),
                             (header + row, 2 * len(lines), 1), (None, None, 13)):  # fmt: skip
        output.write_bytes(vectors[:data])
        index.write_bytes(lines[:text])
        status, out, _ = run(capsys, *arguments, "--resume")
        assert (status, f"{kept} of them from before" in out) == (1, kept > 0)
        assert (output.read_bytes(), index.read_bytes()) == (vectors, lines)
    for path, other in ((output, index), (index, output)):  # elsewhere: not the reason to delete the other
        path.rename(tmp_path / "elsewhere")
        kept = other.read_bytes()
        status, _, err = run(capsys, *arguments, "--resume")
        assert (status, err.count("\n")) == (2, 1)
        assert f"{path} is not there, and it has rows of the run that goes on: put it back" in err
        assert (other.read_bytes(), path.exists()) == (kept, False)
        (tmp_path / "elsewhere").rename(path)
        assert "13 of them from before" in run(capsys, *arguments, "--resume")[1]


def test_an_index_that_exists_is_not_overwritten(photos, tmp_path, capsys):
    (tmp_path / "v.jsonl").write_text("mine")
    status, out, err = run(capsys, "embed", photos, "-o", tmp_path / "v.npy")
    assert (status, out) == (2, "")
    assert err.startswith(f"vit: {tmp_path}/v.jsonl exists; ")
    assert (tmp_path / "v.jsonl").read_text() == "mine"


def test_what_cannot_be_embedded_is_one_line(photos, tmp_path, capsys):
    for arguments, message in (
        ((), "Missing option '--output' / '-o'."),
        (("-o", tmp_path / "v.csv"), "expected a file name that ends in .npy, .parquet."),
        (("-o", tmp_path / "v.npy", "--pool", "max"), "pool is 'max'; expected one of cls, mean, pooler, patches."),
        (("-o", tmp_path / "v.npy", "--pool", "pooler"), "has no weights for the pool 'pooler'; take one of cls, mean"),
    ):
        status, out, err = run(capsys, "embed", photos, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert list(tmp_path.iterdir()) == [photos]


# === Ends that nobody planned ===


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images of which every hundredth is none, large enough to take a while."""
    folder = tmp_path_factory.mktemp("many")
    enlarged = [Image.open(scan).resize((160, 160)) for scan in SCANS]
    for i in range(1200):
        file = folder / f"{i:04}.png"
        if i % 100 == 50:
            file.write_bytes(b"no image")
        else:
            enlarged[i % len(SCANS)].save(file, compress_level=1)
    return folder


def interrupt(number: int, rows: Path, least: int, *arguments: Any) -> subprocess.Popen[Any]:
    """Run the command, and signal it when there are so many bytes of rows, or let it end."""
    with process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and (not rows.exists() or rows.stat().st_size < least):
            time.sleep(0.001)
        running.send_signal(number)
        running.out, running.err = running.communicate()
    return running


@pytest.mark.parametrize(("suffix", "kills"), [("csv", (1, 30_000)), ("jsonl", (40_000,)), ("parquet", (30_000,))])
def test_killed_and_resumed_there_is_one_row_an_image_and_every_value_is_the_same(
    suffix, kills, many, tmp_path, capsys
):
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"rows.{suffix}"
    run(capsys, "classify", many, "-o", whole, "-b", 8, "-q")
    rows = tmp_path / "rows.parquet.part.jsonl" if suffix == "parquet" else output
    arguments = ("classify", many, "-o", output, "-b", 8, "-q")
    sizes = [0]
    for least in kills:
        assert interrupt(signal.SIGKILL, rows, least, *arguments, "--resume").returncode == -signal.SIGKILL
        assert suffix != "parquet" or not output.exists()
        sizes.append(rows.stat().st_size)
        assert sizes[-1] > sizes[-2]
    assert run(capsys, *arguments, "--resume")[0] == 1
    if suffix == "parquet":
        assert parquet.read_table(output).equals(parquet.read_table(whole))
        assert parquet.read_table(output).num_rows == 1200
    else:
        assert output.read_bytes() == whole.read_bytes()
        assert len(output.read_bytes().splitlines()) == 1200 + (suffix == "csv")


@pytest.mark.parametrize(("suffix", "kills"), [("npy", (200, 100_000)), ("parquet", (100_000,))])
def test_killed_and_resumed_vectors_are_the_same(suffix, kills, many, tmp_path, capsys):
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"v.{suffix}"
    run(capsys, "embed", many, "-o", whole, "-b", 8, "-q")
    rows = output if suffix == "npy" else tmp_path / "v.parquet.part.npy"
    arguments = ("embed", many, "-o", output, "-b", 8, "-q")
    for least in kills:
        assert interrupt(signal.SIGKILL, rows, least, *arguments, "--resume").returncode == -signal.SIGKILL
    assert least <= rows.stat().st_size < 1200 * 256
    assert run(capsys, *arguments, "--resume")[0] == 1
    if suffix == "npy":
        assert output.read_bytes() == whole.read_bytes()
        assert output.with_suffix(".jsonl").read_bytes() == whole.with_suffix(".jsonl").read_bytes()
        assert len(np.load(output)) == 1200
    else:
        assert parquet.read_table(output).equals(parquet.read_table(whole))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_with_whole_rows_and_says_how_to_go_on(number, many, tmp_path, capsys):
    output = tmp_path / "rows.csv"
    arguments = ("classify", many, "-o", output, "-b", 8)
    stopped = interrupt(number, output, 10_000, *arguments)
    rows = output.read_bytes()
    done = rows.count(b"\n") - 1
    assert 0 < done < 1200
    assert rows.endswith(b"\n")
    assert (stopped.returncode, stopped.out) == (128 + number, "")
    assert stopped.err == f"vit: stopped: {done:,} of 1,200 images are in {output}; --resume goes on.\n"
    assert run(capsys, *arguments, "--resume")[1].startswith(f"{output}: 1,200 images, {done:,} of them from before")
    assert output.read_bytes().startswith(rows)
    assert output.read_bytes().count(b"\n") == 1201


@pytest.mark.parametrize(("name", "target"), [("r.csv", "there"), ("v.npy", "gone"), ("v.parquet", "there")])
def test_no_name_that_is_written_is_followed_if_it_is_a_link(name, target, photos, tmp_path, capsys):
    victim = tmp_path / "victim"
    task = "classify" if name[0] == "r" else "embed"
    output = tmp_path / name
    names = {each + more for each in (f.name for f in tables.files(output))
             for more in ("", ".run", ".run-wal", ".lock")}  # fmt: skip
    for link in sorted(names):
        for more in ((), ("--force",)):
            if target == "there":
                victim.write_text("mine")
            (tmp_path / link).symlink_to(victim)
            status, _, err = run(capsys, task, photos / "01.png", "-o", output, *more)
            assert status in (0, 2)
            assert err.count("\n") == (status == 2)
            assert victim.exists() == (target == "there")
            assert target == "gone" or victim.read_text() == "mine"
            for path in [*tmp_path.glob(f"{output.stem}.*")]:
                path.unlink()


def test_what_is_no_regular_file_is_not_written(photos, tmp_path, capsys):
    for name in ("r.csv", "r.csv.run", "r.csv.lock"):
        os.mkfifo(tmp_path / name)
        for more in ((), ("--resume",)):
            status, _, err = run(capsys, "classify", photos / "01.png", "-o", tmp_path / "r.csv", *more)
            assert (status, err.count("\n")) == ((0, 0) if name == "r.csv.run" else (2, 1))
        for path in tmp_path.glob("r.csv*"):
            path.unlink()


def test_an_output_that_is_removed_during_the_run_is_not_reported_as_written(photos, tmp_path, capsys, monkeypatch):
    append = journal.Journal.append
    for name in ("rows.csv", "rows.jsonl", "rows.parquet", "v.npy", "v.parquet"):
        files = tables.files(tmp_path / name)

        def remove(self: Any, *arguments: Any, files: list[Path] = files) -> None:
            append(self, *arguments)
            for file in files:
                file.unlink(missing_ok=True)

        task = "classify" if name[0] == "r" else "embed"
        for when in ("append", "sync"):
            with monkeypatch.context() as patch:
                patch.setattr(journal.Journal, when, remove if when == "append" else removed(files))
                status, out, err = run(capsys, task, photos, "-o", tmp_path / name)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert " was removed or replaced while it was written, so its rows are lost" in err
            assert run(capsys, task, photos, "-o", tmp_path / name)[0] == 1
            for file in files:
                file.unlink(missing_ok=True)


def removed(files: list[Path]) -> Any:
    sync = journal.Journal.sync

    def remove(self: Any) -> None:
        self.flush()
        for file in files:
            file.unlink(missing_ok=True)
        sync(self)

    return remove


def test_a_folder_that_vanishes_during_the_run_is_an_error(photos, tmp_path, capsys, monkeypatch):
    sync = journal.Journal.sync

    def vanish(self: Any) -> None:
        shutil.rmtree(tmp_path / "out")
        sync(self)

    monkeypatch.setattr(journal.Journal, "sync", vanish)
    for task, name in (("classify", "r.csv"), ("classify", "r.parquet"), ("embed", "v.npy")):
        (tmp_path / "out").mkdir()
        status, out, err = run(capsys, task, photos, "-o", tmp_path / "out" / name)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"{tmp_path}/out/{name}" in err


def test_strict_stops_at_the_first_broken_image_with_the_rows_before_it(photos, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    status, out, err = run(capsys, "classify", photos, "-o", output, "--strict")
    assert (status, out) == (2, "")
    assert err == f"vit: {photos}/05b.png is not an image file that Pillow can read.\n"
    assert [json.loads(line)["path"] for line in output.read_text().splitlines()] == [
        str(photos / name) for name in NAMES[:BROKEN]
    ]
    shutil.copy(SCANS[0], photos / "05b.png")
    assert run(capsys, "classify", photos, "-o", output, "--strict", "--resume")[0] == 0
    assert len(output.read_text().splitlines()) == 13


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_list_that_does_not_end_is_not_waited_for_after_a_signal(number, photos, tmp_path):
    output = tmp_path / "rows.jsonl"
    with process("classify", "-", "-o", output, "-b", 1, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                 stderr=subprocess.PIPE, text=True) as running:  # fmt: skip
        for _ in range(3):
            for name in NAMES[:6]:
                print(photos / name, file=running.stdin)
        running.stdin.flush()
        while running.poll() is None and not (output.exists() and output.stat().st_size):
            time.sleep(0.01)
            print(photos / f"gone-{time.monotonic_ns()}.png", file=running.stdin, flush=True)
        running.send_signal(number)
        assert running.wait(60) == 128 + number
        err = running.stderr.read()
    assert err.startswith("vit: stopped: ")
    assert err.endswith(f" images are in {output}; --resume goes on.\n")
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_image_that_does_not_come_is_not_waited_for_after_a_signal(number, photos, tmp_path):
    """As from a network that is gone: here a reader that waits for ever."""
    source = """
import sys, threading
from pathlib import Path
from vit import pipeline
from vit.cli import main
def wait(image):
    if str(image).endswith("07.png"):
        Path(sys.argv.pop()).touch()
        threading.Event().wait()
pipeline._check_regular = wait
main(sys.argv[1:-1])
"""
    output, waits = tmp_path / "rows.csv", tmp_path / "waits"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = [
        sys.executable,
        "-c",
        source,
        "classify",
        str(photos),
        "-o",
        str(output),
        "-b",
        "1",
        "-f",
        "pt",
        str(waits),
    ]
    with subprocess.Popen(given, env=environment, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not waits.exists():
            time.sleep(0.01)
        running.send_signal(number)
        assert running.wait(60) == 128 + number
        assert running.stderr.read() == f"vit: stopped: 5 of 13 images are in {output}; --resume goes on.\n"
    assert len(output.read_text().splitlines()) == 6


def test_a_device_is_no_image_and_no_list_of_images(photos, tmp_path, capsys, monkeypatch):
    os.mkfifo(photos / "pipe.png")
    status, out, _ = run(capsys, "classify", photos, "/dev/zero", "--json", "-k", 1)
    errors = {os.path.basename(row["path"]): row["error"] for row in json.loads(out)["results"]}
    assert (status, errors["pipe.png"], errors["zero"]) == (1, "is a pipe, no file.", "is a device, no file.")
    with open("/dev/zero") as zeros:
        monkeypatch.setattr(sys, "stdin", zeros)
        assert "The list on stdin has 65,536 bytes without the end of a path" in refused(capsys, "-")


def test_control_characters_of_names_and_labels_do_not_reach_the_terminal(photos, tmp_path, capfd):
    shutil.copytree(DIGITS, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["id2label"] = {str(i): f"\x1b]0;label\x07{i}" for i in range(10)}
    config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    odd = tmp_path / "\x1b[31mred\udcff\u202e.png"
    shutil.copy(SCANS[0], odd)
    (tmp_path / "\x1b[2Jbroken.png").write_bytes(b"none")
    for arguments in ((odd, tmp_path / "\x1b[2Jbroken.png", "-m", tmp_path / "model"), (f"{odd}.gone",),
                      (odd, "-o", tmp_path / "\x1b[31m.csv"), (odd, "-o", tmp_path / "\x1b[31m\udcff.csv", "--resume"),
                      (odd, "-o", tmp_path / "\x1b" / "r.csv"), (odd, "-m", "\x1b[31m/model")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["classify", *map(str, arguments), "-f", "pt"])
        out, err = capfd.readouterr()
        assert out + err
        assert not {"\x1b", "\x07", "\u202e", "\udcff"} & set(out + err), arguments


def test_cells_that_a_spreadsheet_takes_for_formulas_are_as_they_are_or_marked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "+1.png", "-1.png", "@a.png", "\ta.png", "\ra.png", "a=.png"]
    for name in names:
        shutil.copy(SCANS[0], name)
    for more in ((), ("--spreadsheet",)):
        given = ("*.png", "-o", "rows.csv", "-k", 1, *more)
        assert run(capsys, "classify", *given, "--force")[0] == 0
        with open("rows.csv", newline="") as file:
            found = [row["path"] for row in csv.DictReader(file)]
        marked = [name if not more or name == "a=.png" else f"'{name}" for name in names]
        assert sorted(found) == sorted(marked)
        assert "7 of them from before" in run(capsys, "classify", *given, "--resume")[1]
    assert (
        "was begun with spreadsheet True" in run(capsys, "classify", "*.png", "-o", "rows.csv", "-k", 1, "--resume")[2]
    )


# === Bad input ===


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on stderr, without "vit: ", of a command that ends with 2 and prints nothing else."""
    status, out, err = run(capsys, "classify", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("vit: ")
    return err[5:-1]


def test_no_images_is_an_error(photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert refused(capsys, tmp_path / "empty").startswith(f"There are no images in {tmp_path}/empty; expected files")
    assert refused(capsys, tmp_path / "gone").startswith(f"{tmp_path}/gone does not exist; expected a file")
    assert refused(capsys, tmp_path / "*.bmp") == f"{tmp_path}/*.bmp matches no file."
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    assert refused(capsys, "-") == "The list on stdin is empty; expected the path of an image in each line."
    assert "Missing argument 'PATH'" in refused(capsys)


def test_a_folder_that_may_not_be_read_is_an_error(photos, capsys, monkeypatch):
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(images.os, "scandir", locked)
    assert refused(capsys, photos) == f"{photos}/more cannot be read: Permission denied."


def test_an_unknown_model_is_an_error(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(capsys, photos, "-m", "nobody/nothing").startswith("nobody/nothing is not a folder here, not in the")
    assert refused(capsys, photos, "-m", tmp_path / "gone").startswith(f"{tmp_path}/gone does not exist; expected a ")
    assert refused(capsys, photos, "-m", photos).startswith(f"{photos} has no ")
    assert "is 'theano'; expected one of pt, tf, flax" in refused(capsys, photos, "-f", "theano")


def test_a_framework_that_is_not_installed_is_an_error_with_the_line_that_installs_it(photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    message = refused(capsys, photos, "-f", "tf")
    assert message == f"vit classify needs TensorFlow. Install it with: {install_line('tf')}"


def test_parquet_without_pyarrow_is_an_error_with_the_line_that_installs_it(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused(capsys, photos, "-o", tmp_path / "rows.parquet")
    assert message == f"A .parquet file needs pyarrow. Install it with: {install_line('table')}"


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_a_device_that_is_not_there_is_an_error(framework, photos, capsys):
    assert " sees cpu" in refused(capsys, photos, "-f", framework, "--device", "gpu:7").lower()


def test_an_output_that_cannot_be_is_an_error_before_anything_is_loaded(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "open_model", None)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "rows.csv").write_text("mine")
    assert "expected a file name that ends in .csv, .jsonl, .parquet." in refused(capsys, photos, "-o", "rows.txt")
    assert "folder.csv is a folder" in refused(capsys, photos, "-o", tmp_path / "folder.csv")
    assert "is not a folder; make it first" in refused(capsys, photos, "-o", tmp_path / "gone" / "rows.csv")
    assert refused(capsys, photos, "-o", tmp_path / "rows.csv") == (
        f"{tmp_path}/rows.csv exists; --resume continues an interrupted run, --force begins again."
    )
    (tmp_path / "rows.parquet.part.jsonl").write_text("")
    assert "rows.parquet.part.jsonl exists" in refused(capsys, photos, "-o", tmp_path / "rows.parquet")
    assert refused(capsys, photos, "--resume") == "--resume continues an --output."
    given = (photos, "-o", tmp_path / "rows.csv", "--resume", "--force")
    assert refused(capsys, *given) == "--resume continues an --output and --force begins it again; give one."
    assert (tmp_path / "rows.csv").read_text() == "mine"


@pytest.mark.parametrize("option", ["--top-k", "--batch-size", "--workers"])
def test_a_number_below_one_is_an_error(option, photos, capsys):
    assert option in refused(capsys, photos, option, "0")


def test_debug_shows_where_an_error_was_raised(tmp_path, capsys):
    status, out, err = run(capsys, "classify", tmp_path / "gone", "--debug")
    assert (status, out) == (2, "")
    assert err.startswith("Traceback")
    assert "InputError" in err.splitlines()[-1]
