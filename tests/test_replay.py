"""Recorded texts that another model is made to say: by any method, at the cost of its own passes, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from drafters import GarbageDrafter
from helpers import assert_whole
from safetensors.torch import load_file, save_file

from stretto import LLM, SamplingParams
from stretto.core.chunk import Role
from stretto.decoding.speculative.method import Speculative
from stretto.race.prompts import Asked
from stretto.race.record import Record, read_records, write_records
from stretto.race.replay import LEAD, Replayed, replay
from stretto.weights.resolve import resolve

PARAMS = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=24, ignore_eos=True)
PROMPTS = ["Once upon a time there was", "def find_maximum(numbers):", "Question: 1 + 1?\nAnswer:"]


@pytest.fixture(scope="module")
def llm():
    return LLM("stretto-tiny", cache_tokens=512)


class Spy(GarbageDrafter):
    """Keeps the rows of every step: whether a row lies on its request's script, and the token that leads there."""

    def __init__(self, truth):
        super().__init__(4096, truth)
        self.seen = []

    def observe(self, observations):
        for seen in observations:
            request, output, tree = seen.request, seen.output, seen.tree
            script = [*request.prompt, *self.truth[tuple(request.prompt)]]
            assert output.chunk.role(seen.base) is Role.COMMIT
            for node in range(-1, len(tree)):
                path = request.tokens + [tree.tokens[n] for n in tree.path(node)]
                logits = output.logits[output.row(seen.base + 1 + node)]
                following = script[len(path)] if len(path) < len(script) else None
                self.seen.append((path == script[: len(path)], following, int(logits.argmax()), float(logits.max())))


class ByPlace(Replayed):
    """The control: rows are told apart by their positions alone."""

    def follows(self, chunk, script):
        return [True] * len(chunk)


class ByCount(Replayed):
    """Another: every row stands one place behind the row before it, as in a run."""

    def follows(self, chunk, script):
        chunk.index = list(range(chunk.index[0], chunk.index[0] + len(chunk)))
        return [True] * len(chunk)


