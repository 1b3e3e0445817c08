"""What a draft model's logits become: candidates drawn as verifiers ask for them, and their chances."""

from __future__ import annotations

import math

import pytest
import torch
from chi_square import FALSE_ALARM, fit_tokens

from stretto.core.choose import choose, probabilities
from stretto.core.params import SamplingParams
from stretto.core.sampler import SamplerState
from stretto.decoding.speculative.drafters.candidates import Candidates, margins
from stretto.decoding.speculative.drafters.rounds import fitted
from stretto.decoding.speculative.growth import Beam, Run

VOCAB = 32
LOGITS = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3)) * 1.5


def state(seed: int = 0, **params) -> SamplerState:
    asked = SamplingParams(**{"temperature": 0.8, **params})
    return SamplerState.begin(asked, [1, 2], sample=0, seed=seed, vocab_size=VOCAB, eos_ids=frozenset({0}), limit=10)


def expanded(draws: str, width: int, seed: int, **params):
    (found,), q = Candidates(Beam(width=width), draws).expand(LOGITS, [0], [-1], [state(seed, **params)])
    return found, q


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_p": 0.8}, {"repetition_penalty": 1.3}])
def test_the_first_coupled_candidate_is_what_would_be_chosen(params):
    for seed in range(50):
        found, _ = expanded("coupled", 3, seed, **params)
        assert found.tokens[0] == choose(LOGITS, [state(seed, **params)])[0]
        assert len(set(found.tokens)) == len(found.tokens) <= 3
        assert list(found.chances) == sorted(found.chances, reverse=True) and sum(found.chances) <= 1.0 + 1e-9


def test_margins_are_logistic():
    assert margins([5.0, 3.0])[0] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert margins([1.0]) == [1.0]


def test_probabilities_and_entropy_where_the_rule_reads_them():
    (found,), _ = Candidates(Run(estimator="probability"), "coupled").expand(LOGITS, [0], [-1], [state(1)])
    p = probabilities(LOGITS[0], state(1))
    assert found.chances[0] == pytest.approx(p[found.tokens[0]].item())
    assert found.entropy == pytest.approx(-(p * p.log()).sum().item())


@pytest.mark.parametrize("draws", ["independent", "without-replacement"])
def test_draws_follow_the_distribution_that_they_name(draws):
    first, second = [], []
    for seed in range(4000):
        found, (q,) = expanded(draws, 2, seed)
        assert torch.equal(q, probabilities(LOGITS[0], state()))
        first.append(found.tokens[0])
        second.append(found.tokens[1])
    repeated = sum(one == two for one, two in zip(first, second, strict=True))
    assert fit_tokens(first, q) > FALSE_ALARM
    if draws == "independent":
        assert fit_tokens(second, q) > FALSE_ALARM and repeated > 0
    else:
        # The second of two: the sum over the first of q(first) q(second) / (1 - q(first)).
        behind = torch.stack([q[one] * q / (1 - q[one]) for one in range(VOCAB)])
        behind.fill_diagonal_(0.0)
        assert fit_tokens(second, behind.sum(0)) > FALSE_ALARM and repeated == 0
        assert fit_tokens(second, q) < FALSE_ALARM, "the control: as if the first had been put back"


def test_chances_of_drawn_tokens_do_not_know_the_tokens():
    """Whoever leaves out what is unlikely would otherwise bias what a sampling verifier keeps."""
    for draws in ("independent", "without-replacement"):
        assert len({tuple(expanded(draws, 3, seed)[0].chances) for seed in range(30)}) == 1


def test_draws_that_no_model_can_follow_are_refused():
    with pytest.raises(ValueError, match="draws='target-first': a draft model draws coupled, independent"):
        Candidates(Run(), "target-first")


def test_padding_tokens_are_dropped_or_added():
    assert fitted(LOGITS, VOCAB) is LOGITS
    assert torch.equal(fitted(LOGITS, 20), LOGITS[:, :20])
    wider = fitted(LOGITS, 40)
    assert wider.shape == (1, 40) and torch.equal(wider[:, :VOCAB], LOGITS) and wider[0, VOCAB:].eq(-math.inf).all()
