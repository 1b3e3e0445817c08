"""A draft model whose rows are missing for a while: it catches up exactly the gap, and rewinds behind a rejection.

The draft has the target's weights: every true draft is accepted to the last token if, and only if, its lane is right.
"""

from __future__ import annotations

import pytest
from company import Company, prompts, target, text
from helpers import assert_whole, request, run
from model_drafter import ModelDrafter
from small import small

from stretto.decoding.speculative.method import Speculative

LONG, HIT = 40, 32
"""Length of a prompt, and how much of it whole blocks of the prefix cache serve."""
QUIET = 5
"""Tokens that are generated before the first draft."""


class Late(ModelDrafter):
    """Silent at first and then in spells; one token of most drafts is a lie."""

    def __init__(self) -> None:
        super().__init__(length=4)
        self.valid: dict[int, int] = {}
        """By request: how many of its rows are right, by arithmetic."""
        self.drafted: dict[int, int] = {}
        self.gaps: list[tuple[int, int]] = []
        """Rows missing before a draft, by arithmetic, and rows then computed."""
        self.rewound = 0
        self.first_gap: dict[int, int] = {}
        self.accepted: list[tuple[int, int]] = []
        """Tokens of a draft that should be accepted, and those that were."""

    def ready(self, request):
        return request.state.generated >= QUIET and request.state.generated % 9 < 6

    def lie(self, request) -> int:
        """Return the place of the token that is wrong; 4 is behind the last."""
        return request.state.generated % 5

    def pick(self, run, logits):
        token = super().pick(run, logits)
        return (token + 1) % 64 if len(run.tokens) == self.lie(run.request) else token

    def _pass(self, runs):
        if runs[0].tokens:
            return super()._pass(runs)
        gap = 0
        for each in runs:
            known, number = len(each.request.tokens), each.request.id
            # New, or behind a preemption, the lane holds what the prefix cache had.
            missing = known - self.valid.setdefault(number, each.view.filled)
            self.first_gap.setdefault(number, missing)
            self.drafted[number] = each.length
            gap += missing
        before = self.services.rows
        logits = super()._pass(runs)
        self.gaps.append((gap, self.services.rows - before))
        return logits

    def rewind(self, request):
        self.rewound += self.valid.pop(request.id, None) is not None

    def observe(self, observations):
        for seen in observations:
            number, state = seen.request.id, seen.request.state
            if count := self.drafted.pop(number, 0):
                left = state.committed.limit - state.generated - 1
                self.accepted.append((min(self.lie(seen.request), count, left), len(seen.nodes)))
                self.valid[number] = len(seen.request.tokens) + min(len(seen.nodes), count - 1)
        super().observe(observations)


class Skips(Late):
    """Control: does not compute what it missed."""

    def missing(self, run):
        run.view.advance(len(run.request.tokens) - 1)
        return super().missing(run)


class NeverRewinds(Late):
    """Control: leaves the rows of rejected tokens where they are."""

    def cut(self, view, rows): ...


@pytest.fixture(scope="module")
def company() -> Company:
    return Company((target, lambda: small(name="other", layers=2)))


def play(company: Company, drafter: Late) -> None:
    """Draft for requests in company, in a draft cache too small for all of them; the texts are plain decoding's."""
    params = [{"seed": 4, "max_tokens": 26, "temperature": temperature} for temperature in [0.0, 0.8] * 2]
    asked = [(prompt, "late", each) for prompt, each in zip(prompts(4), params, strict=True)]
    engine = company.engine(Speculative("late", [drafter], rows=5), tokens={"target": 128, "other": 288}, rows=20)
    played = company.play(engine, asked)
    assert [text(each) for each in played] == [company.alone(prompt, **params) for prompt, _, params in asked]


def test_the_lane_catches_up_exactly_what_it_lacks_and_rewinds(company):
    drafter = Late()
    play(company, drafter)
    assert all(gap == rows for gap, rows in drafter.gaps) and max(gap for gap, _ in drafter.gaps) > 20
    assert all(due == found for due, found in drafter.accepted)
    assert {due for due, _ in drafter.accepted} > {0, 4}


@pytest.mark.parametrize("control", [Skips, NeverRewinds])
def test_control_a_lane_with_a_wrong_row_loses_acceptance(company, control):
    drafter = control()
    play(company, drafter)
    assert any(due != found for due, found in drafter.accepted)


@pytest.mark.parametrize(("warmed", "missing"), [("target", LONG), ("other", LONG - HIT)])
def test_a_prefix_hit_or_a_preemption_leaves_the_lane_what_the_cache_has(company, warmed, missing):
    (prompt,) = prompts(1, lengths=(LONG, LONG), seed=1)
    drafter = Late()
    engine = company.engine(Speculative("late", [drafter], rows=5), tokens=256, rows=12)
    run(engine, request(engine, prompt, model=warmed, max_tokens=2))
    late = request(engine, prompt, "late", max_tokens=30)
    engine.submit(late)
    while late.state.generated < 15:
        engine.step()
    engine.scheduler.preempt(late)
    while engine.busy:
        engine.step()
    assert text(late) == company.alone(prompt, max_tokens=30) and drafter.rewound == 1
    assert late.stats.cached == (HIT if warmed == "target" else 0)
    assert drafter.first_gap == {late.id: missing + QUIET} and all(gap == rows for gap, rows in drafter.gaps)
    assert all(due == found for due, found in drafter.accepted)
    assert_whole(engine)
