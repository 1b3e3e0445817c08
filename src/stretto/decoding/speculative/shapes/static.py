"""Trees whose topology is fixed beforehand, and the best such topology for a budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from stretto.decoding.speculative.growth import ROOT, Estimator, Expansion, Growing


@dataclass(frozen=True)
class Static:
    """A tree of fixed topology: ``parents`` of its nodes, each behind its parent, siblings by rank.

    Of a smaller budget's tree it has the first nodes. What is drafted does not decide which nodes there are, so any
    verifier may judge it.
    """

    parents: tuple[int, ...]
    estimator: Estimator = "margin"

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a node that does not stand behind its parent."""
        for node, parent in enumerate(self.parents):
            if not ROOT <= parent < node:
                raise ValueError(f"parents[{node}]={parent}: expected -1 to {node - 1}; list parents before children")

    @cached_property
    def width(self) -> int:
        """The most children that a node has."""
        return max((len(children) for children in self._children.values()), default=1)

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        children: dict[int, list[int]] = defaultdict(list)
        for node, parent in enumerate(self.parents):
            children[parent].append(node)
        return children

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Give every computed node its children; compute those that have children of their own."""
        place = self._places(tree)
        following: list[int] = []
        for each in expansions:
            children = [node for node in self._children.get(place[each.node], ()) if node < rows]
            for child, token, chance in zip(children, each.tokens, each.chances, strict=False):
                node = tree.add(each.node, token, chance)
                if any(below < rows for below in self._children.get(child, ())):
                    following.append(node)
        return following

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return all nodes."""
        return range(min(len(tree), rows))

    def _places(self, tree: Growing) -> dict[int, int]:
        """Return each grown node's place in the topology: siblings were added by rank."""
        place = {ROOT: ROOT}
        met: dict[int, int] = defaultdict(int)
        for node, parent in enumerate(tree.parents):
            place[node] = self._children[place[parent]][met[parent]]
            met[parent] += 1
        return place


def branching(*counts: int) -> tuple[int, ...]:
    """Return the topology in which every node of depth d has ``counts[d]`` children, level by level."""
    parents: list[int] = []
    level = [ROOT]
    for count in counts:
        first = len(parents)
        parents += [node for node in level for _ in range(count)]
        level = list(range(first, len(parents)))
    return tuple(parents)


@dataclass(frozen=True)
class Sequoia:
    """The topology that keeps most tokens on average (Sequoia, arXiv 2402.12374), for any budget of rows.

    ``chances[k]`` is the measured chance that a node's child of rank k is kept given that the node is; the sum over
    nodes of the products along their paths is then the number of kept tokens.
    """

    chances: tuple[float, ...] = (0.62, 0.14, 0.06, 0.03)
    depth: int = 8
    estimator: Estimator = "margin"

    @property
    def width(self) -> int:
        """As many ranks as there are chances."""
        return len(self.chances)

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Grow the best topology of ``rows`` nodes."""
        return best_static(self.chances, rows, self.depth).grow(tree, expansions, rows)

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return all nodes."""
        return range(min(len(tree), rows))


@lru_cache(maxsize=256)
def best_static(chances: tuple[float, ...], rows: int, depth: int) -> Static:
    """Return the best topology of at most ``rows`` nodes and ``depth`` levels, level by level."""
    levels = [(ROOT, rows, depth)]
    parents: list[int] = []
    while levels:
        below = []
        for node, nodes, left in levels:
            for size in _best(chances, nodes, left)[1]:
                parents.append(node)
                below.append((len(parents) - 1, size - 1, left - 1))
        levels = below
    return Static(tuple(parents))


def expected(chances: Sequence[float], parents: Sequence[int]) -> float:
    """Return how many nodes of a topology are kept on average."""
    reached: list[float] = []
    met: dict[int, int] = defaultdict(int)
    for parent in parents:
        reached.append((1.0 if parent == ROOT else reached[parent]) * chances[met[parent]])
        met[parent] += 1
    return sum(reached)


@lru_cache(maxsize=65536)
def _best(chances: tuple[float, ...], nodes: int, depth: int, rank: int = 0) -> tuple[float, tuple[int, ...]]:
    """Return the most that ``nodes`` nodes below a node can be worth, and the sizes of its subtrees from ``rank`` on.

    The dynamic programme: a subtree for the child of this rank, of every size, and the best of the rest for the others.
    """
    best: tuple[float, tuple[int, ...]] = (0.0, ())
    if not depth or rank == len(chances):
        return best
    for size in range(1, nodes + 1):
        below, _ = _best(chances, size - 1, depth - 1)
        beside, sizes = _best(chances, nodes - size, depth, rank + 1)
        worth = chances[rank] * (1.0 + below) + beside
        if worth > best[0]:
            best = worth, (size, *sizes)
    return best
