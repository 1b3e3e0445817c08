"""What the runs of a contest say: speed, speed-up over plain with its spread, latency, acceptance, equality."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import median

from stretto.race.contest import PLAIN, Contest, Run

CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some ratios, and an interval that holds the true median with at least 90 % confidence.

    ``sure`` is False where there are too few ratios for that; the interval is then their whole range.
    """

    median: float
    low: float
    high: float
    count: int
    sure: bool

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Spread:
        """Return the spread of at least one ratio.

        The interval runs between two order statistics, so that it assumes nothing about how times scatter: the ratios
        below the true median are a fair coin's heads.
        """
        ordered, count = sorted(ratios), len(ratios)
        cut = 0  # ratios left out at each end
        while 2 * (cut + 1) < count and _outside(count, cut + 1) <= 1 - CONFIDENCE:
            cut += 1
        sure = _outside(count, cut) <= 1 - CONFIDENCE
        return cls(median(ordered), ordered[cut], ordered[count - 1 - cut], count, sure)


def _outside(count: int, cut: int) -> float:
    """Return the chance that the true median lies outside the interval without ``cut`` ratios at each end."""
    return 2 * sum(comb(count, heads) for heads in range(cut + 1)) / 2**count


ENOUGH = next(count for count in itertools.count(1) if Spread.of([1.0] * count).sure)
"""Ratios that a spread takes to be sure."""


@dataclass(slots=True)
class Group:
    """What a method did on the prompts of one category."""

    prompts: int
    speed: float
    """Tokens per second of a request's own time, median over the runs."""
    speedup: Spread | None
    acceptance: float
    """Tokens per step behind the prompt."""


@dataclass(slots=True)
class Row:
    """One method at one concurrency, all its runs together."""

    method: str
    fidelity: str
    concurrency: int
    runs: int
    speeds: list[float]
    """Tokens per second of each run."""
    speedup: Spread | None
    """Over the plain runs of the same rounds; None for plain itself and where there is no pair of which plain wrote."""
    ttft_ms: float | None
    """Median over all requests; the same for TPOT, the milliseconds per token behind the first."""
    tpot_ms: float | None
    acceptance: float
    """Tokens per step behind the prompt: 1 for plain decoding."""
    drafts: dict[str, list[list[int]]]
    """By drafter and depth: [checked, accepted] tokens, all runs."""
    parts: dict[str, float]
    """Milliseconds per generated token by part of a step; ``other`` is what lies outside the engine's steps."""
    rows_per_step: float
    cache_bytes: int
    texts: int
    """Texts compared with plain's, all runs."""
    equal: int
    """Texts among them that are equal token for token."""
    agreement: float
    """Share of plain's tokens before the first difference."""
    errors: list[str]
    """What went wrong, each once: failed requests, and of an exact method texts that are not plain's."""
    warnings: list[str]
    groups: dict[str, Group] = field(default_factory=dict)
    """By category."""

    @property
    def speed(self) -> float:
        """Tokens per second, median over the runs."""
        return median(self.speeds)

    @property
    def sound(self) -> bool:
        """Whether it kept its promise."""
        return not self.errors


def standing(contest: Contest) -> list[Row]:
    """Return a row for each method and concurrency that has a finished run, in the order of the contest."""
    reference = next((run for run in contest.runs if run.method == PLAIN), None)
    rows = []
    for concurrency in contest.concurrency:
        for method in contest.methods:
            mine = [run for run in contest.runs if (run.method, run.concurrency) == (method, concurrency)]
            if mine:
                plain = {r.round: r for r in contest.runs if (r.method, r.concurrency) == (PLAIN, concurrency)}
                rows.append(_row(contest, mine, plain, reference))
    return rows


