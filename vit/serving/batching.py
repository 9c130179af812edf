"""Images of many requests into batches: threads read ahead of the model, and what is accepted is bounded.

Knows nothing of HTTP. Everything but reading and computing happens on the event loop's thread, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..image_processing.processor import available_cpus
from ..outputs import ModelOutput
from ..pipeline import CALLS, Threads


class Computes(Protocol):
    """What a batch is for: a model and one of its tasks; `alone` where no other batch is computed meanwhile."""

    most: int

    def __call__(self, images: list[np.ndarray], alone: bool) -> ModelOutput: ...


class Full(Exception):
    """More images than are taken on."""


class Job:
    """One image on its way.

    Args:
        read: gives what the model gets of it; runs in a thread.
        task: computes; images of the same one share a batch.
        answer: (outputs of the batch, which row) -> the result; runs in a thread.
    """

    __slots__ = ("answer", "image", "read", "ready_at", "result", "task")

    def __init__(
        self, read: Callable[[], np.ndarray], task: Computes, answer: Callable[[ModelOutput, int], Any]
    ) -> None:
        self.read, self.task, self.answer = read, task, answer
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.image: np.ndarray | None = None
        self.ready_at = 0.0


class Batcher:
    """Jobs in, results in their futures.

    A batch goes to the model when it is full, or when its first image has waited `delay` and either the model is idle
    or no other image is on its way: while the model computes, the next batch fills.

    Args:
        most: jobs that are taken on and not done.
        delay: seconds.
        ahead: images that lie read for the model, at most.
        observe: is told (task, images, seconds) of each batch.
    """

    def __init__(self, most: int, delay: float, ahead: int, observe: Callable[[Any, int, float], None]) -> None:
        self.most, self.delay, self.ahead, self.observe = most, delay, ahead, observe
        self.pending = 0
        self._waiting: deque[Job] = deque()
        self._ready: dict[Computes, deque[Job]] = {}
        self._reading = 0
        self._computing = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._readers = Threads("vit-read", available_cpus())
        self._models = Threads("vit-model", CALLS)

    def submit(self, jobs: list[Job]) -> None:
        """Take jobs on, all or none.

        Raises:
            Full: they are too many.
        """
        if self.pending + len(jobs) > self.most:
            raise Full
        self.pending += len(jobs)
        self._idle.clear()
        self._waiting.extend(jobs)
        self._pump()

    async def drained(self) -> None:
        """Wait until everything that was taken on is done."""
        await self._idle.wait()

    def close(self) -> None:
        """Let the threads end."""
        self._readers.stop()
        self._models.stop()

    # === On the event loop ===

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        ahead = sum(map(len, self._ready.values())) + self._reading
        while self._waiting:
            job = self._waiting[0]
            if not job.result.done() and ahead >= self.ahead:
                break
            self._waiting.popleft()
            if job.result.done():  # given up while it waited
                self._leave(1)
                continue
            ahead += 1
            self._reading += 1
            self._readers.submit(self._read, loop, job)
        while self._computing < CALLS and (task := self._due(loop.time())) is not None:
            ready = self._ready[task]
            batch = [ready.popleft() for _ in range(min(task.most, len(ready)))]
            if not ready:
                del self._ready[task]
            wanted = [job for job in batch if not job.result.done()]
            self._leave(len(batch) - len(wanted))
            if wanted:
                alone = not (self._computing or self._reading or self._waiting or self._ready)
                self._computing += 1
                self._models.submit(self._compute, loop, task, wanted, alone)

    def _due(self, now: float) -> Computes | None:
        """The task whose batch is to be computed now: of those that may be, the one that waits longest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        coming = self._reading + len(self._waiting) > 0
        oldest = None
        for task, jobs in self._ready.items():
            rest = jobs[0].ready_at + self.delay - now
            if len(jobs) < task.most and (rest > 0 or (self._computing and coming)):
                if rest > 0 and (self._timer is None or self._timer.when() > now + rest):
                    if self._timer is not None:
                        self._timer.cancel()
                    self._timer = asyncio.get_running_loop().call_at(now + rest, self._pump)
                continue
            if oldest is None or jobs[0].ready_at < self._ready[oldest][0].ready_at:
                oldest = task
        return oldest

    def _leave(self, count: int) -> None:
        self.pending -= count
        if not self.pending:
            self._idle.set()

    def _has_read(self, job: Job, error: BaseException | None) -> None:
        self._reading -= 1
        if error is None:
            job.ready_at = asyncio.get_running_loop().time()
            self._ready.setdefault(job.task, deque()).append(job)
        else:
            _end(job, error)
            self._leave(1)
        self._pump()

    def _has_computed(self, task: Computes, batch: list[Job], results: list[Any], seconds: float) -> None:
        self._computing -= 1
        self.observe(task, len(batch), seconds)
        for job, result in zip(batch, results, strict=True):
            _end(job, result)
        self._leave(len(batch))
        self._pump()

    # === In threads ===

    def _read(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        error: BaseException | None = None
        try:
            if not job.result.done():
                job.image = job.read()
        except BaseException as raised:
            error = raised
        _call(loop, self._has_read, job, error)

    def _compute(self, loop: asyncio.AbstractEventLoop, task: Computes, batch: list[Job], alone: bool) -> None:
        begin = time.perf_counter()
        results: list[Any]
        try:
            outputs = task([job.image for job in batch if job.image is not None], alone)
            results = [_result(job, outputs, row) for row, job in enumerate(batch)]
        except BaseException as raised:
            results = [raised] * len(batch)
        _call(loop, self._has_computed, task, batch, results, time.perf_counter() - begin)


def _result(job: Job, outputs: ModelOutput, row: int) -> Any:
    try:
        return job.answer(outputs, row)
    except BaseException as raised:
        return raised


def _end(job: Job, result: Any) -> None:
    job.image = None
    if job.result.done():
        return
    if isinstance(result, BaseException):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)


def _call(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)
