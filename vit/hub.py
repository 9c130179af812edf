"""A model name -> a local checkpoint folder: an existing folder first, else the hub, through huggingface_hub.

Names, hashes and addresses that a hub answers with are checked before they reach the file system.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .budgets import HUB_ANSWERS, HUB_FAILURES, HUB_SECONDS, JSON, within
from .errors import CheckpointError, ConfigError, MissingCheckpointError, quoted, shown
from .files import ADAPTER, ADAPTER_REMEDY

OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "trust_remote_code",
           "resume_download", "use_auth_token", "proxies")  # fmt: skip
"""Keyword arguments of every from_pretrained that go to the hub."""

CARD = "README.md"
_CONFIGS = ["config.json", "preprocessor_config.json", ADAPTER]
_WEIGHTS = {
    "pt": (
        ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"],
        ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"],
    ),
    "tf": (["tf_model.h5", "tf_model-*.h5", "tf_model.h5.index.json"],),
    "flax": (["flax_model.msgpack", "flax_model-*.msgpack", "flax_model.msgpack.index.json"],),
}
"""Whose classes wrote them -> patterns of names; the first kind that is there is taken."""


def split_options(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the hub's options among `kwargs`, the others)."""
    return {k: v for k, v in kwargs.items() if k in OPTIONS}, {k: v for k, v in kwargs.items() if k not in OPTIONS}


def resolve(
    name_or_folder: str | os.PathLike[str],
    *,
    config_only: bool = False,
    source: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    force_download: bool = False,
    trust_remote_code: bool | None = None,
    resume_download: bool | None = None,
    use_auth_token: str | bool | None = None,
    proxies: None = None,
) -> Path:
    """The folder of a checkpoint, downloaded into the hub's cache if it is not there yet.

    Args:
        name_or_folder: a local folder, or a model name such as "google/vit-base-patch16-224".
        config_only: leave the weights out.
        source: whose weights first: "pt", "tf" or "flax", then the canonical ones; None for any that are there.
        revision: branch, tag or commit on the hub.
        token: the hub's access token; the stored one when None.
        cache_dir: where downloads are kept; huggingface_hub's own cache when None.
        local_files_only: use the cache alone; so does the environment variable HF_HUB_OFFLINE=1.
        subfolder: of the folder or the model, in which the files lie.
        force_download: download even what the cache holds.
        trust_remote_code: changes nothing: no code of a checkpoint is ever run.
        resume_download: changes nothing: downloads are always resumed.
        use_auth_token: the old name of `token`.
        proxies: None; the environment variable HTTPS_PROXY names one.

    Raises:
        MissingCheckpointError: neither a folder nor a model that can be had.
        CheckpointError: it cannot be downloaded; the reason and the remedy are named.
        ConfigError: `proxies`, or a `subfolder` that leads elsewhere.
    """
    if proxies:
        raise ConfigError("proxies cannot be passed; set the environment variable HTTPS_PROXY instead.")
    inner = Path(subfolder or "")
    if inner.is_absolute() or ".." in inner.parts or "\\" in str(inner):
        raise ConfigError(f"subfolder is {quoted(subfolder)}; expected a path within the checkpoint.")
    name = os.fspath(name_or_folder)
    folder = os.path.join(os.path.expanduser(name), inner)
    if name and os.path.isdir(folder):
        return Path(folder)
    if subfolder and os.path.isdir(os.path.expanduser(name)):
        raise MissingCheckpointError(f"{shown(name)} has no folder {shown(inner)}.")
    is_file = os.path.exists(os.path.expanduser(name))
    if is_file or not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        found = "is a file" if is_file else "does not exist"
        raise MissingCheckpointError(
            f"{shown(name) or 'An empty name'} {found}; expected a checkpoint folder or a model name on the hub."
        )
    token = use_auth_token if token is None else token
    options = {"revision": revision, "token": token, "cache_dir": None if cache_dir is None else Path(cache_dir)}
    sources = dict.fromkeys((source, "pt")) if source else _WEIGHTS
    kinds = [kind for framework in sources for kind in _WEIGHTS[framework]]
    return _download(name, inner, [[]] if config_only else kinds, local_files_only, force_download, options) / inner


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None of another."""
    parts = folder.absolute().parts
    at = len(parts) - 1 - parts[::-1].index("snapshots") if "snapshots" in parts else len(parts)
    return parts[at + 1] if at + 1 < len(parts) and re.fullmatch("[0-9a-f]{40}", parts[at + 1]) else None


def _download(
    name: str, inner: Path, kinds: list[list[str]], local_files_only: bool, force: bool, options: Mapping[str, Any]
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    error_class: type[CheckpointError] = CheckpointError
    try:
        try:
            info = None if local_files_only else _ask(name, options)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError, LocalTokenNotFoundError):
            raise  # a gated one is among them
        except CheckpointError:
            raise
        except Exception as error:  # requests and httpx each have their own
            if _status(error) == 401 or type(error).__name__ in ("SSLError", "ProxyError"):
                raise
            info = None  # the hub is away; what is in the cache may do
        cached = Path() if info else Path(snapshot_download(name, local_files_only=True, **options))
        for weights in kinds:  # safetensors first; a pickle only where there is nothing else
            if info:
                wanted = sorted(file for file in info[1] if _is_wanted(file, inner, _CONFIGS + weights))
                if not wanted:
                    raise EntryNotFoundError("it has no config.json")
                snapshot = _fetch(name, wanted, info[0], force, options)
            else:
                snapshot = cached
            if not weights or any(any((snapshot / inner).glob(pattern)) for pattern in weights):
                return snapshot
        sought = " nor ".join(kind[0].partition("*")[0] for kind in kinds)
        reason = (
            f"has neither {sought}, on the hub or, where that is out of reach, in "
            f"the cache ({snapshot}); if only a part was downloaded, connect and load it again"
        )
        if (snapshot / inner / ADAPTER).exists():
            reason = f"is an adapter: {ADAPTER_REMEDY}"
        error_class = MissingCheckpointError
    except HFValidationError:
        error_class = MissingCheckpointError
        reason = (
            "is neither a folder here nor a possible model name; model names look like 'google/vit-base-patch16-224'"
        )
    except GatedRepoError:
        reason = "is gated on the hub: ask for access on its page, then pass token= or run 'hf auth login'"
    except RevisionNotFoundError:
        error_class = MissingCheckpointError
        reason = f"has no revision {quoted(options['revision'])} on the hub"
    except RepositoryNotFoundError:
        error_class = MissingCheckpointError
        reason = "is neither a folder here nor a model on the hub that you may read; if it is private, pass token="
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        error_class = MissingCheckpointError
        reason = (
            "is not a folder here, not in the cache, and the hub cannot be reached (or is switched off by "
            "local_files_only or HF_HUB_OFFLINE); connect, or give the path of a folder"
        )
    except EntryNotFoundError as error:
        error_class = MissingCheckpointError
        reason = f"lacks a file on the hub: {_first_line(error)}"
    except Exception as error:  # a broken connection, a full disk, a hub in trouble, an answer that is none
        reason = f"could not be downloaded: {_first_line(error)}"
    raise error_class(f"{shown(name)} {reason}.")


def _is_wanted(file: str, inner: Path, patterns: list[str]) -> bool:
    """Whether it is a file of that folder itself with such a name: the `*` of a pattern stands for no slash."""
    name = file.rpartition("/")[2]
    plain = "\\" not in name and name.isprintable() and file == (inner / name).as_posix()
    return plain and any(fnmatch.fnmatchcase(name, each) for each in patterns)


def _ask(name: str, options: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(the commit of a model, the names of its files), as the hub says; checked.

    Raises:
        CheckpointError: an answer that is none.
    """
    from huggingface_hub import HfApi

    def ask() -> Any:
        with _watched():
            return HfApi().model_info(
                name, revision=options["revision"] or "main", token=options["token"], timeout=HUB_SECONDS / 3
            )

    try:
        info = within(HUB_SECONDS, ask)
        sha, files = info.sha, [each.rfilename for each in info.siblings or ()]
    except (AttributeError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"the hub's answer is not one about a model ({_first_line(error)})") from None
    if not (isinstance(sha, str) and re.fullmatch("[0-9a-f]{40}", sha)):
        raise CheckpointError(f"the hub names the commit {quoted(sha)}; expected 40 hexadecimal digits")
    if not all(isinstance(file, str) for file in files):
        raise CheckpointError("the hub lists files whose names are no text")
    return sha, files


