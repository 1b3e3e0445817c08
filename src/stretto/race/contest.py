"""Running methods on the same prompts in alternation, each time from a cold start, and keeping what each run took."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from stretto.core.request import Request
from stretto.engine.completion import complete
from stretto.engine.llm import LLM
from stretto.race.prompts import Asked

PLAIN = "plain"
LOOK = 2.0
"""Seconds between two looks at a run under way."""


@dataclass(slots=True)
class Answer:
    """What one request of a run came to."""

    tokens: list[int]
    ttft_ms: float | None
    total_ms: float
    gains: list[int]
    """Tokens that each step added, in order; the first step is the end of the prompt."""
    drafts: dict[str, list[list[int]]]
    """By drafter and depth: [checked, accepted] tokens."""
    origins: list[str]
    """Who drafted each token (see ``Stats.origins``)."""
    error: str | None


@dataclass(slots=True)
class Run:
    """One method on all prompts, once."""

    method: str
    concurrency: int
    round: int
    seconds: float
    parts: dict[str, float]
    """Milliseconds by part of the engine's steps."""
    steps: int
    rows: int
    cache_bytes: int
    """Largest use of the caches of all models."""
    answers: list[Answer]
    """In the order of the prompts."""
    warnings: list[str]

    @property
    def tokens(self) -> int:
        """Generated tokens, all prompts together."""
        return sum(len(answer.tokens) for answer in self.answers)

    @property
    def speed(self) -> float:
        """Tokens per second of wall time."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class Contest:
    """What is raced on what, and the runs so far. ``watch`` is called between runs and now and then within one."""

    llm: LLM
    asked: Sequence[Asked]
    methods: Sequence[str]
    """``plain`` first."""
    concurrency: Sequence[int]
    rounds: int
    watch: Callable[[Contest, str], None]
    runs: list[Run] = field(default_factory=list)
    interrupted: bool = False

    def go(self) -> None:
        """Run every method at every concurrency, round after round; each round begins with another method.

        Ctrl-C ends it; the runs that were finished stand, and ``interrupted`` says so.
        """
        try:
            self._watched("a first look")
            for method in self.methods:
                self.run(method, 1, 0, self.asked[:1])  # brings memory in; tells early of a method that cannot run
            for number in range(self.rounds):
                turn = number % len(self.methods)
                for concurrency in self.concurrency:
                    for method in (*self.methods[turn:], *self.methods[:turn]):
                        self.runs.append(self.run(method, concurrency, number, self.asked))
                        self._watched(f"round {number + 1} of {self.rounds}")
        except KeyboardInterrupt:
            self.interrupted = True

    def run(self, method: str, concurrency: int, number: int, asked: Sequence[Asked]) -> Run:
        """Answer the prompts by one method, ``concurrency`` at a time."""
        engine = self.llm.engine
        tenant = self._cold(method)
        parts, steps, rows = dict(engine.seconds), engine.steps, engine.rows
        waiting = deque(enumerate(asked))
        running: dict[int, tuple[int, Request]] = {}
        gains: dict[int, list[int]] = {}
        answers: dict[int, Answer] = {}
        used, aside = 0, 0.0
        with _warnings() as warnings:
            began = looked = time.perf_counter()
            try:
                while waiting or running:
                    while waiting and len(running) < concurrency:
                        place, each = waiting.popleft()
                        params = replace(each.params, tenant=tenant)
                        (request,) = self.llm.submit(each.ids, params, method)
                        running[request.id], gains[request.id] = (place, request), []
                    deltas = engine.step()
                    used = max(used, self._cache_bytes())
                    for delta in deltas:
                        if delta.request not in running:
                            continue
                        if delta.tokens:
                            gains[delta.request].append(len(delta.tokens))
                        if delta.finish is not None:
                            place, request = running.pop(delta.request)
                            answers[place] = _answer(request, gains[request.id])
                    if (now := time.perf_counter()) - looked > LOOK:
                        done = f"{len(answers)} of {len(asked)} prompts"
                        self._watched(f"round {number + 1} of {self.rounds}, {method} at {concurrency}: {done}")
                        looked = time.perf_counter()
                        aside += looked - now  # showing it is not the method's time
            except BaseException:
                for number_ in list(running):
                    engine.abort(number_)
                raise
            seconds = time.perf_counter() - began - aside
        spent = {part: 1e3 * (engine.seconds[part] - before) for part, before in parts.items()}
        ordered = [answers[place] for place in range(len(asked))]
        steps, rows = engine.steps - steps, engine.rows - rows
        return Run(method, concurrency, number, seconds, spent, steps, rows, used, ordered, warnings)

    def _cold(self, method: str) -> str:
        """Build the method anew and forget all cached prefixes; return a tenant that nobody had before.

        So what a run finds in stores and caches is what this run put there.
        """
        engine = self.llm.engine
        if method in engine.methods:
            del engine.methods[method]
        self.llm.method(method)
        for cache in engine.caches.values():
            cache.forget()
        return f"race-{len(self.runs)}-{engine.steps}"

    def _cache_bytes(self) -> int:
        used = 0
        for cache in self.llm.engine.caches.values():
            taken = cache.capacity - cache.available()
            used += taken * sum(lane.bytes_per_token() for lane in cache.model.lanes)
        return used

    def _watched(self, text: str) -> None:
        self.watch(self, text)


def _answer(request: Request, gains: list[int]) -> Answer:
    done = complete(request, "", "")
    stats = done.stats
    drafts, origins = stats.get("drafts", {}), stats.get("origins", [])
    return Answer(done.token_ids, stats["ttft_ms"], stats["total_ms"], gains, drafts, origins, done.error)


class _Keep(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the engine's warnings, such as that of a drafter that is dropped, instead of printing them."""
    log, handler = logging.getLogger("stretto"), _Keep()
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield handler.kept
    finally:
        log.removeHandler(handler)
        log.propagate = before
