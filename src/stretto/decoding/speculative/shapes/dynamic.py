"""Trees that follow the draft's own estimates: every node goes where it is most likely to be kept.

A draft model's pass a round computes a layer at most. Of what a round adds, only nodes that stand among the best so
far are computed: better ones can push them out later, nothing can bring others in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.decoding.speculative.growth import ROOT, Estimator, Expansion, Growing


@dataclass(frozen=True)
class OptTree:
    """The tree with the largest sum of path chances (OPT-Tree, arXiv 2406.17276), which is the expected kept length.

    A layer is added as long as it raises that sum by more than ``threshold``, the price of a pass of the draft model in
    tokens. Which nodes are proposed depends on the tokens drawn: for the coupled verifier.
    """

    threshold: float = 0.2
    width: int = 8
    estimator: Estimator = "margin"

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Add all candidates; compute those among the best, while a layer pays."""
        before = sum(tree.path[node] for node in tree.best(rows))
        new = range(len(tree), len(tree) + _add_all(tree, expansions))
        best = tree.best(rows)
        gain = sum(tree.path[node] for node in best) - before
        return [node for node in best if node in new] if gain > self.threshold else []

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the nodes of the highest path chances."""
        return tree.best(rows)


@dataclass(frozen=True)
class DySpec:
    """The tree that greedy expansion finds (DySpec, arXiv 2410.11744).

    What is worth expanding is a draw, not a drawn token: the next draw at a node is worth the chance that the node's
    path is kept and none of the draws before it is. A draw behind a node comes first of all its siblings' behind it.
    """

    width: int = 8
    estimator: Estimator = "margin"

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Add all candidates; compute those of the best draws behind which a draw would be one of the best too."""
        first = len(tree)
        _add_all(tree, expansions)
        worth = self._worth(tree)
        best = _best(worth, rows)
        least = min((worth[node] for node in best), default=0.0) if len(best) == rows else 0.0
        return [node for node in best if node >= first and tree.path[node] > least]

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the tokens of the best draws."""
        return _best(self._worth(tree), rows)

    def _worth(self, tree: Growing) -> list[float]:
        """Return what each node's draw was worth before it was made."""
        left: dict[int, float] = {}
        worth: list[float] = []
        for node, parent in enumerate(tree.parents):
            rest = left.get(parent, 1.0)
            # Rounding must not make a draw worth more than the one without which it is not made.
            worth.append(min(tree.chance(parent) * rest, 1.0 if parent == ROOT else worth[parent]))
            left[parent] = max(0.0, rest - tree.survival[node])
        return worth


def _add_all(tree: Growing, expansions: Sequence[Expansion]) -> int:
    """Add all candidates and return how many there were."""
    before = len(tree)
    for each in expansions:
        for token, chance in zip(each.tokens, each.chances, strict=True):
            tree.add(each.node, token, chance)
    return len(tree) - before


def _best(worth: Sequence[float], count: int) -> list[int]:
    """Return the ``count`` nodes of the highest worth, ascending; of equals the earlier leads."""
    return sorted(sorted(range(len(worth)), key=lambda node: (-worth[node], node))[:count])
