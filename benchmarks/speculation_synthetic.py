"""A drafter that errs at a set rate, and what the price of a pass says that it should win."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile
from operator import truediv
from statistics import median
from typing import Any

from peers import Loaded
from speculation_play import Target, alternate
from speculation_texts import head

from stretto.core.batch import PassPrice
from stretto.core.request import Request
from stretto.core.tree import DraftTree
from stretto.decoding.method import Services
from stretto.decoding.speculative.drafter import Draft, Observation
from stretto.decoding.speculative.method import Speculative
from stretto.race.record import Record

RATES = (0.5, 0.65, 0.8, 0.9, 0.95)
LONGEST = 24
PEER_RUNS = (1, 2, 3, 4, 6, 8, 12)
PLAIN_TOKENS = 48
"""Tokens of a text that plain decoding is timed on; the drafted ones are the whole text."""


class Erring:
    """Drafts the recorded text in runs; each position is right with the same chance, whatever came before it."""

    name = "synthetic"

    def __init__(self, records: Sequence[Record], rate: float, length: int) -> None:
        self.rate, self.length = rate, length
        self._texts = {(each.asked.ids, each.asked.params.seed): each.tokens for each in records}

    def stores(self) -> dict[str, dict[str, int]]:
        """Nothing outlives a request."""
        return {}

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Draft | None]:
        """Return a run for every request whose text it knows."""
        return [self._run(request, min(room, self.length)) for request, room in zip(requests, rows, strict=True)]

    def _run(self, request: Request, room: int) -> Draft | None:
        text = self._texts.get((tuple(request.prompt), request.seed), ())
        start = len(request.tokens) - len(request.prompt)
        drafted = [
            token if self._right(request.seed, place) else token ^ 1
            for place, token in enumerate(text[start : start + room], start)
        ]
        return Draft(DraftTree.run(drafted, self.rate, self.name)) if drafted else None

    def passes(self, record: Record) -> int:
        """Return how many passes a text takes behind its first token when all that is right is accepted."""
        passes, place, end = 0, 1, len(record.tokens)
        while place < end:
            room = min(self.length, end - place - 1)
            run = takewhile(lambda at: self._right(record.asked.params.seed, at), range(place, place + room))
            place += 1 + len(list(run))
            passes += 1
        return passes

    def _right(self, seed: int, place: int) -> bool:
        bits = blake2b(f"{seed} {place}".encode(), digest_size=8).digest()
        return int.from_bytes(bits, "big") < self.rate * 2**64

    def bind(self, services: Services) -> None:
        """It makes no passes."""

    def begin(self, request: Request) -> None:
        """It keeps nothing."""

    def observe(self, observations: Sequence[Observation]) -> None:
        """It learns nothing."""

    def rewind(self, request: Request) -> None:
        """It has no rows."""

    def end(self, request: Request) -> None:
        """Nothing to forget."""


def speedup(price: PassPrice, context: int, tokens: float, overhead: float, length: int) -> float:
    """Return the speed-up over plain decoding of passes that check runs of ``length`` and gain so many tokens each.

    ``overhead``: milliseconds of a step beyond the price of its pass.
    """
    return tokens * (price.ms(1, context) + overhead) / (price.ms(1 + length, context) + overhead)


def tokens_a_pass(rate: float, length: int) -> float:
    """Return the expected tokens of a pass that checks a run: 1 + rate + ... + rate^length."""
    return sum(rate**depth for depth in range(length + 1))


def best_length(price: PassPrice, context: int, rate: float, overhead: float) -> int:
    """Return the length of runs from which the price expects the most."""
    lengths = range(1, LONGEST + 1)
    return max(lengths, key=lambda length: speedup(price, context, tokens_a_pass(rate, length), overhead, length))


def step_overhead(target: Target, records: Sequence[Record]) -> float:
    """Return the milliseconds of a plain step beyond the price of its pass, the median of three texts."""
    shorts = [head(record, PLAIN_TOKENS) for record in records[:3]]
    paces = [1e3 * target.play([each], "plain").pace for each in shorts]
    return max(0.0, median(paces) - _price(target).ms(1, _context(shorts[0])))


def measure_rate(
    target: Target, records: Sequence[Record], rate: float, overhead: float, pairs: int, peer: Loaded | None
) -> dict[str, Any]:
    """Return a row: the best length by the price, what it won, its forecast, and llama.cpp at the same rate.

    The forecast is for the errors that are in each text; by how much they are more or fewer than ``rate`` says is luck.
    """
    price, context = _price(target), _context(records[0])
    shorts = [head(record, PLAIN_TOKENS) for record in records]
    length = best_length(price, context, rate, overhead)
    name, drafter = f"synthetic-{rate}", Erring(records, rate, length)
    target.llm.engine.add_method(Speculative(name, [drafter], rows=length))
    target.play(shorts[:1], name)
    expected: list[float] = []
    gains: list[float] = []
    theirs: list[float] = []

    def drafted(number: int) -> float:
        record = records[number % len(records)]
        played = target.play([record], name)
        expected.append(speedup(price, context, played.tokens / drafter.passes(record), overhead, length))
        gains.append(played.tokens / max(1, played.steps - 1))
        pace = played.pace
        if peer is not None:
            theirs.append(_peer_pace(peer, rate, context) / pace)
        return pace

    ratios = alternate(pairs, drafted, lambda number: target.play([shorts[number % len(shorts)]], "plain").pace)
    return {
        "rate": rate, "run": length, "tokens a step": median(gains), "at that rate": tokens_a_pass(rate, length),
        **ratios.cells("speed-up"), "by the price": median(expected),
        "off by": median(map(truediv, ratios.values, expected)) - 1,
        "over llama.cpp's own": median(theirs) if theirs else None,
    }  # fmt: skip


def _price(target: Target) -> PassPrice:
    price = target.llm.model.price
    if price is None:
        raise RuntimeError("passes have no price without the native library; leave the synthetic section out")
    return price


def _context(record: Record) -> int:
    """Return the positions that stand before the middle of a text."""
    return len(record.asked.ids) + len(record.tokens) // 2


def _peer_pace(peer: Loaded, rate: float, context: int) -> float:
    """Return the seconds per token of llama.cpp checking runs of its best length: its passes timed, drafts free."""
    return min(peer.rows(1 + length, context, 1) / tokens_a_pass(rate, length) for length in PEER_RUNS)
