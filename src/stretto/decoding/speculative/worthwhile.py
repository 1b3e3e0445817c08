"""The growth rule of ``auto``: a tree grows while another round of the draft model is worth its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stretto.decoding.speculative.growth import ROOT, Estimator, Expansion, Growing

if TYPE_CHECKING:
    from stretto.decoding.speculative.paying import Paying

NEXT = 0.6
"""The chance that a node's best child survives, before its candidates are known."""
DEEPEST = 16
"""Depth of a tree at most, once so many calls have shown what the estimates are worth; ``SHALLOWEST`` of the first."""
SHALLOWEST = 4
FRONTIER = 8
"""Nodes that one round computes at most."""


class Worthwhile:
    """Chances are the allocator's calibrated ones; so are the worth of a token and the time of a round."""

    width = 3
    estimator: Estimator = "margin"

    def __init__(self, paying: Paying, owner: str) -> None:
        self.paying, self.owner = paying, owner
        self._calls = self._rounds = 1.0

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Make nodes of the candidates that may pay for a row; go on where the text is likely to go."""
        if expansions[0].node == ROOT:
            self._calls, self._rounds = 0.98 * self._calls + 1.0, 0.98 * self._rounds
        self._rounds += 1.0
        least, round_worth = self.paying.thresholds(self.owner, self._rounds / self._calls)
        deepest = min(DEEPEST, rows, SHALLOWEST - 1 + int(self._calls))
        added: list[int] = []
        for expansion in expansions:
            parent = tree.chance(expansion.node)
            depth = 1 if expansion.node == ROOT else tree.depth[expansion.node] + 1
            for token, said in zip(expansion.tokens, expansion.chances, strict=True):
                chance = self.paying.calibration.chance({}, frozenset({self.owner}), depth, said)
                if parent * chance >= least:
                    added.append(tree.add(expansion.node, token, min(chance, 1.0), said))
        going = [node for node in added if tree.depth[node] < deepest and tree.path[node] * NEXT >= least]
        going = sorted(going, key=lambda node: -tree.path[node])[:FRONTIER]
        if sum(tree.path[node] for node in going) * NEXT < round_worth:
            return []
        return sorted(going)

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the nodes that are most likely to survive."""
        return tree.best(rows)
