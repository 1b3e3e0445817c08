"""The walk of verifiers that decide at each node by itself which of its children is kept."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stretto.core.choose import sample
from stretto.core.noise import NoiseKey, Stream
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers.asking import distribution
from stretto.core.verifiers.contract import Draws, Fidelity, Walk, Walked


class NodeByNode(ABC):
    """Keep a child or draw another token; behind a kept node without children stands a draw from the target."""

    draws: Draws
    fidelity: Fidelity = "exact-distribution"

    @abstractmethod
    def select(self, p: Tensor, tokens: Sequence[int], q: Tensor | None, key: NoiseKey) -> tuple[int, int | None]:
        """Return the token that follows a node and the number of the child that carries it, None where none is kept.

        `p` is the target's distribution, float64 [V], `tokens` are the children's in the order drawn (at least one),
        `q` what they were drawn from, float64 [V], None where nobody drew: then each was the drafter's only choice.
        Random numbers come from the streams ACCEPT and RESIDUAL of `key`.
        """

    @abstractmethod
    def check(self, tree: DraftTree) -> None:
        """Raise ValueError for a tree that was not drawn as this verifier needs (see `Verifier`)."""

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        self.check(tree)
        tokens: list[int] = []
        nodes: list[int] = []
        node = -1
        while True:
            p = yield from distribution(node, state)
            if not isinstance(p, Tensor):
                return Walked(tokens, nodes, None, p)
            children = tree.children(node)
            if children:
                q = None if tree.q is None else tree.q.get(node)
                drawn = [tree.tokens[child] for child in children]
                token, kept = self.select(p, drawn, None if q is None else q.to(p.device), state.key())
            else:
                token, kept = sample(p, state.key().bits(Stream.CHOICE)), None
            tokens.append(token)
            finish = state.ends(token)
            if finish or kept is None:
                return Walked(tokens, nodes, finish, None)
            node, state = children[kept], state.advance(token)
            nodes.append(node)


def siblings(tree: DraftTree) -> Iterator[list[int]]:
    """Yield the tokens of the children of each node that has some."""
    for node in dict.fromkeys(tree.parents):
        yield [tree.tokens[child] for child in tree.children(node)]


def certain(p: Tensor, token: int) -> Tensor:
    """Return the distribution of a drafter that could only say `token`, shaped like `p`."""
    q = torch.zeros_like(p)
    q[token] = 1.0
    return q


def normalised(mass: Tensor, otherwise: Tensor) -> Tensor:
    """Return `mass` (float64 [V], not negative) scaled to a sum of 1, `otherwise` where rounding left nothing of it."""
    total = mass.sum()
    return mass / total if total > 0.0 else otherwise
