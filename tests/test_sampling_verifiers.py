"""Verifiers that claim the target's distribution keep it, and each one's wrong relatives are seen not to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from chi_square import FALSE_ALARM, fit
from torch import Tensor
from walks import (
    GROUPS,
    MARKOV,
    PROMPT,
    PROPOSAL,
    ROWS,
    SAMPLING,
    TARGET,
    TARGET_MASS,
    VOCAB,
    Draft,
    answer,
    begin,
    generate,
    sampled,
)

from stretto.core.choose import probabilities, sample
from stretto.core.noise import NoiseKey, Stream, uniform
from stretto.core.params import SamplingParams
from stretto.core.verifiers import (
    Block,
    KSequential,
    MultiRound,
    Rejection,
    Verifier,
    Walked,
    WithoutReplacement,
    block,
    k_sequential,
    rejection,
)
from stretto.core.verifiers.node_by_node import NodeByNode

LENGTH = 9
"""Of a text: the deepest tree and the token behind it."""
COUNT = 400
"""Texts of a sample of a right verifier. Of the wrong ones as many as it takes to fail in 99 of 100 seeds, which the
test marked long counts."""
BORDERS = torch.tensor(GROUPS).cumsum(0)[:-1]  # where groups begin, the first one left out


def texts(verifier: Verifier, draft: Draft, count: int, seed: int) -> Tensor:
    """Return int64 [count, LENGTH]: whole texts, each drafted and verified to its end."""
    states = (begin(SAMPLING, seed << 20 | number, LENGTH) for number in range(count))
    return torch.tensor([generate(verifier, draft, state, MARKOV)[0] for state in states])


def likelihood(observed: Tensor) -> float:
    """Return the p-value of texts: of groups, of pairs of groups that do not overlap, of the tokens at each place.

    The least of them, times their number: a correct verifier falls below the false-alarm rate that seldom.
    """
    groups, mass = torch.bucketize(observed, BORDERS, right=True), torch.tensor(TARGET_MASS, dtype=torch.float64)
    pairs = (len(mass) * groups[:, 0:-1:2] + groups[:, 1::2]).flatten()
    p_values = [
        fit(torch.bincount(groups.flatten(), minlength=len(mass)), mass * groups.numel()),
        fit(torch.bincount(pairs, minlength=len(mass) ** 2), torch.outer(mass, mass).flatten() * len(pairs)),
    ]
    last = torch.eye(VOCAB, dtype=torch.float64)[PROMPT[-1]]
    for tokens in observed.T:
        last = last @ ROWS
        p_values.append(fit(torch.bincount(tokens, minlength=VOCAB), last * len(tokens)))
    return min(p_values) * len(p_values)


@dataclass(frozen=True)
class Case:
    """A verifier and how its drafter draws: so many siblings, distinct or not."""

    name: str
    verifier: Verifier
    width: int = 1
    distinct: bool = False
    count: int = 120
    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None

    def likelihood(self, seed: int) -> float:
        with pytest.MonkeyPatch.context() as patch:
            self.patch(patch)
            draft = sampled(Random(seed), self.width, distinct=self.distinct)
            return likelihood(texts(self.verifier, draft, self.count, seed))


RIGHT = [
    Case("rejection", Rejection()),
    Case("multi-round", MultiRound(), 3),
    Case("without-replacement", WithoutReplacement(), 3, distinct=True),
    Case("k-sequential", KSequential(), 3),
    Case("block", Block()),
]


def taken_as_one(right: type[NodeByNode]) -> Verifier:
    """A draft's probability counts as 1 where it is tried, not where the residual is drawn."""

    class Control(right):
        def select(self, p: Tensor, tokens: Sequence[int], q: Tensor | None, key: NoiseKey) -> tuple[int, int | None]:
            for number, token in enumerate(tokens):
                if uniform(key.bits(Stream.ACCEPT), number) < p[token].item():
                    return token, number
            with pytest.MonkeyPatch.context() as patch:  # none of them is kept
                for module in (rejection, k_sequential):
                    patch.setattr(module, "uniform", lambda bits, counter: math.inf)
                return super().select(p, tokens, q, key)

    return Control()


