"""Calibrated survival: how often nodes like this one were kept, learnt from every step.

Drafters say how sure they are in scales of their own. What became of their tokens turns that into chances: counted by
who proposed a node (the set of drafters), by depth, and by what they said. A request's own counts lean on those of
all requests, those on what the drafter said.
"""

from __future__ import annotations

from collections.abc import Sequence

from stretto.core.tree import DraftTree

BINS = 12
DEEP = 4
"""Depth from which all nodes count as one."""
LEAN_ON_DRAFTER, LEAN_ON_ALL = 4.0, 8.0
"""How many observations what is leant on is worth."""
MEMORY = 400.0
"""Observations of one kind after which older ones fade."""

Key = tuple[frozenset[str], int, int]
Counts = dict[Key, list[float]]
"""By owners, depth class and bin: [kept, seen]."""


class Calibration:
    """Turns what drafters say into chances. The counts of one request are its caller's to keep."""

    def __init__(self) -> None:
        self._all: Counts = {}

    def chance(self, own: Counts, owners: frozenset[str], depth: int, said: float) -> float:
        """Return the chance that a node at ``depth`` (1: first) survives given that its parent does."""
        key = (owners, min(depth, DEEP), int(said * (BINS - 1) + 0.5))
        kept, seen = self._all.get(key, (0.0, 0.0))
        general = (kept + LEAN_ON_DRAFTER * said) / (seen + LEAN_ON_DRAFTER)
        mine = own.get(key)
        return general if mine is None else (mine[0] + LEAN_ON_ALL * general) / (mine[1] + LEAN_ON_ALL)

    def paths(self, own: Counts, tree: DraftTree) -> list[float]:
        """Return for each node the chance that its whole path survives.

        Siblings exclude each other, so that their chances are scaled down where they exceed 1 together.
        """
        known: dict[tuple[frozenset[str], int, float], float] = {}
        chances: list[float] = []
        depths: list[int] = []
        sums: dict[int, float] = {}
        for parent, owners, said in zip(tree.parents, tree.owners, tree.survival, strict=True):
            depth = 1 if parent < 0 else depths[parent] + 1
            depths.append(depth)
            like = owners, min(depth, DEEP), said
            chance = known.get(like)
            if chance is None:
                chance = known[like] = self.chance(own, owners, depth, said)
            chances.append(chance)
            sums[parent] = sums.get(parent, 0.0) + chance
        paths: list[float] = []
        for parent, chance in zip(tree.parents, chances, strict=True):
            paths.append(chance / max(1.0, sums[parent]) * (1.0 if parent < 0 else paths[parent]))
        return paths

    def learn(self, own: Counts, tree: DraftTree, text: Sequence[int]) -> int:
        """Count what became of every node that ``text``, the tokens committed behind the tree's root, tells about.

        Sent or not: the text does not depend on it. Return how far the tree followed the text.
        """
        parent, followed, found = -1, 0, Counts()
        for depth, token in enumerate(text, 1):
            follower = -1
            for child in tree.children(parent):
                kept = tree.tokens[child] == token
                key = (tree.owners[child], min(depth, DEEP), int(tree.survival[child] * (BINS - 1) + 0.5))
                entry = found.setdefault(key, [0.0, 0.0])
                entry[0] += kept
                entry[1] += 1.0
                if kept:
                    follower = child
            if follower < 0:
                break
            parent, followed = follower, depth
        for counts in (self._all, own):
            for key, seen in found.items():
                _count(counts, key, *seen)
        return followed


def _count(counts: Counts, key: Key, kept: float, seen: float) -> None:
    entry = counts.setdefault(key, [0.0, 0.0])
    if entry[1] >= MEMORY:
        entry[0] *= 0.5
        entry[1] *= 0.5
    entry[0] += kept
    entry[1] += seen
