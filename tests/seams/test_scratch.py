"""Scratch rows are bounded: a method that takes several per row says so and wins fewer rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from company import Company, other, prompts
from helpers import request
from test_early_exit import EarlyExit, four


@pytest.fixture(scope="module")
def four_layers():
    return Company((four(None), other))


@pytest.mark.parametrize(("scratch", "count", "ends"), [(1, 4, "error"), (2, 4, "length"), (2, 2, "length")])
def test_a_draft_pays_for_all_scratch_that_it_takes(four_layers, scratch, count, ends):
    """The rows of ``fresh`` lie in scratch twice: said so, it drafts when that fits, and no request ends for it."""
    method = EarlyExit(fresh=True)
    method.facts = replace(method.facts, scratch=scratch)
    engine = four_layers.engine(method, tokens=512, rows=20)
    requests = [request(engine, prompt, "early-exit", max_tokens=12) for prompt in prompts(count, seed=51)]
    for each in requests:
        engine.submit(each)
    while engine.busy:
        engine.step()
    assert ends in {each.finish for each in requests} <= {"length", ends}
    assert bool(requests[0].stats.drafted) == (count == 2 or scratch == 1)
