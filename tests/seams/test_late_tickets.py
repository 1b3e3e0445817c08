"""Drafts that come a step or two late, never, or broken: speed is lost, the text is not."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch
from company import prompts, text
from drafters import GarbageDrafter
from helpers import request, run

from stretto.core.chunk import Segment
from stretto.core.masks import register_mask
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Block, Coupled, Rejection
from stretto.decoding.speculative.allocator import Everything
from stretto.decoding.speculative.drafter import Draft, Probes
from stretto.decoding.speculative.drafters.forced import JumpForward
from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.paying import Paying


class Slow:
    """A draft begun when the request had ``at`` tokens, there at the ``late``-th time it is asked for."""

    def __init__(self, at, draft, late):
        self.at, self.draft, self.late = at, draft, late

    def poll(self):
        self.late -= 1
        return self.draft if self.late < 0 else None


class Late(GarbageDrafter):
    """Knows the text, and tells it one or two steps late with a wrong branch beside; one ticket at a time."""

    name = "late"

    def __init__(self, truth):
        super().__init__(64, truth)
        self.pending = {}
        self.begun = 0

    def draft(self, requests, rows):
        return [self.ticket(request) for request in requests]

    def ticket(self, request):
        pending = self.pending.get(request.id)
        if pending is not None and pending.late >= 0:
            return None
        true = self.truth[tuple(request.prompt)][request.state.generated :][:6]
        count = len(true)
        tree = DraftTree(
            [*true, *(token ^ 1 for token in true)],
            [*range(-1, count - 1), *range(-1, count - 1)],
            [0.5] * 2 * count,
            [frozenset({self.name})] * 2 * count,
        )
        self.begun += 1
        self.pending[request.id] = Slow(len(request.tokens), Draft(tree), late=1 + request.state.generated % 2)
        return self.pending[request.id]


class Broken(GarbageDrafter):
    """Fine at first, broken from the eighth call on."""

    name = "broken"

    def __init__(self, truth, how):
        super().__init__(64, truth)
        self.how, self.calls = how, 0

    def draft(self, requests, rows):
        self.calls += 1
        if self.calls < 8:
            return super().draft(requests, rows)
        return [self.how(each) for each in requests]


def looping(request) -> Slow:
    """A late tree whose second and third nodes are each other's parents, behind a token that was said since."""
    tree = DraftTree([request.tokens[-1], 1, 1], [-1, 2, 1], [0.5] * 3, [frozenset({"broken"})] * 3)
    return Slow(len(request.tokens) - 1, Draft(tree), late=0)


ONE = [0.5], [frozenset({"broken"})]
BREAKS = {
    "raises": lambda request: 1 // 0,
    "late": lambda request: time.sleep(0.05),
    "no draft": lambda request: Draft(None),
    "token out of range": lambda request: Draft(DraftTree([64], [-1], *ONE)),
    "token not whole": lambda request: Draft(DraftTree([3.0], [-1], *ONE)),
    "token of truth": lambda request: Draft(DraftTree([True], [-1], *ONE)),
    "parent not whole": lambda request: Draft(DraftTree([3, 4], [-1, 0.0], [0.5] * 2, [frozenset({"broken"})] * 2)),
    "owner none": lambda request: Draft(DraftTree([3], [-1], [0.5], [frozenset({None})])),
    "owner not frozen": lambda request: Draft(DraftTree([3], [-1], [0.5], [{"broken"}])),
    "survival a tensor": lambda request: Draft(DraftTree([3], [-1], [torch.tensor(0.5)], [frozenset({"broken"})])),
    "tensors": lambda request: Draft(DraftTree(torch.tensor([3]), torch.tensor([-1]), *ONE)),
    "array for a distribution": lambda request: Draft(DraftTree([3], [-1], *ONE, {-1: np.full(64, 1 / 64)})),
    "probes without segments": lambda request: Draft(DraftTree.run([1]), Probes([1, 2], [1, 1], [])),
    "probes without parent": lambda request: Draft(DraftTree.run([1]), Probes([1], [1], [Segment(1, parent=7)])),
    "late and a loop": looping,
}


PARAMS = {"temperature": 0.8, "seed": 6, "max_tokens": 22}
PROMPTS = prompts(4)


@pytest.fixture(scope="module")
def plain(company) -> list[list[int]]:
    return [company.alone(prompt, **PARAMS) for prompt in PROMPTS]


