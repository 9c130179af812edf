"""`vit serve` as a process: signals under load, overload, requests that are no requests, and what its options say."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vit import cli, predict
from vit.cli import serve
from vit.cli.serve import named, read_key, vertex_ai
from vit.errors import InputError
from vit.serving import Limits, create_app
from vit.serving.server import Server, listen

from .served import LABELS, Process, checkpoint, onnx_file, picture, process

PNG = picture()
GET = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    options = ("-m", str(folder), "-f", "pt", "--max-queue", "16", "--max-body-mb", "0.1", "--drain-seconds", "3")
    with process(*options, OMP_NUM_THREADS="1") as found:
        yield found


def post(address: tuple[str, int], path: str = "/classify", body: bytes = PNG) -> tuple[int, Any]:
    """One request on a connection of its own: the status, and the JSON."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def raw(address: tuple[str, int], data: bytes, seconds: float = 60) -> bytes:
    """What the server answers to bytes until it closes the connection, or is silent."""
    with socket.create_connection(address, seconds) as connection:
        connection.sendall(data)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
                if b"keep-alive" in data:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
    return found


def in_threads(count: int, call: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_hostile_requests_are_refused_and_the_others_answered(server: Process, folder: Path) -> None:
    (wanted,) = predict([PNG], str(folder), "pt")
    hostile = [
        b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" * 20,
        HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") % 4 + b"abcd",
        HEAD.replace(b"%d", b"-1") + b"x", HEAD.replace(b"%d", b"99999999999999999999999") + b"x",
        HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") % 4 + b"zz\r\n",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"GET /" + b"z" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 8_000 + b"\r\n", b"GET ../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", HEAD % 200_000 + bytes(200_000),
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ]  # fmt: skip
    before = server.memory()
    wrong: list[bytes] = []

    def send(i: int) -> None:
        for data in hostile[i:] + hostile[:i]:
            answer = raw(server.address, data, 0.3)
            if answer[:10] not in (b"", b"HTTP/1.1 4", b"HTTP/1.1 2") or b"Traceback" in answer:
                wrong.append(data)

    for thread in in_threads(8, send):
        thread.join(60)
    assert not wrong
    for i in range(100):  # gone in the middle
        with socket.create_connection(server.address) as connection:
            connection.sendall((HEAD % len(PNG) + PNG)[: 40 + 7 * i])
    for _ in range(20):
        status, found = post(server.address)
        assert (status, found["results"][0]["labels"]) == (200, list(wanted.labels))
    assert not [line for line in server.said if "Traceback" in line]
    assert server.memory() - before < 50 * 2**20


@contextmanager
def in_this_process(app: Any) -> Iterator[tuple[str, int]]:
    """The address of a server that runs in a thread, until the end; it has to end when it is told to."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, drain_seconds=0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
    assert server.failed is None


def waits_for(address: tuple[str, int], path: bytes) -> None:
    while raw(address, GET % path)[9:12] != b"200":
        time.sleep(0.05)


def test_a_slow_client_is_told_so_and_the_others_are_answered(folder: Path) -> None:
    app = create_app(folder, "pt", limits=Limits(header_seconds=0.8, body_seconds=0.8), wait=False)
    with in_this_process(app) as address:
        waits_for(address, b"/health/ready")
        half = b"POST /classify HTTP/1.1\r\nHost: x\r\n"
        asks = HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % 9
        for data, said in ((b"", b"408"), (half[:9], b"408"), (half, b"408"), (HEAD % 9 + b"abc", b"408"),
                           (asks, b"100")):  # fmt: skip
            answer = raw(address, data)
            assert answer[9:12] == said, answer
            assert b" 408 " in answer
            assert b"connection: close" in answer.lower()
        trickling = in_threads(4, lambda i: trickle(address))
        assert post(address)[0] == 200
        for thread in trickling:
            thread.join(60)
            assert not thread.is_alive()
        assert app.state.service.bodies == 0


def test_past_the_most_connections_clients_are_told_to_come_again(folder: Path) -> None:
    app = create_app(folder, "pt", limits=Limits(max_connections=3, header_seconds=60.0), wait=False)
    app.state.service.start = lambda: asyncio.sleep(60)  # nor are there models, which it ends without
    with in_this_process(app) as address:
        waits_for(address, b"/health/live")
        held = [socket.create_connection(address) for _ in range(3)]
        assert raw(address, GET % b"/health/live")[9:12] == b"503"
        held.pop().close()
        waits_for(address, b"/health/live")
        assert post(address)[0] == 503
        for each in held:
            each.close()


def trickle(address: tuple[str, int]) -> None:
    """A byte of a request now and then, until the server has had enough."""
    with socket.create_connection(address, 5) as connection:
        try:
            for byte in HEAD % 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            return


def test_overload_is_answered_and_passes(server: Process) -> None:
    files = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n' + PNG + b"\r\n" for _ in range(12)
    )
    statuses: list[int] = []

    def load(i: int) -> None:
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        for _ in range(6):
            connection.request(
                "POST", "/classify", files + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}
            )
            answer = connection.getresponse()
            statuses.append(answer.status)
            assert answer.read()
            assert (answer.status == 503) == ("retry-after" in answer.headers)
        connection.close()

    for thread in in_threads(8, load):
        thread.join(60)
    assert len(statuses) == 48
    assert set(statuses) == {200, 503}
    assert [post(server.address)[0] for _ in range(5)] == [200] * 5


def test_sighup_takes_up_a_changed_checkpoint_without_losing_a_request(server: Process, folder: Path) -> None:
    before = post(server.address)[1]["results"]
    statuses: list[int] = []
    over = threading.Event()

    def load(i: int) -> None:
        while not over.is_set():
            statuses.append(post(server.address)[0])

    threads = in_threads(2, load)
    checkpoint(folder, seed=1)
    server.signal(signal.SIGHUP)
    assert server.waits_for("Taken up").strip() == "vit: Taken up: tiny"
    over.set()
    for thread in threads:
        thread.join(60)
    assert set(statuses) == {200}
    assert post(server.address)[1]["results"] != before
    server.signal(signal.SIGHUP)
    assert "nothing changed" in server.waits_for("Taken up")


def test_sigterm_under_load_loses_no_accepted_request(server: Process) -> None:
    sent: list[int] = []
    answered: list[int] = []
    lost: list[str] = []
    ready = []

    def load(i: int) -> None:
        while True:
            connection = http.client.HTTPConnection(*server.address, timeout=60)
            try:
                connection.connect()
            except ConnectionRefusedError:  # not accepted
                return
            try:
                for _ in range(1 + i % 3):
                    sent.append(1)
                    connection.request("POST", "/classify", PNG)
                    answer = connection.getresponse()
                    answer.read()
                    answered.append(answer.status)
                    if answer.will_close:
                        break
            except Exception as error:
                lost.append(repr(error))
            connection.close()

    threads = in_threads(6, load)
    while len(answered) < 30:
        time.sleep(0.01)
    server.signal(signal.SIGTERM)
    server.waits_for("Ending")
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    connection.request("GET", "/health/ready")
    ready.append(connection.getresponse().status)
    for thread in threads:
        thread.join(60)
    assert server.process.wait(60) == 0
    assert (lost, ready) == ([], [503])
    assert len(sent) == len(answered)
    assert set(answered) == {200}


def test_an_export_is_served_where_no_framework_is(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "means.onnx")
    with process("-m", str(path), without=("torch", "tensorflow", "keras", "jax", "flax")) as server:
        status, found = post(server.address)
        assert (status, found["model"]) == (200, "means")
        assert set(found["results"][0]["labels"]) == set(LABELS)


# === Options ===


def test_a_model_that_is_not_there_ends_the_server_with_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["serve", "-m", "no/such/model/at/all", "-f", "pt", "--port", "0"])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("vit: no/such/model/at/all")


def test_a_port_that_is_taken_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["serve", "-m", str(folder), "-f", "pt", "--port", str(other.getsockname()[1])])
    assert "vit: The server cannot listen on 127.0.0.1:" in capfd.readouterr().err


def test_models_have_the_names_that_are_given_or_the_last_part_of_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    assert named(["google/vit-base-patch16-224", "a.b=x/y", str(folder), "m/my model!.onnx"]) == {
        "vit-base-patch16-224": "google/vit-base-patch16-224", "a.b": "x/y", "lr-0.1": str(folder),
        "my-model-": "m/my model!.onnx",
    }  # fmt: skip
    with pytest.raises(InputError, match="Two models are called b; name them with -m NAME=MODEL"):
        named(["a/b", "c/b"])


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIT_API_KEY", raising=False)
    assert read_key(None) is None
    (tmp_path / "key").write_text("s3cret\n")
    assert read_key(tmp_path / "key") == "s3cret"
    monkeypatch.setenv("VIT_API_KEY", "other")
    assert (read_key(None), read_key(tmp_path / "key")) == ("other", "s3cret")
    for content in (b"", b"  \n", b"two words", "schlüssel".encode(), b"\xff"):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(InputError):
            read_key(tmp_path / "key")
    with pytest.raises(InputError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_vertex_ai_says_in_the_environment_where_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AIP_")]:
        monkeypatch.delenv(name)
    assert vertex_ai() is None
    monkeypatch.setenv("AIP_HTTP_PORT", "8080")
    assert vertex_ai() == (8080, ("/health", "/predict"))
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1:health")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict")
    assert vertex_ai() == (8080, ("/v1/endpoints/1:health", "/v1/endpoints/1:predict"))
    for name, value in (("AIP_HTTP_PORT", "x"), ("AIP_HTTP_PORT", "0"), ("AIP_PREDICT_ROUTE", "{name}"),
                        ("AIP_HTTP_PORT", "99999")):  # fmt: skip
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(InputError):
                vertex_ai()


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("kind", ["cancelled", "failed"])
def test_a_server_ends_with_the_error_of_loading_unless_it_ends_already(kind, ending):
    async def loading() -> asyncio.Task[None]:
        async def load() -> None:
            raise OSError("no such model") if kind == "failed" else asyncio.CancelledError

        task = asyncio.ensure_future(load())
        await asyncio.wait([task])
        return task

    server = SimpleNamespace(should_exit=ending, failed=None)
    Server._loaded(server, asyncio.run(loading()))
    told = kind == "failed" and not ending
    assert (str(server.failed), server.should_exit) == ("no such model" if told else "None", ending or told)


def test_the_import_beside_the_servers_own_keeps_no_process_from_ending(monkeypatch):
    started = []
    monkeypatch.setattr(serve, "threading", SimpleNamespace(Thread=lambda **options: started.append(options)))
    with pytest.raises(AttributeError):  # as None does not start
        serve.command(framework=["pt"])
    assert started == [{"target": serve._import, "args": ("pt",), "daemon": True}]
