"""Latent attention's matrices, brought at load to what ordinary heads read (DeepSeek-V2, arXiv 2405.04434).

Checkpoints keep a head's query as (still, turned), its key without the turned entries, which all heads share, and its
value in a size of its own. Here a head begins with the entries that rope turns; its key has zeros in their place, to
which the shared ones are added, and zeros fill its value up, which the output's columns meet with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.models.spec import AttentionSpec

_FILLED = ("latent_key", "latent_value", "output")


def readers_of_row(attention: AttentionSpec) -> tuple[str, ...]:
    """Return the names of the matrices that read the normed row."""
    if attention.latent is None:
        return "query", "key", "value"
    return "query" if attention.latent.query_size is None else "query_latent", "latent", "turned"


def fills_up(stem: str, attention: AttentionSpec) -> bool:
    """Whether a matrix has zeros here that no checkpoint stores."""
    return attention.latent is not None and stem in _FILLED


def place(stem: str, tensor: Tensor, attention: AttentionSpec, neighbours: bool) -> Tensor:
    """Return the parameter ``stem``, a matrix or its bias, out of what the checkpoint keeps of it.

    ``neighbours``: rope turns the entries (2i, 2i + 1) there; here it turns i and i + pairs.
    """
    latent, turned = attention.latent, attention.turned
    assert latent is not None
    still = attention.head_size - turned
    order = torch.arange(turned).view(-1, 2).T.flatten() if neighbours else torch.arange(turned)
    if stem == "turned":
        return tensor[order]
    if stem in ("query", "latent_query"):
        return _by_head(tensor, attention.heads)[:, [*(still + order), *range(still)]].flatten(0, 1)
    if stem == "latent_key":
        return _filled(_by_head(tensor, attention.heads), turned, 0)
    if stem == "latent_value":
        return _filled(_by_head(tensor, attention.heads), 0, attention.head_size - latent.value_size)
    if stem == "output" and tensor.ndim > 1:
        return _filled(_by_head(tensor.T.contiguous(), attention.heads), 0, attention.head_size - latent.value_size).T
    return tensor


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    return tensor.view(heads, -1, *tensor.shape[1:])


def _filled(heads: Tensor, before: int, behind: int) -> Tensor:
    """Return [heads, size, ...] with so many zeros before and behind each head's entries, heads one after another."""
    made = heads.new_zeros(len(heads), before + heads.shape[1] + behind, *heads.shape[2:])
    made[:, before : before + heads.shape[1]] = heads
    return made.flatten(0, 1)
