"""Cache policies as a method of decoding: they change what their own requests see and say, and nobody else's."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from company import prompts, text
from dense import Dense, same
from helpers import assert_whole, request, run

from stretto.cache.policies import HeavyHitter, WindowWithSinks
from stretto.decoding.method import Facts
from stretto.decoding.plain import Plain
from stretto.decoding.score import Score

SINKS, WINDOW, EPOCH = 3, 9, 8


class Window(WindowWithSinks):
    def __init__(self):
        super().__init__(SINKS, WINDOW, EPOCH)


class Heavy(HeavyHitter):
    def __init__(self):
        super().__init__(budget=6, recent=6, epoch=EPOCH)


class WindowOfTheChunk(Window):
    """Control: the window moves with the chunk, not at logical borders."""

    def bias(self, layer, query, rows, index):
        hidden = (index >= SINKS) & (index < min(rows) - WINDOW)
        return torch.zeros(len(rows), 1, len(index)).masked_fill_(hidden, -torch.inf)


class Policed:
    """Another method's chunks, cut at the policy's borders and seen through it. One policy serves one request."""

    def __init__(self, inner, policy, *, marked=True):
        self.name, self.inner, self.policy = f"{inner.name}-{policy.__name__}", inner, policy
        self.facts = Facts(fidelity="approximate", lineage=policy().lineage if marked else "")

    def bind(self, services): ...
    def end(self, request): ...

    def extra(self, request):
        return 0

    def propose(self, requests, rows):
        allowed = []
        for each, count in zip(requests, rows, strict=True):
            policy = each.memory.setdefault(self.name, self.policy())
            allowed.append(min(count, policy.next_boundary(each.filled) - each.filled))
        chunks = self.inner.propose(requests, allowed)
        for each, chunk in zip(requests, chunks, strict=True):
            chunk.sight, chunk.mass = each.memory[self.name], True
        return chunks

    def commit(self, requests, chunks, outputs):
        done = self.inner.commit(requests, chunks, outputs)
        for each in requests:
            each.memory[self.name].commit()
        return done

    def preempted(self, request):
        if self.name in request.memory:
            request.memory[self.name].reset()


PROMPTS = prompts(3, lengths=(30, 60))
PARAMS = {"temperature": 0.7, "seed": 8, "max_tokens": 20}


def alone(company, method, prompt, *, rows=512, **params):
    engine = company.engine(method, tokens=512, rows=rows)
    each = request(engine, prompt, method.name, **{**PARAMS, **params})
    each.reuse = method.policy.reuse
    return run(engine, each)[0]


@pytest.mark.parametrize("policy", [Window, Heavy])
def test_the_text_depends_on_the_policy_alone(company, policy):
    expected = [alone(company, Policed(Plain(), policy), prompt) for prompt in PROMPTS]
    assert expected != [company.alone(prompt, **PARAMS) for prompt in PROMPTS]
    assert expected[0] == alone(company, Policed(Plain(), policy), PROMPTS[0], rows=5)
    method = Policed(Plain(), policy)
    engine = company.engine(method, tokens=112, rows=9)
    played = company.play(engine, [(prompt, method.name, PARAMS) for prompt in PROMPTS], reuse=policy.reuse)
    assert [text(each) for each in played] == expected


def test_control_a_window_that_moves_with_the_chunk_is_seen(company):
    texts = {tuple(alone(company, Policed(Plain(), WindowOfTheChunk), PROMPTS[0], rows=rows)) for rows in (5, 512)}
    assert len(texts) == 2


@cache
def window_mask(length: int) -> torch.Tensor:
    row, seen = torch.arange(length)[:, None], torch.arange(length)
    return (seen <= row) & ((seen < SINKS) | (seen > row // EPOCH * EPOCH - WINDOW))


@pytest.mark.parametrize("rows", [5, 64])
def test_a_window_is_a_dense_forward_under_its_mask(company, rows):
    (prompt,) = prompts(1, lengths=(60, 60))
    method = Policed(Score(), Window)
    engine = company.engine(method, tokens=128, rows=rows)
    score = request(engine, prompt, method.name)
    run(engine, score, *(request(engine, PROMPTS[0], model=name) for name in ("target", "other")))
    found = torch.cat([score.scores[first] for first in sorted(score.scores)])
    dense, embedded, positions = Dense(layers=2), Dense(layers=2).embed(prompt), range(60)
    assert same(found, dense.logits(embedded, positions, window_mask(60)))
    assert not same(found, dense.logits(embedded, positions, torch.ones(60, 60, dtype=torch.bool).tril()))


@pytest.mark.parametrize("policy", [Window, Heavy])
@pytest.mark.parametrize("marked", [True, False])
def test_approximate_rows_serve_no_exact_request(company, policy, marked):
    (prompt,) = prompts(1, lengths=(60, 60))
    method = Policed(Plain(), policy, marked=marked)
    engine = company.engine(method, tokens=512, rows=9)
    first, exact, again = (request(engine, prompt, name, **PARAMS) for name in (method.name, "plain", method.name))
    first.reuse = again.reuse = policy.reuse
    texts = [run(engine, each)[0] for each in (first, exact, again)]
    right = [alone(company, method, prompt), company.alone(prompt, **PARAMS)]
    if marked:
        assert texts == [*right, right[0]] and exact.stats.cached == 0
        assert (again.stats.cached > 0) == policy.reuse
    else:  # the control: without its mark in the lineage, the policy's rows are taken for exact ones
        assert texts[1] != right[1] and exact.stats.cached > 0
    assert_whole(engine)
