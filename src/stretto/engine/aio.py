"""``AsyncEngine``: many callers of one engine, from asyncio. Its border is crossed by plain data only.

The engine is a worker in a thread or in a process of its own. Of every request this side keeps what was asked, the
seed and what has come back, which is all that the rest of its text depends on: another engine can go on with it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from stretto.core.params import SamplingParams
from stretto.engine.errors import EngineDied, Overloaded
from stretto.engine.keeper import Keeper
from stretto.engine.line import Line
from stretto.engine.stream import Message, Stream
from stretto.engine.supervisor import Limits, judge, suspects
from stretto.engine.transport import ProcessTransport, ThreadTransport, Transport, plain
from stretto.tokens.tokenizer import Tokenizer

GRACE = 1.0
"""Seconds that the engine has to end a request that was told to end, before it is ended on this side."""


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
        self._model, self._process = model, process
        kind = ProcessTransport if process else ThreadTransport
        self._keeper = Keeper(partial(kind, model, init), options, limits or Limits(), self)
        self._line = Line(max_waiting, self._send)
        self._streams: dict[int, Stream] = {}
        self._ids = count()
        self._draining = False
        self._snapshot: Message = {}
        self._batch: list[int] = []
        self._counts = dict.fromkeys(("submitted", "finished", "rejected", "timeouts", "aborted", "failed"), 0)
        self._resumed = 0
        self.tokenizer: Tokenizer | None = None
        """This side's own, so that nobody waits for the engine to encode a text; None before ``start``."""

    async def __aenter__(self) -> AsyncEngine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the model. Raises what ``LLM`` raises, and ``RuntimeError`` when it is already running."""
        self._draining = False
        await self._keeper.start()
        self.tokenizer = await asyncio.to_thread(Tokenizer.load, self._keeper.info["folder"])

    async def stop(self) -> None:
        """Stop the engine; requests still running end with an error."""
        self._line.open = False
        for stream in list(self._streams.values()):
            self._fail(stream, "the engine was stopped")
        await self._keeper.stop()

    @property
    def alive(self) -> bool:
        """Whether it has been loaded and not stopped. A worker that is being replaced changes nothing in that."""
        return self._keeper.loop is not None and bool(self._keeper.info)

    @property
    def why_not_ready(self) -> str | None:
        """Why no further requests should come now, in words; None when they may."""
        draining = self.alive and self._draining
        return "the engine is being drained" if draining else self._keeper.why_not_ready()

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
        loop = self._keeper.loop
        if loop is None or not self.alive:
            raise RuntimeError("the engine is not running: call start() first, or use `async with`")
        if self._draining:
            raise RuntimeError("the engine is being drained: it takes no further requests")
        if timeout_ms is not None and not 0 < timeout_ms < math.inf:
            raise ValueError(f"timeout_ms={timeout_ms!r}: expected milliseconds above 0; leave it out for no deadline")
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
            stream.timer = loop.call_later(timeout_ms / 1e3, self._halt, stream, "timeout")
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
        return {**self._keeper.info, "process": self._process}

    def stats(self) -> Message:
        """Return how it fares: the worker's last snapshot (at most half a second old), and this side's own counts."""
        return {
            "engine": self._snapshot,
            "requests": {"open": len(self._streams), "waiting": self._line.waiting, **self._counts},
            "deaths": self._keeper.record.deaths,
            "restarts": self._keeper.restarts,
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
        if not self._process or not self.alive:
            raise RuntimeError("only a running engine in a process of its own can be restarted: use process=True")
        await self._keeper.replace()

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

    def take_up(self, same: bool) -> None:
        """Let a new worker have all requests (see ``Client``)."""
        if not same:
            for stream in [each for each in self._streams.values() if each.sent or each.resumed]:
                self._fail(stream, "the checkpoint was changed while the engine was down: ask again")
        self._batch, self._snapshot = [], {}
        for stream in self._streams.values():
            stream.resumed += stream.sent
            self._resumed += stream.sent
            stream.sent = False
        self._line.start(list(self._streams.values()))

    def hear(self, kind: str, payload: Any) -> None:
        """Take what the worker says (see ``Client``)."""
        if kind == "events":
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

    def lost(self, worker: Transport, reason: str) -> None:
        """Find out who is to blame for the worker's death; the others go on in the next one (see ``Client``)."""
        self._line.open = False
        if worker.lasting:
            for stream in list(self._streams.values()):
                self._fail(stream, reason)
            return
        for stream in judge(self._streams.values(), suspects(worker.pulse, self._batch)):
            self._fail(
                stream,
                "the engine died twice while it was at work on this request, which had gained nothing in between: "
                f"it is not tried again. The last time {reason}",
            )
        for stream in [each for each in self._streams.values() if each.ending is not None]:
            self._conclude(stream)

    def _send(self, stream: Stream) -> None:
        worker = self._keeper.worker
        assert worker is not None
        message = {**stream.message, "resume": stream.resumption()} if stream.resumed else stream.message
        stream.sent = True
        worker.send(message)

    def _deliver(self, event: Message) -> None:
        stream = self._streams.get(event["id"])
        if stream is None:
            return
        if "error" in event:
            self._fail(stream, ValueError(event["error"]))
            return
        stream.put(event)
        if not stream.samples:
            self._counts["finished"] += stream.ending is None
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
            loop = asyncio.get_running_loop()
            stream.ending = finish
            self._counts["timeouts" if finish == "timeout" else "aborted"] += 1
            self._tell_abort(stream, finish)
            grace = GRACE if stream.sent and self._keeper.worker is not None else 0.0
            loop.call_later(grace, self._conclude, stream)

    def _tell_abort(self, stream: Stream, finish: str) -> None:
        worker = self._keeper.worker
        if worker is not None and stream.sent:
            worker.send({"op": "abort", "id": stream.id, "reason": finish})

    def _conclude(self, stream: Stream) -> None:
        if stream.id in self._streams:
            finish = stream.ending or "abort"
            self._tell_abort(stream, finish)  # the engine at hand may have got it behind the one that was told
            stream.conclude(finish, self._keeper.info, self.tokenizer)
            self._forget(stream)

    def _speaker(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{self._model} has no tokenizer, or is not loaded: use token ids")
        return self.tokenizer
