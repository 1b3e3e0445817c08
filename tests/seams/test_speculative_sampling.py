"""Speculative sampling through the whole loop: a second model drafts with its own noise and says from which q."""

from __future__ import annotations

import pytest
import torch
from chi_square import FALSE_ALARM, fit
from company import Company, text
from helpers import request, run
from model_drafter import ModelDrafter, Sampling
from small import small, small_parameters, small_spec

from stretto.core.tree import DraftTree
from stretto.core.verifiers import Rejection
from stretto.decoding.score import Score
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.method import Speculative
from stretto.models.backend import AnyTransformer, build

VOCAB, WIDTH, LENGTH = 32, 6, 3
PROMPT = [5]
PARAMS = {"temperature": 1.5, "top_k": WIDTH, "max_tokens": LENGTH}


def relative() -> AnyTransformer:
    """The target's weights with noise: a draft that is right about every second time."""
    spec = small_spec(layers=1, vocab=VOCAB)
    truth, noise = small_parameters(spec), small_parameters(spec, seed=2)
    mixed = {name: 0.75 * truth[name] + 0.25 * noise[name] for name in truth}
    return build(spec, mixed, name="other", dtype=torch.float32, fingerprint="relative")


@pytest.fixture(scope="module")
def company() -> Company:
    return Company((lambda: small(layers=1, vocab=VOCAB), relative))


@pytest.fixture(scope="module")
def expected(company: Company) -> torch.Tensor:
    """float64 [vocab] * LENGTH: the chance of each text, from the logits of every path that can be taken."""
    engine = company.engine(Score(), tokens=4096, rows=512)
    chances = torch.zeros([VOCAB] * LENGTH, dtype=torch.float64)
    known: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}
    paths = [()]
    for _ in range(LENGTH):
        scores = [request(engine, [*PROMPT, *path], "score") for path in paths]
        run(engine, *scores)
        for path, score in zip(paths, scores, strict=True):
            best = score.scores[0][-1].double().topk(WIDTH)
            known[path] = best.indices.tolist(), (best.values / PARAMS["temperature"]).softmax(0).tolist()
        paths = [(*path, token) for path in paths for token in known[path][0]]
    for path in paths:
        chance = 1.0
        for place, token in enumerate(path):
            chance *= dict(zip(*known[path[:place]], strict=True))[token]
        chances[path] = chance
    return chances


class Greedy(ModelDrafter):
    """Control: the draft's best tokens, which nobody drew, said to come from its distribution."""

    def pick(self, run, logits):
        Sampling.pick(self, run, logits)
        return int(logits.argmax())


class Silent(Sampling):
    """Draws, but does not say from which distribution: each token then counts as the drafter's only one."""

    def draft(self, requests, rows):
        drafts = super().draft(requests, rows)
        return [draft and Draft(DraftTree.run(draft.tree.tokens)) for draft in drafts]


def sample(company: Company, drafter: ModelDrafter, count: int) -> tuple[torch.Tensor, float]:
    """Return how often each text was given, float64 [vocab] * LENGTH, and the share of drafted tokens accepted."""
    method = Speculative("sampling", [drafter], verifier=Rejection(), rows=2)
    engine = company.engine(method, tokens={"target": 256, "other": 480}, rows=64)
    played = company.play(engine, [(PROMPT, "sampling", {**PARAMS, "seed": seed}) for seed in range(count)])
    observed = torch.zeros([VOCAB] * LENGTH, dtype=torch.float64)
    for each in played:
        observed[tuple(text(each))] += 1
    return observed, sum(each.stats.accepted for each in played) / sum(each.stats.drafted for each in played)


def likelihood(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the least p-value of texts, pairs and single tokens against their exact chances."""
    expected = expected * observed.sum()
    sums = [dims for size in (1, 2) for dims in ((0, 1), (0, 2), (1, 2), (0,), (2,)) if len(dims) == size]
    views = [(observed, expected), *((observed.sum(dims), expected.sum(dims)) for dims in sums)]
    return min(fit(*view) for view in views)


def test_the_distribution_is_the_targets(company, expected):
    observed, accepted = sample(company, Sampling(2), 450)
    assert likelihood(observed, expected) > FALSE_ALARM
    # A draft that does not say q is a guess like any other: as right, and accepted less.
    silent, guessed = sample(company, Silent(2), 150)
    assert likelihood(silent, expected) > FALSE_ALARM
    assert 0 < guessed < accepted < 1


def test_control_a_draft_that_was_not_drawn_from_its_q_is_seen(company, expected):
    observed, _ = sample(company, Greedy(2), 150)
    assert likelihood(observed, expected) < FALSE_ALARM
