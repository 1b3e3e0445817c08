"""Server-sent events, several streams side by side, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stretto.serving.answers import DONE
from stretto.serving.errors import ApiError

Event = dict[str, Any]


class Stream(Protocol):
    """One request in the engine (see ``engine.stream``)."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def follow(self, take: Callable[[Event], bool]) -> None:
        """Hand events to ``take`` at once while the reader waits for one, and to the reader if that returns False."""
        ...

    def close(self) -> None:
        """Abort it, if it has not ended."""
        ...


class ClientGone(Exception):
    """The client closed its connection; nobody waits for an answer."""


async def listening(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``work`` returns; cancel it and raise ``ClientGone`` when the client goes away first."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def side_by_side(streams: Sequence[Stream]) -> Events:
    """Return (number of the stream, event) as they come; raises what a stream raises. Its end closes all."""
    return Single(streams[0]) if len(streams) == 1 else _merged(streams)


class Events(Protocol):
    """Events of one or more streams."""

    def __aiter__(self) -> AsyncIterator[tuple[int, Event]]: ...

    async def aclose(self) -> None:
        """Close the streams."""
        ...


class Single:
    """One stream's events; a generator would take as long for each of them as all else."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._events = stream, aiter(stream)

    def __aiter__(self) -> Single:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        return 0, await anext(self._events)

    async def aclose(self) -> None:
        """Close the stream."""
        self._stream.close()


async def _merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Event], None]:
    try:
        box: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

        async def pump(number: int, stream: Stream) -> None:
            try:
                async for event in stream:
                    box.put_nowait((number, event))
            finally:
                box.put_nowait((number, None))

        tasks = [asyncio.ensure_future(pump(number, stream)) for number, stream in enumerate(streams)]
        try:
            left = len(tasks)
            while left:
                number, found = await box.get()
                if found is not None:
                    yield number, found
                    continue
                left -= 1
                await tasks[number]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for stream in streams:
            stream.close()


class EventStream(Response):
    """Sends pieces as they come. What goes wrong before the first is an ordinary error, behind it an event.

    All but the first message goes past the layers of the application, which would cost as much as the rest.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[str, None], follow: Callable[[Writer], None] | None = None) -> None:
        """``follow`` may send pieces past ``pieces`` while that waits for one."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._follow = pieces, follow
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await listening(receive, self._write(send, scope.get("state", {}).get("send", send)))
        except ClientGone:
            if not self._begun:  # else there is no status left to give
                raise

    async def _write(self, send: Send, direct: Send) -> None:
        pieces, writer = self._pieces, Writer(direct)
        try:
            async for piece in pieces:
                if not self._begun:
                    self._begun = True
                    await self._start(send)
                    if self._follow is not None:
                        self._follow(writer)
                await writer.send(piece)
            await writer.end(DONE)
        except ApiError as error:
            if not self._begun:
                raise
            await writer.end(f"data: {json.dumps(error.body)}\n\n".encode())
        finally:
            await pieces.aclose()

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})


class Writer:
    """Sends pieces of one answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.held: str | None = None
        """What could not be sent at once: the client reads too slowly. The next piece waits for it."""

    async def send(self, piece: str) -> None:
        """Send what was held and a piece, as soon as the client has read enough."""
        await self._flush()
        await self._send(_body(piece))

    async def end(self, last: bytes) -> None:
        """Send what was held and the last bytes of the answer."""
        await self._flush()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def send_now(self, piece: str) -> None:
        """Send a piece without waiting, or hold it where that cannot be; nothing must be held yet."""
        sending = self._send(_body(piece)).__await__()
        try:
            next(sending)
        except StopIteration:
            return
        sending.close()
        self.held = piece

    async def _flush(self) -> None:
        if self.held is not None:
            held, self.held = self.held, None
            await self._send(_body(held))


def _body(piece: str) -> Event:
    return {"type": "http.response.body", "body": piece.encode(), "more_body": True}
