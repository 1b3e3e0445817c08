"""Playing texts by one method and by another in alternation, every text held against the recorded one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import Any

from stretto import LLM
from stretto.core.request import Request
from stretto.race.record import Record
from stretto.race.replay import replay
from stretto.race.standing import Spread


@dataclass(slots=True)
class Played:
    """What a play took."""

    tokens: int
    """Generated behind each request's first one."""
    seconds: float
    """From the first submission to the last end."""
    decoding: float
    """From each request's first token to its last, summed: what is compared at batch 1, prompts left out."""
    steps: int

    @property
    def pace(self) -> float:
        """Seconds of decoding per token."""
        return self.decoding / max(1, self.tokens)


@dataclass(slots=True)
class Target:
    """A model that says recorded texts: its own, or those that it is made to replay."""

    name: str
    llm: LLM
    wrong: list[str] = field(default_factory=list)
    """Texts that were not the recorded ones: there must be none."""

    def fresh(self, method: str, *, prefixes: bool = False) -> None:
        """Build a method anew, with nothing learnt or stored; forget cached prefixes too unless they are kept.

        Prefixes of the draft model are forgotten in any case.
        """
        engine = self.llm.engine
        engine.methods.pop(method, None)
        self.llm.method(method)
        for name, cache in engine.caches.items():
            if not (prefixes and name == "target"):
                cache.forget()

    def forget(self) -> None:
        """Forget all cached prefixes."""
        for cache in self.llm.engine.caches.values():
            cache.forget()

    def play(self, records: Sequence[Record], method: str, *, together: bool = False) -> Played:
        """Say the texts by a method, one after the other or all at once, and hold them against the records."""
        played = Played(0, 0.0, 0.0, 0)
        groups = [records] if together else [[record] for record in records]
        for group in groups:
            engine = self.llm.engine
            before, began = engine.steps, perf_counter()
            requests = [self.llm.submit(list(each.asked.ids), each.asked.params, method)[0] for each in group]
            while any(request.finish is None for request in requests):
                engine.step()
            played.seconds += perf_counter() - began
            played.steps += engine.steps - before
            for request, record in zip(requests, group, strict=True):
                self._book(played, request, record, method)
        return played

    def _book(self, played: Played, request: Request, record: Record, method: str) -> None:
        """Book a text; one that is not the recorded one took for ever."""
        text, stats = request.tokens[len(request.prompt) :], request.stats
        if tuple(text) != record.tokens:
            what = request.error or "another text"
            self.wrong.append(f"({self.name}) {method}, {record.asked.category}, seed {request.seed}: {what}")
            played.seconds = played.decoding = inf
            return
        assert stats.first_token is not None and stats.finished is not None
        played.decoding += stats.finished - stats.first_token
        played.tokens += len(text) - 1


def replayed(name: str, llm: LLM, records: Sequence[Record]) -> Target:
    """Return a target that is made to say the records."""
    return Target(name, replay(llm, records))


@dataclass(slots=True)
class Ratios:
    """How much faster the first of two is, pair by pair."""

    values: list[float] = field(default_factory=list)

    def cells(self, name: str = "ratio") -> dict[str, Any]:
        """Return median and 90 % interval for a table."""
        spread = Spread.of(self.values)
        sure = "" if spread.sure else " (all)"
        return {name: spread.median, "interval": f"{spread.low:.2f}-{spread.high:.2f}{sure}", "pairs": spread.count}

    @property
    def median(self) -> float:
        """The median."""
        return Spread.of(self.values).median


def take_turns(pairs: int, target: Target, methods: tuple[str, str], records: Sequence[Record]) -> Ratios:
    """Return the pace of the second of two methods over the first's, of ``pairs`` courses through the texts.

    Both begin each course anew, and take turns text by text, so that a machine that changes its speed does so for both.
    """
    found = Ratios()
    for number in range(pairs):
        played: dict[str, list[Played]] = {method: [] for method in methods}
        for method in methods:
            target.fresh(method)
        for place, record in enumerate(records):
            for method in methods if (number + place) % 2 == 0 else methods[::-1]:
                target.forget()
                played[method].append(target.play([record], method))
        first, second = (_pace(played[method]) for method in methods)
        found.values.append(second / first)
    return found


def _pace(played: Sequence[Played]) -> float:
    return sum(each.decoding for each in played) / max(1, sum(each.tokens for each in played))


def alternate(pairs: int, first: Callable[[int], float], second: Callable[[int], float]) -> Ratios:
    """Return second / first of ``pairs`` pairs, each called with the pair's number; who begins changes."""
    found = Ratios()
    for number in range(pairs):
        runs = (first, second) if number % 2 == 0 else (second, first)
        taken = {run: run(number) for run in runs}
        found.values.append(taken[second] / taken[first])
    return found
