"""The allocator of ``auto``: every row and every drafter must pay for itself, in milliseconds.

A drafter runs for a request while the tokens that it adds to those of the drafters before it are worth more than the
time that it takes; one that does not is asked again now and then. Of the union of all trees, the nodes that are most
likely to survive are sent, as many as give the most tokens per millisecond of the step (the rule of DySpec and
OPT-Tree with the price of the pass instead of a budget, over all requests at once as in TETRIS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from stretto.decoding.speculative.allocator import Drafted
from stretto.decoding.speculative.calibration import Calibration, Counts
from stretto.decoding.speculative.ledger import UNKNOWN_OVERHEAD, Ledger
from stretto.decoding.speculative.looking import Echo, Looks
from stretto.decoding.speculative.sending import Sending
from stretto.decoding.speculative.worth import FORMED, FREE, Gains, Place, Worth

if TYPE_CHECKING:
    from stretto.core.batch import PassPrice
    from stretto.core.request import Committed, Request
    from stretto.decoding.method import Load, Services
    from stretto.decoding.speculative.drafter import Observation

PRICEY = 0.05
"""Share of a step's time from which a drafter is worth thinking about."""
FRUITLESS = 4
"""Looks in a row that sent nothing for a request, after which it is looked at more rarely,"""
HOPED, FORGOTTEN, FEW = 8.0, 0.2, 3.5
"""or as many more until fewer than ``FEW`` nodes a step are left of what was sent of late, of which each step forgets
that share: the first number for a request that nobody has drafted for yet, or that repeats itself."""
FEW_WHERE_DEAR = 7.0
"""The same where a draft takes longer than the pass: there the first look in vain is the last."""
PROVEN = 8
"""Drafted tokens that a text has kept, from which on it is looked at there as anywhere, and heard behind each few
steps of rest: where a copy breaks off, it mostly goes on behind the edit.
"""
OFF = 16
"""Steps for which a drafter that does not pay for a text is not thought about."""
HOPELESS = 256
"""Steps for which a text of which nothing is known stays without a look, where hope alone is not worth one."""
HEED, LONGEST_UNHEARD = 8, 64
"""Steps of rest behind which one hears whether a text repeats itself; each time that it does not, four times as
many are let pass, up to the second number. A text that goes without a look while others have one is heard behind the
first number.
"""
NEVER = 1 << 62
"""A step that does not come."""


@dataclass(slots=True)
class Own:
    """What is remembered of one request."""

    like: int
    """``FREE`` or ``FORMED``."""
    booked: int
    """Tokens of its text of which its statistics know; those behind them were written in steps of rest."""
    counts: Counts = field(default_factory=dict)
    gains: Gains = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    """Of this step, by drafter."""
    off: dict[Place, int] = field(default_factory=dict)
    """The engine's steps up to which drafters are not thought about again."""
    sent: float = HOPED
    """Nodes sent in a step, of late."""
    fruitless: int = 0
    """Looks in a row that sent nothing."""
    away: int = 0
    """The engine's step up to which it goes without a look."""
    echo: Echo = field(default_factory=Echo)
    echoed: bool = False
    """Whether it has been heard to repeat itself."""


