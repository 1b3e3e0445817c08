"""Verifiers that keep what the target finds plausible: neither its text nor its distribution, and they say so.

What they keep depends on what was drafted, so that a text depends on the rows that its drafts won, and on the load.
"""

import math

import torch
from torch import Tensor

from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers.asking import distribution, own_choice
from stretto.core.verifiers.contract import Draws, Fidelity, Walk, Walked


class Typical:
    """Typical acceptance (Medusa, arXiv 2401.10774): a drafted token needs a chance above a threshold.

    The threshold is min(epsilon, delta exp(-H)) with H the entropy of the target's distribution, in nats: where the
    target is unsure, less will do. Of the longest accepted paths the likeliest is kept, and behind it stands the
    target's own choice. At temperature 0 the text is that of greedy decoding.
    """

    draws: Draws = "coupled"
    fidelity: Fidelity = "approximate"

    def __init__(self, epsilon: float = 0.09, delta: float = 0.3) -> None:
        self.epsilon, self.delta = epsilon, delta

    def check(self, tree: DraftTree) -> None:
        """Any tree will do."""

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        states = {-1: state}
        rank = {-1: (0, 0.0)}  # of each accepted node: depth, logarithm of the path's probability
        ends: dict[int, str] = {}
        for node in range(-1, len(tree)):
            children = tree.children(node)
            if node not in states or node in ends or not children:
                continue
            p = yield from distribution(node, states[node])
            if not isinstance(p, Tensor):
                continue  # if the walk ends here, its last choice meets the error
            threshold = min(self.epsilon, self.delta * math.exp(-torch.special.entr(p).sum().item()))
            depth, likelihood = rank[node]
            for child in children:
                token, chance = tree.tokens[child], p[tree.tokens[child]].item()
                if chance > threshold:
                    states[child] = states[node].advance(token)
                    rank[child] = depth + 1, likelihood + math.log(chance)
                    if finish := states[node].ends(token):
                        ends[child] = finish
        best = max(rank, key=lambda node: rank[node])  # the earliest of equals
        nodes = tree.path(best)
        tokens = [tree.tokens[node] for node in nodes]
        if best in ends:
            return Walked(tokens, nodes[:-1], ends[best], None)
        return (yield from own_choice(tokens, nodes, states[best]))


class Rollback:
    """The rollback policy of BiLD (arXiv 2302.07863): the target takes over where a drafted token is too far from it.

    The distance is -log p(x), in nats, with p the target's distribution: at the temperature of the request, or at 1
    where it is greedy, since a greedy p knows no distance. The small model's part, to hand over where it is not
    confident, is a rule for growing the draft.
    """

    draws: Draws = "coupled"
    fidelity: Fidelity = "approximate"

    def __init__(self, threshold: float = 3.0) -> None:
        self.threshold = threshold

    def check(self, tree: DraftTree) -> None:
        """Raise ValueError for a tree that is not a run."""
        if tree.parents != list(range(-1, len(tree) - 1)):
            raise ValueError(f"tree: parents {tree.parents}: expected a run; use Typical for lossy trees")

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        self.check(tree)
        for node, token in enumerate(tree.tokens):
            p = yield from distribution(node - 1, state, soft=True)
            if not isinstance(p, Tensor):
                return Walked(tree.tokens[:node], list(range(node)), None, p)
            if p[token].item() <= math.exp(-self.threshold):
                return (yield from own_choice(tree.tokens[:node], list(range(node)), state))
            if finish := state.ends(token):
                return Walked(tree.tokens[: node + 1], list(range(node)), finish, None)
            state = state.advance(token)
        return (yield from own_choice(list(tree.tokens), list(range(len(tree))), state))
