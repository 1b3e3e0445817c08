"""Calibrated survival: how often nodes like this one were kept, learnt from every step.

Drafters say how sure they are in scales of their own. What became of their tokens turns that into chances: counted by
who proposed a node (the set of drafters), by depth, and by what they said. A request's own counts lean on those of
all requests, those on what the drafter said. Where copies of a text break off early, nothing is seen of their deep
nodes: those, too, are thought to fare as much worse than in other texts as the ones that were reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from stretto.core.tree import DraftTree

BINS = 12
DEEP = 4
"""Depth from which all nodes count as one."""
WHOLE = 0
"""Stands for all depths: how many nodes of a request were kept, and how many were to be by all requests' counts."""
LEAN_ON_DRAFTER, LEAN_ON_ALL, LEAN_ON_ALIKE = 4.0, 8.0, 4.0
"""How many observations what is leant on is worth: what was said, what all requests saw, that a text is like others."""
MEMORY = 400.0
"""Observations of one kind after which older ones fade."""

Key = tuple[frozenset[str], int, int]
Count = list[float]
"""Kept, seen (or expected)."""
Counts = dict[Key, Count]
"""By owners, depth class and bin."""


class Calibration:
    """Turns what drafters say into chances. The counts of one request are its caller's to keep."""

    def __init__(self) -> None:
        self._all: Counts = {}

    def chance(self, own: Counts, owners: frozenset[str], depth: int, said: float) -> float:
        """Return the chance that a node at ``depth`` (1: first) survives given that its parent does."""
        key = _key(owners, depth, said)
        return _leaning(self._all.get(key), own.get(key), own.get(_whole(owners)), said)

    def paths(self, own: Counts, tree: DraftTree) -> list[float]:
        """Return for each node the chance that its whole path survives.

        Siblings exclude each other, so that their chances are scaled down where they exceed 1 together.
        """
        chances: list[float] = []
        depths: list[int] = []
        whose, level, place, chance = frozenset[str](), 0, -1, 0.0
        for parent, owners, said in zip(tree.parents, tree.owners, tree.survival, strict=True):
            depth = 1 if parent < 0 else depths[parent] + 1
            depths.append(depth)
            deep = depth if depth < DEEP else DEEP
            # What hangs together is mostly alike, and what was said differs little within a bin: asked of every node,
            # whether the key is still that of the one before is told without making it.
            if int(said * (BINS - 1) + 0.5) != place or deep != level or owners is not whose:
                whose, level, place = key = _key(owners, depth, said)
                chance = _leaning(self._all.get(key), own.get(key), own.get(_whole(owners)), said)
            chances.append(chance)
        if len(set(tree.parents)) == len(chances):
            return list(accumulate(chances, mul))
        sums: dict[int, float] = {}
        for parent, chance in zip(tree.parents, chances, strict=True):
            sums[parent] = sums.get(parent, 0.0) + chance
        paths: list[float] = []
        for parent, chance in zip(tree.parents, chances, strict=True):
            paths.append(chance / max(1.0, sums[parent]) * (1.0 if parent < 0 else paths[parent]))
        return paths

    def learn(self, own: Counts, tree: DraftTree, text: Sequence[int]) -> None:
        """Count what became of every node that ``text``, the tokens committed behind the tree's root, tells about.

        Sent or not: the text does not depend on it.
        """
        found, depths = Counts(), {-1: 0}  # of the nodes on the text's path
        last, entry = None, [0.0, 0.0]
        for node, parent in enumerate(tree.parents):
            depth = depths.get(parent, len(text))
            if depth == len(text):
                continue
            key = _key(tree.owners[node], depth + 1, tree.survival[node])
            if key != last:
                last, entry = key, found.setdefault(key, [0.0, 0.0])
            entry[1] += 1.0
            if tree.tokens[node] == text[depth]:
                entry[0] += 1.0
                depths[node] = depth + 1
        whole: dict[frozenset[str], Count] = {}
        for key, (kept, seen) in found.items():
            entry = whole.setdefault(key[0], [0.0, 0.0])
            entry[0] += kept
            entry[1] += seen * _general(self._all.get(key), key[2] / (BINS - 1))
            _count(self._all, key, kept, seen)
            _count(own, key, kept, seen)
        for owners, (kept, expected) in whole.items():
            _count(own, _whole(owners), kept, expected)


def _key(owners: frozenset[str], depth: int, said: float) -> Key:
    return owners, depth if depth < DEEP else DEEP, int(said * (BINS - 1) + 0.5)


def _whole(owners: frozenset[str]) -> Key:
    return owners, WHOLE, 0


def _share(kept: float, seen: float) -> float:
    """Return the share that was kept, as if one more had not been, where nearly all were.

    The best of many estimates, which is what is sent, errs upwards: of thirty in a row, a percent each, by a third.
    """
    return kept / (seen + kept / seen)


def _general(of_all: Count | None, said: float) -> float:
    """Return the share that was kept of all requests' nodes, leaning on what was said."""
    return said if of_all is None else _share(of_all[0] + LEAN_ON_DRAFTER * said, of_all[1] + LEAN_ON_DRAFTER)


def _leaning(of_all: Count | None, mine: Count | None, alike: Count | None, said: float) -> float:
    """Return the share that was kept, a request's own leaning on that of all requests, as far as it fares no worse."""
    general = _general(of_all, said)
    if alike is not None:
        general *= min(1.0, (alike[0] + LEAN_ON_ALIKE) / (alike[1] + LEAN_ON_ALIKE))
    return general if mine is None else (mine[0] + LEAN_ON_ALL * general) / (mine[1] + LEAN_ON_ALL)


def _count(counts: Counts, key: Key, kept: float, seen: float) -> None:
    entry = counts.setdefault(key, [0.0, 0.0])
    if entry[1] >= MEMORY:
        entry[0] *= 0.5
        entry[1] *= 0.5
    entry[0] += kept
    entry[1] += seen
