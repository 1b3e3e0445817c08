"""Streams read at next to no cost, so that the reader is no part of what is measured: a long arrival, and overhead."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import uvicorn
from report import quantile
from serving_servers import Server

from stretto import AsyncEngine
from stretto.serving.workload import Talk

IDLE_TOKENS = 48
"""Of each stream, over which its idle pace is taken."""
GOAL = 1.6
"""The goal for a token that the second run asks for, as a multiple of the idle median."""

TOLD = re.compile(rb'"completion_tokens": ?(\d+)')
"""How a stream's last event says how many tokens it had."""
ENDING = 2048
"""Bytes at a stream's end in which that stands."""

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run in the event loop that the server runs in: the fastest that is installed."""
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        return runner.run(work)


@contextmanager
def aside() -> Iterator[None]:
    """Interrupt nobody, where the system knows how: a reader on another machine would not interrupt the server."""
    if not hasattr(os, "SCHED_BATCH"):
        yield
        return
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


@dataclass(slots=True)
class Times:
    """When a stream's events came."""

    seen: list[float] = field(default_factory=list)
    tokens: int | None = None
    """How many tokens the server says it sent; None where it was not asked or had not got so far."""

    def gaps(self, since: float, until: float) -> list[float]:
        """Return the seconds before each event of that time."""
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return [late - early for early, late in pairs if since <= late <= until]


class Reader(asyncio.Protocol):
    """Asks for one streamed answer and notes when its events come: all that is done for each."""

    def __init__(self, server: Server, talk: Talk, params: dict[str, Any], times: Times) -> None:
        place = urlsplit(server.url)
        messages = [{"role": "user", "content": talk[0]}]
        body = json.dumps({"model": server.model, "messages": messages, "stream": True, **params}).encode()
        head = f"POST {place.path}/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
        head += f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        self.server, self._request, self._times = server, head.encode() + body, times
        self._head: bytes | None = b""
        self._ending = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note when this came."""
        if self._head is not None:
            self._head += data
            status, _, data = self._head.partition(b"\r\n\r\n")
            if not data:
                return
            if b" 200 " not in status.partition(b"\r\n")[0]:
                self.over.set_exception(RuntimeError(f"{self.server.name}: {self._head!r}"))
            self._head = None
        now = time.perf_counter()
        self._times.seen += [now] * data.count(b"\n\n")
        self._ending = (self._ending + data)[-ENDING:]

    def connection_lost(self, error: Exception | None) -> None:
        """The answer is over."""
        if told := TOLD.findall(self._ending):
            self._times.tokens = int(told[-1])
        if not self.over.done():
            self.over.set_result(None) if error is None else self.over.set_exception(error)


async def follow(server: Server, talk: Talk, params: dict[str, Any], times: Times) -> None:
    """Read one stream to its end, or until cancelled. Raises ``RuntimeError`` for what is no answer."""
    place = urlsplit(server.url)
    reader = Reader(server, talk, params, times)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: reader, place.hostname, place.port)
    try:
        await reader.over
    finally:
        transport.close()


async def long_arrival(server: Server, talks: Sequence[Talk], newcomer: Talk, params: dict[str, Any]) -> dict[str, Any]:
    """Return the milliseconds between tokens of running streams, before a long prompt comes and until it is read."""
    streams = [Times() for _ in talks]
    tasks = [
        asyncio.create_task(follow(server, talk, server.params(4096 // 4) | params, times))
        for talk, times in zip(talks, streams, strict=True)
    ]
    try:
        while any(not times.seen for times in streams):
            await _unless_over(tasks)
        began = time.perf_counter()
        most = max(len(times.seen) for times in streams)
        while any(len(times.seen) < most + IDLE_TOKENS for times in streams):
            await _unless_over(tasks)
        sent, first = time.perf_counter(), Times()
        tasks.append(asyncio.create_task(follow(server, newcomer, server.params(2), first)))
        while not first.seen:
            await asyncio.sleep(0.001)
            if tasks[-1].done() and not first.seen:
                tasks[-1].result()
        # What was held up until just now comes a little later.
        read, now = first.seen[0], [len(times.seen) for times in streams]
        while any(len(times.seen) == before for times, before in zip(streams, now, strict=True)):
            await _unless_over(tasks)
        idle = [1e3 * gap for times in streams for gap in times.gaps(began, sent)]
        during = [1e3 * gap for times in streams for gap in times.gaps(sent, time.perf_counter())]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    base = quantile(idle, 0.99)
    return {
        "server": server.name, "idle p50 ms": median(idle), "idle p99 ms": base, "p50 ms": median(during),
        "p99 ms": quantile(during, 0.99), "p99 / idle p99": quantile(during, 0.99) / base,
        "newcomer's ttft ms": 1e3 * (read - sent),
    }  # fmt: skip


async def _unless_over(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait a moment; raise ``RuntimeError`` when a stream has ended, which then was too short."""
    await asyncio.sleep(0.001)
    for task in tasks:
        if task.done():
            task.result()
            raise RuntimeError("a stream ended before the long prompt was read")


async def overhead(
    server: Server, checkpoint: Path, prompts: Sequence[list[int]], talks: Sequence[Talk], *, tokens: int, rounds: int,
    threads: int,
) -> dict[str, Any]:  # fmt: skip
    """Time the same streams over HTTP and from an ``AsyncEngine`` in this process, alternately.

    Raises ``RuntimeError`` where one has other than ``tokens`` tokens.
    """
    room = len(talks) * (len(prompts[0]) + tokens + 64)
    options: dict[str, Any] = {"weights": "int8", "threads": threads, "cache_tokens": room}
    params = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    asked = server.params(tokens) | {"stream_options": {"include_usage": True}}
    seconds: dict[str, list[float]] = {"server": [], "engine": []}
    used: list[float] = []
    reading: list[float] = []
    async with AsyncEngine(str(checkpoint), process=True, **options) as engine:

        async def pull(prompt: list[int]) -> int | None:
            made = 0
            async for piece in engine.submit(prompt, params, method="plain"):
                made += len(piece.get("token_ids", ()))
            return made

        async def read(talk: Talk) -> int | None:
            times = Times()
            await follow(server, talk, asked, times)
            return times.tokens

        async def way(name: str) -> None:
            began, before, mine = time.perf_counter(), server.cpu_seconds(), time.process_time()
            if name == "server":
                with aside():
                    found = await asyncio.gather(*map(read, talks))
            else:
                found = await asyncio.gather(*map(pull, prompts))
            seconds[name].append(time.perf_counter() - began)
            if set(found) != {tokens}:
                raise RuntimeError(f"{name}: answers of {found} tokens, {tokens} were asked for")
            after = server.cpu_seconds()
            if name == "server" and before is not None and after is not None:
                used.append(after - before)
                reading.append(time.process_time() - mine)

        for turn in range(rounds + 1):  # the first does not count
            for name in ("server", "engine") if turn % 2 else ("engine", "server"):
                await way(name)
    made = len(talks) * tokens
    pairs = zip(seconds["engine"][1:], seconds["server"][1:], strict=True)
    return {
        "concurrency": len(talks),
        "engine, tokens/s": made / median(seconds["engine"][1:]),
        "server, tokens/s": made / median(seconds["server"][1:]),
        "lost": 1 - median(alone / served for alone, served in pairs),
        "server's CPU, us/token": 1e6 * median(used[1:]) / made if used[1:] else None,
        "reader's CPU, us/token": 1e6 * median(reading[1:]) / made if reading[1:] else None,
    }
