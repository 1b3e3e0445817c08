"""Keeps one worker at work: loads it, watches it, replaces it when it dies, or before, when it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from stretto.engine.errors import EngineDied, loading_error
from stretto.engine.supervisor import Limits, Record, StepWatch
from stretto.engine.transport import Message, Post, Transport

log = logging.getLogger("stretto")

PATIENCE = 5.0
"""Seconds that an engine has to stop between two steps."""
LOOK_EVERY = 0.25
"""Seconds between two looks at the step at hand."""

Make = Callable[[Message, Post], Transport]
"""Makes a transport from the options of ``LLM``."""


class Client(Protocol):
    """For whom a worker is kept. Called in the loop's thread."""

    def hear(self, kind: str, payload: Any) -> None:
        """Take what the worker says."""
        ...

    def take_up(self, same: bool) -> None:
        """Give a new worker all that is unfinished. ``same``: what was begun can go on in it."""
        ...

    def lost(self, worker: Transport, reason: str) -> None:
        """The worker has died, and another is being loaded if there can be one."""
        ...


class Keeper:
    """One worker at a time, and its successor while that is loading."""

    def __init__(self, make: Make, options: Message, limits: Limits, client: Client) -> None:
        self._make, self._options, self._limits, self._client = make, options, limits, client
        self.loop: asyncio.AbstractEventLoop | None = None
        """Set from the start to the end."""
        self.worker: Transport | None = None
        """None while there is none that has loaded its model."""
        self.info: Message = {}
        """What the last worker said of itself; empty before the first has."""
        self.record = Record(limits)
        self.restarts = 0
        self._ready: dict[Transport, asyncio.Future[Message]] = {}
        """Workers that are loading."""
        self._changing = asyncio.Lock()
        """Held while one worker takes another's place."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the model. Raises what ``LLM`` raises, and ``RuntimeError`` when it is already running."""
        if self.loop is not None:
            raise RuntimeError("the engine is already running: call stop() first")
        self.loop = asyncio.get_running_loop()
        try:
            self._adopt(*await self._load())
        except BaseException:
            self.loop = None
            raise
        self._do(self._watch())

    async def stop(self) -> None:
        """End the worker, and those that are loading."""
        worker = self.worker
        self.end()
        for loading in list(self._ready):
            loading.kill("the engine was stopped")
        if worker is not None:
            await asyncio.to_thread(worker.stop, PATIENCE)

    def end(self) -> None:
        """Keep nothing any more."""
        for task in self._tasks:
            task.cancel()
        self.loop, self.worker, self.info = None, None, {}

    async def replace(self) -> None:
        """Change to a new worker, which loads while the old one works. Raises what ``LLM`` raises.

        ``RuntimeError`` when the checkpoint is not the same any more.
        """
        async with self._changing:
            worker, info = await self._load()
            if info["fingerprint"] != self.info["fingerprint"]:
                await asyncio.to_thread(worker.stop, PATIENCE)
                raise RuntimeError("the checkpoint is not the one that the engine began with: stop the engine first")
            before = self.worker
            self.restarts += 1
            self._adopt(worker, info)
        if before is not None:
            await asyncio.to_thread(before.stop, PATIENCE)

    def why_not_ready(self) -> str | None:
        """Return why no further requests should come now, in words; None when they may."""
        if self.loop is None:
            return "the engine is not running"
        if self.worker is None:
            return f"the engine is being started again: {self.record.last}" if self.info else "the engine is loading"
        return self.record.why(time.monotonic())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self) -> tuple[Transport, Message]:
        """Return a new worker that has loaded the model, and what it is. Raises what ``LLM`` raises."""
        assert self.loop is not None
        worker = self._make(self._options, self._post)
        ready = self._ready[worker] = self.loop.create_future()
        try:
            await asyncio.to_thread(worker.start)
            info = await asyncio.wait_for(ready, self._limits.loading_seconds)
            if self.loop is None:
                raise EngineDied("the engine was stopped")
        except BaseException as error:
            worker.kill("it was not waited for")
            if isinstance(error, TimeoutError):
                most = self._limits.loading_seconds
                raise EngineDied(f"the model was not loaded within {most:.0f} s, which is all it may take") from None
            raise
        finally:
            del self._ready[worker]
        # A later one must hold what this one holds, though this one fills the memory that it would measure.
        self._options = {**self._options, "cache_tokens": info["cache_tokens"]}
        return worker, info

    def _adopt(self, worker: Transport, info: Message) -> None:
        same = self.info.get("fingerprint") in (None, info["fingerprint"])
        self.worker, self.info = worker, info
        self._client.take_up(same)

    def _post(self, worker: Transport, kind: str, payload: Any) -> None:
        """Take what a worker says, in its thread, over into the loop's."""
        loop = self.loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop may be closed in between
                loop.call_soon_threadsafe(self._receive, worker, kind, payload)

    def _receive(self, worker: Transport, kind: str, payload: Any) -> None:
        ready = self._ready.get(worker)
        if ready is not None and not ready.done():
            if kind == "ready":
                ready.set_result(payload)
            elif kind == "failed":
                ready.set_exception(loading_error(*payload))
            else:
                ready.set_exception(EngineDied(f"the engine died while it was loading: {payload}"))
        elif worker is not self.worker:
            return  # of one that has been replaced
        elif kind == "ended":
            self._lost(worker, payload)
        else:
            self._client.hear(kind, payload)

    def _lost(self, worker: Transport, reason: str) -> None:
        self.worker = None
        if worker.lasting:
            self.end()
        else:
            log.warning("%s; another one is started", reason)
            self.record.died(time.monotonic(), reason)
            self._do(self._revive())
        self._client.lost(worker, reason)

    async def _revive(self) -> None:
        """Load until a model stands."""
        pause = 0.0
        async with self._changing:
            while self.worker is None:
                await asyncio.sleep(pause)
                pause = min(max(1.0, 2 * pause), self._limits.longest_pause)
                try:
                    worker, info = await self._load()
                except Exception as error:
                    log.warning("the engine does not load: %s", error)
                    self.record.died(time.monotonic(), str(error))
                    continue
                self.restarts += 1
                self._adopt(worker, info)

    async def _watch(self) -> None:
        """Look at the step at hand now and then; one that takes too long is a death."""
        interval = min(LOOK_EVERY, self._limits.slow_seconds / 8)
        watched, steps = self.worker, StepWatch(self._limits, interval)
        while True:
            await asyncio.sleep(interval)
            if self.worker is not watched:
                watched, steps = self.worker, StepWatch(self._limits, interval)
            late = None if watched is None else steps.look(watched.pulse, time.monotonic())
            if late is not None and watched is not None:
                watched.kill(late)
