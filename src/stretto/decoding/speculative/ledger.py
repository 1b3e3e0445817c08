"""The ledger: what steps were predicted to take and give, against what they took and gave.

It keeps the pace of plain steps and of drafted ones, from which come the worth of a token in milliseconds, the
overhead that the price of a pass does not hold, and the verdict whether drafting as a whole beats plain decoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from stretto.decoding.speculative.means import Mean, Slope

if TYPE_CHECKING:
    from stretto.core.batch import PassPrice
    from stretto.decoding.method import Load

FEW_PLAIN = 4
"""Plain steps at the start of a life, from which their overhead is learnt where passes are short."""
LONG_PASS = 6.0
"""Milliseconds of a pass beside which what else a step takes does not matter."""
HELD_UP = 1.5
"""How many times longer than expected a step counts at most: the rest of it something else took."""
PLAIN_EVERY = 128
"""While drafting, one step in so many is plain, so that what it is compared with stays fresh."""
TRIAL = 24
"""Drafted steps after which they are judged against plain ones to the last percent."""
DOUBT = 1.0
"""Before that, n steps are judged with a margin of this over the root of n, from the fourth on."""
LEAST_SHARE = 0.25
"""Share of its price that a step takes at least, whatever prices that were too high have taught."""
UNKNOWN_OVERHEAD = 0.3
"""Milliseconds that a drafted step is thought to take beyond twice a plain one's overhead before any was seen."""
DOUBTED, FLATTEST, STEEPEST = 0.05, 0.4, 2.5
"""How much steeper or flatter than its price a pass may be found to rise with its rows, and the share of a plain pass
that its price must vary by, over eight steps, to say so."""
LOSS_SHARE = 0.01
"""Share of the time that lost trials may take: drafting rests behind one until its loss is no more than that.

Twice as long for each one lost in a row from the third on: what has never paid is tried more and more rarely.
"""
SHORTEST_REST, LONGEST_REST = 32, 2048
"""Steps."""
FORGET = 0.003
"""Share of what is known of drafted steps that a step without drafts forgets."""
FADE = 0.96
"""What the sums of a trial keep of themselves from step to step."""


class GuessedPrice:
    """Stands in for the price of a backend that has none: what plain steps took, and 3 % of it for each further row."""

    def __init__(self) -> None:
        self.step = 1.0

    def ms(self, rows: int, context: int = 0, pairs: int | None = None) -> float:
        """Return the milliseconds expected of a pass."""
        return self.step * (0.97 + 0.03 * rows)


