"""Drafters that run a model: trees worked out by hand, plain decoding's text in any company, lanes that are right."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from helpers import assert_whole, plain_text, request, run
from small import small, small_parameters, small_spec
from tables import Steps, Sums, Table, Watched

from stretto.core.chunk import Segment
from stretto.core.request import Request
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.drafters.early_exit import EarlyExit
from stretto.decoding.speculative.drafters.itself import SelfDrafter, Window
from stretto.decoding.speculative.drafters.model import ModelDrafter
from stretto.decoding.speculative.drafters.ngram import PromptLookup
from stretto.decoding.speculative.drafters.rounds import Job
from stretto.decoding.speculative.growth import Beam, Run
from stretto.decoding.speculative.method import Speculative
from stretto.engine.step import Engine
from stretto.kernels import native
from stretto.models.backend import build

LAYERS, LENGTH = 4, 24
PARAMS = {
    "greedy": {"temperature": 0.0},
    "nucleus": {"temperature": 0.7, "top_p": 0.9, "seed": 5},
    "penalties": {
        "temperature": 1.0,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "logit_bias": {20: 1.5},
        "seed": 6,
    },
}
PROMPTS = [[3 + (7 * place + number) % 50 for place in range(20 + 9 * number)] for number in range(4)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Passes this small are slowed down by waking other threads."""
    native.set_threads(1)


@cache
def parameters():
    """Weights of four layers of which the later two change little, so that the first two are worth asking."""
    found = small_parameters(small_spec(LAYERS))
    for layer in (2, 3):
        for matrix in ("output", "down"):
            found[f"layers.{layer}.{matrix}.weight"] *= 0.3
    return found


def four(name: str = "target"):
    return build(small_spec(LAYERS), parameters(), name=name, dtype=torch.float32, fingerprint="four")


def near(name: str = "draft"):
    """Return the model with its last layer weakened: another model, of much the same opinion."""
    weights = parameters() | {f"layers.3.{m}.weight": 0.3 * parameters()[f"layers.3.{m}.weight"] for m in ("down",)}
    return build(small_spec(LAYERS), weights, name=name, dtype=torch.float32, fingerprint="near")


@cache
def alone(number: int, params: str) -> list[int]:
    return plain_text(four(), PROMPTS[number], max_tokens=LENGTH, **PARAMS[params])


MAKE = {
    "run": lambda: ModelDrafter(growth=Run(4)),
    "tree": lambda: ModelDrafter(growth=Beam(4, 3, 2)),
    "slices": lambda: ModelDrafter(growth=Run(4), catch_up=7),
    "staged": lambda: ModelDrafter(growth=Run(5), stage=PromptLookup("stage")),
    "early-exit": lambda: EarlyExit(2, growth=Run(3)),
    "early-exit-tree": lambda: EarlyExit(2, growth=Beam(3, 2, 2)),
    "window": lambda: SelfDrafter("window", Run(3), window=Window(2, 14)),
    "layers": lambda: SelfDrafter("layers", Run(3), spans=((0, 2), (3, 4))),
    "staged-window": lambda: SelfDrafter("self", Beam(3, 2, 2), window=Window(2, 14), stage=ModelDrafter(name="stage")),
}


def play(engine: Engine, asked: list[Request]) -> list[list[int]]:
    """Run requests of which some are preempted in the middle of their text; return their tokens."""
    for each in asked:
        engine.submit(each)
    while engine.busy:
        engine.step()
        running = [each for each in engine.scheduler.running if each.state.generated and not each.stats.preemptions]
        if engine.steps % 5 == 0 and running:
            engine.scheduler.preempt(running[-1])
    return [each.tokens[len(each.prompt) :] for each in asked]


