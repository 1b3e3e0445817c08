"""How many of the nodes that were drafted a step sends: as many as give the most tokens per millisecond."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stretto.core.batch import PassPrice
    from stretto.decoding.method import Load
    from stretto.decoding.speculative.ledger import Ledger

PACE_BOUND = 1.25
"""How many times slower than in a step without drafts a request may go for the drafts of others."""
PROMISED = 1.05
"""How many times faster than without them drafts must promise to be: the best of many estimates errs upwards."""
ROW_STEPS = (*range(10), 11, 13, 15, 19, 23, 27, 31, 39, 47, 63, 79, 95, 127, 159, 191, 255)
"""Numbers of drafted rows among which the best is looked for: with the row that they hang on they fill tiles."""
RECKONED = 16
"""Steps for which the costs of these stand."""

Node = tuple[float, int, int]
"""The chance that its path survives, negated; the number of its request; its number in that one's tree."""


class Sending:
    """Of one allocator."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reckoned: tuple[PassPrice | None, int, int, int] = None, 0, 0, 0
        self._costs: list[tuple[int, float]] = []
        """Numbers of drafted rows and the milliseconds of their pass, and for which load and steps they stand."""

    def count(self, nodes: Sequence[Node], drafting: int, step: int, price: PassPrice, load: Load, spent: float) -> int:
        """Return how many of ``nodes``, best first, of so many ``drafting`` requests are sent in a ``step``.

        ``spent``: the milliseconds that drafting them took, which are gone, however many are sent.
        """
        ledger = self._ledger
        best, count = PROMISED * load.requests / (ledger.plain_ms(price, load) + spent), 0
        fixed, by_token = ledger.drafted_line(load)
        fixed += spent
        tokens = list(accumulate([-node[0] for node in nodes], initial=float(load.requests)))
        for rows, ms in self._costs_of(step, price, load, len(nodes)):
            rate = tokens[rows] / (ms + fixed + by_token * tokens[rows])
            if rate > best:
                best, count = rate, rows
        return count if load.requests == 1 else self._within_pace(nodes, count, drafting, price, load)

    def _costs_of(self, step: int, price: PassPrice, load: Load, most: int) -> list[tuple[int, float]]:
        """Return numbers of drafted rows up to ``most`` with the milliseconds of their pass, reckoned now and then."""
        when = price, load.requests, load.rows, step // RECKONED
        if when != self._reckoned:
            self._reckoned, self._costs = (
                when,
                [(rows, self._ledger.pass_ms(price, load, rows)) for rows in ROW_STEPS[1:]],
            )
        known = self._costs[: bisect_right(ROW_STEPS, most) - 1]
        return known if known[-1][0] == most else [*known, (most, self._ledger.pass_ms(price, load, most))]

    def _within_pace(self, nodes: Sequence[Node], count: int, drafting: int, price: PassPrice, load: Load) -> int:
        """Lower ``count`` until nobody is held up beyond the bound by what others drafted."""
        plain, extra = self._ledger.plain_ms(price, load), self._ledger.drafted_extra()
        while count:
            tokens = [1.0] * drafting
            for chance, number, _ in nodes[:count]:
                tokens[number] -= chance
            slowest = 1.0 if drafting < load.requests else min(tokens)
            if self._ledger.pass_ms(price, load, count) + extra <= PACE_BOUND * slowest * plain:
                break
            count = count * 3 // 4
        return count
