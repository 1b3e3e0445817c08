"""The Python API as a user calls it, on the embedded model: what comes back, and what a bad request is told."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
from itertools import zip_longest

import pytest
import torch

from stretto import LLM, AsyncEngine, SamplingParams
from stretto.core.masks import register_mask
from stretto.decoding.method import Facts
from stretto.decoding.plain import Plain
from stretto.engine.host import Host
from stretto.engine.llm import pick_device
from stretto.kernels import native

STORY = "Once upon a time there was a king"


def test_streams_join_to_the_text_and_end_inside_no_character(tiny):
    params = SamplingParams(temperature=1.3, seed=5, max_tokens=120, n=2, logit_bias={200: 3.0, 190: 3.0})
    pieces = list(tiny.stream(STORY, params))
    done = {p.completion.index: p.completion for p in pieces if p.completion}
    assert set(done) == {0, 1} and done[0].text != done[1].text
    for index, completion in done.items():
        mine = [p for p in pieces if p.index == index]
        assert "".join(p.text for p in mine) == completion.text
        assert [t for p in mine for t in p.token_ids] == completion.token_ids
        assert completion.text == tiny.tokenizer.decode(completion.token_ids)
    assert [c.text for c in tiny.generate(STORY, params)] == [done[0].text, done[1].text]


def test_streams_and_calls_may_be_interleaved(tiny):
    params = [SamplingParams(seed=seed, max_tokens=16) for seed in (1, 2, 3)]
    alone = [tiny.generate(STORY, each)[0].text for each in params]
    first, second = (tiny.stream(STORY, each) for each in params[:2])
    texts, inner = ["", ""], ""
    for pieces in zip_longest(first, second):
        texts = [text + (piece.text if piece else "") for text, piece in zip(texts, pieces, strict=True)]
        inner = inner or tiny.generate(STORY, params[2])[0].text
    assert [*texts, inner] == alone


def test_scores_survive_preemption(tiny):
    ids = tiny.tokenizer.encode(STORY * 8)
    whole, llm = tiny.logits(ids), LLM("stretto-tiny", dtype="fp32", weights="fp32", cache_tokens=512, max_rows=11)
    step = llm.engine.step

    def disturbed():
        if llm.engine.steps == 3:
            llm.engine.scheduler.preempt(llm.engine.scheduler.running[0])
            llm.engine.scheduler.max_rows = 7
        return step()

    llm.engine.step = disturbed
    assert torch.equal(llm.logits(ids), whole)


def test_stop_strings_cut_the_text_wherever_tokens_end(tiny):
    whole = tiny.generate(STORY, SamplingParams(temperature=0.8, seed=1, max_tokens=80))[0]
    cuts = random.Random(0)
    for _ in range(12):
        start = cuts.randrange(5, len(whole.text) - 8)
        stop = whole.text[start : start + cuts.randint(2, 7)]
        pieces = list(tiny.stream(STORY, SamplingParams(temperature=0.8, seed=1, max_tokens=80, stop=(stop,))))
        completion = pieces[-1].completion
        assert completion.text == whole.text[: whole.text.index(stop)] == "".join(p.text for p in pieces)
        assert completion.finish_reason == "stop"
        assert completion.token_ids == whole.token_ids[: len(completion.token_ids)]


def test_samples_share_their_prompt_and_differ(tiny):
    ids = tiny.tokenizer.encode(STORY * 6)
    before = tiny.engine.rows
    several = tiny.generate([ids], SamplingParams(n=4, temperature=1.0, seed=9, max_tokens=20), method="plain")
    assert len({tuple(c.token_ids) for c in several}) == 4
    assert [c.index for c in several] == [0, 1, 2, 3] and {c.seed for c in several} == {9}
    # The prompt once, and per further sample its last row again.
    assert tiny.engine.rows - before <= len(ids) + 4 * 19 + 3
    alone = tiny.generate([ids], SamplingParams(n=2, temperature=1.0, seed=9, max_tokens=20))
    assert [c.token_ids for c in alone] == [c.token_ids for c in several[:2]]


def test_logprobs_are_those_of_the_unmodified_distribution(tiny):
    params = SamplingParams(temperature=0.5, top_k=5, seed=2, max_tokens=8, logprobs=3, prompt_logprobs=2)
    (done,) = tiny.generate(STORY, params)
    ids = tiny.tokenizer.encode(STORY)
    expected = torch.log_softmax(tiny.logits(ids + done.token_ids), -1)
    for place, (token, found) in enumerate(zip(done.token_ids, done.logprobs, strict=True)):
        row = expected[len(ids) + place - 1]
        best = row.topk(3).indices.tolist()
        assert set(found) == {*best, token}
        assert all(abs(value - row[key].item()) < 1e-5 for key, value in found.items())
    (again,) = tiny.generate(STORY, params)
    assert again.stats["cached"] == 0 and again.prompt_logprobs == done.prompt_logprobs
    assert done.prompt_logprobs[0] is None and len(done.prompt_logprobs) == len(ids)
    for place in range(1, len(ids)):
        assert abs(done.prompt_logprobs[place][ids[place]] - expected[place - 1, ids[place]].item()) < 1e-5


def test_a_seed_is_reported_and_repeats_the_text(tiny):
    (first,) = tiny.generate(STORY, SamplingParams(max_tokens=30))
    (second,) = tiny.generate(STORY, SamplingParams(max_tokens=30))
    (again,) = tiny.generate(STORY, SamplingParams(max_tokens=30, seed=first.seed))
    assert first.text != second.text and first.text == again.text
    assert first.fingerprint == tiny.fingerprint and first.method == "auto" and first.fidelity == "exact"


def test_chat_goes_through_the_template(tiny):
    messages = [{"role": "user", "content": "Who are you?"}]
    ids = tiny.encode_chat(messages)
    assert tiny.tokenizer.decode(ids, skip_special=False) == "<|begin|>User: Who are you?\nAssistant:"
    (answer,) = tiny.chat(messages, SamplingParams(max_tokens=12, seed=1))
    assert answer.token_ids == tiny.generate([ids], SamplingParams(max_tokens=12, seed=1))[0].token_ids


def test_masks_bans_and_minimum_length(tiny):
    class Even:
        def __init__(self, vocab_size, eos_ids):
            self.table = torch.arange(vocab_size) % 2 == 0

        def start(self):
            return 0

        def advance(self, state, token):
            return 1 - state

        def allowed(self, state):
            return self.table if state == 0 else ~self.table

    register_mask("even-odd", Even)
    (done,) = tiny.generate(STORY, SamplingParams(mask=("even-odd", {}), seed=4, max_tokens=20))
    assert [token % 2 for token in done.token_ids] == [0, 1] * 10
    eos = next(iter(tiny.intake.eos_ids))
    short = SamplingParams(temperature=0, logit_bias={eos: 100.0}, max_tokens=20)
    assert len(tiny.generate(STORY, short)[0].token_ids) == 1
    longer = SamplingParams(temperature=0, logit_bias={eos: 100.0}, min_tokens=7, max_tokens=20)
    assert len(tiny.generate(STORY, longer)[0].token_ids) == 8
    (free,) = tiny.generate(STORY, SamplingParams(temperature=0, max_tokens=10))
    pair = tuple(free.token_ids[3:5])
    (banned,) = tiny.generate(STORY, SamplingParams(temperature=0, max_tokens=10, banned=(pair,)))
    assert banned.token_ids[:4] == free.token_ids[:4] and banned.token_ids[4] != pair[1]


BAD = [
    ("", {}, "prompt is empty|at least one token"),
    ([1, 2, 4096], {}, "prompt token 2 is 4096"),
    ([-1], {}, "prompt token 0 is -1"),
    ([5] * 2048, {}, "2048 tokens, the model's context is 2048"),
    (STORY, {"temperature": -1.0}, "temperature"),
    (STORY, {"top_p": 0.0}, "top_p"),
    (STORY, {"temperature": float("nan")}, "temperature"),
    (STORY, {"n": 0}, "n=0"),
    (STORY, {"mask": ("no-such-mask", {})}, "no-such-mask"),
    (STORY, {"stop_token_ids": (9999,)}, "stop_token_ids"),
    (STORY, {"max_tokens": 0}, "max_tokens"),
    (STORY, {"top_p": 10**400}, "top_p"),
    (STORY, {"n": 10**9}, "n=1000000000"),
    ([5] * 2040, {"max_tokens": None}, "2048 tokens of cache"),
]


def test_bad_requests_are_told_why_and_harm_no_other(tiny):
    good = SamplingParams(temperature=0, max_tokens=12)
    (expected,) = tiny.generate(STORY, good)
    prompts: list = []
    params: list = []
    for prompt, changes, _ in BAD:
        prompts += [[0] if prompt == "" else prompt, STORY]
        params += [SamplingParams(**{"max_tokens": 12, **changes}), good]
    prompts[0] = []
    results = tiny.generate(prompts, params)
    assert len(results) == 2 * len(BAD)
    for (_, _, message), bad, fine in zip(BAD, results[::2], results[1::2], strict=True):
        assert bad.finish_reason == "error" and any(part in bad.error for part in message.split("|")), bad.error
        assert fine.token_ids == expected.token_ids
    with pytest.raises(ValueError, match="temperature"):
        tiny.generate(STORY, SamplingParams(temperature=-1.0))
    assert tiny.engine.caches["target"].available() == tiny.engine.caches["target"].capacity


def test_a_refused_combination_names_both_sides_and_the_reason(tiny):
    class Curt(Plain):
        name = "curt"
        facts = Facts(refuses={"logprobs": "it keeps no logits"})

    tiny.engine.add_method(Curt())
    with pytest.raises(ValueError, match=r"method='curt' does not go with logprobs=2: it keeps no logits; use another"):
        tiny.generate(STORY, SamplingParams(logprobs=2), method="curt")
    assert tiny.generate(STORY, SamplingParams(max_tokens=2), method="curt")[0].method == "curt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "stretto-tinny"}, "stretto-tiny"),
        ({"dtype": "int3"}, "dtype"),
        ({"weights": "int9"}, "weights"),
        ({"device": "tpu"}, "device"),
        ({"method": "plane"}, "plain"),
        ({"draft": "x"}, "draft"),
        ({"draft": "stretto-tiny-draft", "draft_weights": "int9"}, "'int9'"),
        ({"draft_weights": "int8"}, "no draft"),
        ({"threads": 0}, "threads"),
        ({"cache_tokens": -5}, "cache_tokens"),
        ({"max_rows": 2.5}, "max_rows"),
    ],
)
def test_bad_arguments_name_themselves(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LLM(**{"model": "stretto-tiny", "cache_tokens": 64, **options})


@pytest.mark.skipif(native.load() is None, reason="needs the native library")
def test_a_draft_may_be_light_and_no_text_depends_on_it(tiny):
    params, sizes = SamplingParams(temperature=0.7, seed=3, max_tokens=48), {}
    expected = tiny.generate(STORY, params, method="plain")[0].token_ids
    for weights in ("auto", "int8", "int4"):
        llm = LLM("stretto-tiny", draft="stretto-tiny-draft", draft_weights=weights)
        done = llm.generate(STORY, params, method="draft-model")[0]
        assert done.token_ids == expected and done.stats["accepted"] > 10
        sizes[weights] = llm.engine.models["draft"].weight_bytes
    assert sizes["int4"] < 0.9 * sizes["int8"] and sizes["int8"] < 0.6 * sizes["auto"]


def serve(inbox, outbox):
    """The engine's side, in a process of its own."""
    Host(LLM("stretto-tiny", dtype="fp32", weights="fp32", cache_tokens=512), outbox.put).serve(inbox)


