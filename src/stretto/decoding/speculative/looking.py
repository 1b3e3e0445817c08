"""Looks in vain, drafts of which nothing is sent, and the share of the time that they may take.

Where a step takes less than a millisecond, a look at a request takes a large part of one. Each that sends nothing is
booked as a debt, which time pays off, and so does what drafting saves.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from stretto.decoding.speculative.means import Mean

LOOK_SHARE = 0.0015
"""Share of the time that looks in vain may take."""
DEAREST_LOOK, LEAST_BOUND = 4, 0.5
"""How many times what its drafters take a look takes at most, and the milliseconds that it may take in any case, as
what is rarely run runs slowly: the rest of a longer one was something else."""
OVERDRAFT = 2
"""Looks beyond that share after which nobody is looked at for a while."""
NEW, REPEATING = 1.5, 4.0
"""How many times as many new requests may have, and those that repeat themselves."""
CREDIT = 8
"""Looks in vain that what drafting saved may pay for ahead."""
LONGEST_LOOK_AWAY = 2048
"""Steps without a look at most, where steps are so short that a look takes many percent of one."""
UNITS = f"utf-32-{sys.byteorder[0]}e"
"""How tokens become characters, all at once; those that are none, few in any vocabulary, become one and the same."""
REPEATED = 8
"""Tokens at the end of a text that stood in it before, which makes a look likelier to find something."""


class Echo:
    """Says whether one text repeats itself, as often as it is asked."""

    def __init__(self) -> None:
        self._text = ""
        """One character a token: strings are searched the fastest."""

    def heard(self, tokens: Sequence[int]) -> bool:
        """Whether the text so far ends in ``REPEATED`` tokens that stand in it further up, or in its prompt."""
        new = array("I", tokens[len(self._text) :])
        self._text = text = self._text + new.tobytes().decode(UNITS, "replace")
        return len(text) > REPEATED and text.find(text[-REPEATED:], 0, len(text) - 1) >= 0


class Looks:
    """Of one allocator. ``step`` is the engine's number of a step, ``plain`` the milliseconds of a plain one."""

    def __init__(self) -> None:
        self._look = Mean()
        """Milliseconds that a look at a request took of late."""
        self._debt, self._since = 0.0, 0
        """Milliseconds that looks in vain took beyond their share, as of which step."""

    @property
    def ms(self) -> float:
        """Milliseconds that a look in vain took of late."""
        return self._look.value

    @property
    def in_credit(self) -> bool:
        """Whether what drafting saved still pays for looks to come."""
        return self._debt < 0.0

    def vain(self, step: int, plain: float, drafters: float, beyond: float, requests: int) -> int:
        """Book a look in vain at so many requests; return for how many steps nobody is to be looked at.

        ``drafters``: the milliseconds that they took; ``beyond``: those that the step took beyond a plain one.
        """
        ms = min(max(drafters, beyond), max(DEAREST_LOOK * drafters, LEAST_BOUND))
        self._look.add(ms / requests, 32)
        self._debt, self._since = self._owed(step, plain) + ms, step
        beyond_bounds = max(0.0, self._debt - OVERDRAFT * self._look.value)
        return int(min(beyond_bounds / _allowed(plain), LONGEST_LOOK_AWAY))

    def paid(self, ms: float) -> None:
        """What looks have found saved so many milliseconds, which pay for those in vain: past ones, a few to come."""
        self._debt = max(-CREDIT * max(self._look.value, LEAST_BOUND), self._debt - max(0.0, ms))

    def allows(self, step: int, plain: float, repeats: bool = False) -> bool:
        """Whether a new request may be looked at, or one that ``repeats`` itself, which may when new ones may not."""
        return self._owed(step, plain) <= (REPEATING if repeats else NEW) * OVERDRAFT * self._look.value

    def away(self, plain: float, requests: int) -> int:
        """Return for how many steps one of so many requests, to which looks bring nothing, goes without one."""
        return int(min(LONGEST_LOOK_AWAY, self._look.value * requests / _allowed(plain)))

    def _owed(self, step: int, plain: float) -> float:
        return max(min(0.0, self._debt), self._debt - (step - self._since) * _allowed(plain))


def _allowed(plain: float) -> float:
    """Return the milliseconds that looks in vain may take for each step."""
    return max(LOOK_SHARE * plain, 1e-6)
