"""The floors that speculation is held to, and what a run says about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from speculation_texts import CATEGORIES, COPYING, CORPORA

Row = dict[str, Any]
OFF_BY = 0.10
"""How far a measured speed-up may lie from what the price says, as a share."""


def judge(results: Mapping[str, Sequence[Row]], wrong: Sequence[str], concurrency: Sequence[int]) -> list[Row]:
    """Return the floors as rows: what was asked for, what was measured, and whether it holds."""
    found = [_row("texts that differ from plain's", [float(len(wrong))], 0.0, max, at_most=True)]
    for name in ("a", "b"):
        pairs = _by(results, "pairs", name, "category")
        for category in CATEGORIES:
            row = pairs.get(category, {})
            what = f"({name}) {category}: auto, cold, over the best single method ({row.get('best single', '-')})"
            found.append(_row(what, [row.get("auto over it")], 0.97))
    alone = _by(results, "alone", "b", "category")
    for field, corpora, copying in (("over plain", 1.9, 4.5), ("over llama.cpp", 2.3, 5.5)):
        values = [alone.get(name, {}).get(field) for name in CORPORA]
        found.append(_row(f"(b) auto {field}, average of {', '.join(CORPORA)}", values, corpora, mean))
        found.append(_row(f"(b) auto {field}, {COPYING}", [alone.get(COPYING, {}).get(field)], copying))
    alone = _by(results, "alone", "a", "category")
    values = [alone.get(name, {}).get("over plain") for name in CATEGORIES]
    found.append(_row("(a) auto over plain, the worst category", values, 1.0))
    for name in ("a", "b"):
        crowd = _by(results, "crowd", name, "concurrency")
        for many in concurrency:
            what = f"({name}) auto over plain, {many} at once"
            found.append(_row(what, [crowd.get(many, {}).get("auto over plain")], 0.98))
    rates = {row["rate"]: row for row in results.get("synthetic", ())}
    found.append(_row("(b) 0.8 accepted a token: over plain", [rates.get(0.8, {}).get("speed-up")], 2.5))
    off = [abs(row["off by"]) for row in rates.values()]
    found.append(_row("(b) 0.5 to 0.95 accepted: farthest from the price", off or [None], OFF_BY, max, at_most=True))
    return found


def _row(
    what: str,
    values: Sequence[float | None],
    bound: float,
    fold: Callable[[Sequence[float]], float] = min,
    at_most: bool = False,
) -> Row:
    row: Row = {"what": what, "measured": "not run", "floor": f"{'<=' if at_most else '>='} {bound:g}"}
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return row | {"verdict": "not run"}
    measured = fold(known)
    return row | {
        "measured": measured,
        "verdict": "holds" if (measured <= bound if at_most else measured >= bound) else "missed",
    }


def _by(results: Mapping[str, Sequence[Row]], section: str, target: str, key: str) -> dict[Any, Row]:
    return {row[key]: row for row in results.get(section, ()) if row["target"] == target}
