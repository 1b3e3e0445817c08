"""Blocks that see both ways, computed twice over the same positions, some seeing cached positions after them."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from company import Company, prompts, target, text
from dense import Dense, History

from stretto.core.chunk import Chunk, Role, Segment
from stretto.core.request import Committed
from stretto.decoding.known import known_chunk
from stretto.decoding.method import Facts

MASK, BLOCK, LENGTH = 63, 6, 24


class Blocks:
    """Unmasks a block in two passes of probes, commits it, then computes the block before it anew in its sight.

    Stages of a request between two blocks: 0 and 1 denoise, 2 commits, 3 probes and 4 refreshes the block before, which
    sees the new one behind it. A preempted request commits its blocks again, in order.
    """

    name, facts = "blocks", Facts(fidelity="approximate", lineage="blocks")

    def __init__(self) -> None:
        self.dense = Dense(len(target().spec.layers))
        self.histories: dict[int, History] = {}

    def bind(self, services): ...
    def end(self, request): ...

    def extra(self, request):
        return BLOCK - 1

    def propose(self, requests, rows):
        return [self.chunk(*each) for each in zip(requests, rows, strict=True)]

    def chunk(self, request, rows):
        filled, known = request.filled, len(request.tokens)
        if filled < len(request.prompt):
            chunk = known_chunk(request, min(rows, len(request.prompt) - filled))
            chunk.logits = ()
            return chunk
        if rows < BLOCK:  # a block cannot be cut; wait with a row that nobody reads
            return Chunk(request.id, "target", [MASK], [filled], roles=[Role.PROBE], logits=())
        stage, block = request.memory.setdefault("blocks", (0, [MASK] * BLOCK))
        if filled < known:
            return self.rows(request, request.tokens[filled : filled + BLOCK], filled, Role.COMMIT, [(0, filled)])
        if stage < 3:
            return self.rows(request, block, known, Role.COMMIT if stage == 2 else Role.PROBE, [(0, known)])
        first = known - 2 * BLOCK
        role = Role.PROBE if stage == 3 else Role.REFRESH
        spans = [(0, first), (first + BLOCK, known)]
        return self.rows(request, request.tokens[first : first + BLOCK], first, role, spans)

    def rows(self, request, tokens, first, role, spans):
        segment = Segment(BLOCK, mutual=True, sees=tuple(spans))
        return Chunk(request.id, "target", tokens, list(range(first, first + BLOCK)), [segment], [role] * BLOCK)

    def commit(self, requests, chunks, outputs):
        return [self.settle(*each) for each in zip(requests, chunks, outputs, strict=True)]

    def settle(self, request, chunk, output):
        filled, known = request.filled, len(request.tokens)
        if not chunk.logits:
            return Committed(request, filled=None if chunk.roles else chunk.index[-1] + 1)
        history = self.histories.setdefault(request.id, History(self.dense, request.prompt))
        logits = output.logits[output.first : output.first + BLOCK]
        inputs, role = self.dense.embed(chunk.tokens), chunk.role(0)
        history.add(inputs, chunk.index, chunk.segments[0].sees, logits, role is not Role.PROBE)
        if filled < known:
            return Committed(request, filled=filled + BLOCK)
        stage, block = request.memory["blocks"]
        finish, done, tokens = None, None, ()
        if stage < 2:
            best = logits[:, :MASK].argmax(-1).tolist()
            fresh = [b if t == MASK and (stage or i % 2) else t for i, (t, b) in enumerate(zip(block, best, strict=True))]
            request.memory["blocks"] = stage + 1, fresh
        elif stage == 2:
            tokens, done = block, filled + BLOCK
            request.memory["blocks"] = (3 if done >= len(request.prompt) + 2 * BLOCK else 0), [MASK] * BLOCK
        else:
            request.memory["blocks"] = (stage + 1) % 5, block
            finish = "length" if stage == 4 and known - len(request.prompt) == LENGTH else None
        return Committed(request, tokens, done, finish=finish)


@pytest.fixture(scope="module")
def histories():
    company, blocks = Company(), Blocks()
    asked = [(prompt, "blocks", {"max_tokens": LENGTH}) for prompt in prompts(4, seed=21)]
    tested = company.play(company.engine(blocks, tokens=192, rows=24), asked)
    assert all(len(text(each)) == LENGTH for each in tested)
    return list(blocks.histories.values())


def test_blocks_equal_a_dense_forward_under_their_mask(histories):
    for history in histories:
        assert len(history.found) >= 5 * (LENGTH // BLOCK) - 2 and all(history.holds(history.mask()))


def test_one_entry_of_the_mask_makes_the_difference(histories):
    """The control: the dense forward, its mask altered by one entry, must give something else."""
    source = random.Random(1)
    for history in histories:
        for nodes, _ in source.sample(history.found, 3):
            mask, row = history.mask(), source.choice(nodes)
            mask[row, source.choice([*history.sees[row] - {row}])] = False
            assert not all(history.holds(mask))