class Paying:
    """One for one method; see ``Allocator``."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.calibration, self.ledger = Calibration(), ledger or Ledger()
        self.worth, self._sending = Worth(), Sending(self.ledger)
        self._sleep = NEVER
        """The engine's step up to which nobody who bid in this one has anything to bid for."""
        self._looks, self._heed, self._rows = Looks(), HEED, 0
        self._formed_lost = False
        """Whether the trial that was lost last had texts of a form in it."""
        self._dear = False
        """Whether drafts for a step's requests are thought to take longer than its pass, as of the last step."""
        self._pricey = 0.0
        """Milliseconds from which a drafter is worth thinking about, as of the last step."""
        self.services: Services | None = None

    def bind(self, services: Services) -> None:
        """Take the engine's services."""
        self.services = services
        self.worth.bind(services)

    def bid(self, request: Request, most: int) -> int:
        """Bid for somewhat more rows than were sent of late, or for none."""
        assert self.services is not None
        own, step, worth, ledger = self._own(request), self.services.steps, self.worth, self.ledger
        hopeless = not (own.places or own.echoed or own.like == FORMED or self._hopes())
        if (hopeless or own.away > step) and not (step % HEED == 0 and self._echoes(request, own)):
            until = own.away if own.away > step else step + HOPELESS
        elif ledger.wants_plain(*self._settled(request.model)):
            self._sleep = 0
            return 0
        elif worth.known and not any(worth.runs((n, own.like), own.gains, len(request.tokens)) for n in worth.known):
            until = worth.next_trial()
        else:
            until = 0
        self._sleep = min(self._sleep, until)
        return 0 if until else min(most, int(2 * own.sent) + 4)

    def rests(self) -> int:
        """Rest behind a lost trial or a look in vain, up to the next step of rest that tells something."""
        return min(self.ledger.resting, self._heed)

    def rest(self, done: Sequence[Committed], steps: int) -> None:
        """Book steps of plain decoding, and hear whether texts repeat themselves."""
        assert self.services is not None
        ledger, services = self.ledger, self.services
        ledger.count_rest(steps)
        since, self._rows = services.rows - self._rows, services.rows
        wrote = [each.request for each in done if each.tokens]
        if not wrote:
            return
        price, load = self._price(wrote[0].model)
        alike = since == steps * sum(each.requests for each in services.load.values())
        wall = ledger.rest(services.steps, steps, price, load, alike)
        for request in wrote:
            own = self._own(request)
            if wall:
                self._book_rest(request, own, wall)
            if ledger.asleep and self._echoes(request, own):
                ledger.wake()
        self._heed = HEED if any(map(_proven, wrote)) else min(LONGEST_UNHEARD, 4 * self._heed)

    def meets(self, request: Request) -> None:
        """A new request may be one for which drafters pay: look at it, where what is known of its like promises it."""
        assert self.services is not None
        ledger, self._heed, formed = self.ledger, HEED, self._own(request).like == FORMED
        if formed and not self._formed_lost:
            ledger.wake(lost=True)
        elif (formed or self._hopes()) and self._affords_look(request.model) and (formed or self._promises()):
            ledger.wake()
        ledger.begin(self.services.steps)

    def rooms(self, drafter: str, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[int]:
        """Let a drafter run where it pays, or is due for a trial."""
        assert self.services is not None
        worth, step, rooms = self.worth, self.services.steps, []
        pricey = worth.ms(drafter) >= self._pricey
        for found, room in zip(drafted, rows, strict=True):
            own = self._own(found.request)
            like = own.like + self._found(found, own) if pricey and found.by_drafter else own.like
            place = own.places[drafter] = drafter, like
            if own.off.get(place, 0) > step:
                room = 0
            elif not worth.runs(place, own.gains, len(found.request.tokens)):
                own.off[place], room = min(worth.due(drafter), step + OFF), 0
            rooms.append(room)
        return rooms

    def select(self, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return the nodes that give the most tokens per millisecond, all requests together."""
        assert self.services is not None
        nodes: list[tuple[float, int, int]] = []
        for number, (found, limit) in enumerate(zip(drafted, rows, strict=True)):
            own = self._own(found.request)
            mine = sorted([(-chance, number, node) for node, chance in enumerate(self._paths(found, own))])
            nodes += mine[:limit]
        count = 0
        if nodes:
            if len(drafted) > 1:
                nodes.sort()
            price, load = self._price(drafted[0].request.model)
            count = self._sending.count(nodes, len(drafted), self.services.steps, price, load, self._spent(drafted))
        sent: list[list[int]] = [[] for _ in drafted]
        for _, number, node in nodes[:count]:
            sent[number].append(node)
        for each, found in zip(sent, drafted, strict=True):
            each.sort()
            own = self._own(found.request)
            own.sent += FORGOTTEN * (len(each) - own.sent)
            own.away = 0
            own.fruitless = 0 if each else own.fruitless + 1
            if own.fruitless and self._tires(own, found.request):
                price, load = self._settled(found.request.model)
                own.away = self.services.steps + self._looks.away(self.ledger.plain_ms(price, load), load.requests)
        return sent

    def learn(
        self, drafted: Sequence[Drafted], observations: Sequence[Observation], spent: Mapping[str, float]
    ) -> None:
        """Book the step; learn how its nodes fared and what each drafter added."""
        assert self.services is not None
        sleep, self._sleep, self._heed, self._rows = self._sleep, NEVER, HEED, self.services.rows
        if not observations:
            return
        price, load = self._price(observations[0].request.model)
        gained = sum(len(seen.committed.tokens) for seen in observations)
        rows = sum(len(seen.tree) for seen in observations)
        tokens = gained + load.requests - len(observations)
        lost = self.ledger.lost
        booked = self.ledger.book(self.services.steps, price, load, rows, tokens, sum(spent.values()))
        load = load.settled
        plain = self.ledger.plain_ms(price, load) if booked is None else booked[1]
        self._pricey, self._dear = PRICEY * plain, load.ms(price) < UNKNOWN_OVERHEAD * load.requests
        if self.ledger.lost > lost:
            self._formed_lost = any(self._own(seen.request).like == FORMED for seen in observations)
        for seen in observations:
            request, own = seen.request, self._own(seen.request)
            if len(request.tokens) > own.booked:
                self._book_rest(request, own, plain)
            own.booked += len(seen.committed.tokens)
            if booked is not None:
                request.stats.decoding_ms += booked[0]
                request.stats.plain_ms += plain * len(seen.committed.tokens)
        if booked is not None and rows and self.ledger.gain() > 1.0:
            self._looks.paid(plain * tokens / load.requests - booked[0])
        self.worth.token_ms = self.ledger.token_ms(price, load)
        if spent:
            self._learn_drafts(_pairs(drafted, observations), spent, plain)
            if not rows and drafted and booked is not None:
                ms, beyond = sum(spent.values()), booked[0] - plain
                self.ledger.pause(self._looks.vain(self.services.steps, plain, ms, beyond, len(drafted)))
        if sleep < NEVER:
            self.ledger.pause(sleep - self.services.steps)

    def _learn_drafts(
        self, pairs: Sequence[tuple[Drafted, Observation]], spent: Mapping[str, float], plain: float
    ) -> None:
        """Learn what became of drafts, what each drafter adds, and what it takes, beside ``plain`` ms of a step."""
        asked = dict.fromkeys(spent, 0)
        for found, seen in pairs:
            own = self._own(found.request)
            self.calibration.learn(own.counts, found.tree, seen.committed.tokens)
            best = 0
            for name in found.asked:
                if name not in asked:  # it was dropped since, or this is not the step's first call
                    continue
                asked[name] += 1
                if name in found.later:
                    continue
                added = _owned(seen, name)
                place = own.places.get(name, (name, own.like))
                self.worth.learn(place, own.gains, max(0, added - best))
                best = max(best, added)
        for name, ms in spent.items():
            self.worth.spend(name, ms, asked[name], plain)

    def hears(self, drafter: str) -> bool:
        """Whether what it learns may pay later: where a draft takes longer than a pass, learning does, too."""
        return not self._dear and not self.ledger.resting and self.worth.quick(drafter)

    def figures(self) -> dict[str, Any]:
        """Return the ledger's books, and by drafter the tokens that it adds in a call and its milliseconds.

        Plain data, of all requests together.
        """
        worth = self.worth
        drafters = {
            name: {"tokens": worth.general((name, FREE)), "ms": cost.value} for name, cost in worth.cost.items()
        }
        return {**self.ledger.figures(), "token_ms": worth.token_ms, "drafters": drafters}

    def dropped(self, drafter: str) -> None:
        """Nobody waits for its next trial."""
        self.worth.forget(drafter)

    def end(self, request: Request) -> None:
        """Say in the request's statistics why it went as it did."""
        own = self._own(request)
        if len(request.tokens) > own.booked:
            self._book_rest(request, own, self.ledger.plain_ms(*self._settled(request.model)))
        request.stats.reason = partial(self.why, own)

    def why(self, own: Own) -> str:
        """Return in a few words which drafters run for a request, and what those at rest would bring."""
        if self.ledger.resting and not self.ledger.asleep:
            return f"plain: drafting did not pay of late ({self.ledger.lost} trials lost), tried again later"
        words = []
        for name, cost in self.worth.cost.items():
            place = name, own.like
            state = "on" if self.worth.pays(place, own.gains) else "off"
            words.append(f"{name} {state} ({self.worth.tokens(place, own.gains):.2f} tokens for {cost.value:.2f} ms)")
        dear = "drafts would take longer than passes, unless texts repeat themselves"
        return ", ".join(words) or (dear if self._dear else "too short to tell")

    def thresholds(self, drafter: str, rounds: float) -> tuple[float, float]:
        """Return in tokens what a row of the pass costs at least, and a further round of a drafter's own passes.

        ``rounds``: how many the drafter makes in a call, on average.
        """
        price, load = self._price("target")
        token = self.ledger.token_ms(price, load)
        row = (self.ledger.pass_ms(price, load, 8) - load.ms(price)) / 8
        return max(0.01, row / token), self.worth.round_ms(drafter, rounds) / token

    def _price(self, model: str) -> tuple[PassPrice, Load]:
        assert self.services is not None
        return self.ledger.price(self.services.models[model].price), self.services.load[model]

    def _settled(self, model: str) -> tuple[PassPrice, Load]:
        """Return the same, the load without what the step at hand reads of prompts."""
        price, load = self._price(model)
        return price, load.settled

    def _own(self, request: Request) -> Own:
        own = request.memory.get("paying")
        if own is None:
            like = FREE if request.params.mask is None else FORMED
            own = request.memory["paying"] = Own(like, len(request.tokens))
        return own

    def _tires(self, own: Own, request: Request) -> bool:
        """Whether looks in vain at a request have been so many that it is to be looked at more rarely."""
        if own.like == FREE and self._dear and not _proven(request):
            return own.sent < FEW_WHERE_DEAR
        return own.fruitless >= FRUITLESS and own.sent < FEW

    def _hopes(self) -> bool:
        """Whether a free text of which nothing is known is worth a look: where that is dear, while others paid."""
        return not self._dear or self._looks.in_credit

    def _promises(self) -> bool:
        """Whether what drafters bring to free texts is worth a look, as far as is known."""
        worth = self.worth
        promised = [worth.general((name, FREE)) for name in worth.known if worth.pays((name, FREE), {})]
        return not worth.cost or sum(promised) * worth.token_ms > self._looks.ms

    def _echoes(self, request: Request, own: Own) -> bool:
        """Whether a request is worth a look because its text repeats itself."""
        if not (own.echo.heard(request.tokens) and self._affords_look(request.model, repeats=True)):
            return False
        own.echoed, own.away, own.fruitless, own.sent = True, 0, 0, max(own.sent, HOPED)
        return True

    def _affords_look(self, model: str, repeats: bool = False) -> bool:
        assert self.services is not None
        return self._looks.allows(self.services.steps, self.ledger.plain_ms(*self._settled(model)), repeats)

    def _book_rest(self, request: Request, own: Own, wall: float) -> None:
        """Put steps of rest, of ``wall`` ms each, into a request's statistics."""
        ms = (len(request.tokens) - own.booked) * wall
        request.stats.decoding_ms += ms
        request.stats.plain_ms += ms
        own.booked = len(request.tokens)

    def _found(self, found: Drafted, own: Own) -> int:
        """Return how much is expected of what was drafted before, by one drafter: 0 (nothing) to 2 (much)."""
        for other, draft in found.by_drafter.items():
            if other not in found.paths:
                paths = found.paths[other] = self.calibration.paths(own.counts, draft.tree)
                found.expected = max(found.expected, sum(paths))
        return 0 if found.expected < 0.75 else 1 if found.expected < 2.5 else 2

    def _paths(self, found: Drafted, own: Own) -> list[float]:
        """Return the chance of each node of a request's union that its whole path survives."""
        if len(found.by_drafter) == 1 and len(found.paths) == 1:
            return next(iter(found.paths.values()))
        return self.calibration.paths(own.counts, found.tree)

    def _spent(self, drafted: Sequence[Drafted]) -> float:
        """Return the milliseconds that the step's drafts take, on average."""
        cost = self.worth.cost
        return sum(cost[name].value for found in drafted for name in found.asked if name in cost)


def _proven(request: Request) -> bool:
    return request.stats.accepted >= PROVEN


def _pairs(drafted: Sequence[Drafted], observations: Sequence[Observation]) -> list[tuple[Drafted, Observation]]:
    by_request = {found.request.id: found for found in drafted}
    return [(found, seen) for seen in observations if (found := by_request.get(seen.request.id)) is not None]


def _owned(seen: Observation, name: str) -> int:
    """Return how many of the accepted nodes in a row were the drafter's."""
    for count, node in enumerate(seen.nodes):
        if name not in seen.tree.owners[node]:
            return count
    return len(seen.nodes)
