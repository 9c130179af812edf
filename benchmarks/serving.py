"""`vit serve` beside the model alone, LitServe and MLServer, with the same model: `python -m benchmarks.serving`.

All is on loopback: a process that serves, one that asks with so many connections (each sends the next request when
it has the answer to the last), and for the model alone one that computes batches that lie in memory. They take turns.
`--overload`, `--hostile N` and `--sigterm N` measure instead what happens at four times the load, among broken
requests, and when the server is told to end.

LitServe and MLServer are looked for in folders of their own, as they ask for other releases of what is installed:

    pip install --target .venv/serving-peers/litserve litserve
    pip install --target .venv/serving-peers/mlserver mlserver
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit import ViTConfig
from vit.config import to_pair
from vit.inference import Forward
from vit.measure import Worker

from .harness import ENVIRONMENT, random_checkpoint, ratio, say, table, take_turns

ROOT = Path(__file__).parents[1]
PEERS = ("litserve", "mlserver")


# === Asking ===


class Answers(NamedTuple):
    """What a load got.

    Attributes:
        seconds: from the first request to the last answer.
        statuses: how many answers of each status.
        latencies: of those of status 200, in seconds, sorted.
        failed: connections that broke, or were refused.
    """

    seconds: float
    statuses: dict[int, int]
    latencies: list[float]
    failed: int

    @property
    def rate(self) -> float:
        """Images a second that were answered with a result."""
        return self.statuses.get(200, 0) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests stays below."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


class _Asker(asyncio.Protocol):
    """A connection that sends a request, waits for the answer, and sends the next."""

    def __init__(self, request: bytes, told: Callable[[_Asker, int, float], bool], wait: float) -> None:
        self.request, self.told, self.wait = request, told, wait
        self.over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if not self.transport.is_closing():
            self.begin = time.perf_counter()
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if length is None or len(rest) < int(length[1]):
            return
        self.data = b""
        status = int(head[9:12])
        if not self.told(self, status, time.perf_counter() - self.begin) or b"connection: close" in head.lower():
            self.transport.close()
            self._end(True)
        elif status == 503:  # a client that is told to come again does so later
            asyncio.get_running_loop().call_later(self.wait, self.send)
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(False)

    def _end(self, well: bool) -> None:
        if not self.over.done():
            self.over.set_result(well)


async def _load(address: tuple[str, int], request: bytes, connections: int, seconds: float, wait: float) -> Answers:
    statuses: dict[int, int] = {}
    latencies: list[float] = []
    begin = time.perf_counter()

    def told(asker: _Asker, status: int, latency: float) -> bool:
        statuses[status] = statuses.get(status, 0) + 1
        if status == 200:
            latencies.append(latency)
        return time.perf_counter() < begin + seconds

    loop = asyncio.get_running_loop()
    askers = []
    failed = 0
    for _ in range(connections):
        try:
            askers.append((await loop.create_connection(lambda: _Asker(request, told, wait), *address))[1])
        except OSError:
            failed += 1
    ends = await asyncio.gather(*(asker.over for asker in askers))
    return Answers(time.perf_counter() - begin, statuses, sorted(latencies), failed + ends.count(False))


def ask(
    port: int, request: str, connections: int, seconds: float, wait: float = 0.1
) -> tuple[float, dict[str, int], list[float], int]:
    """A load, from a process of its own: what `Answers` holds. The request is base64 of all of its bytes."""
    found = asyncio.run(_load(("127.0.0.1", port), base64.b64decode(request), connections, seconds, wait))
    return found.seconds, {str(key): value for key, value in found.statuses.items()}, found.latencies, found.failed


def load(worker: Worker, port: int, request: bytes, connections: int, seconds: float, wait: float = 0.1) -> Answers:
    """`ask`, in a worker."""
    taken, statuses, latencies, failed = worker.prepare(
        "benchmarks.serving:ask", port=port, request=base64.b64encode(request).decode(), connections=connections,
        seconds=seconds, wait=wait,
    )  # fmt: skip
    return Answers(taken, {int(key): value for key, value in statuses.items()}, latencies, failed)


def post(path: str, body: bytes, content_type: str = "application/octet-stream") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def photograph(size: Sequence[int]) -> bytes:
    """A JPEG of (height, width)."""
    import skimage.data
    from PIL import Image

    file = io.BytesIO()
    photo = Image.fromarray(skimage.data.astronaut()).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    photo.save(file, "jpeg", quality=90)
    return file.getvalue()


# === Serving ===


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(
    command: Sequence[str], port: int, request: bytes, path: Sequence[str] = ()
) -> Iterator[subprocess.Popen[Any]]:
    """A server, from when it answers a request."""
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([*path, str(ROOT), inherited])}
    with tempfile.TemporaryFile() as log:
        # A group of its own: LitServe and MLServer leave workers behind when they are asked to end.
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            end = time.monotonic() + 180
            while (answer := exchange(port, request)) is None or not answer.startswith(b"HTTP/1.1 200"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[:3]} does not serve:\n{log.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)  # it may be stopped while it waits for its turn
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def exchange(port: int, request: bytes, seconds: float = 60) -> bytes | None:
    """What the server answers to a request; None if there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), seconds) as connection:
            connection.sendall(request)
            return connection.recv(65536)
    except OSError:
        return None