def test_the_border_can_be_crossed_to_another_process(tiny):
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    child = context.Process(target=serve, args=(inbox, outbox))
    child.start()
    params = SamplingParams(seed=3, max_tokens=10, n=2)
    inbox.put({"op": "submit", "id": "a", "prompt": STORY, "params": params.to_dict()})
    done = {}
    while len(done) < 2:
        event = outbox.get(timeout=120)
        if "completion" in event:
            done[event["index"]] = event["completion"]["text"]
    inbox.put({"op": "stop"})
    child.join(60)
    assert child.exitcode == 0
    assert [done[0], done[1]] == [c.text for c in tiny.generate(STORY, params)]


async def abort_after(engine, count):
    stream = engine.submit(STORY, {"max_tokens": 200, "ignore_eos": True})
    async for event in stream:
        count -= 1
        if count == 0:
            engine.abort(event["id"])
        yield event


def test_the_device_is_the_cpu_unless_asked_and_a_gpu_says_what_it_runs(monkeypatch, caplog):
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cpu") and pick_device("cuda") == torch.device("cuda")
    assert "reference kernels" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_reference_kernels_run_on_a_gpu(tiny):
    ids = tiny.tokenizer.encode(STORY)
    there = LLM("stretto-tiny", dtype="fp32", weights="fp32", device="cuda", cache_tokens=512).logits(ids)
    here = tiny.logits(ids)
    assert (there - here).abs().max() < 1e-3 * here.abs().max()


