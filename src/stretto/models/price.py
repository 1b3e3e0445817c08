"""The price of a pass: milliseconds over its rows and over the context that they read.

A pass reads the weights once, computes its rows in tiles, reads the cache of each sequence once, and multiplies each
row with the context that it sees:

    ms = by_rows(rows) + by_context * (cached positions read) + by_pair * (rows x positions that they see)

``by_rows`` is linear between knots, because a kernel's tiles make it bend. All is fitted from eleven passes at load and
refined by every pass that runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

KNOTS = (1, 3, 5, 6, 8, 12, 16, 32, 128)
"""Numbers of rows at which a pass is timed, such among them as fill kernels' tiles, and one that just does not.

Behind the last the price goes on in proportion to the rows.
"""

CONTEXT = 512
"""Positions behind which one row and eight rows are timed."""

PACE = 0.1
"""Share of a pass's surprise that its price takes over, at most."""

Timer = Callable[[int, int], float]
"""Milliseconds of a pass of that many rows behind that many cached positions."""


class Price:
    """What passes of one model cost on this machine. Decides how much to draft, never what is chosen."""

    def __init__(self, timer: Timer) -> None:
        """Fit from eleven passes: one for each of ``KNOTS`` behind nothing, 1 and 8 rows behind 512 positions."""
        self._seen = 0
        self._by_rows = [timer(rows, 0) for rows in KNOTS]
        for number in reversed(range(1, len(KNOTS))):  # noise only adds: fewer rows take what more of them took at most
            self._by_rows[number - 1] = min(self._by_rows[number - 1], self._by_rows[number])
        few, many = (timer(rows, CONTEXT) - self._rows(rows) for rows in (1, 8))
        per_row = max(0.0, (many - few) / 7)
        self._by_pair = per_row / CONTEXT
        self._by_context = max(0.0, few - per_row) / CONTEXT

    def ms(self, rows: int, context: int = 0, pairs: int | None = None) -> float:
        """Return the milliseconds expected of a pass.

        ``context`` counts the cached positions of its sequences, ``pairs`` the positions that each row sees, summed
        over the rows (default: as if all rows saw the whole context).
        """
        pairs = rows * context if pairs is None else pairs
        return self._rows(rows) + self._by_context * context + self._by_pair * pairs

    def observe(self, rows: int, context: int, pairs: int, ms: float) -> None:
        """Learn from a pass that took ``ms``; one that was held up counts as twice its price at most.

        Half of the surprise is the machine's (memory in another mode, other processes) and moves every price alike; of
        the other half, what makes up most of this price moves most.
        """
        expected = self.ms(rows, context, pairs)
        surprise = min(ms / expected, 2.0) - 1.0
        self._seen += 1
        common = 1.0 + max(0.5 * PACE, 1.0 / (3 + self._seen)) * surprise  # the first passes correct what load measured
        for number in range(len(KNOTS)):
            self._by_rows[number] *= common
        step = 0.5 * PACE * surprise / expected
        for number, weight in _weights(rows):
            self._by_rows[number] *= 1.0 + step * weight * self._by_rows[number]
        self._by_context *= 1.0 + step * self._by_context * context
        self._by_pair *= 1.0 + step * self._by_pair * pairs

    def _rows(self, rows: int) -> float:
        (left, less), (right, more) = _weights(rows)
        return less * self._by_rows[left] + more * self._by_rows[right]


def _weights(rows: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """Return the knots on both sides of ``rows`` and their weights; behind the last one it alone has any."""
    if rows >= KNOTS[-1]:
        return (len(KNOTS) - 1, rows / KNOTS[-1]), (len(KNOTS) - 1, 0.0)
    right = bisect_right(KNOTS, rows)
    share = (rows - KNOTS[right - 1]) / (KNOTS[right] - KNOTS[right - 1])
    return (right - 1, 1.0 - share), (right, share)
