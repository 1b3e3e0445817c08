"""The contract of an allocator: which drafters run in a step, and which of their nodes are sent to the pass.

Nothing it decides can change a text that is verified exactly, so it may look at clocks and load as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from stretto.core.tree import DraftTree

if TYPE_CHECKING:
    from stretto.core.request import Committed, Request
    from stretto.decoding.method import Services
    from stretto.decoding.speculative.drafter import Draft, Observation


@dataclass(slots=True)
class Drafted:
    """What one request's drafters proposed in one step, and what became of it."""

    request: Request
    asked: list[str] = field(default_factory=list)
    """The drafters that ran, in order."""
    later: set[str] = field(default_factory=set)
    """Those of them that were busy getting ready to draft."""
    by_drafter: dict[str, Draft] = field(default_factory=dict)
    paths: dict[str, list[float]] = field(default_factory=dict)
    """By drafter, where the allocator asked: the chance of each of its nodes that its whole path survives."""
    expected: float = 0.0
    """The most tokens that one of those drafters is thought to have found."""
    tree: DraftTree = field(default_factory=lambda: DraftTree.run([]))
    """The union, as it was offered to ``select``."""


class Allocator(Protocol):
    """Two decisions, taken for all requests of a method at once, and what is learnt from their outcome."""

    def bind(self, services: Services) -> None:
        """Take the engine's services, once: prices of passes, the load of the step."""
        ...

    def bid(self, request: Request, most: int) -> int:
        """Return how many rows to bid for, at most ``most``; 0 while drafting does not pay."""
        ...

    def rests(self) -> int:
        """Return for how many steps from now on nobody is to draft and nobody needs to hear of it."""
        ...

    def rest(self, done: Sequence[Committed], steps: int) -> None:
        """Book so many such steps, instead of ``learn``; ``done`` is what the requests of the last one gained."""
        ...

    def meets(self, request: Request) -> None:
        """End such a rest, or let it go on, for a request that is to gain its second token in the step to come."""
        ...

    def rooms(self, drafter: str, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[int]:
        """Return how many nodes ``drafter`` may propose for each request, 0 to leave it out in this step.

        Drafters are asked in their order; ``drafted`` holds what those before it proposed.
        """
        ...

    def select(self, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return the nodes of each union that are sent, at most ``rows[i]``, ascending, each behind its parent."""
        ...

    def learn(
        self, drafted: Sequence[Drafted], observations: Sequence[Observation], spent: Mapping[str, float]
    ) -> None:
        """Learn from a step: what was drafted, what was accepted, and the milliseconds that each drafter took.

        Called before the tokens are appended to the requests.
        """
        ...

    def hears(self, drafter: str) -> bool:
        """Whether a drafter that did not run in this step observes it all the same."""
        ...

    def dropped(self, drafter: str) -> None:
        """Forget a drafter, which is gone."""
        ...

    def end(self, request: Request) -> None:
        """Forget the request."""
        ...


class Everything:
    """Every drafter always, and as many nodes as there are rows, in the order of proposal."""

    def bind(self, services: Services) -> None:
        """It needs no services."""

    def bid(self, request: Request, most: int) -> int:
        """Bid for all rows."""
        return most

    def rests(self) -> int:
        """It never rests."""
        return 0

    def rest(self, done: Sequence[Committed], steps: int) -> None:
        """Nothing is booked."""

    def meets(self, request: Request) -> None:
        """There is no rest to end."""

    def rooms(self, drafter: str, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[int]:
        """Let everyone draft as much as there is room for."""
        return rows

    def select(self, drafted: Sequence[Drafted], rows: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return the first nodes: parents precede children, so what remains is a tree."""
        return [range(min(len(each.tree), limit)) for each, limit in zip(drafted, rows, strict=True)]

    def learn(
        self, drafted: Sequence[Drafted], observations: Sequence[Observation], spent: Mapping[str, float]
    ) -> None:
        """Nothing is learnt."""

    def hears(self, drafter: str) -> bool:
        """Everyone hears everything."""
        return True

    def dropped(self, drafter: str) -> None:
        """Nothing is remembered."""

    def end(self, request: Request) -> None:
        """Nothing is remembered."""
