"""The soak: a server asked at random for a long time, by clients that go away or read slowly, its engine killed thrice.

Every exact method is drawn; every answer must be what ``LLM.generate`` says. At the end nothing may be left over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from cases import PROMPTS
from matrix import draft_name, exact_methods
from server import served

from stretto import LLM, SamplingParams
from stretto.engine.scheduler import Scheduler
from stretto.engine.stream import Stream
from stretto.recipes.table import RECIPES
from stretto.serving.fields import CompletionBody
from stretto.serving.metrics import Metrics
from stretto.serving.settings import Limits
from stretto.serving.wanted import Model, completion_wanted

MODEL, ROOM = "stretto-tiny", 2048
ENGINE: dict[str, Any] = {"dtype": "fp32", "weights": "fp32", "draft": draft_name(), "cache_tokens": ROOM}
METHODS = [name for name in exact_methods(False) if not RECIPES[name].brings]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 1.2, "logit_bias": {"200": 3.0, "190": 3.0}},  # many tokens that are parts of characters
    {"temperature": 0.9, "top_p": 0.9, "n": 2, "stop": [" the", "."]},
    {"temperature": 0.7, "regex": "(ab|cd){2,9}!"},
]
GROWTH = 64 << 20
"""Bytes by which a process may have grown from the third quarter of its time to the last."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what each of its samples must say: text and finish reason."""

    body: dict[str, Any]
    expected: list[tuple[str, str]]


@dataclass(slots=True)
class Found:
    """What a soak came to."""

    problems: list[str] = field(default_factory=list)
    done: int = 0
    resumed: int = 0
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    """Now and then: bytes of the server's process, which is this one, the engine's pid and its bytes."""


def made(llm: LLM, bodies: Sequence[dict[str, Any]]) -> list[Case]:
    """Return the requests with what the LLM itself says to them, by plain decoding."""
    model = Model(MODEL, llm.tokenizer, "plain", Limits(), llm.model.context)
    wanted = [completion_wanted(CompletionBody(**body), model) for body in bodies]
    params = [SamplingParams.from_dict(each.params) for each in wanted]
    done = llm.generate([each.prompts[0] for each in wanted], params, method="plain")
    cases = [Case(body, []) for body in bodies]
    for each in done:
        cases[each.prompt_index].expected.append((each.text, each.finish_reason))
    return cases


def short_and_long(llm: LLM, number: int) -> tuple[list[Case], list[Case]]:
    """Return many requests for a few tokens, and some for more, with log-probabilities that fill buffers."""
    chance = random.Random(number)
    short, long = [], []
    for seed in range(number):
        words = chance.choice(list(PROMPTS.values())).split(" ")
        prompt = " ".join(words[: chance.randint(4, len(words))])
        body = {"model": MODEL, "prompt": prompt, "seed": seed, **KINDS[seed % len(KINDS)]}
        short.append({**body, "max_tokens": chance.randint(2, 12)})
        if seed % 8 == 0:
            long.append({"model": MODEL, "prompt": prompt, "seed": seed, "max_tokens": 80, "ignore_eos": True})
    return made(llm, short), made(llm, long)


def asks_often(**options: Any) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(limits=limits, timeout=300, **options)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """Return all metrics by name and labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def resident(pid: int) -> int:
    """Return the resident bytes of a process, 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS")), 0)


async def ask(client: httpx.AsyncClient, case: Case, method: str, manner: str, chance: random.Random) -> str:
    """Return what is wrong with the answer, or nothing. ``manner``: whole, streamed, slow, gone."""
    texts, ends = ["" for _ in case.expected], ["" for _ in case.expected]
    body = {**case.body, "method": method, "stream": manner != "whole"}
    if manner == "slow":
        body["logprobs"] = 20
    left = chance.randrange(4) if manner == "gone" else -1
    if manner == "gone" and chance.random() < 0.5:
        try:
            async with asyncio.timeout(chance.uniform(0.01, 0.3)):
                await client.post("/v1/completions", json={**body, "stream": False})
        except TimeoutError:
            return ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            return f"status {response.status_code}: {(await response.aread()).decode()}"
        async for line in response.aiter_lines():
            told = json.loads(line.removeprefix("data: ")) if line.startswith(("{", "data: {")) else {}
            if "error" in told:
                return str(told["error"])
            for choice in told.get("choices", ()):
                texts[choice["index"]] += choice["text"]
                ends[choice["index"]] = choice["finish_reason"] or ""
            left -= bool(told)
            if left == 0:
                break
            if manner == "slow" and told:
                await asyncio.sleep(0.05)
    if manner == "gone":
        fine = all(expected.startswith(text) for text, (expected, _) in zip(texts, case.expected, strict=True))
    else:
        fine = list(zip(texts, ends, strict=True)) == case.expected
    return "" if fine else f"{texts}, {ends} where {case.expected} was expected"


