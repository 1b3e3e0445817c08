"""Drafted continuations of a request: a run, a tree, or the union of several drafters' trees."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import ge, le, lt

from torch import Tensor

_KINDS: dict[str, frozenset[type]] = {
    "tokens": frozenset({int}),
    "parents": frozenset({int}),
    "survival": frozenset({float, int}),
    "owners": frozenset({frozenset}),
}


@dataclass(slots=True)
class DraftTree:
    """Tokens that may follow a row, as a forest under that row (node -1).

    Per node: its token, its parent (an earlier node, or -1), the estimated chance that it survives given that its
    parent does, and the drafters that proposed it. `q` maps a node (or -1) to the distribution, float64 [V], its
    children were drawn from, where the drafter has one. Trees are values: build a new one instead of changing one.
    """

    tokens: list[int]
    parents: list[int]
    survival: list[float]
    owners: list[frozenset[str]]
    q: dict[int, Tensor] | None = None
    _children: list[list[int]] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def run(
        cls,
        tokens: Sequence[int],
        survival: float | Sequence[float] = 1.0,
        owner: str = "",
        q: Sequence[Tensor] | None = None,
    ) -> "DraftTree":
        """Return a tree of one path; `survival` is one number for all or one each; tokens[i] was drawn from q[i]."""
        count = len(tokens)
        chances = [float(survival)] * count if isinstance(survival, int | float) else list(survival)
        by_node = None if q is None else {node - 1: distribution for node, distribution in enumerate(q)}
        return cls(list(tokens), list(range(-1, count - 1)), chances, [frozenset({owner})] * count, by_node)

    def __len__(self) -> int:
        return len(self.tokens)

    def children(self, node: int) -> list[int]:
        """Return the children of `node` (-1: of the row before the tree) in ascending order."""
        if self._children is None:
            self._children = [[] for _ in range(len(self.tokens) + 1)]
            for child, parent in enumerate(self.parents):
                self._children[parent].append(child)  # parent -1 is the last entry
        return self._children[node]

    def child(self, node: int, token: int) -> int | None:
        """Return the first child of `node` that carries `token`, None where there is none."""
        return next((child for child in self.children(node) if self.tokens[child] == token), None)

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root's child to `node`; [] for -1."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def validate(self, vocab: int) -> None:
        """Raise ValueError that names what is wrong with the tree for a vocabulary of `vocab` tokens."""
        count = len(self.tokens)
        for name, kinds in _KINDS.items():
            entries = getattr(self, name)
            if not isinstance(entries, list):
                raise ValueError(f"{name}: expected a list, got {type(entries).__name__}; make it one")
            if len(entries) != count:
                raise ValueError(
                    f"{name}: expected an entry for each of {count} tokens, got {len(entries)}; give one each"
                )
            if not kinds.issuperset(map(type, entries)):
                other = next(entry for entry in entries if type(entry) not in kinds)
                told = " or ".join(sorted(kind.__name__ for kind in kinds))
                raise ValueError(f"{name}: expected {told}, got {other!r} of type {type(other).__name__}; convert it")
        if not all(type(name) is str for owner in set(self.owners) for name in owner):
            raise ValueError(f"owners: expected sets of drafters' names, got {self.owners}; name the drafter")
        if not self._sound(vocab):
            self._complain(vocab)
        for node, distribution in (self.q or {}).items():
            if not isinstance(distribution, Tensor):
                raise ValueError(f"q[{node}]: expected a tensor, got {type(distribution).__name__}; convert it")
            if not -1 <= node < count or tuple(distribution.shape) != (vocab,):
                shape = tuple(distribution.shape)
                raise ValueError(f"q[{node}] of shape {shape}: expected a node below {count} and shape ({vocab},)")
            for child in self.children(node):
                if not distribution[self.tokens[child]] > 0.0:
                    drawn = f"the distribution that tokens[{child}]={self.tokens[child]} was drawn from"
                    raise ValueError(f"q[{node}]: expected {drawn}, but it gives it no chance; correct the drafter")

    def _sound(self, vocab: int) -> bool:
        """Whether every token, parent and chance lies in its bounds: asked of every draft, so in few calls."""
        if not self.tokens:
            return True
        tokens, parents, survival = self.tokens, self.parents, self.survival
        return (
            min(tokens) >= 0
            and max(tokens) < vocab
            and min(parents) >= -1
            and all(map(lt, parents, range(len(parents))))
            and all(map(le, repeat(0.0), survival))
            and all(map(ge, repeat(1.0), survival))
        )

    def _complain(self, vocab: int) -> None:
        for node, (token, parent, chance) in enumerate(zip(self.tokens, self.parents, self.survival, strict=True)):
            if not 0 <= token < vocab:
                raise ValueError(f"tokens[{node}]={token}: expected 0 to {vocab - 1}; drop what the target cannot say")
            if not -1 <= parent < node:
                raise ValueError(f"parents[{node}]={parent}: expected -1 to {node - 1}; list parents before children")
            if not 0.0 <= chance <= 1.0:
                raise ValueError(f"survival[{node}]={chance}: expected a chance from 0 to 1; correct the drafter")

    @classmethod
    def union(cls, trees: Iterable["DraftTree"]) -> "DraftTree":
        """Return one tree in which equal paths are one node, owned by all who proposed it, with the best survival.

        The union has no `q`: a node of two drafters was drawn from neither's distribution alone.
        """
        merged = cls([], [], [], [])
        place: dict[tuple[int, int], int] = {}  # (merged parent, token) -> merged node
        for tree in trees:
            node_of = {-1: -1}
            for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
                where = (node_of[parent], token)
                if where not in place:
                    place[where] = len(merged.tokens)
                    merged.tokens.append(token)
                    merged.parents.append(where[0])
                    merged.survival.append(tree.survival[node])
                    merged.owners.append(tree.owners[node])
                else:
                    same = place[where]
                    merged.survival[same] = max(merged.survival[same], tree.survival[node])
                    merged.owners[same] |= tree.owners[node]
                node_of[node] = place[where]
        return merged
