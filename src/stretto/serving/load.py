"""A load generator for any server of OpenAI's protocol: arrivals, what each request took, percentiles and goodput.

Open loop: requests arrive as a Poisson process of a rate, whatever becomes of those before. Closed loop: so many
clients each ask again as soon as they are answered. Goodput is what meets the goals (DistServe, arXiv 2401.09670).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from stretto.serving.workload import Talk

PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Taken:
    """What one request took: milliseconds, and tokens as the server counts them."""

    ttft: float = 0.0
    total: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    cached: int = 0
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Milliseconds of each token behind the first; None where there is none."""
        return (self.total - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None

    def meets(self, ttft: float | None, tpot: float | None) -> bool:
        """Whether it was answered within the goals."""
        slow = tpot is not None and self.tpot is not None and self.tpot > tpot
        return not self.error and not slow and (ttft is None or self.ttft <= ttft)


@dataclass(frozen=True, slots=True)
class Load:
    """How a server is asked. ``rate``: requests a second; None: ``concurrency`` clients in a closed loop."""

    url: str
    model: str
    key: str
    params: dict[str, Any]
    concurrency: int = 1
    rate: float | None = None
    seed: int = 0


async def put(
    load: Load, talks: Sequence[Talk], progress: Callable[[int], None] = lambda done: None
) -> tuple[list[Taken], float]:
    """Hold all conversations; return what each request took, and the seconds of all together."""
    found: list[Taken] = []
    rng = random.Random(load.seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"authorization": f"Bearer {load.key}"}
    async with httpx.AsyncClient(base_url=load.url, headers=headers, timeout=None, limits=limits) as client:

        async def hold(talk: Talk) -> None:
            said: list[dict[str, str]] = []
            for message in talk:
                said.append({"role": "user", "content": message})
                taken, text = await ask(client, load, said)
                found.append(taken)
                progress(len(found))
                if taken.error:
                    return
                said.append({"role": "assistant", "content": text})

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            if load.rate is not None:
                for talk in talks:
                    group.create_task(hold(talk))
                    await asyncio.sleep(rng.expovariate(load.rate))
            else:
                waiting = iter(talks)

                async def work() -> None:
                    for talk in waiting:
                        await hold(talk)

                for _ in range(load.concurrency):
                    group.create_task(work())
        return found, time.perf_counter() - began


async def ask(client: httpx.AsyncClient, load: Load, messages: Sequence[dict[str, str]]) -> tuple[Taken, str]:
    """Return what one streamed request took, and its text. What fails is told in ``error``."""
    taken, parts = Taken(), list[str]()
    body = {
        "model": load.model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.params,
    }
    began = time.perf_counter()
    try:
        async with client.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                taken.error = f"status {response.status_code}: {(await response.aread()).decode(errors='replace'):.200}"
                return taken, ""
            async for line in _lines(response):
                if line.startswith(b"data: {"):
                    _read(json.loads(line[6:]), taken, parts, (time.perf_counter() - began) * 1e3)
    except httpx.HTTPError as error:
        taken.error = f"{type(error).__name__}: {error}"
    except ValueError as error:
        taken.error = f"an event that is no JSON: {error}"
    taken.total = taken.total or (time.perf_counter() - began) * 1e3
    return taken, "".join(parts)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a stream of events. Only a newline ends one: ``aiter_lines`` ends them within texts too."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _read(piece: dict[str, Any], taken: Taken, parts: list[str], now: float) -> None:
    """Take one event of a stream into account, at ``now`` milliseconds."""
    if "error" in piece:
        taken.error = str(piece["error"])[:200]
    used = piece.get("usage")
    if used:
        taken.prompt_tokens, taken.tokens = used["prompt_tokens"], used["completion_tokens"]
        taken.cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in piece.get("choices") or ():
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("reasoning_content") or ""
        if text or choice.get("finish_reason"):
            taken.ttft = taken.ttft or now
            taken.total = now
        parts.append(delta.get("content") or "")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` percent of the values lie, between two where it falls between them."""
    listed = sorted(values)
    place = (len(listed) - 1) * share / 100
    low = int(place)
    high = min(low + 1, len(listed) - 1)
    return listed[low] + (listed[high] - listed[low]) * (place - low)


def summary(taken: Sequence[Taken], seconds: float, *, ttft: float | None, tpot: float | None) -> dict[str, Any]:
    """Return counts, rates a second, percentiles in milliseconds, and goodput: requests a second within the goals."""
    good = [each for each in taken if not each.error]
    met = sum(each.meets(ttft, tpot) for each in taken)
    told: dict[str, Any] = {
        "requests": len(taken),
        "failed": len(taken) - len(good),
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "prompt_tokens_per_second": sum(each.prompt_tokens for each in good) / seconds,
        "tokens_per_second": sum(each.tokens for each in good) / seconds,
        "cached_share": sum(each.cached for each in good) / max(1, sum(each.prompt_tokens for each in good)),
        "goals": {"ttft_ms": ttft, "tpot_ms": tpot},
        "within_goals": met / max(1, len(taken)),
        "goodput": met / seconds,
    }
    measured = {
        "ttft_ms": [each.ttft for each in good],
        "tpot_ms": [each.tpot for each in good if each.tpot is not None],
        "total_ms": [each.total for each in good],
    }
    for name, values in measured.items():
        told[name] = {f"p{share}": percentile(values, share) for share in PERCENTILES} if values else {}
    return told
