"""K-sequential selection: all siblings are tried against the target itself, at one rate that makes room for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.choose import sample
from stretto.core.noise import NoiseKey, Stream, uniform
from stretto.core.verifiers.node_by_node import normalised
from stretto.core.verifiers.rejection import MultiRound

PRECISION = 1e-6
"""To which the rate is found, from above: a rate too large keeps less, one too small would keep too much."""


class KSequential(MultiRound):
    """The selection rule of SpecTr (Sun et al., arXiv 2310.15141), for k siblings drawn independently from q.

    Each is kept with chance min(1, p(x) / (rate q(x))), and where none is, the token comes from what those chances left
    of p. At least (1 - 1/e) of the best chance that any rule could give.
    """

    def select(self, p: Tensor, tokens: Sequence[int], q: Tensor | None, key: NoiseKey) -> tuple[int, int | None]:
        if q is None:  # nobody drew: there are no equal tries to share a rate
            return super().select(p, tokens, q, key)
        count = len(tokens)
        kept = torch.minimum(q, p / rate(p, q, count))  # the chance that a draw is x and is kept
        bits = key.bits(Stream.ACCEPT)
        for number, token in enumerate(tokens):
            if uniform(bits, number) * q[token].item() < kept[token].item():
                return token, number
        left = (p - kept * tries(kept, count)).clamp_(min=0.0)
        return sample(normalised(left, p), key.bits(Stream.RESIDUAL)), None


def rate(p: Tensor, q: Tensor, count: int) -> float:
    """Return the least rate, from 1 to `count`, at which `count` tries together give no token more often than p does.

    Each try gives x with chance p(x) / rate at most, so there must be no more tries on average than the rate. There are
    at most `count` of them, and fewer at a lower rate, which keeps more: following that downwards ends where both meet.
    """
    above = float(count)
    while True:
        needed = tries(torch.minimum(q, p / above), count)
        if above - needed < PRECISION:
            return above
        above = needed


def tries(kept: Tensor, count: int) -> float:
    """Return how many of `count` tries are made on average if each gives x with chance `kept`[x] and ends them."""
    one = kept.sum().item()
    return (1.0 - (1.0 - one) ** count) / one if one else float(count)