def test_async_engine_serves_many_and_aborts(tiny):
    async def ask(engine, seed, give_up=None):
        events = []
        stream = engine.submit(STORY, SamplingParams(seed=seed, max_tokens=24))
        async for event in stream:
            json.dumps(event)  # plain data only
            events.append(event)
            if give_up and len(events) == give_up:
                await stream.aclose()
                break
        return events

    async def scene():
        async with AsyncEngine("stretto-tiny", dtype="fp32", weights="fp32", cache_tokens=2048) as engine:
            runs = await asyncio.gather(*(ask(engine, seed, 3 if seed == 2 else None) for seed in range(5)))
            with pytest.raises(ValueError, match="top_p"):
                await anext(engine.submit(STORY, {"top_p": 7}))
            with pytest.raises(ValueError, match="temprature"):
                await anext(engine.submit(STORY, {"temprature": 1}))
            events = [event async for event in abort_after(engine, 4)]
            assert events[-1]["completion"]["finish_reason"] == "abort" and len(events) < 100
            return runs

    runs = asyncio.run(scene())
    for seed, events in enumerate(runs):
        if seed == 2:
            assert len(events) == 3 and "completion" not in events[-1]
            continue
        (expected,) = tiny.generate(STORY, SamplingParams(seed=seed, max_tokens=24))
        assert events[-1]["completion"]["text"] == expected.text == "".join(e["text"] for e in events)