def bonus_skipped(right: type[Verifier]) -> Verifier:
    """Behind a path that was kept to its end the drafter's next token is taken, unverified."""

    class Control(right):
        def walk(self, tree, state):
            walked: Walked = yield from super().walk(tree, state)
            if walked.nodes and not tree.children(walked.nodes[-1]):
                for token in walked.tokens[:-1]:
                    state = state.advance(token)
                walked.tokens[-1] = sample(PROPOSAL[walked.tokens[-2]], state.key().bits(Stream.CHOICE))
            return walked

    return Control()


class Unscaled(WithoutReplacement):
    """The residual loses what was rejected and is not scaled to a sum of 1 again."""

    def select(self, p: Tensor, tokens: Sequence[int], q: Tensor | None, key: NoiseKey) -> tuple[int, int | None]:
        for number, token in enumerate(tokens):
            if uniform(key.bits(Stream.ACCEPT), number) * q[token].item() < p[token].item():
                return token, number
            p, q = (p - q).clamp_(min=0.0), self._after(token, q)
        return sample(p, key.bits(Stream.RESIDUAL)), None


class Tolerant(WithoutReplacement):
    """Takes siblings that carry the same token."""

    def check(self, tree) -> None: ...


def no_residual(module) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, "normalised", lambda mass, otherwise: otherwise)