def play(company, *drafters, **options):
    engine = company.engine(Speculative("drafted", drafters, rows=8, **options), rows=16)
    return company.play(engine, [(prompt, "drafted", PARAMS) for prompt in PROMPTS])


def knowing(plain):
    return {tuple(prompt): each for prompt, each in zip(PROMPTS, plain, strict=True)}


def test_late_drafts_are_pruned_by_what_was_said_since(company, plain):
    drafter = Late(knowing(plain))
    played = play(company, drafter)
    assert [text(each) for each in played] == plain
    assert sum(each.stats.accepted for each in played) > drafter.begun > 10


class Eager(Paying):
    """Lets everybody run, sends whatever there is, and never rests."""

    def __init__(self):
        super().__init__()
        self.ledger.wants_plain = lambda price, load: False
        self.ledger.pause = lambda steps: None
        self.worth.runs = lambda place, mine, length: True
        self._sending.count = lambda nodes, *more: len(nodes)


@pytest.mark.parametrize("allocator", [Everything, Eager])
@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_drafter_is_dropped_with_one_warning(company, plain, caplog, how, allocator):
    """Beside one that goes on."""
    broken, sound = Broken(knowing(plain), BREAKS[how]), GarbageDrafter(64, knowing(plain), seed=1)
    patience, chosen = 0.05 if how == "late" else 60.0, allocator()
    with caplog.at_level(logging.WARNING, "stretto"):
        played = play(company, broken, sound, allocator=chosen, patience=patience)
    assert [text(each) for each in played] == plain and not any(each.error for each in played)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["drafter broken is dropped"]
    assert sum(each.stats.accepted for each in played) > 0
    assert sound.observed
    assert not isinstance(chosen, Eager) or chosen.worth.cost.keys() == {"garbage"}, "the allocator waits for nobody"


@pytest.mark.parametrize("verifier", [Rejection, Block, Coupled])
def test_a_tree_that_the_verifier_cannot_walk_is_a_broken_draft(company, caplog, verifier):
    """Control: one that can is not troubled."""
    siblings = lambda request: Draft(DraftTree([3, 4], [-1, -1], [0.5] * 2, [frozenset({"broken"})] * 2))  # noqa: E731
    with caplog.at_level(logging.WARNING, "stretto"):
        played = play(company, Broken({}, siblings), verifier=verifier())
    assert [each.error for each in played] == [None] * len(PROMPTS)
    assert len(caplog.records) == (verifier is not Coupled)


class Raising:
    """A mask that allows everything and raises behind the tenth token, where it is asked in one of three ways."""

    def __init__(self, vocab_size, eos_ids, where):
        self.vocab_size, self.where = vocab_size, where

    def start(self):
        return 0

    def _met(self, where, state):
        if self.where == where and state >= 10:
            raise OSError("the mask broke")

    def advance(self, state, token):
        self._met("advance", state)
        return state + 1

    def allowed(self, state):
        self._met("allowed", state)
        return torch.ones(self.vocab_size, dtype=torch.bool)

    def lawful(self, state):
        return True

    def forced(self, state):
        self._met("forced", state)
        return None


@pytest.mark.parametrize("where", ["advance", "allowed", "forced"])
def test_a_mask_that_raises_costs_its_own_request_and_no_drafter(company, plain, caplog, where):
    """Also where the requests of the step must be committed one by one, and drafting comes to rest meanwhile."""
    register_mask("raising", Raising)
    allocator, drafters = Eager(), [JumpForward(), GarbageDrafter(64, knowing(plain))]
    method = Speculative("drafted", drafters, rows=8, allocator=allocator)
    learn, lone = allocator.learn, []

    def rests_behind_a_lone_commit(drafted, observations, spent):
        learn(drafted, observations, spent)
        if len(observations) == 1 and not lone:
            lone.append(allocator.ledger.pause(50))

    allocator.learn = rests_behind_a_lone_commit
    engine = company.engine(method, tokens=512, rows=48)
    asked = [request(engine, PROMPTS[0], "drafted", **PARAMS, mask=("raising", {"where": where}))]
    asked += [request(engine, prompt, "drafted", **PARAMS) for prompt in PROMPTS]
    with caplog.at_level(logging.WARNING, "stretto"):
        run(engine, *asked)
    assert [text(each) for each in asked[1:]] == plain
    assert "the mask broke" in (asked[0].error or "") or where == "forced"
    assert asked[0].wrong == (asked[0].error is not None)
    assert method.drafters == drafters and not [r for r in caplog.records if "dropped" in r.getMessage()]
    assert lone or where != "allowed"