def test_who_waits_for_others_to_catch_up_is_getting_ready():
    """An allocator must not take that for a draft of nothing."""
    drafter, seen = ModelDrafter(growth=Run(4), catch_up=7), []
    draft = drafter.draft
    drafter.draft = lambda requests, rows: seen.append(draft(requests, rows)) or seen[-1]
    method = Speculative("tested", [drafter], rows=6, scratch=3, patience=1e9)
    engine = Engine({"target": four(), "draft": near()}, [method], cache_tokens=512, max_rows=128)
    run(engine, *(request(engine, prompt, "tested", max_tokens=LENGTH) for prompt in PROMPTS))
    assert len(seen[0]) > 1 and [found and len(found.tree) for found in seen[0]] == [0] * len(seen[0])
    assert any(found and len(found.tree) for drafts in seen for found in drafts)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("name", MAKE)
def test_the_text_is_plain_decodings_in_company(name, params):
    """Plain and drafted requests beside each other, twice, in caches too small for them all and with few rows."""
    method = Speculative("tested", [MAKE[name]()], rows=6, scratch=3, patience=1e9)
    engine = Engine({"target": four(), "draft": near()}, [Plain(), method], cache_tokens=176, max_rows=24)
    waves = []
    for _ in range(2):
        asked = [
            request(engine, PROMPTS[number], method, max_tokens=LENGTH, **PARAMS[params])
            for number in range(4)
            for method in ("tested", "plain")
        ]
        texts = play(engine, asked)
        assert texts == [alone(number, params) for number in range(4) for _ in range(2)]
        waves.append(asked)
    assert len(method.drafters) == 1, "the drafter was dropped"
    drafted = [each for wave in waves for each in wave if each.method == "tested"]
    assert sum(each.stats.accepted for each in drafted) > LENGTH
    assert all(sum(each.stats.preemptions for each in wave) > 1 for wave in waves)
    assert sum(each.stats.cached for each in waves[1]) > 0
    assert_whole(engine)


# ---- trees worked out by hand ----


def trees(drafter, models, prompt, *, max_tokens=20, rows=8, **params):
    """Return the trees that a drafter proposes in the course of a greedy request, and the request."""
    watched = Watched(drafter)
    method = Speculative("hand", [watched], rows=rows, scratch=3, patience=1e9)
    engine = Engine(models, [Plain(), method], cache_tokens=256, max_rows=64)
    asked = request(engine, prompt, "hand", max_tokens=max_tokens, **params)
    run(engine, asked)
    assert method.drafters == [watched]
    return watched.trees, asked


FOLLOWS = {1: {2: 9.0}, 2: {3: 9.0}, 3: {4: 9.0}, 4: {5: 9.0}, 5: {6: 9.0}, 6: {7: 9.0}}
"""The target counts."""


def test_a_run_by_hand():
    # The draft counts too, but says 9 behind 3. Behind 1 it drafts 2, 3, 9; the target takes 2 and 3 and says 4. Three
    # tokens are left, of which two may be drafted.
    draft = Table(FOLLOWS | {3: {9: 9.0}}, "draft")
    found, asked = trees(ModelDrafter(growth=Run(3)), {"target": Table(FOLLOWS), "draft": draft}, [1], max_tokens=6)
    assert found == [["2", "2.3", "2.3.9"], ["5", "5.6"]]
    assert asked.stats.drafts == {"draft": [[2, 2], [2, 2], [1, 0]]}


def test_who_drafted_a_token_is_told_at_its_place():
    # As above, behind a prompt of two tokens, whose pass gives the first one without a draft.
    draft = Table(FOLLOWS | {3: {9: 9.0}}, "draft")
    _, asked = trees(ModelDrafter(growth=Run(3)), {"target": Table(FOLLOWS), "draft": draft}, [1, 1], max_tokens=6)
    assert asked.tokens[2:] == [2, 3, 4, 5, 6, 7]
    assert asked.stats.origins == ["", "draft", "", "draft", "draft", ""]


