"""``AsyncEngine``: many callers of one engine, from asyncio. Its border is crossed by plain data only.

The engine is a worker in a thread or in a process of its own. Of every request this side keeps what was asked, the
seed and what has come back, which is all that the rest of its text depends on: another engine can go on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from typing import Any

from stretto.core.params import SamplingParams
from stretto.engine.errors import EngineDied, Overloaded, loading_error
from stretto.engine.line import Line
from stretto.engine.stream import Message, Stream
from stretto.engine.supervisor import Limits, Record, StepWatch, judge, suspects
from stretto.engine.transport import ProcessTransport, ThreadTransport, Transport, plain
from stretto.tokens.tokenizer import Tokenizer

log = logging.getLogger("stretto")

GRACE = 1.0
"""Seconds that the engine has to end a request that was told to end, before it is ended on this side."""
PATIENCE = 5.0
"""Seconds that an engine has to stop between two steps."""
LOOK_EVERY = 0.25
"""Seconds between two looks at the step at hand."""


class AsyncEngine:
    """Runs an ``LLM`` for many tasks; further keyword arguments are those of ``LLM``.

    ``process``: in a process of its own, whose death its requests survive; else in a thread. ``init``:
    ``module:function`` that is called before the model loads, to register masks and methods where the engine runs.
    ``max_waiting``: requests that may wait for their first step. Use as ``async with AsyncEngine(...) as engine``, or
    call ``start`` and ``stop``.
    """

    def __init__(
        self,
        model: str = "stretto-tiny",
        *,
        process: bool = False,
        init: str | None = None,
        max_waiting: int = 1024,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        self._model, self._options, self._init = model, options, init
        self._kind = ProcessTransport if process else ThreadTransport
        self._limits = limits or Limits()
        self._line = Line(max_waiting, self._send)
        self._streams: dict[int, Stream] = {}
        self._ids = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Transport | None = None
        self._ready: dict[Transport, asyncio.Future[Message]] = {}
        """Workers that are loading."""
        self._changing = asyncio.Lock()
        """Held while one worker takes another's place."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._record = Record(self._limits)
        self._info: Message = {}
        self._snapshot: Message = {}
        self._batch: list[int] = []
        self._counts = dict.fromkeys(("submitted", "finished", "rejected", "timeouts", "aborted", "failed"), 0)
        self._restarts = self._resumed = 0
        self.tokenizer: Tokenizer | None = None
        """This side's own, so that nobody waits for the engine to encode a text; None before ``start``."""

    async def __aenter__(self) -> AsyncEngine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the model. Raises what ``LLM`` raises, and ``RuntimeError`` when it is already running."""
        if self.alive:
            raise RuntimeError("the engine is already running: call stop() first")
        self._loop, self._draining = asyncio.get_running_loop(), False
        worker = await self._load()
        self.tokenizer = await asyncio.to_thread(Tokenizer.load, self._info["folder"])
        self._adopt(worker)
        self._do(self._watch())

    async def stop(self) -> None:
        """Stop the engine; requests still running end with an error."""
        for task in self._tasks:
            task.cancel()
        workers = [*self._ready, *([] if self._worker is None else [self._worker])]
        self._worker, self._line.open = None, False
        for stream in list(self._streams.values()):
            self._fail(stream, "the engine was stopped")
        for worker in workers:
            await asyncio.to_thread(worker.stop, PATIENCE)
        self._loop = None

    @property
    def alive(self) -> bool:
        """Whether it was started and not stopped. A worker that is being replaced changes nothing in that."""
        return self._loop is not None

    @property
    def why_not_ready(self) -> str | None:
        """Why no further requests should come now, in words; None when they may."""
        if self._loop is None:
            return "the engine is not running"
        if self._draining:
            return "the engine is being drained"
        if self._worker is None:
            return f"the engine is being started again: {self._record.last}" if self._record.deaths else "loading"
        return self._record.why(time.monotonic())

    def open(
        self,
        prompt: str | Sequence[int] | None = None,
        params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        method: str | None = None,
        timeout_ms: float | None = None,
        reply: bool = False,
    ) -> Stream:
        """Queue one request and return the stream of its events (see ``engine.host``), to be closed by its reader.

        ``timeout_ms`` from now its samples end with finish reason ``timeout`` and what they have written. ``reply``
        asks for the completion's ``reply`` where the prompt is a conversation that was rendered before; ``tools`` then
        tells whether any were offered. Raises ``Overloaded`` when too many wait, ``ValueError`` for what is not plain
        data, ``RuntimeError`` when the engine takes no requests. The stream raises ``ValueError`` when the request is
        refused and ``EngineDied`` when it cannot go on.
        """
        if self._loop is None:
            raise RuntimeError("the engine is not running: call start() first, or use `async with`")
        if self._draining:
            raise RuntimeError("the engine is being drained: it takes no further requests")
        asked = params.to_dict() if isinstance(params, SamplingParams) else dict(params or {})
        if asked.get("seed") is None:
            asked["seed"] = secrets.randbits(63)
        number = next(self._ids)
        message: Message = {"op": "submit", "id": number, "params": asked, "method": method, "reply": reply}
        if tools is not None:
            message["tools"] = [dict(tool) for tool in tools]
        if messages is not None:
            message["messages"] = [dict(entry) for entry in messages]
        else:
            message["prompt"] = prompt if isinstance(prompt, str) else list(prompt or ())
        plain(message)
        try:
            self._line.check(time.monotonic())
        except Overloaded:
            self._counts["rejected"] += 1
            raise
        stream = self._streams[number] = Stream(number, message, self._close)
        if timeout_ms is not None:
            stream.timer = self._loop.call_later(timeout_ms / 1e3, self._halt, stream, "timeout")
        self._counts["submitted"] += 1
        self._line.add(stream)
        return stream

    async def submit(
        self,
        prompt: str | Sequence[int] | None = None,
        params: SamplingParams | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Message]:
        """Yield the events of one request until all its samples have ended; arguments and errors are those of ``open``.

        Closing the iterator early aborts the request.
        """
        with self.open(prompt, params, **options) as stream:
            async for event in stream:
                yield event

    def abort(self, number: int) -> None:
        """End a request by the ``id`` that its events carry; its stream gets its last event."""
        stream = self._streams.get(number)
        if stream is not None:
            self._halt(stream, "abort")

    def info(self) -> Message:
        """Return what the engine is: model, fingerprint, context, methods and so on (``engine/snapshot.py``)."""
        return {**self._info, "process": self._kind is ProcessTransport}

    def stats(self) -> Message:
        """Return how it fares: the worker's last snapshot (at most half a second old), and this side's own counts."""
        return {
            "engine": self._snapshot,
            "requests": {"open": len(self._streams), "waiting": self._line.waiting, **self._counts},
            "deaths": self._record.deaths,
            "restarts": self._restarts,
            "resumed": self._resumed,
            "why_not_ready": self.why_not_ready,
        }

    async def tokenize(self, text: str) -> list[int]:
        """Return the text's token ids. ``ValueError`` when the checkpoint has no tokenizer."""
        return await asyncio.to_thread(self._speaker().encode, text)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of the token ids. ``ValueError`` when the checkpoint has no tokenizer."""
        return await asyncio.to_thread(self._speaker().decode, list(token_ids))

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the conversation's token ids (see ``LLM.encode_chat``); its prompt is then opened with ``reply``."""
        tokenizer = self._speaker()
        return await asyncio.to_thread(lambda: tokenizer.encode_chat(messages, tools=tools))

    async def restart(self) -> None:
        """Load a second engine, and let every request go on in it. Nothing changes when it does not load.

        Both are in memory for a while. Raises what ``LLM`` raises, and ``RuntimeError`` when the checkpoint is not the
        same any more: begun texts would not be.
        """
        if self._kind is not ProcessTransport:
            raise RuntimeError("only an engine in a process of its own can be restarted: use AsyncEngine(process=True)")
        async with self._changing:
            fingerprint = self._info["fingerprint"]
            worker = await self._load()
            if self._info["fingerprint"] != fingerprint and self._streams:
                await asyncio.to_thread(worker.stop, PATIENCE)
                raise RuntimeError("the checkpoint is not the one that requests began with: drain the engine first")
            self._restarts += 1
            before = self._worker
            self._adopt(worker)
        if before is not None:
            await asyncio.to_thread(before.stop, PATIENCE)

    async def drain(self, timeout: float | None = None) -> int:
        """Take no further requests and wait until those that are here have ended; return how many have not.

        ``timeout``: seconds to wait at most.
        """
        self._draining = True
        until = None if timeout is None else time.monotonic() + timeout
        while self._streams and (until is None or time.monotonic() < until):
            await asyncio.sleep(0.02)
        return len(self._streams)

    # What follows runs in the loop's thread.

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self) -> Transport:
        """Return a new worker that has loaded the model. Raises what ``LLM`` raises."""
        assert self._loop is not None
        worker: Transport = self._kind(self._model, self._options, self._init, self._post)
        ready = self._ready[worker] = self._loop.create_future()
        try:
            await asyncio.to_thread(worker.start)
            info = await asyncio.wait_for(ready, self._limits.loading_seconds)
        except BaseException:
            worker.kill("it was not waited for")
            raise
        finally:
            del self._ready[worker]
        self._info = info
        # A later one must hold what this one holds, though this one fills the memory that it would measure.
        self._options = {**self._options, "cache_tokens": info["cache_tokens"]}
        return worker

    def _adopt(self, worker: Transport) -> None:
        """Let a loaded worker take up all requests."""
        self._worker, self._batch, self._snapshot = worker, [], {}
        for stream in self._streams.values():
            stream.resumed += stream.sent
            self._resumed += stream.sent
        self._line.start(list(self._streams.values()))

    def _post(self, worker: Transport, kind: str, payload: Any) -> None:
        """Take what a worker says, in its thread, over into the loop's."""
        loop = self._loop
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
        elif worker is not self._worker:
            return  # of one that has been replaced
        elif kind == "events":
            for event in payload:
                self._deliver(event)
            self._line.move()
        elif kind == "batch":
            self._batch = payload
            now = time.monotonic()
            for number in payload:
                stream = self._streams.get(number)
                if stream is not None and stream.began is None:
                    self._line.began(stream, now)
        elif kind == "stats":
            self._snapshot = payload
        elif kind == "ended":
            self._died(worker, payload)

    def _send(self, stream: Stream) -> None:
        assert self._worker is not None
        message = {**stream.message, "resume": stream.resumption()} if stream.resumed else stream.message
        stream.sent = True
        self._worker.send(message)

    def _deliver(self, event: Message) -> None:
        stream = self._streams.get(event["id"])
        if stream is None:
            return
        if "error" in event:
            self._fail(stream, ValueError(event["error"]))
            return
        stream.put(event)
        if not stream.samples:
            self._counts["finished"] += 1
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        """Let go of a request that is over; its reader still reads what there is to read."""
        if self._streams.pop(stream.id, None) is not None:
            if stream.timer is not None:
                stream.timer.cancel()
            self._line.left(stream)

    def _fail(self, stream: Stream, error: str | Exception) -> None:
        self._counts["failed"] += 1
        stream.fail(error if isinstance(error, Exception) else EngineDied(error))
        self._forget(stream)

    def _close(self, stream: Stream) -> None:
        """Its reader is gone."""
        if stream.id in self._streams:
            self._counts["aborted"] += 1
            self._tell_abort(stream, "abort")
            stream.samples.clear()
            self._forget(stream)

    def _halt(self, stream: Stream, finish: str) -> None:
        """End a request before its time: the engine says the last word, if it does so soon."""
        if stream.ending is None and stream.id in self._streams:
            assert self._loop is not None
            stream.ending = finish
            self._counts["timeouts" if finish == "timeout" else "aborted"] += 1
            self._tell_abort(stream, finish)
            grace = GRACE if stream.sent and self._worker is not None else 0.0
            self._loop.call_later(grace, self._conclude, stream)

    def _tell_abort(self, stream: Stream, finish: str) -> None:
        if self._worker is not None and stream.sent:
            self._worker.send({"op": "abort", "id": stream.id, "reason": finish})

    def _conclude(self, stream: Stream) -> None:
        if stream.id in self._streams:
            stream.conclude(stream.ending or "abort", self._info, self.tokenizer)
            self._forget(stream)

    def _died(self, worker: Transport, reason: str) -> None:
        """Find out who is to blame, and go on with the others in a new worker."""
        self._worker, self._line.open = None, False
        if worker.lasting:
            for stream in list(self._streams.values()):
                self._fail(stream, reason)
            self._loop = None
            return
        log.warning("%s; its %d requests go on in a new one", reason, len(self._streams))
        self._record.died(time.monotonic(), reason)
        for stream in judge(self._streams.values(), suspects(worker.pulse, self._batch)):
            self._fail(
                stream,
                "the engine died twice while it was at work on this request, which had gained nothing in between: "
                f"it is not tried again. The last time {reason}",
            )
        for stream in [each for each in self._streams.values() if each.ending is not None]:
            self._conclude(stream)
        self._do(self._revive())

    async def _revive(self) -> None:
        """Load until a model stands."""
        pause = 0.0
        async with self._changing:
            fingerprint = self._info["fingerprint"]
            while self._worker is None:
                await asyncio.sleep(pause)
                pause = min(max(1.0, 2 * pause), self._limits.longest_pause)
                try:
                    worker = await self._load()
                except Exception as error:
                    log.warning("the engine does not load: %s", error)
                    self._record.died(time.monotonic(), str(error))
                    continue
                self._restarts += 1
                if self._info["fingerprint"] != fingerprint:
                    for stream in [each for each in self._streams.values() if each.sent]:
                        self._fail(stream, "the checkpoint was changed while the engine was down: ask again")
                self._adopt(worker)

    async def _watch(self) -> None:
        """Look at the step at hand now and then; one that takes too long is a death."""
        interval = min(LOOK_EVERY, self._limits.slow_seconds / 8)
        watched, steps = self._worker, StepWatch(self._limits, interval)
        while True:
            await asyncio.sleep(interval)
            if self._worker is not watched:
                watched, steps = self._worker, StepWatch(self._limits, interval)
            late = None if watched is None else steps.look(watched.pulse, time.monotonic())
            if late is not None and watched is not None:
                watched.kill(late)

    def _speaker(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{self._model} has no tokenizer, or is not loaded: use token ids")
        return self.tokenizer
