"""Sibling blocks over the same positions, each apart: denoising futures of one block in one chunk (FreeDave)."""

from __future__ import annotations

import pytest
import torch
from block_method import BLOCK, MASK, BlockMethod, mutual
from company import prompts, target, text
from dense import Dense, same
from helpers import request, run

from stretto.core.chunk import Role
from stretto.core.request import Committed

LENGTH, FUTURES = 24, 3
ASKED = [(prompt, "futures", {"max_tokens": LENGTH}) for prompt in prompts(5, seed=31)]


def further(state: list[int], logits: torch.Tensor) -> list[int]:
    """Return the block with the two surest of its masked positions filled in."""
    best, tokens = logits[:, :MASK].max(-1)
    masked = sorted((-best[i].item(), i) for i in range(BLOCK) if state[i] == MASK)[:2]
    return [tokens[i].item() if (-best[i].item(), i) in masked else state[i] for i in range(BLOCK)]


class Futures(BlockMethod):
    """Computes a block beside guesses of what it will be, and goes on behind the last guess that came true."""

    def __init__(self, futures: int, wrong: bool = False) -> None:
        super().__init__("futures")
        self.futures, self.wrong = futures, wrong
        self.came_true = 0
        self.chosen: set[int] = set()
        """Which siblings were committed."""
        self.found: dict[tuple[tuple[int, ...], ...], torch.Tensor] = {}
        """Logits of a block, by what is before it and its own tokens."""

    def extra(self, request):
        return (self.futures - 1) * BLOCK

    def denoise(self, request, rows):
        states = request.memory.setdefault("futures", [[MASK] * BLOCK])[: rows // BLOCK]
        return mutual(request, [token for state in states for token in state], len(request.tokens), Role.CANDIDATE)

    def denoised(self, request, chunk, output):
        known = len(request.tokens)
        states = [chunk.tokens[first : first + BLOCK] for first in range(0, len(chunk), BLOCK)]
        logits = output.logits[output.first : output.first + len(chunk)].clone().split(BLOCK)
        for state, found in zip(states, logits, strict=True):
            self.found[tuple(request.tokens), tuple(state)] = found
        at = 0
        while MASK in states[at] and states[at + 1 :][:1] == [further(states[at], logits[at])]:
            at += 1
        self.came_true += at
        if MASK in states[at]:
            guesses = [further(states[at], logits[at])]
            while len(guesses) < self.futures and MASK in guesses[-1]:
                guesses.append(further(guesses[-1], logits[at]))
            request.memory["futures"] = guesses
            return Committed(request)
        self.chosen.add(at)
        del request.memory["futures"]
        first = 0 if self.wrong else at * BLOCK
        keep = [(output.scratch[first + i], known + i) for i in range(BLOCK)]
        finish = "length" if known + BLOCK == len(request.prompt) + LENGTH else None
        return Committed(request, states[at], known + BLOCK, keep, finish=finish)

    def holds(self, requests, joined: int = 0) -> list[bool]:
        """Return for each block whether a dense forward of it alone, behind its request's blocks, gives its logits.

        The control: the forward also holds ``joined`` positions of another block over the same positions.
        """
        dense, results = Dense(len(target().spec.layers)), []
        prompts_end = {(*each.prompt, *text(each)[:i]): len(each.prompt) for each in requests for i in range(LENGTH)}
        for (before, state), found in self.found.items():
            first = prompts_end[before]
            tokens = [*before, *state, *[1] * joined]
            positions = [*range(len(before) + BLOCK), *range(len(before), len(before) + joined)]
            group = torch.tensor([p if p < first else first + (p - first) // BLOCK for p in positions])
            logits = dense.logits(dense.embed(tokens), positions, group[None, :] <= group[:, None])
            results.append(same(found, logits[len(before) : len(before) + BLOCK]))
        return results


@pytest.fixture(scope="module")
def one_by_one(company):
    """The same blocks, denoised without guesses, alone."""
    futures = Futures(1)
    engine = company.engine(futures, tokens=1024, rows=64)
    return futures, run(engine, *(request(engine, prompt, method, **params) for prompt, method, params in ASKED))


def test_sibling_blocks_equal_blocks_of_their_own(company, one_by_one):
    futures = Futures(FUTURES)
    tested = company.play(company.engine(futures, tokens=128, rows=48), ASKED)
    alone, texts = one_by_one
    assert [text(each) for each in tested] == texts
    assert futures.again and futures.came_true and futures.chosen > {0}
    assert all(torch.equal(futures.found[key], logits) for key, logits in alone.found.items())
    assert len(futures.found) > len(alone.found) and all(futures.holds(tested))
    assert not any(futures.holds(tested, joined=1))


def test_keeping_another_sibling_makes_the_difference(company, one_by_one):
    """The control: the first sibling's rows are kept, whichever was chosen."""
    futures = Futures(FUTURES, wrong=True)
    tested = company.play(company.engine(futures, tokens=128, rows=48), ASKED)
    assert [text(each) for each in tested] != one_by_one[1] and not all(futures.holds(tested))
