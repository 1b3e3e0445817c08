"""Allocators for many requests at once: whose drafts are sent when rows are short, and how long drafts may be.

Both read what was drafted or how it went, so that what is sent depends on it: for the coupled verifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.decoding.method import Load
from stretto.decoding.speculative.allocator import Drafted, Everything
from stretto.decoding.speculative.trees import depths

if TYPE_CHECKING:
    from stretto.core.batch import PassPrice
    from stretto.core.request import Request
    from stretto.core.tree import DraftTree
    from stretto.decoding.method import Services
    from stretto.decoding.speculative.drafter import Observation


class Tetris(Everything):
    """TETRIS (arXiv 2502.15197): of all requests' drafted tokens, the most likely ones fill the capacity.

    A token's chance is the product of the survival chances along its path, so that with a token come those before it,
    and taking the best one by one gives the largest expected number of accepted tokens.
    """

    def __init__(self, capacity: int = 16) -> None:
        """``capacity``: drafted rows of all requests together in a step."""
        self.capacity = capacity

    def select(self, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return the most likely nodes of all trees together, of each tree as many as its request has rows."""
        sent: list[list[int]] = [[] for _ in drafted]
        places = [
            (-reached, place, node) for place, each in enumerate(drafted) for node, reached in _reached(each.tree)
        ]
        left = self.capacity
        for _, place, node in sorted(places):
            if left and len(sent[place]) < rows[place]:
                sent[place].append(node)
                left -= 1
        return [sorted(nodes) for nodes in sent]


def _reached(tree: DraftTree) -> Iterator[tuple[int, float]]:
    """Yield every node with the chance that its whole path survives; no node's is larger than its parent's."""
    chances: list[float] = []
    for node, parent in enumerate(tree.parents):
        chances.append(tree.survival[node] * (1.0 if parent < 0 else chances[parent]))
        yield node, chances[node]


@dataclass(frozen=True, slots=True)
class Guess:
    """Stands in for the price of a backend that measures none, in passes: 32 rows double what one row costs."""

    per_row: float = 1 / 32

    def ms(self, rows: int, context: int = 0, pairs: int | None = None) -> float:
        """Return the cost of a pass."""
        return 1.0 + self.per_row * rows


PACE = 0.1
"""Weight of the newest observation in a moving average."""
FORGETTING = 0.01
"""Share by which the average of a request that is not drafted for returns to where all begin, in a step."""
DRAFT_SHARE = 0.1
"""What a drafted token costs before any was timed, as a share of the cheapest pass."""


class SmartSpec(Everything):
    """SmartSpec (arXiv 2406.14066): the draft lengths of the largest goodput, which is tokens per millisecond.

    A draft of k tokens, each accepted with chance a given that the one before it was, gives a + a^2 + ... + a^k tokens
    on average, beside the token that each request gains anyway; a is a moving average of what was observed. The time is
    the price of the pass (``Guess`` where the backend has none) and, for each further token of the longest draft, what
    a round of drafting took. Idle, long drafts pay; loaded, the pass is full of rows that are sure of their token.
    """

    def __init__(self, longest: int = 8, acceptance: float = 0.7) -> None:
        """``longest`` bounds a draft; ``acceptance`` is what is assumed before anything was observed."""
        self.longest, self.acceptance = longest, acceptance
        self.average = acceptance
        """Of all requests; a new one begins with it."""
        self.round: float | None = None
        """Milliseconds that a further drafted token took, of late."""
        self.services: Services | None = None

    def bind(self, services: Services) -> None:
        """Take the services, for prices and load."""
        self.services = services

    def bid(self, request: Request, most: int) -> int:
        """Bid for the length that would pay if all drafted as this request does, by the load of the step before."""
        price, load, draft = self._step(request.model)
        count, chance, tokens = max(1, load.requests), self._of(request), 1.0
        best, goodput = 0, 1.0 / load.ms(price)
        for length in range(1, min(self.longest, most) + 1):
            tokens += chance**length
            found = tokens / (load.ms(price, count * length) + length * draft)
            if found > goodput:
                best, goodput = length, found
        return best

    def rooms(self, drafter: str, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[int]:
        """Return the lengths of the largest goodput."""
        price, load, draft = self._step(drafted[0].request.model)
        acceptance = [self._of(each.request) for each in drafted]
        return best_lengths(acceptance, [min(self.longest, limit) for limit in rows], load, price, draft)

    def learn(
        self, drafted: Sequence[Drafted], observations: Sequence[Observation], spent: Mapping[str, float]
    ) -> None:
        """Move the averages to what was accepted of the tokens that were checked."""
        longest = max((depth for each in drafted for depth in depths(each.tree)), default=0)
        if longest:
            took = sum(spent.values()) / longest
            self.round = took if self.round is None else self.round + PACE * (took - self.round)
        for seen in observations:
            mine = self._of(seen.request)
            accepted = len(seen.nodes)
            rejected = bool(seen.tree.children(seen.nodes[-1] if seen.nodes else -1)) and seen.committed.finish is None
            if accepted or rejected:
                rate = accepted / (accepted + rejected)
                mine += PACE * (rate - mine)
                self.average += PACE * (rate - self.average) / max(1, len(observations))
            else:
                mine += FORGETTING * (self.acceptance - mine)
                self.average += FORGETTING * (self.acceptance - self.average) / max(1, len(observations))
            seen.request.memory[self._key] = mine

    @property
    def _key(self) -> str:
        return f"smartspec.{id(self)}"

    def _of(self, request: Request) -> float:
        return float(request.memory.get(self._key, self.average))

    def _step(self, model: str) -> tuple[PassPrice, Load, float]:
        """Return the price of a pass, the load of the step, and what a round of drafting costs."""
        assert self.services is not None
        price: PassPrice = getattr(self.services.models[model], "price", None) or Guess()
        # Rounds are timed in milliseconds, which a guessed price does not speak.
        timed = None if isinstance(price, Guess) else self.round
        draft = DRAFT_SHARE * price.ms(1) if timed is None else timed
        return price, self.services.load.get(model, Load(1, 1)), draft


def best_lengths(
    acceptance: Sequence[float], limits: Sequence[int], load: Load, price: PassPrice, draft: float
) -> list[int]:
    """Return each request's draft length, at most its limit, so that the goodput of the pass is largest.

    ``draft``: milliseconds for each token of the longest draft. The certain rows of ``load`` come on top.
    """
    anyway = max(load.requests, len(acceptance))
    places = enumerate(zip(acceptance, limits, strict=True))
    gains = sorted(
        (-(chance**depth), depth, place) for place, (chance, limit) in places for depth in range(1, limit + 1)
    )
    costs = [load.ms(price, count) for count in range(len(gains) + 1)]
    best, goodput = (0, 0), anyway / costs[0]
    # For any longest draft and any number of tokens, those most likely to be accepted are the best to take.
    for longest in range(1, max(limits, default=0) + 1):
        tokens, count = float(anyway), 0
        for gain, depth, _ in gains:
            if depth <= longest:
                tokens, count = tokens - gain, count + 1
                found = tokens / (costs[count] + longest * draft)
                if found > goodput:
                    best, goodput = (longest, count), found
    lengths = [0] * len(acceptance)
    for _, _, place in [each for each in gains if each[1] <= best[0]][: best[1]]:
        lengths[place] += 1
    return lengths
