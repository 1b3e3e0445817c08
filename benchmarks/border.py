"""What the border of ``AsyncEngine`` costs: throughput beside the LLM's own, and the caller's CPU time per token.

    python benchmarks/border.py [--model MODEL] [--streams 1 16 64] [--tokens 128] [--rounds 5]

Plain decoding. The three ways (the LLM itself, a thread, a process) run the same requests in alternation; the figures
are medians over the rounds. *CPU* is that of the calling process alone, per token that came out of a stream, and so is
meaningful for the engine in a process of its own only.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from report import environment

from stretto import LLM, AsyncEngine, SamplingParams

PROMPT = "Once upon a time there was a king who had three sons"


def asked(streams: int, tokens: int) -> list[SamplingParams]:
    return [SamplingParams(seed=seed, max_tokens=tokens, ignore_eos=True) for seed in range(streams)]


def own(llm: LLM, params: list[SamplingParams]) -> None:
    llm.generate([PROMPT] * len(params), params, method="plain")


async def streamed(engine: AsyncEngine, params: list[SamplingParams]) -> None:
    async def read(each: SamplingParams) -> None:
        async for event in engine.submit(PROMPT, each, method="plain"):
            assert event["id"] >= 0

    await asyncio.gather(*map(read, params))


def run(loop: asyncio.AbstractEventLoop, engine: AsyncEngine, params: list[SamplingParams]) -> None:
    loop.run_until_complete(streamed(engine, params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stretto-tiny")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    print("\n| streams | LLM, tokens/s | thread | process | CPU of the caller, µs/token |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    capacity = max(options.streams) * (options.tokens + 64)
    settings: dict[str, Any] = {"cache_tokens": capacity, "threads": options.threads}
    llm, loop = LLM(options.model, **settings), asyncio.new_event_loop()
    engines = [AsyncEngine(options.model, process=process, **settings) for process in (False, True)]
    for engine in engines:
        loop.run_until_complete(engine.start())
    for streams in options.streams:
        params = asked(streams, options.tokens)
        ways: list[Callable[[], None]] = [
            partial(own, llm, params),
            *(partial(run, loop, engine, params) for engine in engines),
        ]
        seconds: list[list[float]] = [[], [], []]
        cpu: list[float] = []
        for _ in range(options.rounds + 1):  # the first does not count
            for way, mine in zip(ways, seconds, strict=True):
                began, used = time.perf_counter(), time.process_time()
                way()
                mine.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)  # of the process, which comes last
        tokens = streams * options.tokens
        rates = " | ".join(f"{tokens / median(mine[1:]):.0f}" for mine in seconds)
        print(f"| {streams} | {rates} | {median(cpu[1:]) / tokens * 1e6:.1f} |", flush=True)
    for engine in engines:
        loop.run_until_complete(engine.stop())


if __name__ == "__main__":
    main()