def carries(wrong: Callable[[float, float, float], float]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(block, "carried", wrong)


CONTROLS = [
    Case("rejection: draft probability taken as 1", taken_as_one(Rejection)),
    Case("rejection: no residual", Rejection(), patch=no_residual(rejection)),
    Case("rejection: bonus skipped", bonus_skipped(Rejection), count=COUNT),
    Case("multi-round: draft probability taken as 1", taken_as_one(MultiRound), 3),
    Case(
        "multi-round: residual not renormalised",
        MultiRound(),
        3,
        count=200,
        patch=lambda patch: patch.setattr(rejection, "normalised", lambda mass, otherwise: mass),
    ),
    Case("multi-round: siblings without replacement", MultiRound(), 3, distinct=True, count=COUNT),
    Case("multi-round: bonus skipped", bonus_skipped(MultiRound), 3),
    Case("without-replacement: draft probability taken as 1", taken_as_one(WithoutReplacement), 3, distinct=True),
    Case("without-replacement: residual not renormalised", Unscaled(), 3, distinct=True, count=200),
    Case("without-replacement: siblings with replacement", Tolerant(), 3, count=COUNT),
    Case("without-replacement: bonus skipped", bonus_skipped(WithoutReplacement), 3, distinct=True),
    Case("k-sequential: draft probability taken as 1", taken_as_one(KSequential), 3),
    Case("k-sequential: no residual", KSequential(), 3, patch=no_residual(k_sequential)),
    Case("k-sequential: rate of 1", KSequential(), 3, patch=lambda p: p.setattr(k_sequential, "rate", lambda *_: 1.0)),
    Case("k-sequential: siblings without replacement", KSequential(), 3, distinct=True, count=COUNT),
    Case("k-sequential: bonus skipped", bonus_skipped(KSequential), 3),
    Case("block: no residual", Block(), patch=no_residual(block)),
    Case("block: draft probability taken as 1", Block(), patch=carries(lambda weight, p, q: weight * p)),
    Case("block: each token judged for itself", Block(), patch=carries(lambda weight, p, q: min(1.0, p / q))),
    Case("block: bonus skipped", bonus_skipped(Block), count=COUNT),
]


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", RIGHT, ids=named)
def test_whole_texts_have_the_targets_distribution(case: Case) -> None:
    assert replace(case, count=COUNT).likelihood(seed=1) > FALSE_ALARM


@pytest.mark.parametrize("case", CONTROLS, ids=named)
def test_control_a_wrong_verifier_is_seen(case: Case) -> None:
    assert case.likelihood(seed=1) < FALSE_ALARM


@pytest.mark.parametrize("verifier", [each.verifier for each in RIGHT], ids=[each.name for each in RIGHT])
@pytest.mark.parametrize(
    "features",
    [
        {"temperature": 1.5, "top_p": 0.8, "repetition_penalty": 1.7, "logit_bias": {3: -4.0, 20: 3.0}},
        {"temperature": 1.0, "top_k": 9, "frequency_penalty": 1.0, "banned": ((5, 0), (1, 1), (2,)), "min_p": 0.02},
    ],
)
def test_features_of_the_sampler_act_through_the_targets_distribution(verifier: Verifier, features: dict) -> None:
    """Texts of two tokens, whose chances are exact whatever the state holds; the drafter knows nothing of features."""
    params, (case,) = SamplingParams(ignore_eos=True, **features), [each for each in RIGHT if each.verifier is verifier]
    root = begin(params)
    first = probabilities(TARGET[PROMPT[-1]], root)
    expected = torch.stack(
        [chance * probabilities(TARGET[token], root.advance(token)) for token, chance in enumerate(first)]
    )
    draft, observed = sampled(Random(5), case.width, distinct=case.distinct), torch.zeros_like(expected)
    for seed in range(COUNT):
        text, _ = generate(verifier, draft, begin(params, seed, limit=2), MARKOV)
        observed[tuple(text)] += 1
    expected *= COUNT
    assert (
        min(fit(observed, expected), fit(observed.sum(0), expected.sum(0)), fit(observed.sum(1), expected.sum(1)))
        > FALSE_ALARM
    )
    unfeatured = torch.outer(ROWS[PROMPT[-1]], torch.ones(VOCAB, dtype=torch.float64)) * ROWS * COUNT
    assert fit(observed.sum(0), unfeatured.sum(0)) < FALSE_ALARM


def kept(verifier: Verifier, width: int, count: int = 1500, **shape) -> list[int]:
    """Return how many nodes were kept of each of ``count`` drafts behind the prompt."""
    draft = sampled(Random(3), width, **shape)
    states = (begin(SAMPLING, seed) for seed in range(count))
    return [len(answer(verifier, draft(PROMPT, state), state, MARKOV, PROMPT).nodes) for state in states]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_k_tries_are_kept_as_often_as_the_paper_says(width: int) -> None:
    p, q = ROWS[PROMPT[-1]], PROPOSAL[PROMPT[-1]]
    rate = k_sequential.rate(p, q, width)
    one = float(torch.minimum(q, p / rate).sum())
    expected = 1 - (1 - one) ** width
    assert rate * one == pytest.approx(expected, abs=1e-5)  # neither too small, which would be wrong, nor too large
    hits = sum(kept(KSequential(), width, depth=1))
    assert fit(torch.tensor([hits, 1500 - hits]), torch.tensor([expected, 1 - expected]) * 1500) > FALSE_ALARM
    if width == 1:  # which is speculative sampling
        assert expected == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)


def test_each_newer_rule_keeps_more_of_the_same_drafts() -> None:
    single, together = sum(kept(Rejection(), 1)), sum(kept(Block(), 1))
    assert single < together
    assert single < sum(kept(MultiRound(), 2)) < sum(kept(WithoutReplacement(), 2, distinct=True))


@pytest.mark.long
@pytest.mark.parametrize("case", CONTROLS, ids=named)
def test_a_wrong_verifier_is_seen_in_99_of_100_seeds(case: Case) -> None:
    seen = sum(case.likelihood(seed) < FALSE_ALARM for seed in range(100))
    print(f"\n{case.name}: {case.count} texts, seen in {seen} of 100 seeds")
    assert seen >= 99