def _row(contest: Contest, mine: list[Run], plain: dict[int, Run], reference: Run | None) -> Row:
    method, concurrency = mine[0].method, mine[0].concurrency
    fidelity = contest.llm.method(method).facts.fidelity
    pairs = [(run, plain[run.round]) for run in mine if run.round in plain and method != PLAIN]
    ratios = [run.speed / other.speed for run, other in pairs if other.tokens]
    answers = [answer for run in mine for answer in run.answers]
    tokens = sum(run.tokens for run in mine) or 1
    parts = {part: sum(run.parts[part] for run in mine) / tokens for part in mine[0].parts}
    parts["other"] = max(0.0, 1e3 * sum(run.seconds for run in mine) / tokens - sum(parts.values()))
    row = Row(
        method=method,
        fidelity=fidelity,
        concurrency=concurrency,
        runs=len(mine),
        speeds=[run.speed for run in mine],
        speedup=Spread.of(ratios) if ratios else None,
        ttft_ms=_median([answer.ttft_ms for answer in answers if answer.ttft_ms is not None]),
        tpot_ms=_median(
            [
                (answer.total_ms - answer.ttft_ms) / (len(answer.tokens) - 1)
                for answer in answers
                if answer.ttft_ms is not None and len(answer.tokens) > 1
            ]
        ),
        acceptance=acceptance(mine, range(len(contest.asked))),
        drafts=_drafts(mine),
        parts=parts,
        rows_per_step=sum(run.rows for run in mine) / max(1, sum(run.steps for run in mine)),
        cache_bytes=max(run.cache_bytes for run in mine),
        texts=0,
        equal=0,
        agreement=1.0,
        errors=list(dict.fromkeys(answer.error for answer in answers if answer.error is not None)),
        warnings=list(dict.fromkeys(text for run in mine for text in run.warnings)),
    )
    if reference is not None:
        _compare(row, mine, reference)
    for category in dict.fromkeys(each.category for each in contest.asked):
        places = [place for place, each in enumerate(contest.asked) if each.category == category]
        row.groups[category] = _group(mine, pairs, places)
    return row


def _compare(row: Row, mine: list[Run], reference: Run) -> None:
    """Hold every text against plain's."""
    same = total = 0
    different: list[str] = []
    for run in mine:
        for place, (answer, expected) in enumerate(zip(run.answers, reference.answers, strict=True), 1):
            pairs = zip(answer.tokens, expected.tokens, strict=False)
            common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            row.texts += 1
            row.equal += answer.tokens == expected.tokens
            same, total = same + common, total + max(len(answer.tokens), len(expected.tokens))
            if answer.tokens != expected.tokens and answer.error is None:
                different.append(f"first prompt {place} in round {run.round + 1}, from token {common + 1} on")
    row.agreement = same / total if total else 1.0
    if different and row.fidelity == "exact":
        row.errors.append(
            f"{row.method} promises plain's text, but {len(different)} of {row.texts} texts differ: {different[0]}"
        )


def _group(mine: list[Run], pairs: list[tuple[Run, Run]], places: list[int]) -> Group:
    speeds = {id(run): _own_speed(run, places) for run in mine}
    ratios = [
        speeds[id(run)] / other for run, plain in pairs if (other := _own_speed(plain, places)) and speeds[id(run)]
    ]
    spread = Spread.of(ratios) if ratios else None
    return Group(len(places), median(speeds.values()), spread, acceptance(mine, places))


def _own_speed(run: Run, places: list[int]) -> float:
    """Return tokens per second of the requests' own time, from arrival to end."""
    ms = sum(run.answers[place].total_ms for place in places)
    return 1e3 * sum(len(run.answers[place].tokens) for place in places) / ms if ms else 0.0


def acceptance(runs: Sequence[Run], places: Sequence[int]) -> float:
    """Return the tokens per step behind the prompt of the requests at these ``places``: 1 for plain decoding."""
    gains = [run.answers[place].gains[1:] for run in runs for place in places]
    steps = sum(len(each) for each in gains)
    return sum(sum(each) for each in gains) / steps if steps else 1.0


def _drafts(runs: list[Run]) -> dict[str, list[list[int]]]:
    """Return by drafter and depth [checked, accepted] tokens, all runs added up."""
    total: dict[str, list[list[int]]] = {}
    for answer in (answer for run in runs for answer in run.answers):
        for name, depths in answer.drafts.items():
            mine = total.setdefault(name, [])
            mine += [[0, 0] for _ in range(len(depths) - len(mine))]
            for sums, (checked, accepted) in zip(mine, depths, strict=False):
                sums[0] += checked
                sums[1] += accepted
    return total


def _median(values: list[float]) -> float | None:
    return median(values) if values else None
