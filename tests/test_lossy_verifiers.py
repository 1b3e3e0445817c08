"""Lossy verifiers on examples worked out by hand: what passes, what does not, and who has the last word."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from walks import PROMPT, VOCAB, answer, begin

from stretto.core.choose import choose
from stretto.core.params import SamplingParams
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Rollback, Typical

SAMPLED = SamplingParams(temperature=1.0, ignore_eos=True, seed=1)
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def chances(named: dict[int, float]) -> Tensor:
    """Return logits of these chances; the other tokens have hardly any."""
    p = torch.full((VOCAB,), 1e-12)
    p[list(named)] = torch.tensor(list(named.values()))
    return p.log()


def target(path: list[int]) -> Tensor:
    """Four likely tokens behind the prompt; behind 2 all tokens alike, behind 3 one that is nearly sure."""
    # Entropy 1.142, so that delta exp(-H) = 0.096: epsilon, 0.09, is the threshold.
    behind = {5: chances({1: 0.5, 2: 0.3, 3: 0.12, 4: 0.08}), 2: torch.zeros(VOCAB), 3: chances({7: 0.95, 8: 0.05})}
    return behind.get(path[-1], chances({9: 1.0}))


def tree(paths: list[list[int]]) -> DraftTree:
    return DraftTree.union([DraftTree.run(path) for path in paths])


def test_typical_acceptance_asks_for_less_where_the_target_is_unsure() -> None:
    # 3 has 0.12, 4 has 0.08. Any token behind 2 has 1/32 and passes, for the threshold is 0.3/32 there; 8 with 0.05
    # does not pass behind 3, where the entropy is 0.2 and the threshold 0.09 again.
    for paths, kept in (([[3]], [3]), ([[4]], []), ([[2, 20]], [2, 20]), ([[3, 8]], [3]), ([[4, 9], [3, 7]], [3, 7])):
        walked = answer(Typical(), tree(paths), begin(SAMPLED), target, PROMPT)
        state = begin(SAMPLED)
        for token in kept:
            state = state.advance(token)
        assert walked.tokens == kept + choose(target(PROMPT + kept)[None], [state]), paths
        assert len(walked.nodes) == len(kept)
    walked = answer(Typical(epsilon=0.05), tree([[4]]), begin(SAMPLED), target, PROMPT)
    assert walked.tokens[0] == 4


def test_typical_acceptance_keeps_the_longest_path_and_of_equals_the_likeliest() -> None:
    # Both [2, 20] (0.3 / 32) and [3, 7] (0.12 * 0.95) pass whole; [1] is likelier than either and shorter.
    walked = answer(Typical(), tree([[1], [2, 20], [3, 7]]), begin(SAMPLED), target, PROMPT)
    assert walked.tokens[:2] == [3, 7]


def test_a_path_that_ends_the_text_is_kept_without_another_token() -> None:
    state = begin(SAMPLED, limit=2)
    walked = answer(Typical(), tree([[3, 7, 9]]), state, target, PROMPT)
    assert (walked.tokens, walked.nodes, walked.finish) == ([3, 7], [0], "length")


@pytest.mark.parametrize("params", [SAMPLED, GREEDY])
def test_rollback_hands_over_where_a_draft_is_too_far_from_the_target(params: SamplingParams) -> None:
    # Distances: 3 is -ln 0.12 = 2.12 off, 8 behind it -ln 0.05 = 3.0, 4 is -ln 0.08 = 2.53.
    for drafted, threshold, kept in (
        ([3, 8], 2.0, []),
        ([3, 8], 2.5, [3]),
        ([3, 8], 3.1, [3, 8]),
        ([4], 2.5, []),
        ([4], 2.6, [4]),
        ([11], math.inf, [11]),
    ):
        walked = answer(Rollback(threshold), DraftTree.run(drafted), begin(params), target, PROMPT)
        assert walked.tokens[:-1] == kept and len(walked.nodes) == len(kept), (drafted, threshold)
    # The target's own word behind a greedy draft is its greedy choice.
    assert answer(Rollback(2.5), DraftTree.run([3, 8]), begin(GREEDY), target, PROMPT).tokens == [3, 7]


def test_what_is_forbidden_is_never_plausible() -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True, banned=((3,),))
    assert answer(Rollback(math.inf), DraftTree.run([3]), begin(params), target, PROMPT).tokens == [1]
    params = SamplingParams(temperature=1.0, ignore_eos=True, banned=((3,),))
    assert answer(Typical(epsilon=1e-9), DraftTree.run([3]), begin(params), target, PROMPT).tokens[0] != 3
