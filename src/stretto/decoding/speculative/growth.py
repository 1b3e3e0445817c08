"""How the tree of a drafter with logits grows: round by round, one pass of the draft model a round.

In a round the draft model computes some nodes of the tree, and each of them gives candidates for its children. A
growth rule makes nodes of candidates and says which nodes the next round computes. Runs of fixed length, static trees,
trees by path probability and early stopping are rules; a published system names one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from stretto.core.tree import DraftTree

ROOT = -1

Estimator = Literal["probability", "margin"]
"""What a candidate's chance is read from: the draft's probability, or the margin of the perturbed scores between a
candidate and the one behind it, which predicts better where drafts share the noise of choice."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """What the draft model says at one computed node."""

    node: int
    """The node, or ``ROOT`` for the last known token."""
    tokens: Sequence[int]
    """Candidates, best first, without repetition: as many as the rule's ``width``, fewer where fewer are allowed."""
    chances: Sequence[float]
    """Of each candidate, the estimated chance that it survives given that the node does."""
    entropy: float = 0.0
    """Of the draft's distribution at the node, in nats; filled where the rule's estimator is ``probability``."""


@dataclass(slots=True)
class Growing:
    """A tree under construction. Nodes are numbered in the order of ``add``; parents precede children."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    survival: list[float] = field(default_factory=list)
    """What the drafter said of each node."""
    path: list[float] = field(default_factory=list)
    """Of each node, the chance that its whole path survives."""
    depth: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, chance: float, said: float | None = None) -> int:
        """Append a node and return its number; ``said``: what the drafter said where ``chance`` is calibrated."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.survival.append(chance if said is None else said)
        self.path.append(chance * self.chance(parent))
        self.depth.append(1 if parent == ROOT else self.depth[parent] + 1)
        return len(self.tokens) - 1

    def chance(self, node: int) -> float:
        """Return the chance that a node's whole path survives; 1 for the root."""
        return 1.0 if node == ROOT else self.path[node]

    def child(self, node: int, token: int) -> int | None:
        """Return the first child of ``node`` that carries ``token``, None where there is none."""
        for child in range(node + 1, len(self)):
            if self.parents[child] == node and self.tokens[child] == token:
                return child
        return None

    def best(self, count: int) -> list[int]:
        """Return the ``count`` nodes of the highest path chances, ascending: with a node come its ancestors.

        Of equal chances the earlier node leads, and no child has a higher chance than its parent.
        """
        return sorted(sorted(range(len(self)), key=lambda node: (-self.path[node], node))[:count])

    def tree(self, nodes: Sequence[int], owner: str, q: Mapping[int, Tensor] | None = None) -> DraftTree:
        """Return the draft tree of ``nodes`` (ascending, closed under parents), ``q`` by node as in ``DraftTree``."""
        place = {ROOT: ROOT, **{node: number for number, node in enumerate(nodes)}}
        return DraftTree(
            [self.tokens[node] for node in nodes],
            [place[self.parents[node]] for node in nodes],
            [min(1.0, self.survival[node]) for node in nodes],
            [frozenset({owner})] * len(nodes),
            None if q is None else {place[node]: each for node, each in q.items() if node in place},
        )


class Growth(Protocol):
    """One rule, shared by all requests: it holds no state of theirs."""

    @property
    def width(self) -> int:
        """Candidates that it wants of each computed node."""
        ...

    @property
    def estimator(self) -> Estimator:
        """What a candidate's chance is read from."""
        ...

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Add nodes to ``tree`` and return those that the next round computes, ``[]`` to stop.

        ``rows`` bounds the finished tree, not the growing one.
        """
        ...

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the at most ``rows`` nodes that are proposed, ascending, closed under parents."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run of fixed length (speculative decoding as first published: arXiv 2211.17192, 2302.01318)."""

    length: int = 5
    estimator: Estimator = "margin"
    width: int = 1

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Prolong the run by its best candidate."""
        (last,) = expansions
        if not last.tokens:
            return []
        node = tree.add(last.node, last.tokens[0], last.chances[0])
        return [node] if tree.depth[node] < min(self.length, rows) else []

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the whole run."""
        return range(min(len(tree), rows))


@dataclass(frozen=True, slots=True)
class Beam:
    """A tree of fixed width: every round computes the ``beam`` new nodes of the highest path chances.

    Nodes whose path chance is below ``least`` are left out, so that where one token is clear the tree is a run.
    """

    depth: int = 6
    width: int = 3
    beam: int = 4
    estimator: Estimator = "margin"
    least: float = 0.01

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Add the candidates; compute the best of them until the tree is deep enough."""
        new = [
            tree.add(each.node, token, chance)
            for each in expansions
            for token, chance in zip(each.tokens, each.chances, strict=True)
            if chance * tree.chance(each.node) >= self.least
        ]
        if not new or tree.depth[new[0]] >= min(self.depth, rows):
            return []
        return sorted(sorted(new, key=lambda node: (-tree.path[node], node))[: self.beam])

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the nodes of the highest path chances."""
        return tree.best(rows)
