"""What the protocols share: the models, what is taken on, and the way from images to results. Knows no protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ..errors import InputError, quoted, shown
from ..exporting.formats import is_export
from ..hub import split_options
from ..outputs import ModelOutput
from ..pipeline import Threads
from .batching import Batcher, Full, Job
from .limits import Limits
from .loading import fingerprint, load
from .metrics import Metrics
from .models import NAME, Given, Model, Task
from .refusals import Refusal, busy

T = TypeVar("T")
logger = logging.getLogger("vit.serving")


class Service:
    """The models of a server and the images on their way through them.

    Args:
        sources: name -> what `load` takes.
        options: of `load`.
        limits: how much is taken on.
    """

    def __init__(
        self, sources: Mapping[str, str | os.PathLike[str]], options: Mapping[str, Any], limits: Limits
    ) -> None:
        for name in sources:
            if not NAME.fullmatch(name):
                raise InputError(
                    f"{quoted(name)} is no name of a model; expected letters, digits, dots, dashes and underscores, "
                    "at most 100, the first a letter or digit."
                )
        if not sources:
            raise InputError("There is no model to serve.")
        given = [key for key in ("device", "dtype") if options.get(key) is not None]
        if given and all(map(is_export, sources.values())):
            raise InputError(
                f"{given[0]} is {quoted(options[given[0]])}, which changes nothing of an export: it has its own "
                "runtime, dtype and device. Leave it out."
            )
        self.sources, self.options, self.limits = dict(sources), dict(options), limits
        self.models: dict[str, Model] = {}
        self.draining = False
        self.bodies = 0
        self.metrics = Metrics(lambda: self.batcher.pending if self.batcher else 0, lambda: self.ready)
        self.batcher: Batcher | None = None
        self._prints: dict[str, object] = {}
        self._loading = Threads("vit-load", 1)
        self._changes = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and the server is not ending."""
        return len(self.models) == len(self.sources) and not self.draining

    # === Models ===

    async def start(self) -> None:
        """Load every model; requests are taken on as soon as they are there."""
        for name in self.sources:
            await self._load(name, 1)
        most = max(task.most for model in self.models.values() for task in model.tasks.values())
        self.batcher = Batcher(self.limits.max_queue, self.limits.max_delay_ms / 1000, 4 * most, self._observe)

    async def reload(self) -> list[str]:
        """Take up checkpoints that changed; the names of their models.

        Requests go on meanwhile with the model that they began with. Of a checkpoint that cannot be loaded the model
        stays as it was.
        """
        changed = []
        async with self._changes:
            for name in list(self.models):  # one that is still being loaded is as new as can be
                try:
                    if await self._print(name) != self._prints.get(name):
                        await self._load(name, self.models[name].version + 1)
                        changed.append(name)
                except Exception as error:
                    logger.error("The model %s stays as it was: %s", name, shown(error))
        return changed

    async def _load(self, name: str, version: int) -> None:
        found = await self._print(name)
        call = partial(load, name, self.sources[name], version=version, max_batch_size=self.limits.max_batch_size,
                       **self.options)  # fmt: skip
        self.models[name] = await asyncio.wrap_future(self._loading.submit(call))
        self._prints[name] = found

    async def _print(self, name: str) -> object:
        call = partial(fingerprint, self.sources[name], split_options(self.options)[0])
        return await asyncio.wrap_future(self._loading.submit(call))

    def model(self, name: str | None, version: str | None = None) -> Model:
        """A model by its name, the first one when None.

        Raises:
            Refusal: there is none of that name or version, or it is not loaded yet.
        """
        if name is None:
            name = next(iter(self.sources))
        if name not in self.sources:
            raise Refusal(404, f"There is no model {quoted(name, 60)}; expected {', '.join(self.sources)}.")
        if name not in self.models or self.batcher is None:
            raise busy(f"The model {name} is still being loaded.")
        model = self.models[name]
        if version is not None and version != str(model.version):
            raise Refusal(404, f"The model {name} has no version {quoted(version, 60)}; expected {model.version}.")
        return model

    # === Images ===

    def check_room(self) -> None:
        """Refuse a request before its body is read, if there is no room for an image.

        Raises:
            Refusal: 503.
        """
        if self.batcher is None:
            raise busy("The models are still being loaded.")
        if self.batcher.pending >= self.limits.max_queue:
            raise self._full()

    def _full(self) -> Refusal:
        return busy(f"{self.limits.max_queue} images are waiting already; try again later.")

    async def answer(
        self,
        task: Task,
        images: Sequence[Given],
        answer: Callable[[ModelOutput, int], T],
        watch: Callable[[], Awaitable[None]],
    ) -> list[T]:
        """Run a task over images and wait for the results, in order.

        Args:
            task: of a model.
            images: at least one.
            answer: (outputs of a batch, row) -> the result of one image.
            watch: returns when nobody waits for the results any more.

        Raises:
            Refusal: an image that cannot be used, no room, or no result in time.
        """
        if not images:
            raise Refusal(400, "The request has no image.")
        if len(images) > self.limits.max_queue:
            raise Refusal(413, f"The request has {len(images)} images; expected at most {self.limits.max_queue}.")
        assert self.batcher is not None
        jobs = [Job(partial(task.model.read, image, self.limits.max_pixels), task, answer) for image in images]
        try:
            self.batcher.submit(jobs)
        except Full:
            raise self._full() from None
        waiting, gone = asyncio.ensure_future(_all(jobs)), asyncio.ensure_future(watch())
        try:
            await asyncio.wait({waiting, gone}, timeout=self.limits.deadline, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if gone.done():
                raise Refusal(499, "The client left.")
            raise busy(f"The request was not answered within {self.limits.deadline:g} seconds.")
        finally:
            gone.cancel()
            waiting.cancel()
            for job in jobs:
                job.result.cancel()  # what is left is not computed any more
                if not job.result.cancelled():
                    job.result.exception()  # of several images the first one's is told

    def _observe(self, task: Any, size: int, seconds: float) -> None:
        self.metrics.batch(task.model.name, task.name, size, seconds)

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """What a function returns that would keep the event loop too long."""
        return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)

    # === The end ===

    async def stop(self) -> None:
        """Finish what was taken on, and let the threads end."""
        self.draining = True
        if self.batcher is not None:
            await self.batcher.drained()
            self.batcher.close()
        self._loading.stop()


async def _all(jobs: Sequence[Job]) -> list[Any]:
    """The results of jobs; a refusal says which of several images it is about."""
    found = []
    for index, job in enumerate(jobs):
        try:
            found.append(await job.result)
        except Refusal as refusal:
            which = f"Image {index} of {len(jobs)}: " if len(jobs) > 1 else ""
            raise Refusal(refusal.status, which + refusal.message, refusal.headers) from None
    return found


def now() -> float:
    """Seconds, to take the difference of two."""
    return time.perf_counter()