def test_a_tree_by_hand():
    # Chances: of two scores apart by ln 3 the better has 3/4. Behind 2: 3 (3/4), 8 (1/4). Behind 3: 4 (1/2), 7 (1/2);
    # behind 8: 6 (3/4), 5 (1/4). Paths: 3 .75, 8 .25, 3.4 .375, 3.7 .375, 8.6 .1875, 8.5 .0625. The best two of the
    # second level, 3.4 and 3.7, are computed: behind 4 stands 5 (1), behind 7 stands 1 (1). Six nodes are sent.
    ln3 = math.log(3.0)
    table = {2: {3: ln3, 8: 0.0}, 3: {4: 0.0, 7: 0.0}, 8: {5: 0.0, 6: ln3}, 4: {5: 0.0}, 7: {1: 0.0}}
    drafter = ModelDrafter(growth=Beam(3, 2, 2))
    found, asked = trees(drafter, {"target": Table(FOLLOWS), "draft": Table(table, "draft")}, [2], rows=6)
    assert found[0] == ["3", "8", "3.4", "3.7", "3.4.5", "3.7.1"]
    assert asked.tokens[:6] == [2, 3, 4, 5, 6, 7] and asked.stats.origins[:4] == ["draft"] * 3 + [""]


def test_a_tree_of_the_lesser_chances_by_hand():
    # As above, with room for eight nodes and depth 2: 8.6 and 8.5 are sent as well, in the order they were added.
    ln3 = math.log(3.0)
    table = {2: {3: ln3, 8: 0.0}, 3: {4: 0.0, 7: 0.0}, 8: {5: 0.0, 6: ln3}}
    drafter = ModelDrafter(growth=Beam(2, 2, 2))
    found, _ = trees(drafter, {"target": Table(FOLLOWS), "draft": Table(table, "draft")}, [2])
    assert found[0] == ["3", "8", "3.4", "3.7", "8.6", "8.5"]


def test_staged_drafts_by_hand():
    # The text has 1 2 3 4 behind it, so the n-grams guess 3 4 1 2 behind (1, 2). The draft takes 3 and 4, says 5 where
    # the guess has 1, and goes on alone: 5, then 6, the last of five. Passes of the draft: one for the known tokens and
    # the guess, one each behind 5; without a stage it would be five.
    draft = Table(FOLLOWS, "draft")
    drafter = ModelDrafter(growth=Run(5), stage=PromptLookup("stage", longest=2, length=4))
    found, _ = trees(drafter, {"target": Table(FOLLOWS), "draft": draft}, [1, 2, 3, 4, 1], max_tokens=7)
    assert found == [["3", "3.4", "3.4.5", "3.4.5.6", "3.4.5.6.7"]]
    assert draft.passes == 3


def test_a_short_window_by_hand():
    # The target says the sum of what it sees. Behind 1 2 3 4 5 stands 15. The draft sees the first position and the two
    # last cached ones: 1 4 5, and 15, which makes 25; then 50; then 100 = 36. The target sees 30 and takes none.
    drafter = SelfDrafter("window", Run(3), window=Window(1, 2))
    found, asked = trees(drafter, {"target": Sums()}, [1, 2, 3, 4, 5], max_tokens=8)
    assert found[0] == ["25", "25.50", "25.50.36"]
    assert asked.tokens[5:8] == [15, 30, 60]


def test_a_staged_window_by_hand():
    # The draft model guesses 25 and then 9 behind 15. Seeing the window, the target says 25 and then 50: it has both
    # from one pass, and goes on alone to 36. Later guesses are none: a pass less than without the stage.
    target, stage = Sums(), ModelDrafter(growth=Run(2), name="stage")
    drafter = SelfDrafter("self", Run(3), window=Window(1, 2), stage=stage)
    draft = Table({15: {25: 9.0}, 25: {9: 9.0}}, "draft")
    found, _ = trees(drafter, {"target": target, "draft": draft}, [1, 2, 3, 4, 5], max_tokens=5)
    assert found[0] == ["25", "25.50", "25.50.36"]
    alone = Sums()
    again, _ = trees(SelfDrafter("self", Run(3), window=Window(1, 2)), {"target": alone}, [1, 2, 3, 4, 5], max_tokens=5)
    assert again == found and alone.calls - target.calls == 1


