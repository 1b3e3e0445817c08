"""``AsyncEngine``: many callers of one engine, from asyncio. Its border is crossed by plain data only."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from typing import Any

from stretto.core.params import SamplingParams
from stretto.engine.host import Host, Message
from stretto.engine.llm import LLM


class AsyncEngine:
    """Runs an ``LLM`` in a thread of its own; keyword arguments are those of ``LLM``.

    Use as ``async with AsyncEngine(...) as engine``, or call ``start`` and ``stop``.
    """

    def __init__(self, model: str = "stretto-tiny", **options: Any) -> None:
        self._model, self._options = model, options
        self._inbox: queue.Queue[Message] = queue.Queue()
        self._streams: dict[int, asyncio.Queue[Message]] = {}
        self._ids = count()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> AsyncEngine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the model. Raises what ``LLM`` raises, and ``RuntimeError`` when it is already running."""
        if self._alive:
            raise RuntimeError("the engine is already running: call stop() first")
        self._inbox = queue.Queue()
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="stretto-engine", daemon=True)
        self._thread.start()
        await ready

    async def stop(self) -> None:
        """Stop the engine; requests still running end with an error."""
        if self._thread is not None:
            self._inbox.put({"op": "stop"})
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def submit(
        self,
        prompt: str | Sequence[int] | None = None,
        params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        method: str | None = None,
    ) -> AsyncIterator[Message]:
        """Yield events (see ``engine.host``) of one request until all its samples have ended.

        Closing the iterator early aborts the request. Raises ``ValueError`` when the request is refused and
        ``RuntimeError`` when the engine stops underneath it.
        """
        if not self._alive:
            raise RuntimeError("the engine is not running: call start() first, or use `async with`")
        plain = params.to_dict() if isinstance(params, SamplingParams) else dict(params or {})
        number = next(self._ids)
        message: Message = {"op": "submit", "id": number, "params": plain, "method": method}
        if messages is not None:
            message["messages"] = [dict(entry) for entry in messages]
        else:
            message["prompt"] = prompt if isinstance(prompt, str) else list(prompt or ())
        left = max(1, plain["n"]) if isinstance(plain.get("n"), int) else 1
        stream = self._streams[number] = asyncio.Queue()
        self._inbox.put(message)
        try:
            while left:
                event = await stream.get()
                if "error" in event:
                    left = 0
                    raise (RuntimeError if event.get("fatal") else ValueError)(event["error"])
                left -= "completion" in event
                yield event
        finally:
            del self._streams[number]
            if left:
                self.abort(number)

    def abort(self, number: int) -> None:
        """End a request by the ``id`` that its events carry; its stream gets its last event."""
        self._inbox.put({"op": "abort", "id": number})

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, ready: asyncio.Future[None]) -> None:
        assert self._loop is not None
        loop = self._loop
        try:
            host = Host(LLM(self._model, **self._options), lambda event: self._call(self._deliver, event))
        except BaseException as error:
            loop.call_soon_threadsafe(ready.set_exception, error)
            return
        loop.call_soon_threadsafe(ready.set_result, None)
        try:
            host.serve(self._inbox)
            reason = "the engine was stopped"
        except Exception as error:
            reason = f"the engine failed: {type(error).__name__}: {error}"
        self._call(self._deliver_to_all, {"error": reason, "fatal": True})

    def _call(self, function: Any, event: Message) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, event)

    def _deliver(self, event: Message) -> None:
        stream = self._streams.get(event["id"])
        if stream is not None:
            stream.put_nowait(event)

    def _deliver_to_all(self, event: Message) -> None:
        for stream in self._streams.values():
            stream.put_nowait(event)