def command_of(server: str, checkpoint: str, framework: str, port: int, batch_size: int, delay: float) -> list[str]:
    """What starts a server."""
    if server == "vit serve":
        return ["-m", "vit", "serve", "-m", f"model={checkpoint}", "-f", framework, "--port", str(port), "--quiet",
                "--max-batch-size", str(batch_size), "--max-delay-ms", str(delay),
                "--drain-seconds", "0.5"]  # fmt: skip
    return ["-m", "benchmarks.serving_peers", server, checkpoint, framework, str(port), str(batch_size), str(delay)]


def request_of(server: str, image: bytes) -> bytes:
    """The request for one image, as each takes it with the least work."""
    if server == "litserve":
        content = json.dumps({"image": base64.b64encode(image).decode()}).encode()
        return post("/classify", content, "application/json")
    if server == "mlserver":
        data = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image).decode()]}
        return post("/v2/models/model/infer", json.dumps({"inputs": [data]}).encode(), "application/json")
    return post("/classify?top_k=1", image, "image/jpeg")


# === The model alone ===


def prepare(checkpoint: str, framework: str, batch_size: int, calls: int) -> tuple[Callable[[], Any], tuple[int, int]]:
    """Some batches through `Forward`, so many at a time, as a worker's run; how many images, and the process's id."""
    from concurrent.futures import ThreadPoolExecutor

    forward = Forward(checkpoint, framework)
    shape = (batch_size, forward.config.num_channels, *to_pair(forward.config.image_size))
    pixel_values = np.random.default_rng(0).standard_normal(shape, np.float32)
    pool = ThreadPoolExecutor(calls)
    rounds = max(2, 32 // batch_size)

    def run() -> None:
        list(pool.map(forward, [pixel_values] * rounds))

    run()
    return run, (rounds * batch_size, os.getpid())


def best_batch_size(
    checkpoint: str, framework: str, sizes: Sequence[int], seconds: float
) -> tuple[int, dict[int, float]]:
    """The batch size at which the model alone is fastest, and the images/s at each."""
    found = {}
    for size in sizes:
        with Worker(environment=ENVIRONMENT) as worker:
            images, _ = worker.prepare(
                "benchmarks.serving:prepare", checkpoint=checkpoint, framework=framework, batch_size=size, calls=1
            )
            found[size] = images / statistics.median(worker.run(seconds, least=2))
    return max(found, key=lambda size: found[size]), found


# === What is measured ===


def throughput(options: argparse.Namespace, checkpoint: str) -> str:
    """The table of images/s: the model alone, `vit serve`, the peers; all take turns."""
    image = photograph(options.size)
    best, alone = best_batch_size(checkpoint, options.framework, options.batch_size or (1, 2, 4, 8, 16, 32), 2.0)
    say(f"the model alone: {', '.join(f'{rate:.1f}/s at {size}' for size, rate in alone.items())}")
    served_size = options.served_batch_size or max(best, options.connections // 2)
    servers = ["vit serve"]
    missing = []
    for peer in PEERS:
        folder = options.peers / peer
        (servers if folder.exists() else missing).append(peer)
    kept: dict[str, list[Answers]] = {name: [] for name in servers}
    spent: dict[str, list[float]] = {name: [] for name in ("model", *servers)}
    with ExitStack() as stack:  # all are there from the beginning, and wait for their turns
        worker, asking = (stack.enter_context(Worker(environment=ENVIRONMENT)) for _ in range(2))
        images, pid = worker.prepare(
            "benchmarks.serving:prepare", checkpoint=checkpoint, framework=options.framework, batch_size=best, calls=1
        )
        ports, pids = {}, {}
        for name in servers:
            ports[name] = free_port()
            command = command_of(name, checkpoint, options.framework, ports[name], served_size, options.delay)
            path = [str(options.peers / name)] if name in PEERS else []
            try:
                process = stack.enter_context(served(command, ports[name], request_of(name, image), path))
            except RuntimeError as error:
                missing.append(f"{name} ({error})")
                continue
            pids[name] = process.pid
        servers = list(pids)

        # LitServe's workers ask for work all the time, a twelfth of a core: who waits for its turn is stopped.
        def turn(name: str, running: bool) -> None:
            os.killpg(pids[name], signal.SIGCONT if running else signal.SIGSTOP)

        def model() -> float:
            before = cpu_seconds(pid)
            times = worker.run(options.seconds, least=2)
            spent["model"].append((cpu_seconds(pid) - before) / len(times) / images)
            return images / statistics.mean(times)

        def server(name: str) -> float:
            turn(name, True)
            before = cpu_seconds(pids[name])
            found = load(asking, ports[name], request_of(name, image), options.connections, options.seconds)
            spent[name].append((cpu_seconds(pids[name]) - before) / max(found.statuses.get(200, 0), 1))
            turn(name, False)
            kept[name].append(found)
            return found.rate

        runs: dict[str, Callable[[], float]] = {"model": model}
        runs |= {name: (lambda name=name: server(name)) for name in servers}  # type: ignore[misc]
        for name in servers:
            load(asking, ports[name], request_of(name, image), options.connections, min(2.0, options.seconds))  # warm
            turn(name, False)
        found = take_turns(runs, 0.0, least=options.rounds, most=options.rounds, warm=False)
    batch = served_size / statistics.median(found["model"])
    milliseconds = {name: f"{1000 * statistics.median(each):.1f}" for name, each in spent.items()}
    rows = [[f"the model alone, batches of {best}", f"{statistics.median(found['model']):.1f}", "1.00",
             milliseconds["model"], "1.00", "", "", ""]]  # fmt: skip
    for name in servers:
        answers = kept[name]
        p50, p99 = (statistics.median(each.percentile(share) for each in answers) for share in (0.5, 0.99))
        lost = sum(each.failed for each in answers)
        other = sum(count for each in answers for status, count in each.statuses.items() if status != 200)
        rows.append([name, f"{statistics.median(found[name]):.1f}", str(ratio(found[name], found["model"])),
                     milliseconds[name], str(ratio(spent["model"], spent[name])),
                     f"{1000 * p50:.0f}", f"{1000 * p99:.0f} ({p99 / batch:.1f})", str(lost + other)])  # fmt: skip
    header = ["", "images/s", "of the model alone", "CPU of an image, ms", "the model's share", "median, ms",
              "99%, ms (batch times)", "not answered"]  # fmt: skip
    text = table(header, rows)
    for name in servers[1:]:
        text += f"\n\nvit serve beside {name}: {ratio(found['vit serve'], found[name])} times its images/s."
    if missing:
        text += f"\n\nNot there: {', '.join(missing)}."
    height, width = options.size
    sizes = ", ".join(f"{rate:.1f} at {size}" for size, rate in alone.items())
    return (
        f"ViT-{options.variant}, {options.framework}, JPEGs of {height} x {width}, {options.connections} connections, "
        f"{options.seconds:g} seconds, {options.rounds} rounds, batches of at most {served_size}. The model alone, in "
        f"images/s: {sizes}; the best of these is what the others are compared with.\n\n{text}"
    )


@contextmanager
def serving(
    options: argparse.Namespace, checkpoint: str, *more: str
) -> Iterator[tuple[subprocess.Popen[Any], int, bytes]]:
    """`vit serve`, its port, and a request for one image."""
    port, request = free_port(), request_of("vit serve", photograph(options.size))
    size = options.served_batch_size or options.connections // 2
    command = [*command_of("vit serve", checkpoint, options.framework, port, size, options.delay), *more]
    with served(command, port, request) as process:
        yield process, port, request


def overload(options: argparse.Namespace, checkpoint: str) -> str:
    """What four times the load gets: answers of each status, memory, and the rate a second later."""
    rows = []
    queue = str(options.connections)
    with serving(options, checkpoint, "--max-queue", queue) as (process, port, request), Worker() as asking:
        load(asking, port, request, options.connections, 2)
        for name, connections in (
            ("before", options.connections),
            ("four times as many", 4 * options.connections),
            ("again, a second later", 4 * options.connections),
            ("after", options.connections),
        ):
            if name == "after":
                time.sleep(1)
            found = load(asking, port, request, connections, options.seconds)
            refused = found.statuses.get(503, 0)
            other = sum(found.statuses.values()) - found.statuses.get(200, 0) - refused
            rows.append([name, str(connections), f"{found.rate:.1f}", f"{refused / found.seconds:.1f}",
                         f"{1000 * found.percentile(0.99):.0f}", str(other + found.failed),
                         f"{memory(process.pid) / 2**20:.0f}"])  # fmt: skip
    header = ["load", "connections", "images/s", "503/s", "99%, ms", "lost", "MiB"]
    return f"`vit serve`, ViT-{options.variant}, a queue of {queue}.\n\n{table(header, rows)}"


def cpu_seconds(pid: int) -> float:
    """What a process and those it started have had of the processors."""
    ticks, parents = {}, {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = each.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(each.parent.name)] = int(fields[1])
        ticks[int(each.parent.name)] = int(fields[11]) + int(fields[12])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(each, 0) for each in family) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def hostile(options: argparse.Namespace, checkpoint: str) -> str:
    """So many requests, a tenth of them broken on purpose: whether the others are answered rightly."""
    with serving(options, checkpoint, "--max-body-mb", "1") as (process, port, request), Worker() as asking:
        wanted = exchange_json(port, request)
        before = memory(process.pid)
        begin = time.perf_counter()
        good, wrong, bad, crashed, slow, told = asking.prepare(
            "benchmarks.serving:ask_among_hostile", port=port, request=base64.b64encode(request).decode(),
            count=options.hostile, connections=options.connections, labels=wanted["results"][0]["labels"],
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        alive = process.poll() is None and exchange_json(port, request)["results"] is not None
        after = memory(process.pid)
    return (
        f"{options.hostile:,} requests in {seconds:.0f} s: {good:,} well-formed ones answered rightly, {wrong} not; "
        f"{bad:,} hostile ones, to which {crashed} answers were of status 500; {SLOW} clients sent bytes now and then "
        f"all the while, on {slow:,} connections, and were told {told:,} times that they are too slow. The server "
        f"{'goes on' if alive else 'ended'}; it held {before / 2**20:.0f} MiB before and {after / 2**20:.0f} after."
    )


def exchange_json(port: int, request: bytes) -> Any:
    """The JSON of an answer."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    return json.loads(data.partition(b"\r\n\r\n")[2])


def hostile_requests(request: bytes) -> list[bytes]:
    """One of each kind of requests that nobody means well with."""
    head, _, image = request.partition(b"\r\n\r\n")
    bomb = base64.b64decode(BOMB)
    first = head.splitlines()[0]
    lines = head.replace(b"Content-Length: ", b"Content-Length: 99999999")
    return [
        b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00" * 40, head + b"\r\n\r\n" + image[:100], lines,
        head + b"\r\nContent-Length: 5\r\n\r\n" + image, head + b"\r\nX: " + b"y" * 50_000 + b"\r\n\r\n",
        first + b"\r\n" + b"A: b\r\n" * 9_000 + b"\r\n", b"POST /" + b"z" * 50_000 + b" HTTP/1.1\r\n\r\n",
        post("/classify", bomb), post("/classify", b"no"), post("/classify", image[: len(image) // 2]),
        post("/classify?top_k=1&top_k=2", image), post("/classify?model=../../etc/passwd", image),
        post("/../../etc/passwd", image), post("/v1/models/model:predict", b"[" * 100_000),
        post("/v1/models/model:predict", b'{"instances": [1e999]}'),
        post("/v1/models/model:predict", b'{"instances": [], "instances": []}'),
        post("/v1/models/%2e%2e%2fx:predict", b'{"instances": [{"b64": "eA"}]}'),
        post("/v2/models/model/infer", b'{"inputs": [{"name": [], "shape": {}, "datatype": null}]}'),
        post("/classify", b"--x\r\n" * 1000, "multipart/form-data; boundary=x"), post("/classify", bytes(2**20 + 1)),
        post("/classify", image, "text/html"), post("/attention?layer=99999999999999999999", image),
    ]  # fmt: skip


TINY = ViTConfig(image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                 intermediate_size=128, num_labels=10)  # fmt: skip
"""What the server itself is tried with, and not the model."""
BOMB = "iVBORw0KGgoAAAANSUhEUgAAw1AAAMNQAQAAAAD3jmLVAAAAAElFTkSuQmCC"
"""A PNG whose header says 50,000 x 50,000 pixels."""


SLOW = 50
"""Clients that take their time with headers or with a body."""


def ask_among_hostile(port: int, request: str, count: int, connections: int, labels: list[str]) -> tuple[int, ...]:
    """(well-formed requests answered rightly, and not; hostile ones, and answers of status 500 to them; connections of
    slow clients, and answers of status 408 to them)."""
    whole = base64.b64decode(request)
    broken = hostile_requests(whole)
    left = iter(range(count))
    told = [0, 0, 0, 0, 0, 0]

    async def slow(at: int) -> None:
        """Send a request to a place in its headers or its body, and from there a byte now and then, again and again."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            told[4] += 1
            try:
                writer.write(whole[:at])
                for byte in whole[at:-1]:
                    await writer.drain()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            found = await reader.read(65536)
                            told[5] += found.startswith(b"HTTP/1.1 408")
                            break
                    writer.write(bytes([byte]))
            except ConnectionError:
                continue
            finally:
                writer.close()

    async def one(data: bytes, patience: float) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            found = b""
            async with asyncio.timeout(patience):
                while b"\r\n\r\n" not in found:
                    part = await reader.read(65536)
                    if not part:
                        return found
                    found += part
                length = int(re.search(rb"content-length: *(\d+)", found, re.IGNORECASE)[1])  # type: ignore[index]
                while len(found.partition(b"\r\n\r\n")[2]) < length and (part := await reader.read(65536)):
                    found += part
            return found
        except (TimeoutError, ConnectionError):
            return b""
        finally:
            writer.close()

    async def asker() -> None:
        for i in left:
            if i % 10 == 0:
                found = await one(broken[i // 10 % len(broken)], 0.2)
                told[2] += 1
                told[3] += found.startswith(b"HTTP/1.1 500")
                continue
            found = b"HTTP/1.1 503"
            while found.startswith(b"HTTP/1.1 503"):
                found = await one(whole, 60)
            right = found.startswith(b"HTTP/1.1 200")
            right = right and json.loads(found.partition(b"\r\n\r\n")[2])["results"][0]["labels"] == labels
            told[0 if right else 1] += 1

    async def all_of_them() -> None:
        places = (1, whole.index(b"\r\n\r\n"), whole.index(b"\r\n\r\n") + 5)
        dripping = [asyncio.create_task(slow(places[i % len(places)])) for i in range(SLOW)]
        await asyncio.gather(*(asker() for _ in range(connections)))
        for each in dripping:
            each.cancel()

    asyncio.run(all_of_them())
    return tuple(told)


def sigterm(options: argparse.Namespace, checkpoint: str) -> str:
    """So many servers that are told to end under load: requests that were accepted and not answered."""
    lost = answered = unwell = 0
    slowest = 0.0
    for trial in range(options.sigterm):
        with serving(options, checkpoint) as (process, port, request), Worker() as asking:
            import threading

            asking.prepare("benchmarks.serving:free_port")  # it has imported what it needs
            found: list[Answers] = []
            thread = threading.Thread(target=lambda: found.append(load(asking, port, request, options.connections, 30)))  # noqa: B023
            thread.start()
            time.sleep(0.3 + 0.01 * (trial % 50))
            begin = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            unwell += process.wait(60) != 0
            slowest = max(slowest, time.perf_counter() - begin)
            thread.join()
            lost += found[0].failed
            answered += found[0].statuses.get(200, 0)
            unwell += set(found[0].statuses) != {200}
            if trial % 10 == 9:
                say(f"{trial + 1} ended, {lost} requests lost")
    return (
        f"{options.sigterm} servers were told to end under the load of {options.connections} connections: {answered:,} "
        f"requests were answered, {lost} lost, {unwell} servers did not end well; the slowest took {slowest:.1f} s."
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("pt", "tf", "flax"), default="pt", help="(default: %(default)s)")
    parser.add_argument(
        "--variant", default="B/16", help="of the model, or tiny, with random weights (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, action="append", help="of the model alone; repeatable (default: 1 to 32)"
    )
    parser.add_argument("--served-batch-size", type=int, help="at most (default: the best, or half the connections)")
    parser.add_argument("--connections", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--delay", type=float, default=5.0, help="milliseconds to fill a batch (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(224, 224), help="of the JPEGs: height, width (default: 224 224)"
    )
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of all (default: as many as there are cores)")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv" / "serving-peers", help="(default: %(default)s)")
    parser.add_argument("--overload", action="store_true", help="four times the load instead")
    parser.add_argument("--hostile", type=int, metavar="N", help="so many requests, a tenth of them hostile, instead")
    parser.add_argument("--sigterm", type=int, metavar="N", help="so many servers that end under load instead")
    parser.add_argument("--quick", action="store_true", help="5 seconds, 1 round")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 5.0, 1
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(prefix="trivit-serving-") as folder:
        checkpoint = Path(folder, "checkpoint")
        config = TINY if options.variant == "tiny" else ViTConfig.variant(options.variant, num_labels=1000)
        random_checkpoint(checkpoint, config)
        about = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": config.image_size, "width": config.image_size},
        }
        (checkpoint / "preprocessor_config.json").write_text(json.dumps(about))
        measure = (
            overload if options.overload else hostile if options.hostile else sigterm if options.sigterm else throughput
        )
        print(measure(options, str(checkpoint)))


if __name__ == "__main__":
    main()
