"""From a draft model's logits to candidates: which tokens may follow a node, and with what chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.choose import ChoiceError, contenders, probabilities
from stretto.core.noise import NoiseKey, Stream, gumbel
from stretto.core.picking import NOTHING_ALLOWED, ranked
from stretto.core.sampler import SamplerState
from stretto.core.verifiers import Draws
from stretto.decoding.speculative.growth import Expansion, Growth

SHARPNESS = 1.0
"""How fast a candidate's estimated chance grows with the margin of its perturbed score, per unit of score."""

DRAWS: tuple[Draws, ...] = ("coupled", "independent", "without-replacement")


class Candidates:
    """Draws candidates as a verifier wants them drawn.

    ``coupled``: those that lead when the noise of choice is added to the draft's scores (arXiv 2408.07978).
    ``independent``: each drawn for itself from the draft's distribution, so that siblings may be equal.
    ``without-replacement``: drawn one after the other, never the same twice, as the largest sums of log-probability and
    Gumbel noise (arXiv 1903.06059). The two last draw with a noise stream of their own, and what they say of a
    candidate's chance is read from the distribution alone: a chance that knew the token would bias whoever drops
    candidates by it. No two of their draws share noise, not even at one place of the text in two steps: a verifier may
    have judged by the earlier one. Greedy requests have nothing to draw and are given the leading candidates.
    """

    def __init__(self, growth: Growth, draws: Draws) -> None:
        """Raises ``ValueError`` for ``draws`` that no draft model can follow."""
        if draws not in DRAWS:
            raise ValueError(f"draws={draws!r}: a draft model draws {', '.join(DRAWS)}; use one of these")
        self.width, self.estimator, self.draws = growth.width, growth.estimator, draws

    def expand(
        self, logits: Tensor, rows: Sequence[int], nodes: Sequence[int], states: Sequence[SamplerState]
    ) -> tuple[list[Expansion], list[Tensor | None]]:
        """Return for each node its candidates, and the distribution float64 [V] they were drawn from, if one was.

        Node i is at ``states[i]``, its logits are row ``rows[i]`` of ``logits``, float32 [R, V].
        """
        expansions: dict[int, Expansion] = {}
        q: list[Tensor | None] = [None] * len(nodes)
        leading = list(range(len(nodes)))
        if self.draws != "coupled":
            leading = [i for i in leading if not states[i].params.temperature]
            for i in set(range(len(nodes))).difference(leading):
                drawn = q[i] = possible(logits[rows[i]], states[i])
                expansions[i] = self._drawn(nodes[i], drawn, states[i])
        count = self.width + (self.estimator == "margin")
        found = contenders(logits, [states[i] for i in leading], count, rows=[rows[i] for i in leading])
        for i, (tokens, scores) in zip(leading, found, strict=True):
            if self.estimator == "margin":
                expansions[i] = Expansion(nodes[i], tokens[: self.width], margins(scores)[: self.width])
            else:
                p = spread(logits[rows[i]], states[i]) if tokens else None
                expansions[i] = Expansion(nodes[i], [], [])
                if p is not None:
                    expansions[i] = Expansion(nodes[i], tokens, p[tokens].tolist(), entropy(p))
        return [expansions[i] for i in range(len(nodes))], q

    def _drawn(self, node: int, q: Tensor | None, state: SamplerState) -> Expansion:
        """Return tokens drawn from ``q``, no more than it has; the chance of draw j is the probability of rank j."""
        if q is None:
            return Expansion(node, [], [])
        root = state.generated - len(state.pending)  # names the step: the next one begins behind it
        first, count = (node + 1) * self.width, min(self.width, int((q > 0.0).sum()))
        scores = q.log()
        if self.draws == "independent":
            keys = [NoiseKey(state.committed.base, root, first + draw) for draw in range(count)]
            noise = gumbel([key.bits(Stream.DRAFT) for key in keys], len(q), q.device)
            tokens = (scores + noise).argmax(-1).tolist()
        else:
            bits = NoiseKey(state.committed.base, root, first).bits(Stream.DRAFT)
            tokens = ranked(scores + gumbel([bits], len(q), q.device)[0], count).tolist()
        chances = q.topk(count).values.tolist()
        return Expansion(node, tokens, chances, entropy(q))


def margins(scores: Sequence[float]) -> list[float]:
    """Return each contender's estimated chance to be the target's choice, from perturbed scores, best first.

    The scores weighed against each other on a logistic scale: of two, the first gets 1 / (1 + exp(-margin)).
    """
    weights = [math.exp(SHARPNESS * (score - scores[0])) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def possible(logits: Tensor, state: SamplerState) -> Tensor | None:
    """Return ``probabilities``, None where mask, bans and bias leave no token: such a draft ends there."""
    try:
        return probabilities(logits, state)
    except ChoiceError as error:
        if error.code == NOTHING_ALLOWED:
            return None
        raise


def spread(logits: Tensor, state: SamplerState) -> Tensor:
    """Return float64 [V]: the draft's probabilities at a node; greedy requests are given those of temperature 1."""
    return probabilities(logits, state) if state.params.temperature else torch.softmax(logits.double(), -1)


def entropy(p: Tensor) -> float:
    """Return the entropy of the probabilities ``p``, in nats."""
    return float(torch.special.entr(p).sum())
