"""What one request of a method meets is its own: the drafts of others, and the books, stay as they are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from games import Game, Machine
from helpers import plain_text, request, run
from scripted import Chain
from toy import ToyModel

from stretto.core.chunk import Role
from stretto.core.masks import register_mask
from stretto.core.tree import DraftTree
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.allocator import Everything
from stretto.decoding.speculative.budgets import Tetris
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.base import ModelFree
from stretto.decoding.speculative.drafters.lookahead import Lookahead
from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.trees import obeying
from stretto.engine.step import Engine

PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]


class Brittle:
    """A mask that allows everything, and breaks where it is asked about drafts."""

    def __init__(self, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self.any = torch.ones(vocab_size, dtype=torch.bool)

    def start(self) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state

    def allowed(self, state: int) -> torch.Tensor:
        return self.any

    def lawful(self, state: int) -> bool:
        raise KeyError("brittle")


register_mask("brittle", Brittle)


class Knows(ModelFree):
    """Drafts what is to come; ``tender``: it looks at masks itself, all requests in one call."""

    def __init__(self, texts: dict[tuple[int, ...], list[int]], tender: bool = False) -> None:
        super().__init__("knows")
        self.texts, self.tender = texts, tender

    def propose(self, request, room):
        mask = request.state.committed.mask
        if self.tender and mask is not None:
            obeying(Draft(DraftTree.run([1], owner=self.name)), request.state)
        start = len(request.tokens) - len(request.prompt)
        return Draft(DraftTree.run(self.texts[tuple(request.prompt)][start : start + room], 0.9, self.name))


def engine(method: Speculative) -> Engine:
    return Engine({"target": ToyModel()}, [Plain(), method], cache_tokens=512, max_rows=64)


@pytest.fixture(scope="module")
def texts() -> dict[tuple[int, ...], list[int]]:
    return {tuple(prompt): plain_text(ToyModel(), prompt, max_tokens=24) for prompt in PROMPTS}


@pytest.mark.parametrize("tender", [False, True])
def test_a_mask_that_breaks_over_drafts_costs_no_other_request_its_drafts(texts, tender):
    method = Speculative("tested", [Knows(texts, tender)], rows=5)
    home = engine(method)
    asked = [
        request(home, prompt, "tested", max_tokens=24, mask=mask)
        for prompt, mask in zip(PROMPTS, (("brittle", {}), None), strict=True)
    ]
    assert run(home, *asked) == list(texts.values())
    assert method.drafters and not asked[0].stats.accepted
    assert (asked[1].stats.steps, asked[1].stats.accepted) == (5, 19)


class Looked(Chain):
    """Notes which probe rows others follow, -1 for what follows no probe row."""

    follows: Counter[int]

    def forward(self, batch):
        for chunk in (part.chunk for part in batch.parts if part.chunk.roles):
            probes = [row for row, role in enumerate(chunk.roles) if role is Role.PROBE]
            self.follows.update(
                probes.index(segment.parent) if segment.parent in probes else -1 for segment in chunk.segments
            )
        return super().forward(batch)


def test_probes_follow_a_tree_that_is_cut():
    """Lookahead decoding with a window of five, whose columns hang on the first row; a budget sends one node."""
    model, prompt = Looked([*range(3, 12)] * 10), [3, 4]
    model.follows = Counter()
    method = Speculative("tested", [Lookahead()], allocator=Tetris(1), rows=40)
    home = Engine({"target": model}, [method], cache_tokens=512, max_rows=64)
    asked = request(home, prompt, "tested", max_tokens=40)
    assert run(home, asked) == [plain_text(model, prompt, max_tokens=40)]
    assert asked.stats.accepted > 8 and set(model.follows) == {-1, 0, 1, 2, 3, 4}


def test_a_drafted_end_counts_as_accepted(texts):
    prompt, (first, second, third, *_) = PROMPTS[0], texts[tuple(PROMPTS[0])]
    home = engine(Speculative("tested", [Knows(texts)], rows=5))
    asked = request(home, prompt, "tested", max_tokens=24, stop_token_ids=[third])
    assert run(home, asked) == [[first, second, third]]
    assert asked.stats.accepted == 2 and asked.stats.drafts["knows"] == [[1, 1], [1, 1]]
    assert asked.stats.origins == ["", "knows", "knows"]


class Resting(Everything):
    """Four steps of rest, again and again."""

    def __init__(self) -> None:
        self.rested = Counter[int]()

    def rests(self) -> int:
        return 4

    def rest(self, done, steps) -> None:
        self.rested[steps] += 1


class Alone(ToyModel):
    """Takes one request at a time."""

    def forward(self, batch):
        if len(batch.parts) > 1:
            raise MemoryError("one at a time")
        return super().forward(batch)


@pytest.mark.parametrize("model", [ToyModel, Alone])
def test_a_rest_lasts_as_many_steps_however_often_one_is_committed(model):
    """A pass that raises is made, and committed, for each request alone."""
    allocator = Resting()
    home = Engine({"target": model()}, [Speculative("tested", [], allocator=allocator)], cache_tokens=512, max_rows=64)
    run(home, *(request(home, prompt, "tested", max_tokens=24) for prompt in PROMPTS))
    assert allocator.rested[4] == 5 and set(allocator.rested) == {0, 4}


def test_what_two_drafters_both_found_is_the_first_ones():
    game = Game(Machine(), {"first": (1.0, 0.01), "second": (1.0, 0.01)})
    game.play(300)
    worth = game.paying.worth
    assert worth.general(("first", 0)) > 4.0 and worth.general(("second", 0)) < 0.5


def test_a_drafted_step_is_held_against_as_many_plain_ones_as_it_wrote_tokens():
    game = Game(Machine(), {"copy": (0.8, 0.1)})
    game.play(300)
    (asked,) = game.asked
    assert asked.stats.decoding_ms == pytest.approx(game.machine.now, rel=0.1)
    assert asked.stats.plain_ms == pytest.approx(10.0 * len(asked.tokens), rel=0.1)
