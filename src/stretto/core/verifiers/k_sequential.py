"""K-sequential selection: all siblings are tried against the target itself, at one rate that makes room for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.choose import sample
from stretto.core.noise import NoiseKey, Stream, uniform
from stretto.core.verifiers.contract import Draws
from stretto.core.verifiers.node_by_node import NodeByNode, certain, normalised

HALVINGS = 60
"""Of the interval in which the rate lies: enough for all 53 bits of a float64."""


class KSequential(NodeByNode):
    """The selection rule of SpecTr (Sun et al., arXiv 2310.15141), for k siblings drawn independently from q.

    Each is kept with chance min(1, p(x) / (rate q(x))), and where none is, the token comes from what those chances left
    of p. At least (1 - 1/e) of the best chance that any rule could give.
    """

    draws: Draws = "independent"

    def select(self, p: Tensor, tokens: Sequence[int], q: Tensor | None, key: NoiseKey) -> tuple[int, int | None]:
        """Raises ValueError for several children that were not drawn."""
        count = len(tokens)
        if q is None:
            if count > 1:
                use = "expected q, the distribution they were drawn from; use MultiRound for children nobody drew"
                raise ValueError(f"tree: {count} children without q: {use}")
            q = certain(p, tokens[0])
        kept = torch.minimum(q, p / rate(p, q, count))  # the chance that a draw is x and is kept
        bits = key.bits(Stream.ACCEPT)
        for number, token in enumerate(tokens):
            if uniform(bits, number) * q[token].item() < kept[token].item():
                return token, number
        one = kept.sum().item()
        draws = (1.0 - (1.0 - one) ** count) / one if one else float(count)  # expected, up to the one that is kept
        return sample(normalised((p - kept * draws).clamp_(min=0.0), p), key.bits(Stream.RESIDUAL)), None


def rate(p: Tensor, q: Tensor, count: int) -> float:
    """Return the least rate, from 1 to `count`, at which `count` tries together give no token more often than p does.

    With b the chance that one try is kept, sum(min(q, p / rate)), tries are made (1 - (1 - b)^count) / b times on
    average, and each gives x with chance p(x) / rate at most: so that number must not exceed the rate. It grows with
    the rate more slowly than the rate itself, and they meet once.
    """
    low, high = 1.0, float(count)
    for _ in range(HALVINGS if count > 1 else 0):
        middle = (low + high) / 2
        one = torch.minimum(q, p / middle).sum().item()
        if middle * one < 1.0 - (1.0 - one) ** count:
            low = middle
        else:
            high = middle
    return high