def test_early_exit_by_hand():
    # Layers add 1, 0, 0 and 10. Behind two of them 5 is followed by 6, 7, 8; behind all by 16. Every row goes through
    # every layer once.
    target = Steps([1, 0, 0, 10])
    found, asked = trees(EarlyExit(2, growth=Run(3)), {"target": target}, [5], max_tokens=6)
    assert found[:2] == [["6", "6.7", "6.7.8"], ["17", "17.18", "17.18.19"]] and asked.tokens[:4] == [5, 16, 27, 38]
    assert len(set(target.ran)) == len(target.ran)
    # A target whose later layers change nothing takes all it drafts.
    target = Steps([1, 0, 0, 0])
    _, asked = trees(EarlyExit(2, growth=Run(3)), {"target": target}, [5], max_tokens=9)
    assert asked.stats.accepted == asked.stats.drafted == 6 and len(set(target.ran)) == len(target.ran)


def test_skipped_layers_by_hand():
    # Layers add 1, 2, 4; without the middle one 6 is followed by 11, 16, 21, and the target says 13.
    drafter = SelfDrafter("layers", Run(3), spans=((0, 1), (2, 3)))
    found, asked = trees(drafter, {"target": Steps([1, 2, 4])}, [6], max_tokens=6)
    assert asked.tokens[:3] == [6, 13, 20] and found[0] == ["11", "11.16", "11.16.21"]


# ---- the lane of a draft model ----


def all_accepted(engine: Engine, *asked) -> bool:
    """Whether every drafted token that the walk came to was the target's own."""
    run(engine, *asked)
    counts = [count for each in asked for depths in each.stats.drafts.values() for count in depths]
    assert sum(checked for checked, _ in counts) > 10
    return all(checked == accepted for checked, accepted in counts)


def twins(drafter, tokens: int = 512) -> Engine:
    """Return an engine in which the target drafts for itself."""
    method = Speculative("twin", [drafter], rows=8, scratch=2, patience=1e9)
    return Engine({"target": four(), "draft": four("draft")}, [Plain(), method], cache_tokens=tokens, max_rows=64)


TWINS = {
    "run": lambda: ModelDrafter(growth=Run(4)),
    "tree": lambda: ModelDrafter(growth=Beam(4, 3, 3)),
    "slices": lambda: ModelDrafter(growth=Run(4), catch_up=7),
    "staged": lambda: ModelDrafter(growth=Run(6), stage=PromptLookup("stage")),
    "window": lambda: SelfDrafter("window", Beam(4, 3, 3), window=Window(4, 500)),
}


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("name", TWINS)
def test_the_target_drafting_for_itself_is_accepted_every_time(name, params):
    engine = twins(TWINS[name](), tokens=240)
    asked = [request(engine, prompt, "twin", max_tokens=LENGTH, **PARAMS[params]) for prompt in PROMPTS]
    assert all_accepted(engine, *asked)
    assert_whole(engine)


def siblings_seen(self: Job, model: str):
    """Let the nodes of a round see each other."""
    chunk = chunk_of(self, model)
    if len(chunk.segments) > 1:
        first = chunk.segments[0]
        chunk.segments = [Segment(len(chunk), mutual=True, held=first.held, sees=first.sees)]
    return chunk


chunk_of = Job.chunk


def test_control_siblings_that_see_each_other_lose_acceptance(monkeypatch):
    monkeypatch.setattr(Job, "chunk", siblings_seen)
    engine = twins(TWINS["tree"]())
    assert not all_accepted(engine, *(request(engine, prompt, "twin", max_tokens=LENGTH) for prompt in PROMPTS))


