"""A request goes on in another engine as if it had never left the first, from any event of its stream."""

from __future__ import annotations

import asyncio

import pytest

from stretto.engine.host import Host
from stretto.engine.intake import Intake
from stretto.engine.stream import Stream

STORY = "Once upon a time there was a king"
LENGTH = 20
BYTES = {"logit_bias": {200: 3.0, 190: 3.0}, "temperature": 1.3}
"""Many tokens that are parts of characters."""
CASES = {
    "greedy": {"temperature": 0.0},
    "nucleus": {"temperature": 0.8, "top_p": 0.9, "top_k": 300},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": 0.5, "temperature": 0.4},
    "banned": {"temperature": 0.0, "banned": [[268], [309, 268]]},
    "bytes": BYTES,
    "half a stop": {**BYTES, "stop": "HALF"},
    "stop": {"temperature": 0.7, "stop": "LATE", "include_stop": True, "min_tokens": 3},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 2, "temperature": 0.9},
    "min_tokens": {"min_tokens": 12, "ignore_eos": False, "logit_bias": {1: 6.0}},
    "samples": {"n": 3, "logprobs": 1},
    "choice": {"mask": ["choice", {"choices": [list(range(300, 340)), list(range(300, 320)) + [7] * 20]}]},
}
EXACT = ("plain", "prompt-lookup", "suffix-decoding", "token-recycling", "jacobi", "auto")


def run(llm, *messages):
    """Return the events of each message, all in one engine at once."""
    events = {number: [] for number in range(len(messages))}
    host = Host(llm, lambda event: events[event["id"]].append(event))
    for number, message in enumerate(messages):
        host.handle({"op": "submit", "id": number, **message})
    while llm.engine.busy:
        host.step()
    return list(events.values())


def told(events, index):
    """Return what the events of one sample say, joined: tokens, text, logprobs, and what its completion holds."""
    mine = [event for event in events if event["index"] == index]
    done = mine[-1]["completion"]
    done["prompt_logprobs"] = next((event["prompt_logprobs"] for event in events if "prompt_logprobs" in event), None)
    kept = {name: done[name] for name in ("text", "token_ids", "finish_reason", "logprobs", "prompt_logprobs", "seed")}
    tokens = [token for event in mine for token in event["token_ids"]]
    logprobs = [each for event in mine for each in event.get("logprobs", ())]
    return tokens, "".join(event["text"] for event in mine), logprobs, kept


def asked(llm, name, method):
    """Return the message of a case, its stop strings made of what the text would be."""
    params = {"seed": 5, "max_tokens": LENGTH, "ignore_eos": True, **CASES[name]}
    if "stop" in params:
        free = {key: value for key, value in params.items() if key not in ("stop", "include_stop")}
        (events,) = run(llm, {"prompt": STORY, "params": free, "method": "plain"})
        text = told(events, 0)[1]
        place = len(text) // 2
        params["stop"] = (
            [text[place : place + 6]] if name == "stop" else [text[place : place + 6] + "|", text[-3:] + "|"]
        )
    return {"prompt": STORY, "params": params, "method": method}


def differences(llm, name, method):
    """Return where what was resumed differs from what was not, over all cuts."""
    message = asked(llm, name, method)
    (whole,) = run(llm, message)
    count = message["params"].get("n", 1)
    expected = [told(whole, index) for index in range(count)]
    cuts, messages = [], []
    for cut in range(len(whole)):
        before = whole[:cut]
        ended = {event["index"] for event in before if "completion" in event}
        parts = {index: [e for e in before if e["index"] == index] for index in range(count) if index not in ended}
        resume = [
            [i, [t for e in mine for t in e["token_ids"]], [p for e in mine for p in e.get("logprobs", ())]]
            for i, mine in parts.items()
        ]
        cuts.append((cut, {i: "".join(e["text"] for e in mine) for i, mine in parts.items()}, resume))
        messages.append({**message, "resume": resume})
    found = []
    for (cut, texts, resume), events in zip(cuts, run(llm, *messages), strict=True):
        if any("error" in event for event in events):
            found.append((name, method, cut, events))
            continue
        for index, tokens, logprobs in resume:
            rest = told(events, index)
            if (tokens + rest[0], texts[index] + rest[1], logprobs + rest[2], rest[3]) != expected[index]:
                found.append((name, method, cut, index, rest, expected[index]))
    return found


@pytest.mark.parametrize("name", CASES)
def test_from_every_event_on_it_is_the_same_text(tiny, name):
    assert not differences(tiny, name, "plain")


@pytest.mark.parametrize("method", EXACT[1:])
def test_drafting_methods_go_on_as_well(tiny, method):
    assert not [found for name in ("greedy", "bytes", "samples") for found in differences(tiny, name, method)]


def forgetful(*, commits: bool = True, pushes: bool = True, counts: bool = True):
    """Return a resumption that forgets something."""

    def go_on(self, request, written):
        request.tokens = [*request.prompt, *written.token_ids]
        request.logprobs = list(written.logprobs) if counts else []
        for token in written.token_ids:
            if commits:
                request.state.commit(token)
            if request.text is not None and pushes:
                request.text.push(token)

    return go_on


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("nucleus", "commits"),  # the noise begins at position 0 again
        ("penalties", "commits"),
        ("choice", "commits"),
        ("greedy", "commits"),  # max_tokens counts from the cut
        ("half a stop", "pushes"),
        ("bytes", "pushes"),
        ("logprobs", "counts"),
    ],
)
def test_a_resumption_that_forgets_something_is_noticed(tiny, monkeypatch, name, lacks):
    """Controls."""
    monkeypatch.setattr(Intake, "_go_on", forgetful(**{lacks: False}))
    assert differences(tiny, name, "plain")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params": {"max_tokens": 8}}, "seed it began with"),
        ({"resume": [[0, [4096], []]]}, "cannot be resumed"),
        ({"resume": [[0, list(range(300, 308)), []]]}, "had not ended"),
    ],
)
def test_what_cannot_be_resumed_is_refused(tiny, change, said):
    message = {"prompt": STORY, "params": {"max_tokens": 8, "seed": 1}, "resume": [[0, [5], []]], **change}
    (events,) = run(tiny, message)
    assert said in events[0]["error"]


def test_a_prompts_log_probabilities_cross_the_border_once_and_reach_every_sample(tiny):
    crossed = []
    host = Host(tiny, crossed.append)
    asked = {"n": 3, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 4, "seed": 1}
    host.handle({"op": "submit", "id": 1, "prompt": STORY, "params": asked})
    while tiny.engine.busy:
        host.step()
    (expected,) = [event["prompt_logprobs"] for event in crossed if "prompt_logprobs" in event]
    stream = Stream(1, {"params": asked}, lambda stream: None)

    async def read() -> list[dict]:
        told = []
        for event in crossed:
            stream.put(event)
            told.append(await anext(stream))
        return told

    told = asyncio.run(read())
    for index in range(3):
        mine = [event for event in told if event["index"] == index]
        assert [event.get("prompt_logprobs") for event in mine] == [expected] + [None] * (len(mine) - 1)
        assert mine[-1]["completion"]["prompt_logprobs"] == expected and len(expected) > 5
