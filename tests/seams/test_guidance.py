"""Legs: classifier-free guidance (arXiv 2306.17806), two contexts of one request combined before the choice."""

from __future__ import annotations

import pytest
import torch
from company import prompts, target
from helpers import request, run

from stretto.core.choose import choose
from stretto.core.chunk import Chunk
from stretto.core.request import Committed
from stretto.decoding.known import known_chunk
from stretto.decoding.method import Facts
from stretto.decoding.score import Score
from stretto.engine.step import Engine

NEGATIVE, STRENGTH, LENGTH = [3, 1], 1.5, 20


def combine(own: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    return negative + STRENGTH * (own - negative)


class Guided:
    """Chooses from own logits pushed away from those of the same text behind a negative prompt.

    ``seen``: whether the leg reads the generated tokens; without them it is another method, the control.
    """

    name = "guided"
    facts = Facts(fidelity="approximate", relative_to="plain decoding of the guided logits", legs=("negative",))

    def __init__(self, seen: bool = True) -> None:
        self.seen = seen

    def bind(self, services):
        self.services = services

    def preempted(self, request): ...
    def end(self, request): ...

    def negative(self, request):
        return NEGATIVE + (request.tokens[len(request.prompt) :] if self.seen else [])

    def extra(self, request):
        return len(NEGATIVE) + len(request.tokens)

    def propose(self, requests, rows):
        chunks = []
        for each, count in zip(requests, rows, strict=True):
            chunk = known_chunk(each, max(1, count // 2))
            chunks.append(chunk)
            view, tokens = self.services.view(each, "target", "negative"), self.negative(each)
            first = min(view.filled, len(tokens) - 1)
            stop = min(len(tokens), first + count - len(chunk))
            if first < stop and view.reserve(stop):
                chunk.legs.append(
                    Chunk(
                        each.id,
                        "target",
                        tokens[first:stop],
                        list(range(first, stop)),
                        logits=(stop - first - 1,),
                        leg="negative",
                    )
                )
        return chunks

    def commit(self, requests, chunks, outputs):
        return [self.settle(*each) for each in zip(requests, outputs, strict=True)]

    def settle(self, request, output):
        stop = output.chunk.index[-1] + 1
        if not output.legs:
            # The leg waits for rows: the own last row is computed again beside it.
            return Committed(request, filled=min(stop, len(request.tokens) - 1))
        (leg,) = output.legs
        reached = leg.chunk.index[-1] + 1
        self.services.view(request, "target", "negative").advance(reached)
        if reached < len(self.negative(request)) or stop < len(request.tokens):
            return Committed(request, filled=min(stop, len(request.tokens) - 1))
        logits = combine(output.logits[[output.row(len(output.chunk) - 1)]], leg.logits[[leg.first]])
        (token,) = choose(logits, [request.state])
        return Committed(request, (token,), stop, finish=request.state.ends(token))


def scored(tokens: list[int]) -> torch.Tensor:
    """Return the logits of all rows of ``tokens``, computed alone."""
    engine = Engine({"target": target()}, [Score()], cache_tokens=128, max_rows=128)
    each = request(engine, tokens, "score")
    run(engine, each)
    return each.scores[0]


def follows_guidance(each) -> bool:
    """Whether every token is the choice of the guided logits, computed from both contexts anew."""
    said = each.tokens[len(each.prompt) :]
    own, negative = scored(each.tokens), scored(NEGATIVE + said)
    for place, token in enumerate(said):
        row = combine(own[len(each.prompt) + place - 1], negative[len(NEGATIVE) + place - 1])
        replayed = request_like(each, said[:place])
        if choose(row[None], [replayed]) != [token]:
            return False
    return True


def request_like(each, said):
    engine = Engine({"target": target()}, [Score()], cache_tokens=64, max_rows=8)
    state = request(engine, each.prompt, "score", max_tokens=LENGTH, temperature=0.8, seed=4).state
    for token in said:
        state.commit(token)
    return state


@pytest.mark.parametrize("seen", [True, False])
def test_guidance_reads_both_contexts(company, seen):
    engine = company.engine(Guided(seen), tokens=512, rows=40)
    params = {"max_tokens": LENGTH, "temperature": 0.8, "seed": 4}
    asked = [(prompt, "guided", params) for prompt in prompts(3, seed=2)]
    requests = company.play(engine, asked)
    assert all(len(each.tokens) - len(each.prompt) == LENGTH for each in requests)
    assert all(follows_guidance(each) for each in requests) == seen
