"""How far a draft is from its target at each token: the objectives of DistillSpec (arXiv 2310.08461), in nats.

Each takes logits float32 [..., V] of the target (no gradient needed) and of the draft, and returns [...].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(target: Tensor, draft: Tensor) -> Tensor:
    """KL(p || q): the draft covers all that the target may say."""
    p = target.log_softmax(-1)
    return (p.exp() * (p - draft.log_softmax(-1))).sum(-1)


def reverse_kl(target: Tensor, draft: Tensor) -> Tensor:
    """KL(q || p): the draft says only what the target may say."""
    return forward_kl(draft, target)


def jensen_shannon(beta: float) -> Divergence:
    """beta KL(p || m) + (1 - beta) KL(q || m), where m = beta p + (1 - beta) q. Raises ``ValueError``."""
    if not 0 < beta < 1:
        raise ValueError(f"beta={beta}: expected a number between 0 and 1")

    def divergence(target: Tensor, draft: Tensor) -> Tensor:
        p, q = target.log_softmax(-1), draft.log_softmax(-1)
        weights = torch.tensor([beta, 1 - beta]).log()
        m = torch.logaddexp(p + weights[0], q + weights[1])
        return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)

    return divergence


def total_variation(target: Tensor, draft: Tensor) -> Tensor:
    """Half the sum of |p - q|: the share of drafted tokens that speculative sampling would reject."""
    return (target.softmax(-1) - draft.softmax(-1)).abs().sum(-1) / 2


DIVERGENCES: dict[str, Callable[[float], Divergence]] = {
    "fkl": lambda beta: forward_kl,
    "rkl": lambda beta: reverse_kl,
    "jsd": jensen_shannon,
    "tvd": lambda beta: total_variation,
}


def divergence(name: str, beta: float = 0.5) -> Divergence:
    """Return the divergence of that name; ``beta`` is read by ``jsd`` alone. Raises ``ValueError``."""
    if name not in DIVERGENCES:
        raise ValueError(f"divergence={name!r}: expected one of {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name](beta)
