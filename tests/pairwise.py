"""Pairwise covers: few rows in which every two values of different factors meet (all-pairs testing, greedily built)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product

Row = tuple[str, ...]
"""One value of each factor, in their order."""
Pair = tuple[int, str, int, str]
"""A factor's number and value, twice, the lower number first."""


def pairs_of(row: Row) -> set[Pair]:
    """Return the pairs that meet in a row."""
    return {(a, row[a], b, row[b]) for a, b in combinations(range(len(row)), 2)}


def all_pairs(factors: Sequence[Sequence[str]]) -> set[Pair]:
    """Return every pair that can meet."""
    return {
        (a, one, b, other)
        for a, b in combinations(range(len(factors)), 2)
        for one, other in product(factors[a], factors[b])
    }


def missing(factors: Sequence[Sequence[str]], rows: Iterable[Row]) -> set[Pair]:
    """Return the pairs that meet in none of the rows."""
    return all_pairs(factors).difference(*map(pairs_of, rows))


def cover(factors: Mapping[str, Sequence[str]]) -> list[Row]:
    """Return rows in which all pairs meet, the same ones every time.

    Each row begins with a pair that is still missing; its other values are those that bring most missing pairs with
    what the row holds, of equal ones those that met it least often.
    """
    values = list(factors.values())
    left, rows = all_pairs(values), []
    met: Counter[Pair] = Counter()
    while left:
        a, one, b, other = min(left)
        row = {a: one, b: other}
        for factor in sorted(set(range(len(values))) - row.keys()):
            best = None
            for value in values[factor]:
                found = [_pair(factor, value, *held) for held in row.items() if held[0] != factor]
                gain = sum(pair in left for pair in found), -sum(met[pair] for pair in found)
                if best is None or gain > best:
                    best, row[factor] = gain, value
        rows.append(tuple(row[factor] for factor in range(len(values))))
        met.update(pairs_of(rows[-1]))
        left -= pairs_of(rows[-1])
    return rows


def _pair(a: int, one: str, b: int, other: str) -> Pair:
    return (a, one, b, other) if a < b else (b, other, a, one)
