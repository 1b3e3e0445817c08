"""Drafts that come a step or two late, never, or broken: speed is lost, the text is not."""

from __future__ import annotations

import logging

import pytest
from company import prompts, text
from drafters import GarbageDrafter

from stretto.core.chunk import Segment
from stretto.core.tree import DraftTree
from stretto.decoding.speculative.drafter import Draft, Probes
from stretto.decoding.speculative.method import Speculative


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
    "token out of range": lambda request: Draft(DraftTree([64], [-1], *ONE)),
    "probes without segments": lambda request: Draft(DraftTree.run([1]), Probes([1, 2], [1, 1], [])),
    "probes without parent": lambda request: Draft(DraftTree.run([1]), Probes([1], [1], [Segment(1, parent=7)])),
    "late and a loop": looping,
}


PARAMS = {"temperature": 0.8, "seed": 6, "max_tokens": 22}
PROMPTS = prompts(4)


@pytest.fixture(scope="module")
def plain(company) -> list[list[int]]:
    return [company.alone(prompt, **PARAMS) for prompt in PROMPTS]


def play(company, drafter):
    engine = company.engine(Speculative("drafted", [drafter], rows=8), rows=16)
    return company.play(engine, [(prompt, "drafted", PARAMS) for prompt in PROMPTS])


def test_late_drafts_are_pruned_by_what_was_said_since(company, plain):
    drafter = Late({tuple(prompt): each for prompt, each in zip(PROMPTS, plain, strict=True)})
    played = play(company, drafter)
    assert [text(each) for each in played] == plain
    assert sum(each.stats.accepted for each in played) > drafter.begun > 10


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_drafter_is_dropped_with_one_warning(company, plain, caplog, how):
    drafter = Broken({tuple(prompt): each for prompt, each in zip(PROMPTS, plain, strict=True)}, BREAKS[how])
    with caplog.at_level(logging.WARNING, "stretto"):
        played = play(company, drafter)
    assert [text(each) for each in played] == plain and not any(each.error for each in played)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["drafter broken is dropped"]
    assert sum(each.stats.accepted for each in played) > 0
