"""Loading by name, from a hub of our own on this machine.

Each test asks from a fresh process, because huggingface_hub reads its environment when it is imported. What that
process sees is what a user sees: the environment variables, the cache and the error.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import conversion
import vit
from vit.errors import shown

TOKEN = "hf_right"
ADDRESS = "google/vit-tiny"


class Hub(ThreadingHTTPServer):
    """As much of the hub's protocol as huggingface_hub needs to read models; `requests` records what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}  # name -> revision -> file -> content
        self.access: dict[str, str] = {}  # name -> "private" or "gated"
        self.trouble: int | None = None  # an HTTP status that answers everything
        self.slow = 0.0  # seconds before each byte of an answer about a model
        self.endless: dict[str, float] = {}  # method and kind of an answer without an end -> seconds before each byte
        self.info: Any = None  # what it says about every model, instead of the truth
        self.listed: list[str] = []  # more files that it lists
        self.headers: dict[str, str] = {}  # of the answers about files, instead of the true ones
        self.location: str | None = None  # where it sends everybody
        self.tokens: list[str | None] = []  # that were sent
        self.requests: list[str] = []
        self.said: list[str] = []  # the messages of commits
        self.sent = 0  # bytes of endless answers
        self.ended = threading.Event()  # nobody waits any more
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, revision: str = "main", without: str | None = None) -> None:
        contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != without}
        self.models.setdefault(name, {})[revision] = contents

    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, sorted."""
        return sorted(path.split("/")[-1] for method, path in (r.split(" ") for r in self.requests) if method == "GET"
                      and "/resolve/" in path)  # fmt: skip


def commit(name: str, revision: str) -> str:
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.respond(send_body=False)

    def do_GET(self) -> None:
        self.respond(send_body=True)

    def do_POST(self) -> None:
        """Uploads: a model is made, each file is said to be small, and a commit is taken in one body."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"POST {self.path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.trouble:
            return self.refuse(self.server.trouble, message="no such luck\x1b[31m")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, message="Invalid username or password.")
        if path == "/api/repos/create":
            made = json.loads(body)
            name = "/".join(filter(None, [made.get("organization") or "me", made["name"]]))
            self.server.models.setdefault(name, {}).setdefault("main", {})
            answer: Any = {"url": f"{self.server.url}/{name}", "id": name}
        elif path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        else:
            name, _, revision = path.removeprefix("/api/models/").partition("/commit/")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.models[name].setdefault(revision, {})[line["value"]["path"]] = content
                elif line["key"] == "deletedFile":
                    del self.server.models[name][revision][line["value"]["path"]]
                else:
                    self.server.said.append(line["value"]["summary"])
            oid = commit(name, revision)
            address = f"{self.server.url}/{name}"
            answer = {"success": True, "commitOid": oid, "commitUrl": f"{address}/commit/{oid}"}
            answer["pullRequestUrl"] = f"{address}/discussions/1"
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def go_on(self, pause: float, begin: bytes) -> None:
        """Answer without an end, until who asks has gone: as fast as it goes, a byte now and then, or never."""
        with contextlib.suppress(OSError):
            if pause < float("inf"):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
            while True:
                if pause < float("inf"):
                    self.wfile.write(begin if not pause else b" ")
                    self.server.sent += len(begin) if not pause else 1
                    begin = b" " * 2**16
                if self.server.ended.wait(min(pause, 60.0)):
                    return

    def respond(self, send_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.location:
            self.send_response(307)
            self.send_header("Location", self.server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        if self.server.trouble:
            return self.refuse(self.server.trouble)
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        if not match:
            return self.refuse(404)
        name, what, revision, file = match.groups()
        access = self.server.access.get(name)
        if name not in self.server.models or (access == "private" and not authorization):
            return self.refuse(404 if authorization else 401, "RepoNotFound")
        revisions = self.server.models[name]
        known = {**{r: r for r in revisions}, **{commit(name, r): r for r in revisions}}
        if revision not in known:
            return self.refuse(404, "RevisionNotFound")
        files, sha = revisions[known[revision]], commit(name, known[revision])
        if what == "resolve" and access == "gated" and not authorization:
            return self.refuse(401, "GatedRepo")
        if what == "resolve" and file not in files:
            return self.refuse(404, "EntryNotFound")
        if what == "resolve":
            body = files[file]
        elif what == "tree":
            body = json.dumps([
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]).encode()  # fmt: skip
        else:
            siblings = [{"rfilename": file} for file in [*files, *self.server.listed]]
            told = {"id": name, "modelId": name, "sha": sha, "private": False, "siblings": siblings}
            if isinstance(self.server.info, dict):
                told |= self.server.info
            elif self.server.info is not None:
                told = json.loads(self.server.info)
            body = json.dumps(told).encode()
        if f"{self.command} {what}" in self.server.endless:
            return self.go_on(self.server.endless[f"{self.command} {what}"], b"{" + body)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if what == "resolve" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        for header, value in (headers | (self.server.headers if what == "resolve" else {})).items():
            self.send_header(header, value)
        self.end_headers()
        step = 1 if self.server.slow and what == "revision" else max(1, len(body))
        for start in range(0, len(body) if send_body else 0, step):
            time.sleep(self.server.slow if what == "revision" else 0)
            self.wfile.write(body[start : start + step])
        return None


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


PRELUDE = """
import json, os, sys
from pathlib import Path
import vit
from vit import CheckpointError, ViTConfig
from vit.hub import resolve

def load(name, **options):
    "The files that a checkpoint of this name comes with."
    return sorted(path.name for path in resolve(name, **options).iterdir())

for expression in sys.argv[1:]:
    try:
        answer = {"value": eval(expression)}
    except CheckpointError as error:
        answer = {"error": str(error), "missing": isinstance(error, OSError)}
    print(json.dumps(answer))
"""


def surroundings(hub: Hub, tmp_path: Path, **environment: str) -> dict[str, str]:
    """The environment of a process that has `hub` as its hub."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return clean | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **environment,
    }


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Callable[..., Any]:
    """Evaluate expressions in a new process that has `hub` as its hub; a CheckpointError comes back as its text.

    The values come back as a list, or one by itself.
    """

    def evaluate(*expressions: str, said: str = "", **environment: str) -> Any:
        clean = surroundings(hub, tmp_path, **environment)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        command = [sys.executable, "-W", "error::UserWarning", "-c", PRELUDE, *expressions]
        done = subprocess.run(
            command, env=clean, cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(said, done.stderr), "a user would see this noise"
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        values = [answer["value"] if "value" in answer else CheckpointRefused(answer) for answer in answers]
        return values if len(values) > 1 else values[0]

    return evaluate


class CheckpointRefused(str):
    """The text of the CheckpointError that was raised; `missing` tells whether it is an OSError too."""

    missing: bool

    def __new__(cls, answer: dict[str, Any]) -> CheckpointRefused:
        refused = super().__new__(cls, answer["error"])
        refused.missing = answer["missing"]
        return refused


WHOLE = ["config.json", "model.safetensors"]


# === Downloading ===


def test_a_config_is_read_by_name_and_no_weights_are_downloaded(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    assert ask(f"ViTConfig.from_pretrained('{ADDRESS}', num_labels=3).to_dict()")["hidden_size"] == 48
    assert hub.downloads() == ["config.json"]


def test_config_and_weights_are_downloaded_and_nothing_else(hub, ask, reference, tmp_path):
    folder = shutil.copytree(reference / "hf_torch", tmp_path / "published")
    for other in ("README.md", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "preprocessor_config.json"):
        (folder / other).write_bytes(b"{}")
    hub.add(ADDRESS, folder)
    expected = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert ask(f"load('{ADDRESS}')") == expected
    assert hub.downloads() == expected


def test_every_model_class_loads_by_name_with_the_options_of_the_hub(hub, ask, reference, tmp_path):
    hub.add(ADDRESS, reference / "hf_torch_sharded", "v2")
    options = {"cache_dir": tmp_path / "mine", "revision": "v2"}
    ask(f"load('{ADDRESS}', cache_dir='{tmp_path / 'mine'}', revision='v2')")
    for prefix in ("", "TF", "Flax"):
        model_class = getattr(vit, f"{prefix}ViTForImageClassification")
        model = model_class.from_pretrained(ADDRESS, local_files_only=True, token=False, **options)
        assert (type(model), model.config.hidden_size) == (model_class, 48)


def test_shards_are_downloaded_with_their_index(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch_sharded")
    expected = sorted(path.name for path in (reference / "hf_torch_sharded").iterdir())
    tensors = f"len(__import__('vit.checkpoint').checkpoint.Checkpoint(resolve('{ADDRESS}')).tensors)"
    assert ask(f"load('{ADDRESS}')", tensors) == [expected, 56]
    revisions = [path.split("/resolve/")[1].split("/")[0] for path in hub.requests if path.startswith("GET ")
                 and "/resolve/" in path]  # fmt: skip
    assert revisions == ["main", *[commit(ADDRESS, "main")] * (len(expected) - 1)]  # of one commit


def test_a_pickle_is_downloaded_only_where_there_is_no_safetensors(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch_bin")
    assert ask(f"load('{ADDRESS}')") == ["config.json", "pytorch_model.bin"]


def test_the_cache_is_used_again_without_a_download(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    ask(f"load('{ADDRESS}')")
    hub.requests.clear()
    assert ask(f"load('{ADDRESS}')") == WHOLE
    assert hub.downloads() == []


OFFLINE = {
    "hub down": ("", {"HF_ENDPOINT": "http://127.0.0.1:9"}),  # nothing listens there
    "local_files_only": (", local_files_only=True", {}),
    "HF_HUB_OFFLINE": ("", {"HF_HUB_OFFLINE": "1"}),
}


@pytest.mark.parametrize(("option", "environment"), OFFLINE.values(), ids=OFFLINE)
def test_without_the_hub_the_cache_is_used_or_named_as_empty(hub, ask, reference, option, environment):
    hub.add(ADDRESS, reference / "hf_torch")
    refused = ask(f"load('{ADDRESS}'{option})", **environment)
    assert isinstance(refused, CheckpointRefused)
    assert refused == (
        f"{ADDRESS} is not a folder here, not in the cache, and the hub cannot be reached (or is switched off by "
        "local_files_only or HF_HUB_OFFLINE); connect, or give the path of a folder."
    )
    ask(f"load('{ADDRESS}')")
    hub.requests.clear()
    assert ask(f"load('{ADDRESS}'{option})", **environment) == WHOLE
    assert hub.requests == []


def test_a_cache_that_holds_the_config_alone_is_named_when_the_hub_is_away(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    ask(f"ViTConfig.from_pretrained('{ADDRESS}').hidden_size")
    refused = ask(f"load('{ADDRESS}', local_files_only=True)")
    assert isinstance(refused, CheckpointRefused)
    # From huggingface_hub 2 on, a cache in which a file is missing counts as none.
    assert re.search("has neither model.safetensors nor pytorch_model.bin|not in the cache", refused)
    assert "; connect, or" in refused or "connect and load it again" in refused


def test_cache_dir_is_where_downloads_go(hub, ask, reference, tmp_path):
    hub.add(ADDRESS, reference / "hf_torch")
    mine = tmp_path / "mine"
    there, again, elsewhere = ask(
        f"resolve('{ADDRESS}', cache_dir='{mine}').is_relative_to('{mine}')",
        f"resolve('{ADDRESS}', cache_dir=Path('{mine}'), local_files_only=True).is_relative_to('{mine}')",
        f"load('{ADDRESS}', local_files_only=True)",
    )
    assert there
    assert again
    assert isinstance(elsewhere, CheckpointRefused)


@pytest.mark.parametrize("revision", ["v2", commit(ADDRESS, "v2")], ids=["tag", "commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, ask, reference, revision):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.add(ADDRESS, reference / "hf_torch_sharded", "v2")
    named, main = ask(f"load('{ADDRESS}', revision='{revision}')", f"load('{ADDRESS}')")
    assert "model.safetensors.index.json" in named
    assert main == WHOLE


@pytest.mark.parametrize(("option", "environment"), [
    (f", token='{TOKEN}'", {}), ("", {"HF_TOKEN": TOKEN}),
], ids=["argument", "environment"])  # fmt: skip
@pytest.mark.parametrize("access", ["private", "gated"])
def test_a_token_opens_what_is_private_or_gated(hub, ask, reference, access, option, environment):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.access[ADDRESS] = access
    assert ask(f"load('{ADDRESS}'{option})", **environment) == WHOLE


OLD = {"tf": "tf_model.h5", "flax": "flax_model.msgpack"}


@pytest.mark.parametrize("source", OLD)
def test_a_model_of_transformers_older_classes_is_downloaded_and_read_alone(hub, ask, reference, tmp_path, source):
    file, other = OLD[source], "flax" if source == "tf" else "tf"
    conversion.convert(reference / "hf_torch", tmp_path / "old", target_format=f"transformers-{source}")
    hub.add(ADDRESS, tmp_path / "old")
    hub.add(ADDRESS, tmp_path / "old", "both")
    hub.models[ADDRESS]["both"]["model.safetensors"] = b"x"
    assert ask(f"load('{ADDRESS}')") == ["config.json", file]
    assert ask(f"load('{ADDRESS}', source='{source}', revision='both')") == ["config.json", file]
    assert "model.safetensors" not in hub.downloads()
    refused = ask(f"load('{ADDRESS}', source='{other}')")
    assert refused.missing
    assert f"has neither {OLD[other]} nor model.safetensors" in refused
    told = "lambda m: [type(m).__name__, m.name_or_path, m.config._commit_hash]"
    read = f"({told})(vit.AutoModelForImageClassification.from_pretrained('{ADDRESS}'))"
    found = ask(
        read,
        said=rf".*{file} is converted while it is read .*\n",
    )
    assert found == ["ViTForImageClassification", ADDRESS, commit(ADDRESS, "main")]


# === A folder wins ===


def test_a_folder_of_that_name_wins_over_the_hub(hub, ask, reference, tmp_path):
    hub.add(ADDRESS, reference / "hf_torch")
    shutil.copytree(reference / "hf_torch_bin", tmp_path / "elsewhere" / ADDRESS)
    files = ["config.json", "pytorch_model.bin"]
    assert ask(f"load('{ADDRESS}')", f"load(Path('{ADDRESS}'))") == [files, files]
    assert hub.requests == []


def test_a_folder_needs_no_hub_library(ask, reference):
    assert ask(f"load('{reference / 'hf_torch'}')", "'huggingface_hub' in sys.modules") == [WHOLE, False]


def test_the_home_folder_may_be_written_as_a_tilde(ask, reference):
    assert ask("load('~/hf_torch')", HOME=str(reference)) == WHOLE


# === Refused, each in one sentence with its remedy ===


ABSENT = ["./nothing", "/nothing", "nothing/at/all", "~/nothing", "../nothing", "a\\b", "~nobody-of-this-name/x",
          "models/" + "x" * 5000 + "/y"]  # fmt: skip
IMPOSSIBLE = ["google/vit base", "google/-vit", "google/vit--x", "vit..base", "x" * 200, "a\0b"]


def test_what_cannot_be_a_model_name_is_refused_without_asking_the_hub(hub, ask, reference):
    file = str(reference / "hf_torch" / "model.safetensors")
    expected = "expected a checkpoint folder or a model name on the hub."
    reasons = {
        **{name: f"{shown(name)} does not exist; {expected}" for name in ABSENT},
        file: f"{file} is a file; {expected}",
        "": f"An empty name does not exist; {expected}",
        **{name: f"{shown(name)} is neither a folder here nor a possible model name; model names look like "
                 "'google/vit-base-patch16-224'." for name in IMPOSSIBLE},
    }  # fmt: skip
    assert ask(*(f"load({name!r})" for name in reasons)) == list(reasons.values())
    assert hub.requests == []


MISSING = "is neither a folder here nor a model on the hub that you may read; if it is private, pass token=."
REFUSED = {
    "missing": ("", "", MISSING),
    "missing, with a token": (f", token='{TOKEN}'", "", MISSING),
    "private": ("", "private", MISSING),
    "gated": ("", "gated", "is gated on the hub: ask for access on its page, then pass token= or run 'hf auth login'."),
    "no such revision": (", revision='v9'", "public", "has no revision 'v9' on the hub."),
    "wrong token": (", token='hf_wrong'", "public", "could not be downloaded: "),
    "no token stored": (", token=True", "public", "could not be downloaded: Token is required"),
}


@pytest.mark.parametrize(("option", "access", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_hub_refuses_is_told_with_the_remedy(hub, ask, reference, option, access, reason):
    if access:
        hub.add(ADDRESS, reference / "hf_torch")
        hub.access[ADDRESS] = access
    for refused in ask(f"load('{ADDRESS}'{option})", f"ViTConfig.from_pretrained('{ADDRESS}'{option})"):
        assert isinstance(refused, CheckpointRefused)
        assert refused.startswith(f"{ADDRESS} {reason}")
        assert "\n" not in refused


@pytest.mark.parametrize("status", [403, 500])
def test_a_hub_in_trouble_is_named_as_out_of_reach(hub, ask, status):
    hub.trouble = status
    refused = ask(f"load('{ADDRESS}')")
    assert isinstance(refused, CheckpointRefused)
    assert refused.startswith(f"{ADDRESS} is not a folder here, not in the cache, and the hub cannot be reached")


def test_a_model_without_weights_is_refused(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch", without="model.safetensors")
    assert ask(f"load('{ADDRESS}')").startswith(f"{ADDRESS} has neither model.safetensors nor pytorch_model.bin")


def test_a_model_without_a_config_is_refused(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch", without="config.json")
    refused = ask(f"ViTConfig.from_pretrained('{ADDRESS}')")
    assert isinstance(refused, CheckpointRefused)
    assert "has no config.json" in refused


def test_an_adapter_is_told_from_a_model_and_its_image_processor_is_read(hub, ask, reference):
    hub.models["me/adapter"] = {"main": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"",
                                         "preprocessor_config.json": b"{}"}}  # fmt: skip
    *refused, size = ask(
        "load('me/adapter')", "ViTConfig.from_pretrained('me/adapter')",
        "vit.ViTImageProcessor.from_pretrained('me/adapter').size",
    )  # fmt: skip
    for message in refused:
        assert "is an adapter: load its base model, then merge it: peft.PeftModel" in message
    assert size == {"height": 224, "width": 224}


# === A hub that means harm, or is broken ===


def inside(folder: Path) -> set[str]:
    """Every file below a folder but those of the cache itself."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


BAD_ANSWERS = {
    "null": "null",
    "list": "[]",
    "number": "3",
    "no sha": {"sha": None},
    "sha that climbs": {"sha": "../../../../evil"},
    "sha that is short": {"sha": "abc"},
    "siblings null": {"siblings": None},
    "siblings of null": {"siblings": [None]},
    "siblings of numbers": {"siblings": [{"rfilename": 3}]},
    "siblings without names": {"siblings": [{}]},
    "siblings that are text": {"siblings": "model.safetensors"},
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_that_is_none_is_refused_by_name(hub, ask, reference, tmp_path, answer):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.info = answer
    refused = ask(f"load('{ADDRESS}')")
    assert isinstance(refused, CheckpointRefused)
    assert refused.startswith(f"{ADDRESS} ")
    assert re.search("could not be downloaded: the hub|lacks a file on the hub: it has no config.json", refused)
    assert hub.downloads() == []
    assert not any("evil" in name for name in inside(tmp_path))


def test_listed_names_that_climb_are_never_asked_for(hub, ask, reference, tmp_path):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.listed = ["../config.json", "model-/../../evil.safetensors", "/model-1.safetensors", "model-..\\x.safetensors",
                  "..\\config.json", "model-\n.safetensors", "sub/config.json"]  # fmt: skip
    assert ask(f"load('{ADDRESS}')") == WHOLE
    assert hub.downloads() == WHOLE


BAD_HEADERS = {
    "etag that climbs": {"ETag": '"../../../../evil"'},
    "linked etag that climbs": {"X-Linked-Etag": '"../../../../evil"'},
    "absolute etag": {"ETag": '"/tmp/evil"'},
    "commit that climbs": {"X-Repo-Commit": "../../../../evil"},
    "another commit": {"X-Repo-Commit": "0" * 40},
    "a config of a terabyte": {"X-Linked-Size": str(10**12)},
    "a size that is none": {"X-Linked-Size": "many"},
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_headers_are_checked_before_they_name_files(hub, ask, reference, tmp_path, headers):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.headers = headers
    refused = ask(f"load('{ADDRESS}')")
    assert isinstance(refused, CheckpointRefused)
    assert refused.startswith(f"{ADDRESS} could not be downloaded: the hub ")
    assert "; expected " in refused
    assert not any("evil" in name for name in inside(tmp_path))


def test_a_hub_that_redirects_in_circles_is_left(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.location = f"/api/models/{ADDRESS}/revision/main"
    refused = ask(f"load('{ADDRESS}')")
    assert isinstance(refused, CheckpointRefused)
    assert "the hub" in refused
    assert len(hub.requests) < 100


def test_a_token_is_sent_to_no_other_host(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    with Hub() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        other.add(ADDRESS, reference / "hf_torch")
        address = other.url.replace("127.0.0.1", "localhost")
        hub.headers = {"Link": f'<{address}/api/models/{ADDRESS}/tree/main>; rel="next"'}
        hub.info = {"siblings": []}  # whose files huggingface_hub would list page by page
        ask(f"load('{ADDRESS}', token='{TOKEN}')")
        assert other.requests == []
        hub.info, hub.headers, hub.location = None, {}, address + f"/api/models/{ADDRESS}/revision/main"
        ask(f"load('{ADDRESS}', token='{TOKEN}')", no_proxy="127.0.0.1,localhost", NO_PROXY="127.0.0.1,localhost")
        assert other.requests
        assert set(other.tokens) == {None}
        other.shutdown()
    assert f"Bearer {TOKEN}" in hub.tokens


def test_a_hub_that_never_ends_its_answer_is_left(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.slow = 0.2
    answers = ask("setattr(__import__('vit.hub').hub, 'HUB_SECONDS', 1.0)", f"load('{ADDRESS}')")
    assert isinstance(answers[1], CheckpointRefused)
    assert "the hub cannot be reached" in answers[1]


ENDLESS = {
    "about a model": ("GET revision", 33_554_432),
    "a file": ("GET resolve", None),  # all that it said before
}


@pytest.mark.parametrize("library", ["installed", "of transformers 5"])
@pytest.mark.parametrize(("answer", "most"), ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_an_end_is_cut_where_it_should_have_ended(hub, ask, reference, answer, most, library):
    newer = Path(sys.prefix) / "transformers5"
    if library != "installed" and not newer.is_dir():
        pytest.skip("transformers 5 is not installed beside")
    paths = os.pathsep.join([*([str(newer)] if library != "installed" else []), *sys.path])
    hub.add(ADDRESS, reference / "hf_torch")
    assert ask(f"load('{ADDRESS}', cache_dir='first')", PYTHONPATH=paths) == WHOLE
    hub.endless = {answer: 0.0}
    refused = ask(f"load('{ADDRESS}')", PYTHONPATH=paths)
    assert isinstance(refused, CheckpointRefused)
    most = most or len(hub.models[ADDRESS]["main"]["config.json"])
    assert f"the hub's answer goes on after {most:,} bytes, which are all it should have" in refused
    assert hub.sent < most + 2**25  # what was on its way, in pieces of 10 MB


def test_a_json_file_is_as_large_as_it_may_be_and_no_larger(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.models[ADDRESS]["main"]["config.json"] += b" " * 10_000  # more than the answer about the model has
    size = len(hub.models[ADDRESS]["main"]["config.json"])
    limits = [f"setattr(__import__('vit.hub').hub, 'JSON', {most})" for most in (size, size - 1)]
    loads = [f"load('{ADDRESS}', cache_dir='{name}')" for name in "ab"]
    _, whole, _, refused = ask(limits[0], loads[0], limits[1], loads[1])
    assert whole == WHOLE
    assert f"the hub gives a file '{size}' bytes; expected at most {size - 1:,}" in refused


WAITS = {
    "for the first answer": ("GET revision", float("inf"), ""),
    "for each byte of it": ("GET revision", 1.0, ""),
    "for what a file is": ("HEAD resolve", float("inf"), ""),
    "for a file": ("GET resolve", float("inf"), ""),
    "for each byte of a file": ("GET resolve", 1.0, ""),
    "for an image": ("GET resolve", float("inf"), "image"),
    "for each byte of an image": ("GET resolve", 1.0, "image"),
    "for images": ("GET resolve", 1.0, "images"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("answer", "pause", "images"), WAITS.values(), ids=WAITS)
def test_a_signal_ends_every_wait(hub, reference, tmp_path, answer, pause, images, number):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.endless = {answer: pause}
    url = f"{hub.url}/{ADDRESS}/resolve/main/config.json"
    code = f"import vit\nvit.ViTModel.from_pretrained('{ADDRESS}')"
    if images:
        count = 4 if images == "images" else 1
        code = f"import vit\nvit.ViTImageProcessor()(['{url}'] * {count}, threads={count})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=surroundings(hub, tmp_path), stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        while not any(each.startswith(answer.split()[0]) and answer.split()[1] in each for each in hub.requests):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        # Every time limit of the library itself is longer.
        assert process.wait(8) in (-number, 128 + number, 1)
    finally:
        process.kill()
        process.wait()


def test_a_redirect_of_another_protocol_does_not_take_the_token_along(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    with Hub() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for headers in (
            {"Link": f'<{other.url}/xet>; rel="xet-auth"'},
            {"X-Xet-Refresh-Route": f"{other.url}/xet"},
        ):
            hub.headers = {"X-Xet-Hash": "0" * 64, **headers}
            refused = ask(f"load('{ADDRESS}', token='{TOKEN}')")
            assert isinstance(refused, CheckpointRefused)
            assert "the hub sends to another host" in refused
        assert other.requests == []
        other.shutdown()


def test_what_is_not_there_is_an_os_error_too(hub, ask, reference, tmp_path):
    hub.add(ADDRESS, reference / "hf_torch", without="model.safetensors")
    for refused in ask(
        "load('./nothing')", "load('no/such')", f"load('{ADDRESS}')", f"load('{ADDRESS}', revision='v9')"
    ):
        assert refused.missing, refused
    with pytest.raises(FileNotFoundError):
        vit.hub.resolve("./nothing")
    for load in (vit.ViTConfig.from_pretrained, vit.ViTImageProcessor.from_pretrained):
        with pytest.raises(FileNotFoundError, match="has no "):
            load(tmp_path)


def test_a_subfolder_of_a_folder_and_of_a_model(hub, ask, reference, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(reference / "hf_torch", folder / "inner")
    hub.add(ADDRESS, reference / "hf_torch")
    hub.models[ADDRESS]["main"] |= {f"inner/{p.name}": p.read_bytes() for p in (folder / "inner").iterdir()}
    assert ask(f"load('{folder}', subfolder='inner')", f"load('{ADDRESS}', subfolder='inner')") == [WHOLE, WHOLE]
    assert ask(f"load('{folder}', subfolder='outer')").missing
    for bad in ("../inner", "/inner"):
        with pytest.raises(vit.ConfigError, match="subfolder"):
            vit.hub.resolve(folder, subfolder=bad)
    with pytest.raises(vit.ConfigError, match="HTTPS_PROXY"):
        vit.hub.resolve(folder, proxies={"http": "x"})


def test_the_source_asked_for_comes_before_the_canonical_weights_and_these_do(hub, ask, reference, tmp_path):
    hub.add(ADDRESS, reference / "hf_torch")
    assert ask(f"load('{ADDRESS}', source='tf')", f"load('{ADDRESS}', source='flax')") == [WHOLE, WHOLE]
    hub.models[ADDRESS]["main"]["tf_model.h5"] = b"x"
    again = ask(f"load('{ADDRESS}', source='tf', cache_dir='{tmp_path / 'other'}')")
    assert "tf_model.h5" in again
    assert "model.safetensors" not in again


def test_the_name_of_a_configuration_is_resolved_with_the_options_of_the_call(hub, ask, reference):
    hub.add(ADDRESS, reference / "hf_torch")
    hub.access[ADDRESS] = "private"
    model = f"vit.ViTForImageClassification.from_pretrained('{reference / 'hf_torch'}', config='{ADDRESS}'"
    labels, refused = ask(f"{model}, token='{TOKEN}').num_labels", f"{model}, revision='other')", said="(?s).*")
    assert labels == vit.ViTConfig.from_pretrained(reference / "hf_torch").num_labels
    assert MISSING[:-1] in refused


# === Uploading ===

PROCESSORS = ["ViTImageProcessor", "ViTImageProcessorFast", "DeiTImageProcessor", "BeitImageProcessor"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_processor_is_uploaded_in_one_commit_and_read_again(name, hub, ask, tmp_path):
    make = f"__import__('vit').{name}"
    hub.add("me/mine", tmp_path, "main")
    address, saved, again = ask(
        f"{make}(size=96).push_to_hub('mine', token='{TOKEN}', private=True, commit_message='first', tags='x')",
        f"{make}(size=64).save_pretrained('{tmp_path / 'theirs'}', push_to_hub=True, repo_id='they/theirs', "
        f"token='{TOKEN}', revision='side')",
        "__import__('vit').AutoImageProcessor.from_pretrained('me/mine').to_dict()['size']",
    )
    assert address == f"{hub.url}/me/mine/commit/{commit('me/mine', 'main')}"
    assert hub.models["me/mine"]["main"].keys() == {"preprocessor_config.json"}
    assert hub.models["they/theirs"]["side"]["preprocessor_config.json"] == Path(*saved).read_bytes()
    assert again == json.loads(hub.models["me/mine"]["main"]["preprocessor_config.json"])["size"]
    assert hub.said == ["first", "Upload preprocessor_config.json"]


@pytest.mark.parametrize("prefix", ["", "TF", "Flax"])
def test_a_model_is_uploaded_in_one_commit_with_a_card_and_loads_by_its_name(prefix, hub, ask, reference, tmp_path):
    model = f"vit.{prefix}ViTForImageClassification.from_pretrained('{reference / 'hf_torch'}')"
    options = "commit_message='first', private=True, create_pr=True, tags='vision one', "
    options += "safe_serialization=True, use_temp_dir=True"
    address, again, saved, kept = ask(
        f"{model}.push_to_hub('mine', token='{TOKEN}', {options})",
        f"vit.{prefix}ViTForImageClassification.from_pretrained('me/mine').name_or_path",
        f"{model}.save_pretrained('{tmp_path / 'mine'}', push_to_hub=True, token='{TOKEN}', max_shard_size='100KB')",
        f"vit.ViTConfig(num_labels=7).push_to_hub('me/mine', token='{TOKEN}', tags=['a'], use_temp_dir=True)",
        said="(?s).*",  # TensorFlow's and JAX's own
    )
    files = hub.models["me/mine"]["main"]
    assert address == f"{hub.url}/me/mine/commit/{commit('me/mine', 'main')}"
    assert "POST /api/models/me/mine/commit/main?create_pr=1" in hub.requests
    assert (again, saved) == ("me/mine", None)
    assert kept == address
    assert {"config.json", "model.safetensors.index.json", "README.md"} < files.keys()
    assert "model.safetensors" not in files  # the one of before, which would be taken for the weights
    assert json.loads(files["config.json"])["id2label"]["6"] == "LABEL_6"
    card = files["README.md"].decode()
    assert "pipeline_tag: image-classification" in card
    assert "- vision one\n" in card
    assert 'FlaxViTForImageClassification\n\nmodel = ViTForImageClassification.from_pretrained("me/mine")' in card
    assert [message.partition(",")[0] for message in hub.said] == ["first", "Upload config.json", "Upload config.json"]


def test_a_folder_is_uploaded_without_what_a_training_left_in_it_and_its_own_card_stays(hub, ask, reference, tmp_path):
    folder = shutil.copytree(reference / "hf_torch", tmp_path / "run")
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", ".hidden"):
        (folder / name).write_bytes(b"x")
    push = "__import__('vit.publishing').publishing.push_folder"
    hub.add("me/run", folder)
    hub.models["me/run"]["main"] = {"README.md": b"mine"}
    ask(f"{push}('{folder}', 'me/run', token='{TOKEN}')")
    assert hub.models["me/run"]["main"].keys() == {"README.md", "config.json", "model.safetensors"}
    assert hub.models["me/run"]["main"]["README.md"] == b"mine"
    assert ask(f"{push}('{tmp_path}', 'me/run', token='{TOKEN}')").missing


@pytest.mark.parametrize("trouble", [None, 403, 500])
def test_what_cannot_be_uploaded_is_told_in_a_line(trouble, hub, ask):
    hub.trouble = trouble
    token = "hf_wrong" if trouble is None else TOKEN
    refused = ask(f"__import__('vit').ViTImageProcessor().push_to_hub('me/mine', token='{token}')")
    assert isinstance(refused, CheckpointRefused)
    assert refused.startswith("me/mine could not be uploaded: ")
    assert refused.isprintable()
    assert hub.models == {}
