"""The process that serves an application: uvicorn with limits on slow and large requests, and signals.

SIGTERM: not ready any more, then no new connections, then what was accepted is answered, then the end. SIGINT: the same
without waiting for load balancers. SIGHUP: changed checkpoints are taken up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import InputError, shown
from .limits import Limits
from .service import Service

logger = logging.getLogger("vit.serving")

QUIET = 0.2
"""Seconds without a byte after which a connection has no request on its way."""
SO_ATTACH_FILTER = 26
DROPPED = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A packet filter of one instruction: of each packet 0 bytes are kept."""


def listen(host: str, port: int, backlog: int = 2048) -> socket.socket:
    """A socket that listens; the kernel holds clients until they are accepted.

    Raises:
        InputError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(backlog)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"The server cannot listen on {shown(host)}:{port}: {reason}.") from None
    return found


def run(app: FastAPI, listener: socket.socket, *, drain_seconds: float = 1.0, grace_seconds: float = 60.0) -> int:
    """Serve until a signal ends it.

    Args:
        app: of `create_app`.
        listener: of `listen`.
        drain_seconds: how long after SIGTERM new requests are still answered, so that load balancers learn of it.
        grace_seconds: how long after that what was accepted may take.

    Returns:
        The exit status.

    Raises:
        Exception: whatever kept the models from being loaded.
    """
    server = Server(app, drain_seconds, grace_seconds)
    server.run(sockets=[listener])
    if server.failed is not None:
        raise server.failed
    return 0


class _Protocol(HttpToolsProtocol):
    """A connection, whose requests' lines and headers end soon and are no larger than they may be."""

    limits: Limits
    _began: asyncio.TimerHandle | None = None
    _size = 0
    last = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.last = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            self._answer(503, "There are too many connections; try again later.", b"retry-after: 1\r\n")
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.last = self.loop.time()
        if self.transport.is_closing():
            return
        if self._size >= 0:  # within the line and headers
            self._size += len(data)
            if self._began is None:
                self._expect()
        super().data_received(data)
        if self._size > self.limits.max_header:
            self._answer(431, "The request's headers are too large.")

    def on_headers_complete(self) -> None:
        self._got()
        self._size = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._size = 0

    def send_400_response(self, msg: str) -> None:
        self._answer(400, "The request is no HTTP.")

    def _expect(self) -> None:
        self._began = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _got(self) -> None:
        if self._began is not None:
            self._began.cancel()
            self._began = None

    def _too_slow(self) -> None:
        self._began = None
        self._answer(408, f"The request did not arrive within {self.limits.header_seconds:g} seconds.")

    def _answer(self, status: int, sentence: str, more: bytes = b"") -> None:
        self._got()
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy:  # or two answers would run into each other
            body = f'{{"error": "{sentence}"}}'.encode()
            head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + more + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is on its way, as far as can be told."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self._size == 0 and self.loop.time() - self.last > QUIET


class Server(uvicorn.Server):
    """uvicorn's, with our connections and signals; the arguments are those of `run`."""

    def __init__(self, app: FastAPI, drain_seconds: float = 1.0, grace_seconds: float = 60.0) -> None:
        limits = app.state.service.limits
        config = uvicorn.Config(
            app, http=type("Protocol", (_Protocol,), {"limits": limits}), ws="none", lifespan="on", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
        )  # fmt: skip
        super().__init__(config)
        self.application, self.drain_seconds = app, drain_seconds
        self.failed: BaseException | None = None
        self._reloads: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        handlers: dict[str, Any] = {"SIGTERM": self._end, "SIGINT": self._end_now, "SIGHUP": self._reload}
        known = {getattr(signal, name): call for name, call in handlers.items() if hasattr(signal, name)}
        for number, call in known.items():
            if sys.platform == "win32":
                signal.signal(number, lambda *_, call=call: loop.call_soon_threadsafe(call))
            else:
                loop.add_signal_handler(number, call)
        try:
            yield
        finally:
            for number in known:
                if sys.platform == "win32":
                    signal.signal(number, signal.SIG_DFL)
                else:
                    loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.application.state.loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        if loading.cancelled() or self.should_exit:
            return
        if (error := loading.exception()) is not None:
            self.failed = error
            self.should_exit = True
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        models = ", ".join(self.application.state.service.models)
        logger.info("Ready on http://%s:%s: %s", f"[{host}]" if ":" in host else host, port, models)

    # === Signals ===

    def _end(self) -> None:
        service: Service = self.application.state.service
        if service.draining:
            return
        service.draining = True  # not ready any more, and every answer closes its connection
        logger.info("Ending: what was accepted is answered first")
        asyncio.get_running_loop().call_later(self.drain_seconds, self._exit)

    def _end_now(self) -> None:
        service: Service = self.application.state.service
        if service.draining:  # Ctrl-C twice
            self.force_exit = True
        service.draining = True
        self._exit()

    def _exit(self) -> None:
        self.should_exit = True

    def _reload(self) -> None:
        async def reload() -> None:
            changed = await self.application.state.service.reload()
            logger.info("Taken up: %s", ", ".join(changed) or "nothing changed")

        task = asyncio.get_running_loop().create_task(reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in sockets or []:
            _refuse_connections(each)
        end = asyncio.get_running_loop().time() + 5 * QUIET
        while asyncio.get_running_loop().time() < end and not self.force_exit:
            await asyncio.sleep(QUIET / 4)  # what the kernel has accepted is accepted here, and read
            if all(getattr(each, "is_idle", True) for each in self.server_state.connections):
                break
        await super().shutdown(sockets)


def _refuse_connections(listener: socket.socket) -> None:
    """Let the kernel accept no more connections, so that closing the socket loses none that it has accepted.

    Linux drops the packets that would open them; the clients try again, and find the socket closed. Elsewhere a
    connection of the very last moment is lost.
    """
    if sys.platform == "linux":
        filter_ = ctypes.create_string_buffer(DROPPED)
        program = struct.pack("HP", 1, ctypes.addressof(filter_))
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
