"""The one rule of choice: the next token is a pure function of a row's logits, its sampler state and its noise key.

Order: repetition, frequency and presence penalties, bias, bans, minimum length, mask; then temperature, top-k, top-p,
min-p; then the largest sum of score and Gumbel noise. Greedy is the same without temperature, filters and noise.
Every comparison uses one total order: larger value first, then lower token id. All arithmetic of a row uses that row
alone, elementwise or in a fixed order, so that its bits do not depend on its company or on the number of threads.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.constraints import constrained
from stretto.core.filters import filtered, filters_of, shaped_scores
from stretto.core.noise import NoiseKey, Stream, gumbel
from stretto.core.picking import GREEDY, NAN_LOGITS, NOTHING_ALLOWED, leaders, log_sum, pick, rankings
from stretto.core.sampler import SamplerState


class ChoiceError(ValueError):
    """A row from which nothing can be drawn; `code` is NAN_LOGITS or NOTHING_ALLOWED."""

    def __init__(self, code: int) -> None:
        reason = "the logits hold NaN or +inf" if code == NAN_LOGITS else "no token is allowed"
        super().__init__(f"{reason}: expected at least one finite logit on an allowed token; end this request")
        self.code = code


def choose(
    logits: Tensor,
    states: Sequence[SamplerState],
    keys: Sequence[NoiseKey] | None = None,
    rows: Sequence[int] | None = None,
) -> list[int]:
    """Return the token that follows each state, NAN_LOGITS or NOTHING_ALLOWED for a bad row.

    State i chooses at row `rows[i]` (default: i) of `logits` (float32 [R, V]); `keys` defaults to the states' own.
    """
    rows = range(len(states)) if rows is None else rows
    filters, shaped = filters_of(logits, states)
    bits = [_bits(i, states, keys) if filters[i][0] else 0 for i in range(len(states))]
    first = filters.copy()
    for i in shaped:
        first[i] = GREEDY
    chosen = pick(logits, rows, first, bits)
    # A row whose logits are bad stays bad, whatever the filters would make of them.
    shaped = [i for i in shaped if chosen[i] >= 0]
    if shaped:
        scores = shaped_scores(logits, [states[i] for i in shaped], [rows[i] for i in shaped])
        again = pick(scores, range(len(shaped)), [filters[i] for i in shaped], [bits[i] for i in shaped])
        for i, token in zip(shaped, again, strict=True):
            chosen[i] = token
    return chosen


def _bits(row: int, states: Sequence[SamplerState], keys: Sequence[NoiseKey] | None) -> int:
    return (states[row].key() if keys is None else keys[row]).bits(Stream.CHOICE)


def perturbed(logits: Tensor, states: Sequence[SamplerState], keys: Sequence[NoiseKey] | None = None) -> Tensor:
    """Return float32 [R, V]: the processed scores plus the noise of choice, of which `choose` takes the largest.

    Forbidden and filtered tokens are -inf. The margin between the first and the second tells how robust a choice is.
    """
    if keys is None:
        keys = [state.key() for state in states]
    scores = constrained(logits, states)
    rows = [row for row, state in enumerate(states) if state.params.temperature > 0.0]
    if not rows:
        return scores
    random = scores if len(rows) == len(states) else scores[rows]
    random = filtered(random, [states[row].params for row in rows])
    random += gumbel([keys[row].bits(Stream.CHOICE) for row in rows], logits.shape[-1], logits.device)
    if len(rows) == len(states):
        return random
    scores[rows] = random
    return scores


def probabilities(logits_row: Tensor, state: SamplerState) -> Tensor:
    """Return float64 [V]: the distribution that `choose` draws from, for the logits float32 [V]; one-hot when greedy.

    Raises ChoiceError for a row with NaN or +inf and for one without an allowed token.
    """
    largest = logits_row.max().item()
    if math.isnan(largest) or largest == math.inf:
        raise ChoiceError(NAN_LOGITS)
    scores = constrained(logits_row[None], [state])
    best, token = scores[0].max(dim=-1)
    if best.item() == -math.inf:
        raise ChoiceError(NOTHING_ALLOWED)
    if state.params.temperature == 0.0:
        return torch.zeros_like(scores[0], dtype=torch.float64).index_fill_(0, token, 1.0)
    mass = filtered(scores, [state.params])[0].double().exp()
    return mass / mass.cumsum(0)[-1]


def sample(probabilities: Tensor, bits: int) -> int:
    """Return a token drawn from `probabilities` (float64 [V], need not sum to 1) with the noise of the key `bits`."""
    noise = gumbel([bits], len(probabilities), probabilities.device)[0]
    return int((probabilities.log() + noise).argmax())


def top(logits: Tensor, states: Sequence[SamplerState], keys: Sequence[NoiseKey] | None, w: int) -> list[list[int]]:
    """Return per row the `w` tokens that lead in `choose`'s order, its own choice first; fewer where fewer may."""
    return [tokens for tokens, _ in contenders(logits, states, w, keys)]


def contenders(
    logits: Tensor,
    states: Sequence[SamplerState],
    w: int,
    keys: Sequence[NoiseKey] | None = None,
    rows: Sequence[int] | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Return per state the tokens of `top` and their perturbed scores. The arguments are those of `choose`."""
    rows = range(len(states)) if rows is None else rows
    filters, shaped = filters_of(logits, states)
    bits = [_bits(i, states, keys) if filters[i][0] else 0 for i in range(len(states))]
    if not shaped:
        return rankings(logits, rows, filters, bits, w)
    scores = {i: logits[rows[i]] for i in range(len(states))}
    ready = shaped_scores(logits, [states[i] for i in shaped], [rows[i] for i in shaped])
    scores.update(zip(shaped, ready, strict=True))
    return [rankings(scores[i][None], (0,), (filters[i],), (bits[i],), w)[0] for i in range(len(states))]


def logprobs(logits: Tensor, chosen: Sequence[int], top: int) -> list[dict[int, float]]:
    """Return per row {token: log-probability} of the unmodified distribution, the `top` tokens by rank and the chosen.

    `logits` is float32 [R, V]. A chosen token outside the top comes last.
    """
    result = []
    for row, token in zip(logits, chosen, strict=True):
        ids = leaders(row[None], (0,), top)[0] if top else []
        if token not in ids:
            ids.append(token)
        total = log_sum(row)
        result.append({token: row[token].item() - total for token in ids})
    return result
