"""One plain sentence on what to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stretto.race.contest import PLAIN
from stretto.race.standing import ENOUGH, Row, Spread

WORTH = 1.02
"""A method is advised if the lower end of its interval lies above this: less is not worth a flag."""


def best(rows: Sequence[Row], concurrency: int) -> str | None:
    """Return the method to use there: the fastest exact one that is surely faster than plain, or else plain.

    None where too few rounds were finished to tell.
    """
    raced = [row.speedup for row in rows if row.concurrency == concurrency and row.speedup is not None]
    gains = _gains(rows, concurrency)
    worth = {method: gain.median for method, gain in gains.items() if gain.sure and gain.low > WORTH}
    if not raced or not (worth or all(gain.sure for gain in gains.values() or raced)):
        return None
    return max(worth, key=lambda method: worth[method], default=PLAIN)


def _gains(rows: Sequence[Row], concurrency: int) -> dict[str, Spread]:
    """Return the speed-ups there of the methods that may be advised: exact ones that kept their promise."""
    here = [row for row in rows if row.concurrency == concurrency and row.fidelity == "exact" and row.sound]
    return {row.method: row.speedup for row in here if row.speedup is not None}


def advice(rows: Sequence[Row], flags: Mapping[str, str] | None = None) -> str:
    """Return the sentence; ``flags``: what a method needs beside its name, such as ``--draft D``."""
    if all(row.speedup is None for row in rows):
        alone = all(row.method == PLAIN for row in rows)
        why = "no other method has finished a round beside plain" if alone else "plain wrote nothing to be held against"
        return f"There is nothing to advise: {why}."
    places = list(dict.fromkeys(row.concurrency for row in rows))
    groups: dict[str | None, list[int]] = {}
    for place in places:
        groups.setdefault(best(rows, place), []).append(place)
    told = []
    for method, where in groups.items():
        at = "" if len(places) == 1 else f" at concurrency {_listed(where)}"
        if method is None:
            told.append(f"too few rounds to advise{at}: it takes {ENOUGH} (--pairs {ENOUGH})")
        elif method == PLAIN:
            told.append(f"plain is best here{at} (--method plain)")
        else:
            gains = [_gains(rows, place)[method] for place in where]
            speedup = " and ".join(f"{gain.median:.2f} ({gain.low:.2f} to {gain.high:.2f})" for gain in gains)
            named = " ".join(filter(None, [f"--method {method}", (flags or {}).get(method)]))
            told.append(f"use {named}{at}: {speedup} times plain's speed, the same text")
    sentence = "; ".join(told)
    return sentence[0].upper() + sentence[1:] + "."


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