async def soak(
    address: str, short: list[Case], long: list[Case], *, requests: int, kills: int = 0, clients: int = 48
) -> Found:
    """Ask that often, kill the engine that often in the first half of it, and look at what is left."""
    found, numbers = Found(), iter(range(requests))
    narrow = httpx.AsyncHTTPTransport(
        limits=httpx.Limits(max_connections=None), socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    )
    async with asks_often(base_url=address) as client, asks_often(base_url=address, transport=narrow) as slow:

        async def work() -> None:
            for number in numbers:
                chance = random.Random(number)
                manner = {7: "gone", 11: "slow"}.get(number % 20, chance.choice(["whole", "streamed"]))
                case, method = chance.choice(long if number % 20 in (7, 11) else short), chance.choice(METHODS)
                wrong = await ask(slow if manner == "slow" else client, case, method, manner, chance)
                if wrong:
                    found.problems.append(f"request {number}, {method}, {manner}, {case.body}: {wrong}")
                found.done += 1
                if number % max(1, requests // 200) == 0:
                    child = int((await gauges(client)).get("stretto_engine_pid", 0))
                    found.memory.append((resident(os.getpid()), child, resident(child)))

        async def kill() -> None:
            dead = {0}
            for turn in range(kills):
                while found.done < requests * (turn + 1) // 8:
                    await asyncio.sleep(0.01)
                while (pid := int((await gauges(client)).get("stretto_engine_pid", 0))) in dead:
                    await asyncio.sleep(0.05)
                dead.add(pid)
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(work())
            group.create_task(kill())
        found.problems += await left_over(client)
        counts = await gauges(client)
    found.resumed = int(counts["stretto_engine_resumed_total"])
    if counts["stretto_engine_deaths_total"] != kills or bool(found.resumed) != bool(kills):
        found.problems.append(f"{counts['stretto_engine_deaths_total']} deaths, {found.resumed} resumed, {kills} kills")
    if counts["stretto_requests_aborted_total"] < requests // 50:
        found.problems.append(f"only {counts['stretto_requests_aborted_total']} requests were aborted")
    last = found.memory[-1][1]
    for name, sizes in (
        ("server", [server for server, _, _ in found.memory]),
        ("engine", [size for _, pid, size in found.memory if pid == last]),
    ):
        if (grown := growth(sizes)) > GROWTH:
            found.problems.append(f"the {name}'s process grew by {grown >> 20} MiB")
    return found


async def left_over(client: httpx.AsyncClient) -> list[str]:
    """Return what an idle server still holds: every block must be free, or hold a prefix that nobody uses."""
    left: list[str] = []
    for _ in range(100):  # snapshots come twice a second
        counts = await gauges(client)
        left = [f"{counts[name]} of {name}" for name in ("stretto_requests_open", "stretto_running") if counts[name]]
        for model in ("target", "draft"):
            capacity, free, cached = (
                counts.get(f'stretto_cache_{what}{{model="{model}"}}', 0.0) for what in ("capacity", "free", "cached")
            )
            if free + 16 * cached != capacity:
                left.append(f"{model}: {capacity - free - 16 * cached} of {capacity} positions are lost")
        if not left:
            break
        await asyncio.sleep(0.1)
    else:
        return left
    # What is held by mistake and cached as well is seen by who needs all the room there is.
    prompt = list(range(300, 300 + ROOM - 64))
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "ignore_eos": True, "deadline_ms": 60_000}
    answer = await client.post("/v1/completions", json=body)
    ended = answer.json()["choices"][0]["finish_reason"] if answer.status_code == 200 else answer.text
    failed = [name for name in counts if re.search('^stretto_requests_total.*path="/v1.*status="5', name)]
    return ([] if ended == "length" else [f"a prompt that needs all the room: {ended}"]) + failed


def growth(sizes: Sequence[int]) -> int:
    """Return by how many bytes the last quarter lies above the one before."""
    quarter = len(sizes) // 4
    return int(median(sizes[-quarter:]) - median(sizes[-2 * quarter : -quarter])) if quarter else 0


@pytest.fixture(scope="module")
def cases(tiny: LLM) -> tuple[list[Case], list[Case]]:
    return short_and_long(tiny, 80)


@pytest.mark.parametrize("requests", [1000, pytest.param(20_000, marks=pytest.mark.long)])
def test_soak(cases: tuple[list[Case], list[Case]], requests: int):
    with served(process=True, engine=ENGINE) as address:
        found = asyncio.run(soak(address, *cases, requests=requests, kills=3))
    assert not found.problems, "\n".join(found.problems[:20])
    assert found.done == requests


def test_blocks_and_bytes_that_are_not_given_back_are_noticed(cases, monkeypatch: pytest.MonkeyPatch):
    """The control: an engine that keeps the blocks of whom left, a server that keeps something of every answer."""
    release, finished, kept = Scheduler._release, Metrics.finished, []

    def forgetful(self: Scheduler, request: Any) -> None:
        if request.finish == "abort":
            request.views.clear()
        release(self, request)

    def hoarding(self: Metrics, completion: Any) -> None:
        kept.append(b"x" * (5 << 20))
        finished(self, completion)

    monkeypatch.setattr(Scheduler, "_release", forgetful)
    monkeypatch.setattr(Metrics, "finished", hoarding)
    with served(engine=ENGINE) as address:
        told = "\n".join(asyncio.run(soak(address, *cases, requests=60, clients=8)).problems)
    assert "target" in told and "positions are lost" in told
    assert "the server's process grew" in told or not resident(os.getpid())


def test_a_stream_that_goes_on_a_token_too_early_is_noticed(cases, monkeypatch: pytest.MonkeyPatch):
    """The control: a resumption that forgets the last token of each sample."""
    monkeypatch.setattr(
        Stream,
        "resumption",
        lambda self: [(index, made.token_ids[:-1], made.logprobs[:-1]) for index, made in self.samples.items()],
    )
    with served(process=True, engine=ENGINE) as address:
        found = asyncio.run(soak(address, cases[1], cases[1], requests=24, kills=1, clients=12))
    assert found.resumed and any("was expected" in problem for problem in found.problems)
