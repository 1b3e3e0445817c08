"""Streams read at next to no cost, so that the reader is no part of what is measured: a long arrival, and overhead."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from report import quantile
from serving_servers import Server

from stretto import AsyncEngine
from stretto.serving.workload import Talk

IDLE_TOKENS = 48
"""Of each stream, over which its idle pace is taken."""
GOAL = 1.6
"""The goal for a token that the second run asks for, as a multiple of the idle median."""


@dataclass(slots=True)
class Times:
    """When a stream's events came."""

    seen: list[float] = field(default_factory=list)

    def gaps(self, since: float, until: float) -> list[float]:
        """Return the seconds before each event of that time."""
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return [late - early for early, late in pairs if since <= late <= until]


async def arrivals(server: Server, talk: Talk, params: dict[str, Any]) -> AsyncIterator[int]:
    """Ask for one streamed answer; yield how many events have come, as they come. Raises ``RuntimeError``."""
    place = urlsplit(server.url)
    messages = [{"role": "user", "content": talk[0]}]
    body = json.dumps({"model": server.model, "messages": messages, "stream": True, **params}).encode()
    head = f"POST {place.path}/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.partition(b"\r\n")[0]:
            raise RuntimeError(f"{server.name}: {status + await reader.read(1000)!r}")
        while data := await reader.read(1 << 16):
            if count := data.count(b"\n\n"):
                yield count
    finally:
        writer.close()


async def follow(server: Server, talk: Talk, params: dict[str, Any], times: Times) -> None:
    """Read one stream to its end, or until cancelled."""
    async with aclosing(arrivals(server, talk, params)) as counts:
        async for count in counts:
            times.seen += [time.perf_counter()] * count


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
        sent = time.perf_counter()
        async with aclosing(arrivals(server, newcomer, server.params(2))) as counts:
            await anext(counts)
        # What was held up until just now comes a little later.
        read, now = time.perf_counter(), [len(times.seen) for times in streams]
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
    """Time the same streams over HTTP and from an ``AsyncEngine`` in this process, alternately."""
    room = len(talks) * (len(prompts[0]) + tokens + 64)
    options: dict[str, Any] = {"weights": "int8", "threads": threads, "cache_tokens": room}
    params = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    seconds: dict[str, list[float]] = {"server": [], "engine": []}
    used: list[float] = []
    async with AsyncEngine(str(checkpoint), process=True, **options) as engine:

        async def pull(prompt: list[int]) -> None:
            async for _ in engine.submit(prompt, params, method="plain"):
                pass

        async def way(name: str) -> None:
            began, before = time.perf_counter(), server.cpu_seconds()
            if name == "server":
                await asyncio.gather(*(follow(server, talk, server.params(tokens), Times()) for talk in talks))
            else:
                await asyncio.gather(*map(pull, prompts))
            seconds[name].append(time.perf_counter() - began)
            after = server.cpu_seconds()
            if name == "server" and before is not None and after is not None:
                used.append(after - before)

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
    }
