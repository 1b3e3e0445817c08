"""Random trees of which one path is committed leave what plain decoding of that path leaves, bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from company import prompts, text
from drafters import GarbageDrafter
from helpers import assert_whole, request, run

from stretto.cache.lane import read_rows
from stretto.core.chunk import Role
from stretto.core.request import Committed
from stretto.core.tree import DraftTree
from stretto.decoding.known import known_chunk
from stretto.decoding.method import Facts
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.trees import draft_chunk

LENGTH = 24


class Paths:
    """Commits a random path of a random tree, whatever the logits say; or, given texts, these, one token a step."""

    name, facts = "paths", Facts()

    def __init__(self, texts: dict[tuple[int, ...], list[int]] | None = None, wrong: bool = False) -> None:
        self.texts, self.wrong = texts, wrong
        self.random, self.trees = random.Random(3), GarbageDrafter(64, seed=4)
        self.logits: dict[tuple[int, ...], dict[int, torch.Tensor]] = {}
        """By prompt and position: the logits of the committed row."""
        self.stored: dict[tuple[int, ...], list[torch.Tensor]] = {}
        """By prompt: at every step what the blocks hold, [keys and values, layers, positions, heads, size]."""

    def bind(self, services):
        self.services = services

    def extra(self, request):
        return 0 if self.texts else 8

    def propose(self, requests, rows):
        return [self.chunk(request, count) for request, count in zip(requests, rows, strict=True)]

    def chunk(self, request, rows):
        tree = DraftTree.run([])
        if request.pending == 1 and rows > 1:
            tree = self.trees.tree(request, rows - 1)
        request.memory["paths"] = tree
        return draft_chunk(request, Draft(tree)) if len(tree) else known_chunk(request, rows)

    def commit(self, requests, chunks, outputs):
        return [self.settle(*each) for each in zip(requests, chunks, outputs, strict=True)]

    def settle(self, request, chunk, output):
        key, tree = tuple(request.prompt), request.memory["paths"]
        slots = self.services.view(request, "target").tables["main"].slots(0, request.filled)
        storage = self.services.models["target"].storage["main"]
        self.stored.setdefault(key, []).append(torch.stack(read_rows(storage, slots)))
        base = len(chunk) - len(tree) - 1
        position = chunk.index[base]
        if position + 1 < len(request.tokens):
            return Committed(request, filled=position + 1)
        left = request.params.max_tokens - request.state.generated
        nodes = tree.path(self.random.randrange(-1, len(tree)))[: left - 1]
        following = self.texts[key][request.state.generated] if self.texts else self.random.randrange(64)
        tokens = [*(tree.tokens[node] for node in nodes), following]
        seen = self.logits.setdefault(key, {})
        for depth, row in enumerate([base, *(base + 1 + node for node in nodes)]):
            assert output.chunk.role(row) is (Role.CANDIDATE if depth else Role.COMMIT)
            seen[position + depth] = output.logits[output.row(row)].clone()
        kept = [(node + 1) % len(tree) if self.wrong else node for node in nodes]
        keep = [(output.scratch[base + 1 + node], position + 1 + depth) for depth, node in enumerate(kept)]
        finish = "length" if len(tokens) == left else None
        return Committed(request, tokens, position + 1 + len(nodes), keep, finish=finish, accepted=len(nodes))

    def preempted(self, request): ...
    def end(self, request): ...


def holdings(engine):
    """Return what later requests find: the prefix tree's paths with their lanes, the pools' free and idle blocks."""
    cache = engine.caches["target"]
    paths = set()
    for node in cache.tree.nodes():
        path, above = [], node
        while above.parent is not None:
            path.append(above.key)
            above = above.parent
        paths.add((node.lineage, tuple(path), tuple(node.blocks)))
    return paths, {name: (lane.pool.free, len(lane.pool.idle)) for name, lane in cache.lanes.items()}


def same(found: Paths, expected: Paths) -> bool:
    """Whether the logits of every committed row and the keys and values at every step are the same bits."""
    for key, logits in expected.logits.items():
        if any(not torch.equal(found.logits[key][position], row) for position, row in logits.items()):
            return False
        whole = expected.stored[key][-1]
        for stored in found.stored[key]:
            count = min(stored.shape[2], whole.shape[2])
            if not torch.equal(stored[:, :, :count], whole[:, :, :count]):
                return False
    return True


def plainly(company, requests):
    """Return the record of plain decoding of the requests' texts, one row a step, and its engine."""
    forced = Paths({tuple(each.prompt): text(each) for each in requests})
    engine = company.engine(forced, tokens=1024, rows=64)
    run(engine, *(request(engine, each.prompt, "paths", max_tokens=LENGTH) for each in requests))
    return forced, engine


ASKED = [(prompt, "paths", {"max_tokens": LENGTH}) for prompt in prompts(5, seed=11)]


@pytest.mark.parametrize("wrong", [False, True])
def test_committed_paths_leave_the_bits_of_plain_decoding(company, wrong):
    """The control keeps another node's row and must not pass."""
    paths = Paths(wrong=wrong)
    tested = company.play(company.engine(paths, rows=24), ASKED)
    assert sum(each.stats.accepted for each in tested) > LENGTH
    forced, _ = plainly(company, tested)
    assert same(paths, forced) is not wrong


def test_committed_paths_leave_the_cache_and_pool_of_plain_decoding(company):
    engine = company.engine(Paths(), tokens=1024, rows=64)
    tested = [request(engine, prompt, method, **params) for prompt, method, params in ASKED]
    run(engine, *tested)
    assert_whole(engine)
    assert sum(each.stats.accepted for each in tested) > LENGTH
    _, plain = plainly(company, tested)
    assert holdings(engine) == holdings(plain) and holdings(engine)[0]
