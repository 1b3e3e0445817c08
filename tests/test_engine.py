"""The loop on a toy model: scheduling, sharing, preemption, speculation, isolation of failures."""

from __future__ import annotations

import random

import pytest
from drafters import GarbageDrafter
from helpers import assert_whole, plain_text, request, run
from toy import ToyModel

from stretto.decoding.plain import Plain
from stretto.decoding.speculative.method import Speculative
from stretto.engine.step import Engine


def engine_of(model, *, cache_tokens=512, max_rows=64, methods=()):
    return Engine({"target": model}, [Plain(), *methods], cache_tokens=cache_tokens, max_rows=max_rows)


def prompts(count, seed=0, longest=40):
    source = random.Random(seed)
    return [[source.randrange(1, 64) for _ in range(source.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("max_rows", [1, 3, 7, 64])
@pytest.mark.parametrize("cache_tokens", [112, 1024])
def test_company_slices_and_preemption_do_not_change_the_text(max_rows, cache_tokens):
    model = ToyModel()
    asked = prompts(12)
    expected = [plain_text(model, p, temperature=0.8, seed=i) for i, p in enumerate(asked)]
    engine = engine_of(model, cache_tokens=cache_tokens, max_rows=max_rows)
    requests = [request(engine, p, temperature=0.8, seed=i) for i, p in enumerate(asked)]
    assert run(engine, *requests) == expected
    assert (sum(r.stats.preemptions for r in requests) > 0) == (cache_tokens == 112)
    assert_whole(engine)


@pytest.mark.parametrize("known", [False, True])
def test_drafted_trees_do_not_change_the_text(known):
    model = ToyModel()
    asked = prompts(8)
    expected = [plain_text(model, p, temperature=0.7, seed=i) for i, p in enumerate(asked)]
    truth = {tuple(p): text for p, text in zip(asked, expected, strict=True)} if known else {}
    drafter = GarbageDrafter(64, truth)
    engine = engine_of(model, methods=[Speculative("garbage", [drafter], rows=9)], cache_tokens=320)
    requests = [
        request(engine, p, "garbage" if i % 3 else "plain", temperature=0.7, seed=i) for i, p in enumerate(asked)
    ]
    assert run(engine, *requests) == expected
    accepted = sum(r.stats.accepted for r in requests)
    assert drafter.observed and (accepted > 40) == known
    assert_whole(engine)


def test_a_hit_of_k_tokens_computes_k_fewer_rows():
    model = ToyModel()
    engine = engine_of(model)
    prompt = prompts(1, longest=1)[0] * 40
    run(engine, request(engine, prompt))
    before = engine.rows
    again = request(engine, prompt)
    run(engine, again)
    assert again.stats.cached == 32
    assert engine.rows - before == len(prompt) - 32 + 31
    stranger = request(engine, prompt, tenant="other")
    run(engine, stranger)
    assert stranger.stats.cached == 0


def test_many_requests_in_a_cache_that_holds_few():
    model = ToyModel()
    asked = prompts(256, longest=20)
    engine = engine_of(model, cache_tokens=20 * 32, max_rows=48)
    texts = run(engine, *[request(engine, p, max_tokens=12) for p in asked])
    for i in range(0, 256, 17):
        assert texts[i] == plain_text(model, asked[i], max_tokens=12)
    assert_whole(engine)


def test_one_bad_request_harms_no_other():
    model = ToyModel()
    asked = [[5] * 20, [9, 9, 9], [7] * 10, [3] * 30]
    expected = [plain_text(model, p, max_tokens=6) for p in asked]
    model.broken_at, model.nan_at = 60, 61
    engine = engine_of(model)
    good = [request(engine, p, max_tokens=6) for p in asked]
    broken, nan = request(engine, [60, 1]), request(engine, [1, 61])
    for each in (*good[:2], broken, nan, *good[2:]):
        engine.submit(each)
    while engine.busy:
        engine.step()
    assert [r.tokens[len(r.prompt) :] for r in good] == expected
    assert "the toy broke" in broken.error and "NaN" in nan.error
    assert_whole(engine)


def test_high_priority_is_served_first_and_preempts():
    model = ToyModel()
    engine = engine_of(model, cache_tokens=96)
    low = [request(engine, [i + 1] * 30, max_tokens=20) for i in range(3)]
    high = request(engine, [50] * 30, max_tokens=10, priority=1)
    for each in low:
        engine.submit(each)
    engine.step()
    engine.submit(high)
    ended = []
    while engine.busy:
        ended += [d.request for d in engine.step() if d.finish]
    assert ended[0] == high.id
    assert_whole(engine)


def test_prompts_bid_by_ttft_goal_and_running_requests_are_never_stalled():
    model = ToyModel()
    engine = engine_of(
        model, cache_tokens=1024, max_rows=12, methods=[Speculative("garbage", [GarbageDrafter(64)], rows=6)]
    )
    plain, drafting = request(engine, [1, 2]), request(engine, [3, 4], "garbage")
    for each in (plain, drafting):
        engine.submit(each)
    engine.step()
    late, urgent = request(engine, [5] * 90), request(engine, [6] * 90, ttft_ms=10.0)
    for each in (late, urgent):
        engine.submit(each)
    while not urgent.state.generated:
        before, drafted = plain.state.generated, drafting.stats.rows
        engine.step()
        assert plain.state.generated == before + 1, "a running request waited for a prompt"
        assert drafting.stats.rows > drafted
    assert not late.state.generated and late.stats.rows, "guaranteed rows are everyone's"
    assert drafting.stats.drafted, "prompts starved the drafts"
    while engine.busy:
        engine.step()
    assert_whole(engine)


def test_a_chunk_may_ask_for_its_best_tokens():
    class Curious(Plain):
        def propose(self, requests, rows):
            chunks = super().propose(requests, rows)
            for chunk in chunks:
                chunk.top = 3
            return chunks

        def commit(self, requests, chunks, outputs):
            for chunk, output in zip(chunks, outputs, strict=True):
                values, ids = output.top
                mine = output.logits[output.first : output.first + len(chunk.wanted)]
                assert ids.shape == (len(chunk.wanted), 3) and values.equal(mine.gather(1, ids))
                assert values.equal(mine.topk(3).values)
            return super().commit(requests, chunks, outputs)

    model = ToyModel()
    engine = Engine({"target": model}, [Curious()], cache_tokens=512, max_rows=7)
    asked = prompts(4)
    assert run(engine, *[request(engine, p) for p in asked]) == [plain_text(model, p) for p in asked]