def _fetch(name: str, files: list[str], sha: str, force: bool, options: Mapping[str, Any]) -> Path:
    """Download files of a commit, one after the other in this thread, so that Ctrl-C ends it; returns its folder."""
    from huggingface_hub import hf_hub_download

    folders = set()
    for i, file in enumerate(files):
        # The first by the name of its revision, which the cache then remembers for when the hub is away.
        revision = {"revision": sha} if i or options["revision"] == sha else {}
        with _watched(sha, *([JSON] if file.endswith(".json") else [])):
            path = hf_hub_download(name, file, force_download=force, **{**options, **revision})
        folders.add(Path(path[: -len(file)]))
    (folder,) = folders
    return folder


@contextmanager
def _watched(sha: str | None = None, most: int = 2**50) -> Iterator[None]:
    """Look at each answer of the hub to this thread before huggingface_hub uses it, and count the bytes of its body.

    Its headers give the names of files in the cache, and where to go next.

    Args:
        sha: the commit that they are to be of.
        most: bytes that a body may have; of a file no more than the hub said when it was asked about it.
    """
    from huggingface_hub.constants import HUGGINGFACE_CO_URL_HOME
    from huggingface_hub.utils import get_session

    answers: list[int] = []
    told = [most]  # sizes

    def check(response: Any, *_: Any, **__: Any) -> None:
        answers.append(response.status_code)
        headers = response.headers
        if len(answers) > HUB_ANSWERS:
            raise CheckpointError(f"the hub redirects in circles: {len(answers)} answers to one question")
        if sum(status >= 500 for status in answers) >= HUB_FAILURES:
            raise CheckpointError(f"the hub answers {response.status_code} again and again")
        for tag in (headers.get("ETag"), headers.get("X-Linked-Etag")):
            if tag is not None and not re.fullmatch(r"(W/)?\"?[\w:+=-][\w.:+=-]*\"?", tag):
                raise CheckpointError(f"the hub gives the ETag {quoted(tag)}; expected letters and digits")
        commit = headers.get("X-Repo-Commit")
        if commit is not None and (commit != sha if sha else not re.fullmatch("[0-9a-f]{40}", commit)):
            raise CheckpointError(
                f"the hub answers with the commit {quoted(commit)}; expected {sha or 'a hash'}. Try again"
            )
        size = headers.get("X-Linked-Size") or headers.get("Content-Length") or "0"
        if not size.isdecimal() or int(size[:30]) > most:
            raise CheckpointError(f"the hub gives a file {quoted(size)} bytes; expected at most {most:,}")
        route = headers.get("X-Xet-Refresh-Route") or getattr(response, "links", {}).get("xet-auth", {}).get("url")
        hosts = ("", urlsplit(str(response.url)).netloc, urlsplit(HUGGINGFACE_CO_URL_HOME).netloc)
        if route is not None and urlsplit(route).netloc not in hosts:
            # Where the library would ask, with the token, for leave to download by another protocol.
            raise CheckpointError(f"the hub sends to another host, {quoted(route)}, with the token")
        if response.request.method == "HEAD" and response.status_code < 400 and size != "0":
            told[0] = min(most, int(size))
        # requests, and httpx: what reads all of the body reads it by this, too.
        reader = "iter_content" if hasattr(response, "iter_content") else "iter_bytes"
        is_file = response.status_code < 300 and sha is not None
        setattr(response, reader, _bounded(getattr(response, reader), told[0] if is_file else min(most, JSON)))

    session: Any = get_session()  # of requests, of this thread; or of httpx
    hooks = (session.hooks if hasattr(session, "hooks") else session.event_hooks)["response"]
    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


