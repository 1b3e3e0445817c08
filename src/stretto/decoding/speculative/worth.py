"""Which drafters are worth their time: the tokens that each adds against the milliseconds that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stretto.decoding.speculative.means import Mean

if TYPE_CHECKING:
    from stretto.decoding.method import Services

HOPE, HOPE_OF_MODEL = 0.5, 1.5
"""Tokens that a drafter nobody has tried yet is thought to add, without a model of its own and with one."""
BEHIND = (1.0, 0.4, 0.05)
"""Shares of that where those before it have found nothing, something, much."""
ROUND_OVERHEAD = 0.5
"""Milliseconds that a round of a draft model is thought to take beyond its pass before any was seen."""
FIRST_ROUNDS = 4
"""Such rounds that a draft is thought to take."""
PATIENT = 16
"""Steps between two trials of a drafter that does not pay, at least."""
LONGEST_WAIT = 8
"""How many times rarer trials become while they fail."""
TRIAL_SHARE = 0.005
"""Share of the time that such trials of each drafter may take."""

FREE, FORMED = 0, 3
"""What texts are like: any may follow, or a mask gives them a form, which changes what drafters are worth."""

Place = tuple[str, int]
"""A drafter, and what the text is like plus how much the drafters before it had found: 0 (nothing) to 2 (much)."""
Gains = dict[Place, Mean]
"""Tokens that drafters add to those before them, per request and call."""


class Worth:
    """Of the drafters of one method, over all its requests; what is known of one request is its caller's to keep."""

    def __init__(self) -> None:
        self.cost: dict[str, Mean] = {}
        """Milliseconds of each drafter, per request and call."""
        self.token_ms = 0.0
        """What a token is worth, in milliseconds, as of the last step."""
        self._gains: Gains = {}
        self._due: dict[str, int] = {}
        """Step of each drafter's next trial."""
        self._wait: dict[str, int] = {}
        self._services: Services | None = None

    def bind(self, services: Services) -> None:
        """Take the engine's services: the number of its step, and what passes of draft models cost."""
        self._services = services

    @property
    def known(self) -> Iterable[str]:
        """The drafters that have been thought about."""
        return self._due

    def next_trial(self) -> int:
        """Return the step at which the first of the known drafters is due."""
        return min(self._due.values())

    def due(self, name: str) -> int:
        """Return the step at which a known drafter is due."""
        return self._due[name]

    def quick(self, name: str) -> bool:
        """Whether a drafter paid for somebody when it last ran, or has not run yet."""
        return self._wait.get(name, 1) == 1

    def runs(self, place: Place, mine: Gains, length: int) -> bool:
        """Whether a drafter runs in this step for a text of ``length``: it pays, or is due for a trial."""
        assert self._services is not None
        name, pays = place[0], self.pays(place, mine)
        due = self._due.get(name)
        if due is None:  # a model far too dear for this target waits for its first trial as if it had failed one
            wait = 0.0 if pays else self.unseen_ms(name, length) / (TRIAL_SHARE * max(self.token_ms, 1e-3))
            due = self._due[name] = self._services.steps + int(wait)
        return pays or due <= self._services.steps

    def pays(self, place: Place, mine: Gains) -> bool:
        """Whether what a drafter adds is worth more than its time."""
        return self.tokens(place, mine) * self.token_ms > self.ms(place[0])

    def ms(self, name: str) -> float:
        """Return the milliseconds that a call of a drafter takes, as far as is known."""
        cost = self.cost.get(name)
        return self.unseen_ms(name) if cost is None else cost.value

    def tokens(self, place: Place, mine: Gains) -> float:
        """Return the tokens that a drafter adds to a request: its own mean, leaning on that of all."""
        value, own = self.general(place), mine.get(place)
        return value if own is None else (own.value * own.weight + 8.0 * value) / (own.weight + 8.0)

    def general(self, place: Place) -> float:
        """Return the tokens that a drafter adds on average, what is hoped of one that nobody has tried."""
        known = self._gains.get(place)
        return self._hope(place) if known is None else known.value

    def learn(self, place: Place, mine: Gains, added: int) -> None:
        """Take in what a call of a drafter added."""
        self._gains.setdefault(place, Mean(self._hope(place), 1.0)).add(added, 256)
        mine.setdefault(place, Mean()).add(added, 32)

    def spend(self, name: str, ms: float, calls: int, step_ms: float) -> None:
        """Take in what a step's calls of a drafter took; set its next trial, later each time while it does not pay.

        ``step_ms``: what a plain step takes.
        """
        assert self._services is not None
        cost = self.cost.setdefault(name, Mean())
        cost.add(ms / max(1, calls), 32)
        seen = [self.general((name, like)) for like in (FREE, FORMED) if (name, like) in self._gains]
        pays = max(seen, default=self._hope((name, FREE))) * self.token_ms > cost.value
        self._wait[name] = 1 if pays else min(LONGEST_WAIT, 2 * self._wait.get(name, 1))
        wait = max(PATIENT, cost.value * calls / (TRIAL_SHARE * step_ms)) * self._wait[name]
        self._due[name] = self._services.steps + int(wait)

    def forget(self, name: str) -> None:
        """A drafter is gone: nobody waits for it."""
        for known in (self.cost, self._due, self._wait):
            known.pop(name, None)

    def unseen_ms(self, name: str, length: int = 0) -> float:
        """Return the milliseconds expected of a drafter that never ran: a few rounds, if it runs a model.

        Before them the model reads a text of ``length``.
        """
        model = self._services.models.get(name) if self._services else None
        if model is None or model.price is None:
            return 0.0
        return FIRST_ROUNDS * (ROUND_OVERHEAD + model.price.ms(4)) + (model.price.ms(length) if length else 0.0)

    def round_ms(self, name: str, rounds: float) -> float:
        """Return the milliseconds of a further round of a drafter that makes so many in a call, on average."""
        if name in self.cost:
            return self.cost[name].value / rounds
        return max(ROUND_OVERHEAD, self.unseen_ms(name) / FIRST_ROUNDS)

    def _hope(self, place: Place) -> float:
        assert self._services is not None
        name, like = place
        return (HOPE_OF_MODEL if name in self._services.models else HOPE) * BEHIND[like % len(BEHIND)]
