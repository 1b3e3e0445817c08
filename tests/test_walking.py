"""Walks that choose ahead: the same ends as row by row, in fewer calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted

from stretto.core.chunk import Output
from stretto.core.request import Committed
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Coupled, Walked
from stretto.decoding.speculative import walking
from stretto.decoding.speculative.drafter import Draft, Observation
from stretto.decoding.speculative.drafters.copying import AggressiveDecoding
from stretto.decoding.speculative.trees import draft_chunk

VOCAB = 64


def walked(trees: list[DraftTree], logits: torch.Tensor, **params: Any) -> list[Walked]:
    """Walk trees of requests that differ in nothing but their seed; row r of a request has logits[r]."""
    seen, first = [], 0
    rows = torch.cat([logits[: len(tree) + 1] for tree in trees])
    for number, tree in enumerate(trees):
        request = Scripted(AggressiveDecoding(), [1, 2, 3], **{"seed": number, **params}).request
        request.views["target"] = type("View", (), {"filled": 2})()
        chunk = draft_chunk(request, Draft(tree))
        seen.append(Observation(request, Output(chunk, rows, first), Committed(request, filled=3), tree))
        first += len(chunk)
    walks = [Coupled().walk(each.tree, each.request.state) for each in seen]
    return walking.walk_all(walks, seen)


@st.composite
def trees(draw: Callable[..., Any]) -> DraftTree:
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, 12)))]
    tokens = [draw(st.integers(0, 3)) for _ in parents]
    return DraftTree(tokens, parents, [0.5] * len(parents), [frozenset({"x"})] * len(parents))


PARAMS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 3, "min_p": 0.05},
    {"temperature": 1.0, "frequency_penalty": 0.7},
    {"temperature": 0.7, "logit_bias": {1: 2.0}, "min_tokens": 2},
]


@settings(max_examples=60, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=4), st.integers(0, 1 << 30), st.sampled_from(PARAMS))
def test_ahead_or_row_by_row_walks_end_alike(drafts, seed, params):
    # Four tokens lead, so that drafts of them are often right.
    logits = torch.randn(13, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[:, :4] += 4.0
    logits[seed % 13, 0] = float("nan") if seed % 5 == 0 else 0.0
    ends = []
    for ahead in (walking.AHEAD, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(walking, "AHEAD", ahead)
            ends.append(walked(drafts, logits, **params))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("params", "rows"), [({"temperature": 0.8}, [4, 7, 2]), (PARAMS[3], [1] * 13)])
def test_a_right_run_is_chosen_in_few_calls_unless_the_path_shapes_its_scores(params, rows, monkeypatch):
    run = [5, 9, 2, 7, 5, 9, 2, 7, 5, 9, 2, 7]
    logits = torch.zeros(13, VOCAB)
    logits[range(12), run] = 60.0
    called: list[int] = []
    choose = walking.choose
    monkeypatch.setattr(walking, "choose", lambda *asked: called.append(len(asked[1])) or choose(*asked))
    (end,) = walked([DraftTree.run(run)], logits, **params)
    assert end.tokens[:12] == run and called == rows
