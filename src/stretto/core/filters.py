"""Temperature, top-k, top-p and min-p: what they leave of a row's scores, in the native library or in PyTorch.

What each keeps is a prefix of the row's tokens in the order of choice (larger score first, then lower id): top-k the
`k` best, then top-p the shortest prefix of these that has `p` of their mass, then min-p those whose probability is at
least `p` times the best one's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.constraints import constrained
from stretto.core.params import SamplingParams
from stretto.core.picking import DRAWN, GREEDY, library_for, narrows, ranked, scaled
from stretto.core.sampler import Filter, SamplerState, narrowing


def filters_of(logits: Tensor, states: Sequence[SamplerState]) -> tuple[list[Filter], list[int]]:
    """Return what narrows each state's scores, and the numbers of the states whose scores have to be shaped before."""
    filters, by_pick = [state.committed.filter for state in states], narrows(logits)
    shaped = [i for i, state in enumerate(states) if state.shaped and not (by_pick and state.committed.plain)]
    for i in shaped:
        filters[i] = DRAWN if filters[i][0] else GREEDY
    return filters, shaped


def shaped_scores(logits: Tensor, states: Sequence[SamplerState], rows: Sequence[int]) -> Tensor:
    """Return for each state the scores of its row, a copy: constrained, and filtered where it draws at random."""
    # A slice where one will do: indexing by a list takes longer than all that is done to a row.
    one = len(rows) == 1
    scores = constrained(logits[rows[0] : rows[0] + 1] if one else logits[list(rows)], states)
    random = [place for place, state in enumerate(states) if state.params.temperature]
    if len(random) == len(states):
        return filtered(scores, [state.params for state in states])
    if random:
        scores[random] = filtered(scores[random], [states[place].params for place in random])
    return scores


def filtered(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Return `scores` [R, V] shifted to a maximum of 0 and divided by temperature, with filtered tokens at -inf.

    The result may be `scores` itself, written over.
    """
    library = library_for(scores)
    if library is not None:
        library.filter(scores.data_ptr(), scores.stride(0), scores.shape[-1], list(map(narrowing, params)))
        return scores
    scores = scaled(scores, [each.temperature for each in params])
    for row, each in enumerate(params):
        scores[row] = _filter(scores[row], each)
    return scores


def _filter(scores: Tensor, params: SamplingParams) -> Tensor:
    """Return `scores` [V], of maximum 0, with what top-k, top-p and min-p drop at -inf."""
    if 0 < params.top_k < len(scores) or params.top_p < 1.0:
        kept = _nucleus(scores, params.top_k or len(scores), params.top_p)
        scores = torch.full_like(scores, -math.inf).index_copy_(0, kept, scores[kept])
    if params.min_p > 0.0:
        scores = scores.masked_fill(scores < math.log(params.min_p), -math.inf)
    return scores


def _nucleus(scores: Tensor, k: int, p: float) -> Tensor:
    """Return the ids of the shortest prefix of the best `k` tokens whose mass reaches `p` of theirs.

    Top-p without top-k sorts a short head first and more only where its mass falls short. Sums run in the order of the
    tokens (cumsum), because a parallel sum's bits change with the number of threads.
    """
    vocab = len(scores)
    if k < vocab:
        ids = ranked(scores, k)
        mass = scores[ids].double().exp().cumsum(0)
        if p >= 1.0:
            return ids
        goal = mass[-1] * p
    else:
        goal = scores.double().exp().cumsum(0)[-1] * p
        size = 256
        while True:
            ids = ranked(scores, size)
            mass = scores[ids].double().exp().cumsum(0)
            if size >= vocab or mass[-1] >= goal:
                break
            size *= 16
    return ids[: int((mass < goal).sum()) + 1]
