"""Token Recycling: what any row of an earlier pass ranked highest behind a token is drafted behind it next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from stretto.core.picking import leaders
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.base import ModelFree
from stretto.decoding.speculative.stores import TenantStores

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.decoding.speculative.drafter import Observation

SUCCESSORS = 8

SHAPE = tuple(
    path
    for depth in (
        "0 1 2 3 4 5 6 7",
        "00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70",
        "000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500",
        "0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000",
        "00000 00001 00002 00010 00020 00100 01000 10000",
        "000000 000001 000100",
    )
    for path in depth.split()
)
"""The paper's tree of 80 nodes: of each the ranks of the tokens on its path, in breadth-first order."""


def survives(rank: int) -> float:
    """Return the estimated chance that the successor of that rank is right: a half, a quarter, an eighth, ..."""
    return 0.5 ** (1 + rank)


@cache
def shape(room: int) -> list[tuple[int, int]]:
    """Return parent and rank of the at most ``room`` nodes of ``SHAPE`` with the best chances, breadth first.

    The chance of a path is the product of ``survives``; of equal ones the earlier is taken.
    """
    ranked = sorted(range(len(SHAPE)), key=lambda node: (sum(int(rank) + 1 for rank in SHAPE[node]), node))
    paths = [SHAPE[node] for node in sorted(ranked[:room])]
    place = {"": -1, **{path: number for number, path in enumerate(paths)}}
    return [(place[path[:-1]], int(path[-1])) for path in paths]


class Adjacency:
    """For each token its successors, best first: at most ``limit`` tokens, the least recently seen go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.successors: OrderedDict[int, list[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.successors)

    def put(self, token: int, successors: list[int]) -> None:
        """Overwrite what was known of a token."""
        self.successors[token] = successors
        self.successors.move_to_end(token)
        if len(self.successors) > self.limit:
            self.successors.popitem(last=False)


class TokenRecycling(ModelFree):
    """Token Recycling (Luo et al., arXiv 2408.08696).

    An adjacency matrix holds the ``SUCCESSORS`` best tokens behind each token, as the last row with that token had
    them, be it accepted, rejected or a probe. The tree of ``SHAPE`` is filled from it, breadth first; with fewer rows,
    its likeliest part. The matrix is the tenant's; the matrices of all hold at most ``limit`` tokens.
    """

    def __init__(self, name: str = "token-recycling", *, limit: int = 1 << 16) -> None:
        super().__init__(name)
        self.past: TenantStores[Adjacency] = TenantStores(Adjacency, limit=limit)

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the filled tree; nodes whose parent's successors are unknown are left out."""
        known = self.past.find(request)
        if known is None or request.tokens[-1] not in known.successors:
            return None
        successors = known.successors
        tokens, parents, survival = list[int](), list[int](), list[float]()
        place: list[int] = []  # of each node of the shape; -1 where it is left out
        for parent, rank in shape(min(room, len(SHAPE))):
            above = -1 if parent < 0 else place[parent]
            behind = None
            if parent < 0 or above >= 0:
                behind = successors.get(request.tokens[-1] if parent < 0 else tokens[above])
            if behind is None or rank >= len(behind):
                place.append(-1)
                continue
            place.append(len(tokens))
            tokens.append(behind[rank])
            parents.append(above)
            survival.append(survives(rank))
        return Draft(self.tree(tokens, parents, survival)) if tokens else None

    def observe(self, observations: Sequence[Observation]) -> None:
        """Write the successors of every row's token."""
        for seen in observations:
            known = self.past.open(seen.request)
            output = seen.output
            rows = _last_rows(output.chunk.tokens, output.chunk.wanted)
            found = leaders(output.logits, [output.row(row) for row in rows.values()], SUCCESSORS)
            for token, successors in zip(rows, found, strict=True):
                known.put(token, successors)
        self.past.trim()

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Return for how many tokens successors are known."""
        return {self.name: self.past.describe("tokens")}


def _last_rows(tokens: Sequence[int], rows: Iterable[int]) -> dict[int, int]:
    """Return each token, not embeddings, with the last row that carries it: an earlier one would be overwritten."""
    return {tokens[row]: row for row in rows if tokens[row] >= 0}