@pytest.fixture(scope="module")
def recorded(llm):
    """Texts that the embedded model wrote, greedy and sampled."""
    found = []
    for place, text in enumerate(PROMPTS * 2):
        params = replace(PARAMS, temperature=0.8 * (place > 2), seed=place)
        (done,) = llm.generate(text, params)
        asked = Asked(tuple(llm.tokenizer.encode(text)), params, f"group {place}", text)
        found.append(Record(asked, tuple(done.token_ids)))
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of a model of two random layers with the embedded model's vocabulary."""
    folder, zoo = tmp_path_factory.mktemp("other"), resolve("stretto-tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo / name, folder / name)
    config = json.loads((zoo / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    generator = torch.Generator().manual_seed(0)
    kept = {
        name: t for name, t in load_file(zoo / "model.safetensors").items() if not re.search(r"layers\.[2-9]", name)
    }
    made = {name: torch.randn(t.shape, generator=generator).mul(0.1).to(t.dtype) for name, t in kept.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("wrapper", [Replayed, ByPlace, ByCount])
def test_replay_says_the_recorded_text_by_any_method(recorded, other, wrapper, monkeypatch):
    monkeypatch.setattr("stretto.race.replay.Replayed", wrapper)
    records = recorded[3:]
    truth = {record.asked.ids: list(record.tokens) for record in records}
    llm = LLM(other, cache_tokens=512, max_rows=40)
    unlike = [done.token_ids for done in llm.generate([list(r.asked.ids) for r in records], PARAMS)]
    assert all(a[:4] != list(r.tokens[:4]) for a, r in zip(unlike, records, strict=True))
    before, passed = llm.engine.rows, 0
    forward = llm.engine.models["target"].forward

    def counted(batch):
        nonlocal passed
        passed += len(batch)
        return forward(batch)

    llm.engine.models["target"].forward = counted
    replay(llm, records)
    spy = Spy(truth)
    llm.engine.add_method(Speculative("spy", [spy], rows=9))
    asked = [(record, method) for record in records for method in ("plain", "spy")]
    requests = [llm.submit(list(r.asked.ids), r.asked.params, method)[0] for r, method in asked]
    llm._finish(requests)
    said = [
        request.tokens[len(request.prompt) :] == list(r.tokens) for request, (r, _) in zip(requests, asked, strict=True)
    ]
    assert passed == llm.engine.rows - before, "the passes are the model's own"
    on = [(following, best) for follows, following, best, _ in spy.seen if follows and following is not None]
    off = [(best, lead) for follows, _, best, lead in spy.seen if not follows]
    assert len(on) > 30 and len(off) > 30
    untouched = all(lead < LEAD / 2 for _, lead in off)
    if wrapper is Replayed:
        assert all(said) and untouched and all(following == best for following, best in on)
        assert sum(request.stats.accepted for request in requests) > 20
        assert_whole(llm.engine)
        assert llm.fingerprint.startswith("replay-")
    else:
        assert not untouched, "what rows off the path say is no business of the script"
        assert all(said) == (wrapper is ByPlace)


def test_records_are_read_as_they_were_written(llm, recorded, tmp_path):
    write_records(tmp_path / "r.jsonl", recorded, llm)
    again = read_records(tmp_path / "r.jsonl", llm, SamplingParams(temperature=0.1, top_k=3))
    assert [(r.asked.ids, r.tokens, r.asked.category) for r in again] == [
        (r.asked.ids, r.tokens, r.asked.category) for r in recorded
    ]
    assert [r.asked.params for r in again] == [r.asked.params for r in recorded]
    (tmp_path / "human.jsonl").write_text('{"prompt": "Once upon", "text": " a time there was"}\n')
    (human,) = read_records(tmp_path / "human.jsonl", llm, PARAMS)
    assert llm.tokenizer.decode(human.tokens) == " a time there was" and human.asked.params.seed == 1
    twice = replace(recorded[0], tokens=recorded[0].tokens[::-1])
    with pytest.raises(ValueError, match="the same prompt and the seed"):
        replay(LLM("stretto-tiny", cache_tokens=64), [recorded[0], twice])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"token_ids": None}, "token_ids is None; expected a list of token ids, or a text under text"),
        ({"token_ids": []}, "token_ids is []"),
        ({"token_ids": [True, 2]}, "token_ids is [True, 2]"),
        ({"token_ids": [2, -1]}, "token_ids is [2, -1]"),
        ({"token_ids": [99999]}, "token 99999, but stretto-tiny has tokens 0 to "),
        ({"params": [1]}, "params holds [1]; expected an object of temperature, "),
        ({"params": ""}, "params holds ''; expected an object"),
        ({"params": {"n": 2, "seed": 3, "foo": 1}}, "params holds foo, n; expected"),
        ({"params": {"temperature": -3}}, "temperature=-3: expected 0 or a number"),
        ({"params": {"top_k": True}}, "top_k=True: expected a whole number"),
    ],
)
def test_a_bad_record_is_named(llm, tmp_path, line, told):
    good = {"prompt": "x", "token_ids": [5]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | line))
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        read_records(tmp_path / "bad.jsonl", llm, PARAMS)
    assert str(refused.value).startswith(f"{tmp_path}/bad.jsonl, line 2: ")


def test_a_record_without_a_seed_gets_its_number(llm, recorded, tmp_path):
    line = {"prompt": "x", "token_ids": [5]}
    said = [line, line | {"params": None}, line | {"params": {"seed": None}}, line | {"params": {"seed": 9}}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, said)))
    records = read_records(tmp_path / "r.jsonl", llm, replace(PARAMS, seed=7))
    assert [record.asked.params.seed for record in records] == [1, 2, 3, 9]
    unknown = replace(recorded[0], asked=replace(recorded[0].asked, params=PARAMS))
    with pytest.raises(ValueError, match="no seed to be known by"):
        replay(LLM("stretto-tiny", cache_tokens=64), [unknown])