class Skips(ModelDrafter):
    """Does not compute what its lane lacks but the last row."""

    def jobs(self, requests, rows):
        for each in requests:
            view = self.services.view(each, self.model)
            if view.reserve(len(each.tokens)):
                view.advance(len(each.tokens) - 1)
        return super().jobs(requests, rows)


class Forgets(ModelDrafter):
    """Raises the watermark over the accepted rows without moving them there."""

    def observe(self, observations):
        for seen in observations:
            seen.request.memory.pop(self.name, None)
            view, upto = self.services.view(seen.request, self.model), len(seen.request.tokens) + len(seen.nodes)
            if view.filled and view.reserve(upto):
                view.advance(upto)


@pytest.mark.parametrize("control", [Skips, Forgets])
def test_control_a_lane_with_missing_rows_loses_acceptance(control):
    engine = twins(control(growth=Run(4)))
    assert not all_accepted(engine, *(request(engine, prompt, "twin", max_tokens=LENGTH) for prompt in PROMPTS))


@pytest.mark.parametrize(("first", "lacking"), [("plain", 40), ("twin", 8)])
def test_rows_that_the_lane_lacks_are_counted(first, lacking):
    """Behind 40 tokens and the first generated one: all but the last row, or what two blocks of 16 leave of them."""
    drafter, prompt = ModelDrafter(growth=Run(4)), [*range(3, 43)]
    engine = twins(drafter)
    run(engine, request(engine, prompt, first, max_tokens=4))
    before = drafter.caught_up
    asked = request(engine, prompt, "twin", max_tokens=3)  # one draft, of one token
    assert run(engine, asked) == [plain_text(four(), prompt, max_tokens=3)]
    assert asked.stats.drafted == asked.stats.accepted == 1
    assert asked.stats.catch_up == drafter.caught_up - before == lacking


def test_prefixes_are_reused_as_without_a_draft():
    """What the target's cache gives a later request does not depend on whether the earlier one was drafted for."""
    cached = []
    for method in ("plain", "twin"):
        engine = twins(ModelDrafter(growth=Run(4)))
        first = request(engine, PROMPTS[1], method, max_tokens=LENGTH)
        (text,) = run(engine, first)
        second = request(engine, [*PROMPTS[1], *text], method, max_tokens=8)
        assert run(engine, second) == [plain_text(four(), [*PROMPTS[1], *text], max_tokens=8)]
        cached.append(second.stats.cached)
        held = {name: cache.stats()["cached"] for name, cache in engine.caches.items()}
        assert held["draft"] == (0 if method == "plain" else held["target"])
    assert cached[0] == cached[1] > 16


def test_a_full_cache_of_the_draft_harms_nobody():
    drafter = ModelDrafter(growth=Run(4))
    method = Speculative("twin", [drafter], rows=8, patience=1e9)
    tokens = {"target": 512, "draft": 48}
    engine = Engine({"target": four(), "draft": four("draft")}, [Plain(), method], cache_tokens=tokens, max_rows=64)
    asked = [request(engine, prompt, "twin", max_tokens=LENGTH) for prompt in PROMPTS]
    assert run(engine, *asked) == [alone(number, "greedy") for number in range(4)]
    assert method.drafters and 0 < sum(each.stats.accepted for each in asked) < 4 * LENGTH // 2
    assert_whole(engine)


def test_a_draft_of_a_shorter_context_stops_at_its_end():
    models = {"target": four(), "draft": small(name="draft", layers=1, context=32)}
    method = Speculative("short", [ModelDrafter(growth=Run(4))], rows=8, patience=1e9)
    engine = Engine(models, [Plain(), method], cache_tokens=256, max_rows=64)
    asked = request(engine, PROMPTS[0], "short", max_tokens=LENGTH)
    assert run(engine, asked) == [alone(0, "greedy")]
    assert method.drafters and asked.stats.drafted > 0
