"""Blocks that see both ways, computed twice over the same positions, some seeing cached positions after them."""

from __future__ import annotations

import random

import pytest
import torch
from block_method import BLOCK, MASK, BlockMethod, mutual
from company import prompts, target, text
from dense import Dense, History
from helpers import request, run

from stretto.core.chunk import Role
from stretto.core.request import Committed

LENGTH = 24


class Blocks(BlockMethod):
    """Unmasks a block in two passes of probes, commits it, then computes the positions before it anew in its sight.

    Stages of a block: 0 and 1 denoise, 2 commits, 3 probes and 4 refreshes the block before it (at first the end of the
    prompt), which sees the new one behind it.
    """

    def __init__(self) -> None:
        super().__init__("blocks", own=-BLOCK)
        self.dense = Dense(len(target().spec.layers))
        self.histories: dict[int, History] = {}

    def denoise(self, request, rows):
        known = len(request.tokens)
        stage, block = request.memory.setdefault("blocks", (0, [MASK] * BLOCK))
        if stage < 3:
            return mutual(request, block, known, Role.COMMIT if stage == 2 else Role.PROBE, [(0, known)])
        first = known - 2 * BLOCK
        role = Role.PROBE if stage == 3 else Role.REFRESH
        return mutual(request, request.tokens[first:][:BLOCK], first, role, [(0, first), (first + BLOCK, known)])

    def learn(self, request, chunk, output):
        history = self.histories.setdefault(request.id, History(self.dense, request.prompt))
        if chunk.roles is None:
            history.restart()
            return
        logits, inputs = output.logits[output.first : output.first + BLOCK], self.dense.embed(chunk.tokens)
        history.add(inputs, chunk.index, chunk.segments[0].sees, logits, chunk.role(0) is not Role.PROBE)

    def denoised(self, request, chunk, output):
        known = len(request.tokens)
        stage, block = request.memory["blocks"]
        if stage == 2:
            request.memory["blocks"] = 3, block
            return Committed(request, block, known + BLOCK)
        best = zip(block, output.logits[output.first :][:BLOCK, :MASK].argmax(-1).tolist(), strict=True)
        if stage < 2:
            block = [new if old == MASK and (stage or i % 2) else old for i, (old, new) in enumerate(best)]
        request.memory["blocks"] = (stage + 1, block) if stage < 4 else (0, [MASK] * BLOCK)
        return Committed(request, finish="length" if stage == 4 and known - len(request.prompt) == LENGTH else None)


@pytest.fixture(scope="module")
def histories(company):
    blocks = Blocks()
    asked = [(prompt, "blocks", {"max_tokens": LENGTH}) for prompt in prompts(5, lengths=(BLOCK, 40), seed=21)]
    tested = company.play(company.engine(blocks, tokens=176, rows=40), asked)
    assert blocks.again and all(len(text(each)) == LENGTH for each in tested)
    return list(blocks.histories.values())


def test_blocks_equal_a_dense_forward_under_their_mask(histories):
    for history in histories:
        assert len(history.found) >= 5 * LENGTH // BLOCK and all(history.holds(history.mask()))


def test_one_entry_of_the_mask_makes_the_difference(histories):
    """The control: the dense forward, its mask altered by one entry, must give something else."""
    source = random.Random(1)
    for history in histories:
        for nodes, _ in source.sample(history.found, 3):
            mask, row = history.mask(), source.choice(nodes)
            mask[row, source.choice([*history.sees[row] - {row}])] = False
            assert not all(history.holds(mask))


def test_rows_computed_anew_are_nobody_elses(company):
    """A block request takes over a running plain one's rows and computes some of them anew, in other places."""
    (prompt,) = prompts(1, lengths=(67, 67))
    engine = company.engine(Blocks(), tokens=512, rows=40)
    methods = ("plain", "blocks", "plain")
    plain, tested, later = (request(engine, prompt, method, max_tokens=LENGTH) for method in methods)
    engine.submit(plain)
    while plain.filled < len(prompt):
        engine.step()
    slots = plain.views["target"].tables["main"].slots(0, 64).copy()
    before = engine.models["target"].storage["main"].keys[:, slots]
    run(engine, tested)
    while plain.finish is None:
        engine.step()
    run(engine, later)
    assert tested.stats.cached == later.stats.cached == 64 > len(prompt) - BLOCK
    assert torch.equal(engine.models["target"].storage["main"].keys[:, slots], before)
    assert text(plain) == text(later) == company.alone(prompt, max_tokens=LENGTH)
