"""One plain sentence on what to use."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.race.contest import PLAIN
from stretto.race.standing import Row

WORTH = 1.02
"""A method is advised if the lower end of its interval lies above this: less is not worth a flag."""


def best(rows: Sequence[Row], concurrency: int) -> Row | None:
    """Return the exact method that is surely faster than plain there, the fastest of them; None where plain is best."""
    worth = [
        row
        for row in rows
        if row.concurrency == concurrency
        and row.fidelity == "exact"
        and row.sound
        and row.speedup is not None
        and row.speedup.low > WORTH
    ]
    return max(worth, key=lambda row: row.speedup.median if row.speedup else 0.0, default=None)


def advice(rows: Sequence[Row], flags: str = "") -> str:
    """Return the sentence; ``flags`` are those that go with every method, such as ``--draft D``."""
    places = list(dict.fromkeys(row.concurrency for row in rows))
    raced = {row.method for row in rows if row.speedup is not None}
    if not raced:
        return "There is nothing to advise: no other method has finished a round beside plain."
    winners = {place: best(rows, place) for place in places}
    groups: dict[str, list[int]] = {}
    for place, winner in winners.items():
        groups.setdefault(winner.method if winner else PLAIN, []).append(place)
    told = []
    for method, where in groups.items():
        gains = [winner.speedup for place in where if (winner := winners[place]) and winner.speedup]
        at = "" if len(places) == 1 else f" at concurrency {_listed(where)}"
        if not gains:
            told.append(f"plain is best here{at} (--method plain)")
            continue
        speedup = " and ".join(f"{gain.median:.2f} ({gain.low:.2f} to {gain.high:.2f})" for gain in gains)
        told.append(f"use --method {method}{flags and f' {flags}'}{at}: {speedup} times plain's speed, the same text")
    sentence = "; ".join(told)
    return sentence[0].upper() + sentence[1:] + "."


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
