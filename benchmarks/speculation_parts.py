"""The parts of ``speculation.py``: what is played beside what, and the rows that come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from peers import Loaded
from speculation_play import Played, Target, alternate, take_turns
from speculation_synthetic import RATES, measure_rate, step_overhead
from speculation_texts import head

from stretto.race.record import Record
from stretto.recipes.table import RECIPES

Row = dict[str, Any]
AUTO, PLAIN = "auto", "plain"
FINALISTS, FAMILIES = 4, 3
"""Methods that are played on all texts on which the best is picked, and families whose best one is among them."""
LOOK = 48
"""Tokens of the text on which all methods are tried."""
LASTING = ("suffix-decoding", "anpd", "aggressive", "draft-model", "smartspec")
"""The single methods that are best for some kind of text most often, which are played through texts of all kinds."""


@dataclass(frozen=True, slots=True)
class Course:
    """A target and its texts by category."""

    target: Target
    records: Mapping[str, Sequence[Record]]


def exact_methods(target: Target) -> list[str]:
    """Return the exact methods that run with what is aboard, without ``auto``."""
    found = []
    for name, recipe in RECIPES.items():
        if recipe.fidelity == "exact" and name != AUTO:
            try:
                target.llm.method(name)
            except ValueError:
                continue
            found.append(name)
    return found


def pick(target: Target, records: Sequence[Record], methods: Sequence[str]) -> str:
    """Return the fastest single method on some texts: all are tried on the beginning of one, the best few on all.

    Variants of one idea are alike: the best of the best families are tried, too.
    """

    def pace(method: str, on: Sequence[Record]) -> float:
        target.fresh(method)
        return target.play(on, method).pace

    first = sorted(methods, key=lambda method: pace(method, [head(records[0], LOOK)]))
    families = {RECIPES[method].family: method for method in reversed(first)}
    few = [*first[:FINALISTS], *[method for method in first if method in families.values()][:FAMILIES]]
    return min(dict.fromkeys(few), key=lambda method: pace(method, records))


def measure_pairs(course: Course, category: str, methods: Sequence[str], pairs: int) -> Row:
    """Race ``auto`` from a cold start against the best single method, which was picked on the other half."""
    records, target = course.records[category], course.target
    best = pick(target, records[::2], methods)
    raced = records[1::2] or records

    ratios = take_turns(pairs, target, (AUTO, best), raced)
    return {"target": target.name, "category": category, "best single": best, **ratios.cells("auto over it")}


def measure_alone(course: Course, category: str, pairs: int, peer: Loaded | None) -> Row:
    """Play texts at batch 1, each once by ``auto`` and once by plain; llama.cpp decodes plainly beside them.

    ``auto`` begins anew in each category and meets every text for the first time.
    """
    records, target = course.records[category], course.target
    target.fresh(AUTO)
    played: list[Played] = []
    theirs: list[float] = []

    def drafted(number: int) -> float:
        record = records[number]
        target.forget()
        played.append(target.play([record], AUTO))
        if peer is not None:
            theirs.append(peer.rows(1, len(record.asked.ids) + len(record.tokens) // 2, 8) / played[-1].pace)
        return played[-1].pace

    def plain(number: int) -> float:
        target.forget()
        return target.play([records[number]], PLAIN).pace

    ratios = alternate(min(pairs, len(records)), drafted, plain)
    tokens, steps = sum(each.tokens for each in played), sum(each.steps - 1 for each in played)
    return {
        "target": target.name, "category": category, **ratios.cells("over plain"),
        "tokens a step": tokens / max(1, steps), "ms a token": 1e3 * median(each.pace for each in played),
        "over llama.cpp": median(theirs) if theirs else None,
    }  # fmt: skip


def measure_life(course: Course, rounds: int) -> Iterator[Row]:
    """Play texts of all kinds in turns, as they come to a server, by ``auto``, by plain and by single methods.

    All begin anew, none is begun anew for another kind of text, and they take turns text by text. It is one life: what
    a method learns from one text serves the next.
    """
    target, here = course.target, exact_methods(course.target)
    methods = [AUTO, PLAIN, *(name for name in LASTING if name in here)]
    texts = [each for group in zip(*course.records.values(), strict=False) for each in group]
    texts = texts[: rounds * len(course.records)]
    tokens = sum(len(record.tokens) - 1 for record in texts)
    took = dict.fromkeys(methods, 0.0)
    for method in methods:
        target.fresh(method)
    for number, record in enumerate(texts):
        first = random.Random(number).randrange(len(methods))
        for method in methods[first:] + methods[:first]:
            target.forget()
            took[method] += target.play([record], method).decoding
    for method in sorted(methods, key=lambda name: took[name]):
        yield {
            "target": target.name, "texts": len(texts), "method": method,
            "ms a token": 1e3 * took[method] / tokens, "over plain": took[PLAIN] / took[method],
        }  # fmt: skip


def measure_crowd(target: Target, rounds: Sequence[Sequence[Record]]) -> Row:
    """Play rounds of many texts at once, by ``auto`` and by plain; the first round warms up.

    Prompts are the same in all rounds and cached; the texts are new in each.
    """
    target.fresh(AUTO)
    for method in (PLAIN, AUTO):
        target.play(rounds[0], method, together=True)

    def run(method: str) -> Callable[[int], float]:
        return lambda number: target.play(rounds[1 + number], method, together=True).seconds

    ratios = alternate(len(rounds) - 1, run(AUTO), run(PLAIN))
    return {"target": target.name, "concurrency": len(rounds[0]), **ratios.cells("auto over plain")}


def measure_synthetic(
    target: Target, records: Sequence[Record], pairs: int, peer: Loaded | None, rates: Sequence[float] = RATES
) -> Iterator[Row]:
    """Play texts with a drafter that errs at a set rate."""
    overhead = step_overhead(target, records)
    for rate in rates:
        yield measure_rate(target, records, rate, overhead, pairs, peer)
