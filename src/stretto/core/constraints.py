"""What a request's path and parameters do to a row's logits before temperature: penalties, bias, bans, masks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.masks import allowed
from stretto.core.sampler import SamplerState


def constrained(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Return a copy of `logits` [R, V] with penalties, bias, bans, minimum length and mask applied."""
    scores = logits.clone()
    for row, state in enumerate(states):
        if not state.committed.plain:
            _constrain(scores[row], state)
    return scores


def _constrain(scores: Tensor, state: SamplerState) -> None:
    """Apply to `scores` [V], in place, what the state's path and parameters forbid, penalize and favour."""
    params, device = state.params, scores.device
    if state.committed.penalized:
        counts = state.counts()
        if params.repetition_penalty != 1.0:
            seen = torch.tensor(list(state.committed.prompt_ids.union(counts)), device=device)
            values = scores[seen]
            penalty = params.repetition_penalty
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if counts:
            ids = torch.tensor(list(counts), device=device)
            count = torch.tensor(list(counts.values()), dtype=torch.float32, device=device)
            scores[ids] -= params.frequency_penalty * count + params.presence_penalty
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=device)
        scores[ids] += torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=device)
    if forbidden := state.forbidden():
        scores[list(forbidden)] = -math.inf
    if state.committed.mask is not None:
        scores.masked_fill_(~allowed(state.committed.mask, state.mask_state).to(device), -math.inf)