class Ledger:
    """Of one allocator. All figures are milliseconds of wall time and tokens of all its requests together."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock`` tells seconds."""
        self._clock = clock
        self.plain_overhead, self.drafted_overhead = Mean(), Mean()
        """Of a step, beyond the price of its pass and the time of its drafters; below 0 where the price is too high."""
        self._steepness = Slope()
        """How steps rise with the price of their passes: memory is not always as fast as when prices were measured."""
        self._by_token = Slope()
        """How what a drafted step takes beyond those rises with the tokens that it gains."""
        self.steps = 0
        self.resting = 0
        """Steps that drafting still rests."""
        self.asleep = False
        """Whether it does for want of something to draft, not for a loss."""
        self.won = self.lost = 0
        """Trials."""
        self._trial = self._lost_in_row = 0
        self._would_take = self._took = 0.0
        self._pace, self._tokens = Mean(), Mean()
        self._last: tuple[int, float] | None = None
        self._guess = GuessedPrice()

    def price(self, price: PassPrice | None) -> PassPrice:
        """Return the price of a backend, or a guess where it has none."""
        return self._guess if price is None else price

    def plain_ms(self, price: PassPrice, load: Load) -> float:
        """Return what a step takes in which nobody drafts."""
        expected = load.ms(price)
        return max(expected + self.plain_overhead.value, LEAST_SHARE * expected)

    def pass_ms(self, price: PassPrice, load: Load, drafted: int) -> float:
        """Return what a pass with so many drafted rows takes beside a plain one of known price, as steps have shown."""
        plain = load.ms(price)
        if plain < LONG_PASS:  # what else a step takes would be taken for the pass
            return load.ms(price, drafted)
        steepness = self._steepness.leaning(1.0, 8 * (DOUBTED * plain) ** 2)
        return plain + min(max(steepness, FLATTEST), STEEPEST) * (load.ms(price, drafted) - plain)

    def drafted_extra(self) -> float:
        """Return what a step with drafts takes beyond the price of its pass and the time of its drafters.

        That is no less than for a plain one: where it seems to be, the price of many rows is too high for now.
        """
        if not self.drafted_overhead.weight:
            return self._unknown()
        return max(self.drafted_overhead.value, self.plain_overhead.value)

    def drafted_line(self, load: Load) -> tuple[float, float]:
        """Return the same in parts: what the step takes in any case, and what every token that it gains takes.

        A token is chosen and sent alike in a plain step, and takes no more than that one takes beyond its pass.
        """
        by_token = max(0.0, min(self._by_token.value, self.plain_overhead.value / max(1, load.requests)))
        return self.drafted_extra() - by_token * self._by_token.x.value, by_token

    def token_ms(self, price: PassPrice, load: Load) -> float:
        """Return what a token is worth: the milliseconds one takes at the present pace."""
        if self._tokens.weight < FEW_PLAIN:
            return self.plain_ms(price, load) / max(1, load.requests)
        return self._pace.value / max(self._tokens.value, 1e-9)

    def wants_plain(self, price: PassPrice, load: Load) -> bool:
        """Whether the step to come should be a plain one, for comparison."""
        if self.steps % PLAIN_EVERY == 0:
            return True
        return self.plain_overhead.weight < FEW_PLAIN and load.ms(price) < LONG_PASS

    def book(
        self, step: int, price: PassPrice, load: Load, drafted: int, tokens: int, spent: float
    ) -> tuple[float, float] | None:
        """Book a step that ends now; return its wall time and what a plain one would have taken, in milliseconds.

        ``step`` is the engine's number of it, ``drafted`` its drafted rows, ``tokens`` those that its requests gained,
        ``spent`` the milliseconds of its drafters. None: steps with prompt slices, and the first behind a pause, tell
        nothing.
        """
        self.steps += 1
        wall = self._wall_of(step, load)
        if wall is None:
            return None
        if drafted:
            counts = self._learn_drafted(wall, self.pass_ms(price, load, drafted) + spent, tokens)
        else:
            counts = self._learn_plain(wall, price, load) if not spent else wall
            # What kept steps from drafting may have been a hiccup: it is forgotten by and by.
            self.drafted_overhead.value += FORGET * (self._unknown() - self.drafted_overhead.value)
        if load.ms(price) >= LONG_PASS:
            self._steepness.add(load.ms(price, drafted), counts - spent, 64)
        plain = self.plain_ms(price, load)
        if drafted:
            self._try(counts, tokens / max(1, load.requests), plain)
        self._keep_pace(counts, tokens)
        return wall, plain

    def count_rest(self, steps: int) -> None:
        """Count steps in which drafting rested."""
        self.steps += steps
        self.resting = max(0, self.resting - steps)

    def rest(self, step: int, steps: int, price: PassPrice, load: Load, alike: bool) -> float:
        """Book so many of such steps, of which the last ends now, and learn the pace of plain decoding from them.

        ``alike``: whether all of them had the rows of the last one. Return the milliseconds that each counts as; 0
        where they tell nothing of that pace, or their begin was not noted.
        """
        now = self._clock()
        last, self._last = self._last, (step, now)
        if last is None or last[0] != step - steps or not alike or load.rows > load.requests:
            return 0.0
        counts = self._learn_plain((now - last[1]) * 1e3 / steps, price, load, steps)
        self._keep_pace(counts, load.requests)
        return counts

    def begin(self, step: int) -> None:
        """Note that a step begins now."""
        self._last = step - 1, self._clock()

    def pause(self, steps: int) -> None:
        """Let drafting rest for at least so many steps, as there is nothing to draft."""
        if steps > self.resting:
            self.resting, self.asleep = steps, True

    def wake(self, lost: bool = False) -> None:
        """End such a rest; ``lost``: one behind a lost trial, too."""
        if self.asleep or lost:
            self.resting = 0

    def gain(self) -> float:
        """Return how many times faster than plain decoding the drafted steps of late were; 1 when there were none."""
        return self._would_take / self._took if self._took > 0 else 1.0

    def figures(self) -> dict[str, float]:
        """Return the books as they stand: milliseconds and tokens per step, trials won and lost, steps of rest."""
        return {
            "steps": self.steps,
            "gain": self.gain(),
            "wall_ms": self._pace.value,
            "tokens": self._tokens.value,
            "plain_overhead_ms": self.plain_overhead.value,
            "drafted_overhead_ms": self.drafted_overhead.value,
            "won": self.won,
            "lost": self.lost,
            "resting": self.resting,
        }

    def _wall_of(self, step: int, load: Load) -> float | None:
        """Return what the step that ends now took in milliseconds; None where that tells nothing of decoding."""
        now = self._clock()
        last, self._last = self._last, (step, now)
        if last is None or last[0] != step - 1 or load.rows > load.requests:
            return None
        return (now - last[1]) * 1e3

    def _learn_plain(self, wall: float, price: PassPrice, load: Load, steps: int = 1) -> float:
        """Learn from ``steps`` of ``wall`` ms each what plain ones take beyond their price; return what these count as.

        Of the first ones the fastest counts: a life begins slowly.
        """
        expected, overhead = load.ms(price), self.plain_overhead
        known = overhead.weight >= FEW_PLAIN
        counts = min(wall, HELD_UP * (expected + max(0.0, overhead.value))) if known else wall
        if price is self._guess:
            self._guess.step += max(0.1, 1.0 / (1.0 + overhead.weight)) * (counts - self._guess.step)
            overhead.add(0.0, 64)
        elif known:
            overhead.add(counts - expected, 64)
        else:
            overhead.value = min(counts - expected, overhead.value) if overhead.weight else counts - expected
            overhead.weight += min(steps, FEW_PLAIN - overhead.weight)
        return counts

    def _learn_drafted(self, wall: float, expected: float, tokens: int) -> float:
        """Learn what a drafted step takes beyond what was expected; return the milliseconds that it counts as."""
        if not self.drafted_overhead.weight:
            self.drafted_overhead.value, self.drafted_overhead.weight = self._unknown(), 2.0
        counts = min(wall, HELD_UP * (expected + max(0.0, self.drafted_overhead.value)))
        self.drafted_overhead.add(counts - expected, 64)
        self._by_token.add(tokens, counts - expected, 64)
        return counts

    def _keep_pace(self, ms: float, tokens: int) -> None:
        self._pace.add(ms, 64)
        self._tokens.add(tokens, 64)

    def _unknown(self) -> float:
        return 2 * max(0.0, self.plain_overhead.value) + UNKNOWN_OVERHEAD

    def _try(self, wall: float, plain_steps: float, plain: float) -> None:
        """Go on with a trial: a step of ``wall`` ms did the work of so many plain ones of ``plain`` ms each.

        One that is lost sends drafting to rest.
        """
        self._trial += 1
        self._took = self._took * FADE + wall
        self._would_take = self._would_take * FADE + plain_steps * plain
        doubt = 1.0 if self._trial < 4 else DOUBT / self._trial**0.5 if self._trial < TRIAL else 0.0
        if self._would_take < self._took * (1.0 - doubt):
            self.lost += 1
            self._lost_in_row += 1
            loss = (self._took - self._would_take) / (LOSS_SHARE * max(plain, 1e-6))
            rest = max(loss, SHORTEST_REST) * 2.0 ** min(max(0, self._lost_in_row - 2), 16)
            self.resting, self.asleep = int(min(rest, LONGEST_REST)), False
            self._trial, self._took, self._would_take = 0, 0.0, 0.0
        elif self._trial == TRIAL:
            self.won += 1
            self._lost_in_row = 0