def _bounded(read: Callable[..., Iterator[bytes]], most: int) -> Callable[..., Iterator[bytes]]:
    """The parts of a body as `read` gives them, until they are too much."""

    def bounded(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        taken = 0
        for part in read(*args, **kwargs):
            taken += len(part)
            if taken > most:
                raise CheckpointError(f"the hub's answer goes on after {most:,} bytes, which are all it should have")
            yield part

    return bounded


# === Uploading ===


def is_published(name: str) -> bool:
    """Whether a file of that name belongs to a checkpoint, and not to the training that left it."""
    weights = [pattern for kinds in _WEIGHTS.values() for kind in kinds for pattern in kind]
    return any(fnmatch.fnmatchcase(name, each) for each in (*_CONFIGS, CARD, *weights))


def push(
    files: Mapping[str, bytes | os.PathLike[str]],
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    use_auth_token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    card: Callable[[str], str] | None = None,
    stale: str | None = None,
) -> str:
    """Upload files to a model on the hub, which is made if needed, in one commit.

    Args:
        files: name on the hub -> its bytes, or the path of a local file.
        repo_id: "user/model", or the model's name alone for the user of the token.
        commit_message: what the commit says.
        commit_description: what it says below.
        private: whether a new model is private.
        token: the hub's access token; the stored one when None.
        use_auth_token: the old name of `token`.
        revision: the branch to commit to.
        create_pr: make a pull request of it.
        card: from the whole name of a model to the README.md of one that has none.
        stale: a pattern of names; files on the hub that match it and are not among `files` go in the same commit.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: it cannot be uploaded; the reason is named.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi(token=use_auth_token if token is None else token)
    message = commit_message or f"Upload {', '.join(files)}"[:80]
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        there: list[str] = []
        if card or stale:
            with suppress(RevisionNotFoundError):
                there = api.list_repo_files(made.repo_id, revision=revision)
        if card and CARD not in (*files, *there):
            files = {**files, CARD: card(made.repo_id).encode()}
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=data if isinstance(data, bytes) else os.fspath(data))
            for name, data in files.items()
        ]
        gone = [name for name in there if stale and re.fullmatch(stale, name) and name not in files]
        operations += [CommitOperationDelete(path_in_repo=name) for name in gone]
        done = api.create_commit(
            made.repo_id, operations, commit_message=message, commit_description=commit_description, revision=revision,
            create_pr=create_pr,
        )  # fmt: skip
    except Exception as error:  # a broken connection, a token that may not write, an answer that is none
        raise CheckpointError(f"{shown(repo_id)} could not be uploaded: {_first_line(error)}.") from None
    return str(done.commit_url)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    return shown((str(error).strip() or type(error).__name__).splitlines()[0]).rstrip(".")
