"""README and docs: every block runs as a reader would run it, every link leads somewhere, every page is in the nav.

The blocks of a page run in order, of the wheel that is built from this checkout, in one process and one temporary
folder, which holds what `_provide` puts there: the names that the pages use, as small random checkpoints and images.
A Python block that begins with an import starts afresh, any other goes on. Of blocks without a language the lines of
`vit` run, a server beside the lines of `curl` that follow; those of pip and make are what the Makefile runs. A block
that cannot run has a comment `<!-- not run: the reason -->` in the line above it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

import conversion
from vit import cli
from vit.families.deit import DeiTConfig
from vit.families.mae import ViTMAEConfig
from vit.families.vit import ViTConfig

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
SHELL = ("", "bash", "console", "sh", "shell")
DATA = ("json", "text", "toml", "yaml")  # what something prints or reads
NOT_RUN = ("make ", "pip ", "git ", "source ")
SHORTER = {
    "bench": ["--framework", "pt", "--batch-size", "1", "--seconds", "0.05"],  # by default 18 lines of 2 seconds
    "train": ["--steps", "2", "--batch-size", "16"],
}
"""Command -> what it is told besides: of a training the first steps are run."""
FEWER = {"epochs=6": "steps=2"}
"""What the code of a page says -> what is run of it."""

RUNNER = """
import atexit, json, os, signal, socket, subprocess, sys, time, urllib.request
import vit
from vit.cli import main
assert vit.__file__.startswith(os.environ["PYTHONPATH"]), vit.__file__  # the wheel, not the checkout
server = None
for kind, line, code in json.load(sys.stdin):
    where = f"{sys.argv[1]}, line {line}"
    if kind == "python":
        if code.lstrip().startswith(("import ", "from ")):
            namespace = {"__name__": "page"}
        exec(compile("\\n" * (line - 1) + code, sys.argv[1], "exec"), namespace)
    elif kind == "vit" and code[0] == "serve":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-m", "vit", *code, "--port", str(port)])
        atexit.register(server.kill)  # a page that fails leaves no server
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").read()
                break
            except OSError:
                if server.poll() is not None:
                    sys.exit(f"{where}: the server ended")
                time.sleep(0.2)
    elif kind == "vit":
        try:
            main(code)
        except SystemExit as end:
            if end.code:
                sys.exit(f"{where}: vit {' '.join(code)}: exit status {end.code}")
    else:
        if server:
            code = code.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        if subprocess.run(["bash", "-o", "pipefail", "-c", code]).returncode:
            sys.exit(f"{where}: {code}")
if server:
    server.send_signal(signal.SIGTERM)
    if server.wait(60):
        sys.exit(f"the server ended with {server.returncode}")
"""


def _steps(page: Path) -> list[tuple[str, int, Any]]:
    """(kind, line, what to run) of a page: "python" with its code, "vit" with its arguments, "bash" with its line."""
    text, steps = page.read_text(), []
    for said, run in FEWER.items():
        text = text.replace(said, run)
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("text")) + 1
        if block["reason"] or block["language"] in DATA:
            continue
        if block["language"] == "python":
            steps.append(("python", line, block["text"]))
            continue
        assert block["language"] in SHELL, f"{page.name}, line {line}: how is {block['language']} run?"
        for command in block["text"].replace("\\\n", " ").splitlines():
            command = command.removeprefix("$ ").strip()
            words = shlex.split(command, comments=True)
            if not words or command.startswith(NOT_RUN) or "[OPTIONS]" in words:
                continue
            if {"|", ">", "<", "&&"} & set(words) or words[0] == "curl":
                steps.append(("bash", line, command))
            else:
                assert words[0] == "vit", f"{page.name}, line {line}: how is {command!r} run?"
                steps.append(("vit", line, words[1:] + SHORTER.get(words[1], [])))
    return steps


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs, and nothing else of this project."""
    built, installed = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(installed)
    return installed


@pytest.fixture(scope="module")
def provided(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Callable[..., Path]) -> Path:
    """A folder with the files that the pages name."""
    return _provide(tmp_path_factory.mktemp("pages"), random_checkpoint)


