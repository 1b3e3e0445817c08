"""A mixture of experts in which a row's arithmetic does not depend on who else chose its experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def choose_experts(logits: Tensor, chosen: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Return the ``chosen`` most probable experts of each row of ``logits`` [rows, experts] and their weights.

    Ids are int64 [rows, chosen], weights fp32: the softmax over all experts, divided by the chosen ones' sum where
    ``normalised``. Equal probabilities go to the lower id.
    """
    wide = logits.float()
    odds = torch.exp(wide - wide.amax(-1, keepdim=True))
    weights, ids = (odds / odds.sum(-1, keepdim=True)).sort(stable=True, dim=-1, descending=True)
    weights, ids = weights[:, :chosen], ids[:, :chosen]
    if normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids, weights


def mixture(x: Tensor, ids: Tensor, weights: Tensor, experts: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """Return each row's chosen experts' outputs, weighted and added in ascending id, in the dtype of ``x``.

    ``x`` is [rows, width], ``ids`` and ``weights`` are [rows, chosen]; ``experts`` map [n, width] to [n, width].
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for number in ids.unique().tolist():
        rows, place = (ids == number).nonzero(as_tuple=True)
        share = experts[number](x.index_select(0, rows)).float() * weights[rows, place, None]
        total.index_add_(0, rows, share)
    return total.to(x.dtype)
