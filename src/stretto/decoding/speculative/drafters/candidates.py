"""From a draft model's logits to candidates: which tokens may follow a node, and with what chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stretto.core.choose import contenders, probabilities, sample
from stretto.core.noise import Stream, gumbel
from stretto.core.picking import ranked
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
    candidates by it.
    """

    def __init__(self, growth: Growth, draws: Draws) -> None:
        """Raises ``ValueError`` for ``draws`` that no draft model can follow."""
        if draws not in DRAWS:
            raise ValueError(f"draws={draws!r}: a draft model draws {', '.join(DRAWS)}; use one of these")
        self.width, self.estimator, self.draws = growth.width, growth.estimator, draws

    def expand(
        self, logits: Tensor, rows: Sequence[int], nodes: Sequence[int], states: Sequence[SamplerState]
    ) -> tuple[list[Expansion], list[Tensor]]:
        """Return for each node its candidates, and the distribution float64 [V] they were drawn from, if one was.

        Node i is at ``states[i]``, its logits are row ``rows[i]`` of ``logits``, float32 [R, V].
        """
        if self.draws != "coupled":
            q = [probabilities(logits[row], state) for row, state in zip(rows, states, strict=True)]
            drawn = [self._drawn(*each) for each in zip(nodes, q, states, strict=True)]
            return drawn, q
        count = self.width + (self.estimator == "margin")
        found = contenders(logits, states, count, rows=rows)
        if self.estimator == "margin":
            return [
                Expansion(node, tokens[: self.width], margins(scores)[: self.width])
                for node, (tokens, scores) in zip(nodes, found, strict=True)
            ], []
        expansions = []
        for node, row, state, (tokens, _) in zip(nodes, rows, states, found, strict=True):
            p = spread(logits[row], state)
            expansions.append(Expansion(node, tokens, p[tokens].tolist(), entropy(p)))
        return expansions, []

    def _drawn(self, node: int, q: Tensor, state: SamplerState) -> Expansion:
        """Return tokens drawn from ``q``; the chance of draw number j is the probability of the token of rank j."""
        key = state.key()
        if self.draws == "independent":
            tokens = [sample(q, replace(key, draw=draw).bits(Stream.DRAFT)) for draw in range(self.width)]
        else:
            scores = q.log() + gumbel([key.bits(Stream.DRAFT)], len(q), q.device)[0]
            ids = ranked(scores, self.width)
            tokens = ids[scores[ids] > -math.inf].tolist()
        chances = q.topk(min(len(tokens), len(q))).values.tolist()
        return Expansion(node, tokens, chances, entropy(q))


def margins(scores: Sequence[float]) -> list[float]:
    """Return each contender's estimated chance to be the target's choice, from perturbed scores, best first.

    The scores weighed against each other on a logistic scale: of two, the first gets 1 / (1 + exp(-margin)).
    """
    weights = [math.exp(SHARPNESS * (score - scores[0])) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def spread(logits: Tensor, state: SamplerState) -> Tensor:
    """Return float64 [V]: the draft's probabilities at a node; greedy requests are given those of temperature 1."""
    return probabilities(logits, state) if state.params.temperature else torch.softmax(logits.double(), -1)


def entropy(p: Tensor) -> float:
    """Return the entropy of the probabilities ``p``, in nats."""
    return float(torch.special.entr(p).sum())
