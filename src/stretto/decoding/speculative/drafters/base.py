"""What drafters without a model share: they look at one request after the other, and make no passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stretto.core.tree import DraftTree
from stretto.decoding.speculative.drafter import Draft

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.decoding.method import Services
    from stretto.decoding.speculative.drafter import Observation


class ModelFree:
    """A drafter that answers for each request alone. What it does not override does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner = frozenset({name})

    def bind(self, services: Services) -> None:
        """It makes no passes of its own."""

    def begin(self, request: Request) -> None:
        """Indexes are built at the first draft."""

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Draft | None]:
        """Return for each request what ``propose`` makes of it."""
        return [self.propose(request, room) for request, room in zip(requests, rows, strict=True)]

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return a draft of at most ``room`` nodes and probe rows, or None."""
        raise NotImplementedError  # every drafter writes its own

    def observe(self, observations: Sequence[Observation]) -> None:
        """It reads the tokens when it next drafts."""

    def rewind(self, request: Request) -> None:
        """It has no rows to lose."""

    def end(self, request: Request) -> None:
        """What it remembers lies in the request's memory, which is emptied."""

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Nothing outlives a request."""
        return {}

    def tree(self, tokens: list[int], parents: list[int], survival: list[float]) -> DraftTree:
        """Return a tree of which every node is this drafter's."""
        return DraftTree(tokens, parents, survival, [self.owner] * len(tokens))

    def run(self, tokens: list[int], survival: list[float]) -> Draft:
        """Return a draft of one path."""
        return Draft(self.tree(tokens, list(range(-1, len(tokens) - 1)), survival))


def chance(count: float, total: float, length: int) -> float:
    """Return the estimated chance of a continuation seen ``count`` times of ``total`` behind ``length`` equal tokens.

    count / total, of which more is believed the longer the match and the more often it was seen:
    (1 - 1 / (1 + length + total)). It rises in each of the three and is meant to be calibrated, not to be right.
    """
    return count / total * (1.0 - 1.0 / (1 + length + total))