def _provide(folder: Path, random_checkpoint: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    photos = [f"photos/{label}/{number}.jpg" for label in ("daisy", "tulip") for number in range(1, 5)]
    for name in ("cat.jpg", "dog.png", "photo.jpg", "new-photos/1.png", *photos):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    config = ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128, image_size=32,
                       patch_size=8, encoder_stride=8, num_labels=1000, hidden_act="gelu_new",
                       layer_norm_eps=1e-6)  # fmt: skip
    model = random_checkpoint(folder / "google" / "vit-base-patch16-224", config, head="classifier")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (model / "preprocessor_config.json").write_text(json.dumps(processor))
    shutil.copytree(model, folder / "google" / "vit-base-patch16-224-in21k")
    masked = ViTMAEConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128,
                          decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=1,
                          decoder_intermediate_size=64, image_size=32, patch_size=8)  # fmt: skip
    distilled = DeiTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128,
                           image_size=32, patch_size=8, encoder_stride=8)  # fmt: skip
    others = {"vit-mae-base": (masked, "decoder"), "deit-base-distilled-patch16-224": (distilled, "teacher")}
    for name, (each, head) in others.items():
        other = random_checkpoint(folder / "facebook" / name, each, head=head)
        (other / "preprocessor_config.json").write_text(json.dumps(processor))
    conversion.convert(model, folder / "ViT-B_16.npz", target_format="google")
    conversion.convert(model, folder / "timm-vit.safetensors", target_format="timm")
    conversion.convert(model, folder / "old-tf-folder", target_format="transformers-tf")
    conversion.convert(model, folder / "old-flax-folder", target_format="transformers-flax")
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_a_page_runs(name: str, provided: Path, wheel: Path, tmp_path: Path) -> None:
    steps = _steps(PAGES[name])
    if not steps:  # nothing but prose and what cannot run: then nothing else may look like a command
        assert not re.search(r"^(\$ )?vit |^(import|from) ", BLOCK.sub("", PAGES[name].read_text()), re.MULTILINE)
        return
    shutil.copytree(provided, tmp_path / "page")
    (tmp_path / "runner.py").write_text(RUNNER)
    environment = os.environ | {
        "PYTHONPATH": str(wheel),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",  # a name that is not provided fails at once
        "MPLBACKEND": "agg",
    }
    run = subprocess.run(
        [sys.executable, tmp_path / "runner.py", name],
        input=json.dumps(steps), cwd=tmp_path / "page", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    if name == "README.md":  # the three frameworks classify the image
        assert [line for line in run.stdout.splitlines() if line == "3"] == ["3", "3", "3"], run.stdout


def test_readme_classifies_in_each_framework_in_five_lines() -> None:
    blocks = [code for kind, _, code in _steps(PAGES["README.md"]) if kind == "python"]
    assert [sum(bool(line) for line in block.splitlines()) for block in blocks] == [5, 5, 5]
    assert [re.search(r'return_tensors="(\w+)"', block)[1] for block in blocks] == ["pt", "tf", "jax"]


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_lead_to_files_and_headings(name: str) -> None:
    text = re.sub(BLOCK, "", PAGES[name].read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "code", text)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = PAGES[name].parent / file if file else PAGES[name]
        assert target.is_file(), f"{name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            known |= set(re.findall(r"^::: (\S+)$", target.read_text(), re.MULTILINE))
            assert anchor in known, f"{name}: {link}"


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"commands.md"}))
def test_options_that_a_page_gives_a_command_are_its_own(name: str) -> None:
    commands = typer.main.get_command(cli.app).commands
    text = PAGES[name].read_text().replace("\\\n", " ")
    for command, given in re.findall(rf"\b(?:tri)?vit ({'|'.join(commands)})\b([^`|#;\n]*)", text):
        known = {option for each in commands[command].params for option in (*each.opts, *each.secondary_opts)} | {
            "--help"
        }
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", given)) <= known, f"vit {command}{given}"


def test_nav_has_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    parts = [
        entry
        for part in nav
        for entries in part.values()
        for entry in ([part] if isinstance(entries, str) else entries)
    ]
    pages = [page for entry in parts for page in entry.values()]
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_api_page_names_every_public_name() -> None:
    import vit

    named = re.findall(r"^::: (\S+)$", PAGES["api.md"].read_text(), re.MULTILINE)
    public = {f"vit.{name}" for name in dir(vit) if not name.startswith("_")}
    rooms = {"vit.pt", "vit.tf", "vit.flax"}  # whose names are among them
    public -= rooms | {"vit.convert", "vit.inspect", "vit.verify"}  # of `conversion`, which follow
    public |= {f"conversion.{name}" for name in conversion.__all__ if callable(getattr(conversion, name))}
    assert public - set(named) == set()


def test_readme_is_short_and_has_a_picture() -> None:
    text = PAGES["README.md"].read_text()
    assert len(text.splitlines()) <= 150
    assert re.search(r"^!\[[^\]]+\]\(docs/\S+\.png\)$", text, re.MULTILINE)


COMMANDS = [sys.executable, "-m", "typer", "vit.cli", "utils", "docs", "--name", "vit", "--title", "Commands"]
"""What prints docs/commands.md."""


def test_page_of_commands_is_what_their_help_says() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(COMMANDS, env=environment, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == printed, "python -m typer vit.cli utils docs --name vit --title Commands > docs/commands.md"


def test_checkpoints_that_are_listed_have_the_shapes_of_their_configurations() -> None:
    import vit

    rows = re.findall(r"^\| `(\S+)` \| `(\w+)\.(variant\(.+\))` \| `(\w+)` \| .+ \| ([\d,.]+) M \|$",
                      PAGES["checkpoints.md"].read_text(), re.MULTILINE)  # fmt: skip
    lines = [line for line in PAGES["checkpoints.md"].read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(lines) > 50
    assert len({row[0] for row in rows}) == len(rows)
    heads = {"Model": None, "ForImageClassification": "classifier", "ForImageClassificationWithTeacher": "teacher",
             "ForMaskedImageModeling": "lm_head", "ForPreTraining": "decoder"}  # fmt: skip
    for name, family, call, kind, millions in rows:
        config = eval(f"vit.{family}.{call}", {"vit": vit})
        head = heads[kind.removeprefix(family.removesuffix("Config"))]
        pooler = {"add_pooling_layer": True} if kind == "ViTModel" and name.startswith("google/") else {}
        count = sum(math.prod(shape) for shape in config.parameter_shapes(head, **pooler).values())
        assert f"{count / 1e6:,.1f}" == millions, name


def test_from_a_clone_to_an_answer_of_a_server_are_twelve_commands() -> None:
    page = PAGES["tutorial.md"].read_text()
    commands = ["git clone"]
    for block in BLOCK.finditer(page[: page.index("curl") + page[page.index("curl") :].index("```") + 3]):
        lines = [line for line in block["text"].splitlines() if line.strip()]
        commands += ["python"] if block["language"] == "python" else lines
    assert commands[-1].startswith("curl")
    assert len(commands) <= 12, commands
