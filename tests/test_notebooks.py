"""The notebooks of examples/: each runs from top to bottom, offline, in an empty folder, and does what it is about.

A notebook's code runs in a process of its own, cell by cell, without a kernel: that saves its start, and an error still
names its cell.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.ipynb"))}
RIGHT = r"^(6[7-9]|[78]\d|9[0-6]) of 96 are right$"  # by chance it were 32
PRINTED = {  # what shows that it did what it is about
    "attention_maps": r"^heads, rows, columns: \(6, 32, 32\)$",  # a DINOv2's, and not the digits'
    "inference": r"(?s)is a 3$.*(\n(PyTorch|TensorFlow|Flax) +same labels: True +[^\n]+ [\d.]+e(\+00|-0[6-9])){3}",
    "finetune_trainer": RIGHT,
    "finetune_lightning": RIGHT,
    "export_and_serve": r"(?s)same labels: 100%$.*^digit-1-0021.png: 1, .*^ready: 200$.*^422 ",
    "finetune_keras": RIGHT,
    "finetune_optax": RIGHT,
    "mae_reconstruction": r"^squared error: 0\.(0\d|1[01])\d; of the average image: 0\.(1[5-9]|2)\d+$",
}
RUNNER = """
import json, sys
import matplotlib.pyplot as plt
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
        assert not [n for n in plt.get_fignums() if not plt.figure(n).axes], "an empty figure"
print("figures:", len(plt.get_fignums()))
"""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS[name], as_version=nbformat.NO_CONVERT)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_offline_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",  # tests run side by side
        "USE_TF": "0",  # of transformers, which otherwise imports TensorFlow beside PyTorch
    }
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, NOTEBOOKS[name]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert re.search(PRINTED[name], run.stdout, re.MULTILINE), run.stdout[-2000:]
    assert int(run.stdout.rpartition("figures: ")[2]) >= 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_and_holds_no_output(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_says_which_lines_to_change_for_ones_own_photographs(name: str) -> None:
    cells = read(name).cells
    (said,) = [i for i, cell in enumerate(cells) if cell.source.startswith("**Your own photographs:**")]
    lines = cells[said + 1].source.splitlines()
    assert any(re.match(r"[A-Z]+ = .+  # yours: ", line) for line in lines), "right below, marked"
    changed = {line.split()[0] for line in lines if "# yours: " in line}
    later = "\n".join(cell.source for cell in cells[said + 2 :])
    assert [name for name in changed if name not in later] == []


def test_every_notebook_is_in_the_table_of_the_folder() -> None:
    table = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \|", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)
    assert sorted(link for _, link in table) == sorted(path.name for path in NOTEBOOKS.values())
    assert NOTEBOOKS.keys() == PRINTED.keys()
