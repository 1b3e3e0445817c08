"""The server with the official client: answers, streams, what they say of themselves, and every error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from server import ENGINE, client, post, served

from stretto import LLM, SamplingParams
from stretto.serving.answers import ended
from stretto.serving.errors import ApiError
from stretto.serving.fields import ChatBody, CompletionBody, TokenizeBody
from stretto.serving.settings import Limits
from stretto.serving.wanted import Model, completion_wanted

MODEL = "stretto-tiny"
TALK: list[Any] = [{"role": "user", "content": "Tell me of a fox."}]
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "seed": 5, "temperature": 0.8}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def ask(address: str) -> openai.OpenAI:
    return client(address)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(MODEL, **ENGINE)


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"frequency_penalty": 1.0, "presence_penalty": 0.5, "logit_bias": {"100": 3.0, "101": -100}},
    {"stop": ["e", "o"]},
    {"temperature": 0, "extra_body": {"min_tokens": 4, "stop_token_ids": [50]}},
    {"top_p": 0.7, "extra_body": {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2, "method": "plain"}},
]


def ours(given: dict[str, Any]) -> SamplingParams:
    """Return the same parameters for ``LLM``."""
    mine = {**given, **given.get("extra_body", {})}
    mine.pop("extra_body", None)
    mine.pop("method", None)
    return SamplingParams.from_dict({**{key: ASKED[key] for key in ("max_tokens", "seed", "temperature")}, **mine})


@pytest.mark.parametrize("given", PARAMETERS, ids=str)
def test_texts_are_the_engines_own_streamed_or_not(ask: openai.OpenAI, llm: LLM, given: dict[str, Any]):
    expected = llm.generate("Once upon a time", ours(given))
    whole = ask.completions.create(prompt="Once upon a time", **ASKED | given)
    assert [choice.text for choice in whole.choices] == [each.text for each in expected]
    assert [choice.finish_reason for choice in whole.choices] == [each.finish_reason for each in expected]
    streamed, ends = [""] * len(expected), [None] * len(expected)
    for piece in ask.completions.create(prompt="Once upon a time", stream=True, **ASKED | given):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert streamed == [each.text for each in expected]
    assert ends == [each.finish_reason for each in expected]


def test_a_conversation_streamed_or_not(ask: openai.OpenAI, llm: LLM):
    (expected,) = llm.chat(TALK, ours({}))
    whole = ask.chat.completions.create(messages=TALK, **ASKED)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.prompt_tokens == len(llm.encode_chat(TALK)) and whole.usage.completion_tokens == 12
    pieces = list(
        ask.chat.completions.create(messages=TALK, stream=True, stream_options={"include_usage": True}, **ASKED)
    )
    assert "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices) == expected.text
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-2].choices[0].finish_reason == "length"
    assert pieces[-1].choices == [] and pieces[-1].usage == whole.usage
    parts = [{"role": "user", "content": [{"type": "text", "text": TALK[0]["content"]}]}]
    assert ask.chat.completions.create(messages=parts, **ASKED).choices[0].message.content == expected.text


def test_text_begins_as_its_tokenizer_begins_it_unless_told_otherwise():
    class Begins:
        encode = staticmethod(lambda text: [1, 2, 3])
        encode_plain = staticmethod(lambda text: [2, 3])

    model = Model(MODEL, Begins(), "plain", Limits(), 2048)  # type: ignore[arg-type]  # what is asked of a tokenizer here
    for given, ids in (({}, [1, 2, 3]), ({"add_special_tokens": False}, [2, 3])):
        body = CompletionBody(model=MODEL, prompt=["Once", "Twice"], **given)
        assert completion_wanted(body, model).prompts == [ids, ids]


def test_several_prompts_of_text_or_token_ids(ask: openai.OpenAI, llm: LLM):
    texts = ["Once upon", "The fox", "A wood"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    expected = [each.text for each in llm.generate(texts, ours({"n": 2}))]
    for prompts in (texts, ids):
        found = ask.completions.create(prompt=prompts, n=2, **ASKED)
        assert [choice.text for choice in found.choices] == expected
        assert [choice.index for choice in found.choices] == list(range(6))
    streamed = [""] * 6
    for piece in ask.completions.create(prompt=ids, n=2, stream=True, **ASKED):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected
    assert ask.completions.create(prompt=ids[0], **ASKED).choices[0].text == expected[0]


def test_echo_with_log_probabilities_is_what_the_model_thinks_of_the_prompt(ask: openai.OpenAI, llm: LLM):
    """As evaluation harnesses ask: the prompt's tokens, each with its log-probability, the first with none."""
    prompt = llm.tokenizer.encode("Once upon a time there was")
    found = ask.completions.create(prompt=prompt, echo=True, logprobs=2, **ASKED | {"max_tokens": 0})
    (choice,) = found.choices
    assert choice.text == "Once upon a time there was" and found.usage.completion_tokens == 0
    logits = llm.logits(prompt).log_softmax(-1)
    expected = [None, *(float(logits[i - 1, prompt[i]]) for i in range(1, len(prompt)))]
    assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)
    for i in range(1, len(prompt)):
        best = float(logits[i - 1].max())
        assert max(choice.logprobs.top_logprobs[i].values()) == pytest.approx(best, abs=1e-4)
    shown = [token for token in choice.logprobs.tokens if not token.startswith("<|")]
    assert "".join(shown) == choice.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Once upon a time", "hé €😀 x", "日本😀"])
def test_offsets_of_tokens_lead_into_the_text(ask: openai.OpenAI, llm: LLM, prompt: str, stream: bool):
    """Also where a token is part of a character, and where what is written begins."""
    asked = ASKED | {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 6, "seed": 2}
    found = ask.completions.create(stream=True, **asked) if stream else [ask.completions.create(**asked)]
    pieces = [piece.choices[0] for piece in found if piece.choices]
    ids, said = llm.tokenizer.encode(prompt), ours({"max_tokens": 6, "seed": 2})
    ids += llm.generate(prompt, said)[0].token_ids
    whole = [len(llm.tokenizer.decode(ids[:count]).rstrip("\ufffd")) for count in range(len(ids))]
    assert [place for piece in pieces for place in piece.logprobs.text_offset] == whole


@pytest.mark.parametrize("most", [0, 5])
def test_echo_with_log_probabilities_streams_what_it_tells_whole(ask: openai.OpenAI, llm: LLM, most: int):
    prompts = [llm.tokenizer.encode(text) for text in ("Once upon a time", "A fox 🦊 said")]
    asked = ASKED | {"prompt": prompts, "n": 2, "echo": True, "logprobs": 2, "max_tokens": most}
    whole = ask.completions.create(**asked).choices
    pieces: list[list[Any]] = [[] for _ in whole]
    for piece in ask.completions.create(stream=True, **asked):
        for choice in piece.choices:
            pieces[choice.index].append(choice)
    for expected, found in zip(whole, pieces, strict=True):
        assert "".join(piece.text for piece in found) == expected.text
        assert len(expected.logprobs.tokens) == len(prompts[expected.index // 2]) + most
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            told = [each for piece in found for each in getattr(piece.logprobs, name)]
            assert told == getattr(expected.logprobs, name)


@pytest.mark.parametrize("bias", [None, {"1": 100}], ids=["any token", "the end"])
def test_one_token_behind_echoed_prompts_as_lm_eval_counts_them(ask: openai.OpenAI, llm: LLM, bias: Any):
    """It takes all but the last place for the prompt's, so there must be one behind it, the end of the text as well."""
    prompts = [llm.tokenizer.encode(text) for text in ("Once upon a time", "A fox 🦊 said", "The")]
    asked = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0} | ({"logit_bias": bias} if bias else {})
    found = ask.completions.create(prompt=prompts, **ASKED | asked)
    for choice, prompt in zip(found.choices, prompts, strict=True):
        told, logits = choice.logprobs, llm.logits(prompt).log_softmax(-1)
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(prompt) + 1
        expected = [float(logits[i, token]) for i, token in enumerate(prompt[1:])]
        assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
        best = [max(top.values()) for top in told.top_logprobs[1:-1]]
        greedily = [value == most for value, most in zip(told.token_logprobs[1:-1], best, strict=True)]
        assert greedily == [token == int(logits[i].argmax()) for i, token in enumerate(prompt[1:])]
        assert bias is None or told.tokens[-1] == "<|end|>"


def test_log_probabilities_of_a_conversation_streamed_or_not(ask: openai.OpenAI, llm: LLM):
    (expected,) = llm.generate([llm.encode_chat(TALK)], ours({"logprobs": 3}))
    whole = ask.chat.completions.create(messages=TALK, logprobs=True, top_logprobs=3, **ASKED)
    streamed = [
        place
        for piece in ask.chat.completions.create(messages=TALK, logprobs=True, top_logprobs=3, stream=True, **ASKED)
        for choice in piece.choices
        for place in (choice.logprobs.content if choice.logprobs else [])
    ]
    for places in (whole.choices[0].logprobs.content, streamed):
        values = [found[token] for token, found in zip(expected.token_ids, expected.logprobs, strict=True)]
        assert [place.logprob for place in places] == pytest.approx(values, abs=1e-6)
        assert b"".join(bytes(place.bytes) for place in places).decode() == whole.choices[0].message.content
        assert [len(place.top_logprobs) for place in places] == [3] * 12
        assert all(place.top_logprobs[0].logprob >= place.logprob for place in places)


def test_an_answer_says_how_it_was_made(ask: openai.OpenAI, llm: LLM):
    told = ask.completions.create(prompt="Once", **ASKED).model_dump()
    assert told["system_fingerprint"] == told["stretto"]["numerics"] == llm.fingerprint
    made = told["stretto"]
    assert (made["method"], made["fidelity"], made["seed"]) == ("auto", "exact", 5)
    assert made["acceptance_length"] >= 1 and made["accepted"] <= made["drafted"]
    assert all(made[name] >= 0 for name in ("queue_ms", "prefill_ms", "decode_ms"))
    long = ask.completions.create(prompt="word " * 1200, extra_body={"method": "plain"}, **ASKED)
    sliced = long.model_dump()["stretto"]
    assert sliced["acceptance_length"] == 1 and sliced["steps"] > ASKED["max_tokens"]
    *_, last = ask.completions.create(prompt="Once", stream=True, **ASKED)
    assert last.model_dump()["stretto"].keys() == made.keys()
    unseeded = ask.completions.create(prompt="Once", model=MODEL, max_tokens=8).model_dump()
    again = ask.completions.create(prompt="Once", model=MODEL, max_tokens=8, seed=unseeded["stretto"]["seed"])
    assert again.choices[0].text == unseeded["choices"][0]["text"]


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1, 0])
@pytest.mark.parametrize("stream", [False, True])
def test_a_seed_may_be_any_of_64_bits_with_a_sign_or_without(ask: openai.OpenAI, llm: LLM, seed: int, stream: bool):
    told = ask.completions.create(prompt="Once", stream=stream, **ASKED | {"seed": seed})
    pieces = [piece.model_dump() for piece in (told if stream else [told])]
    (expected,) = llm.generate("Once", ours({"seed": seed % 2**64}))
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected.text
    assert pieces[-1]["stretto"]["seed"] == seed


def test_a_drawn_seed_is_one_that_a_client_in_javascript_can_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("secrets.randbits", lambda bits: 2**bits - 1)
    body = CompletionBody(model=MODEL, prompt=[5])
    assert completion_wanted(body, Model(MODEL, None, "plain", Limits(), 2048)).seed == 2**53 - 1


NULLS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/v1/completions", {"prompt": "Once", "model": MODEL, "max_tokens": 2}, list(CompletionBody.model_fields)),
    ("/v1/chat/completions", {"messages": TALK, "model": MODEL, "max_tokens": 2}, list(ChatBody.model_fields)),
    ("/tokenize", {"prompt": "Once"}, list(TokenizeBody.model_fields)),
]


@pytest.mark.parametrize(("path", "needed", "names"), NULLS, ids=[path for path, _, _ in NULLS])
def test_a_field_that_is_null_is_as_good_as_left_out(address: str, path: str, needed: dict[str, Any], names: list[str]):
    def answer(body: dict[str, Any]) -> Any:
        told = post(address, path, body).json()
        return told.get("choices", told)

    seeded = needed | ({} if path == "/tokenize" else {"seed": 5})
    expected = answer(seeded)
    assert answer(dict.fromkeys(names) | seeded) == expected
    if path != "/tokenize":
        usage = {"stream": True, "stream_options": {"include_usage": None}}
        assert post(address, path, needed | usage).status_code == 200
    assert post(address, path, needed | {"nothing": None}).json()["error"]["code"] == "unknown_field"


def test_a_method_must_keep_what_is_asked_of_it(ask: openai.OpenAI):
    made = ask.completions.create(prompt="Once", extra_body={"method": "lookahead"}, **ASKED).model_dump()
    assert made["stretto"]["method"] == "lookahead"
    with pytest.raises(openai.BadRequestError, match="is approximate, and fidelity='exact' is the least"):
        ask.completions.create(prompt="Once", extra_body={"method": "bild"}, **ASKED)
    with pytest.raises(openai.BadRequestError, match="needs draft, which is not aboard"):
        ask.completions.create(prompt="Once", extra_body={"method": "bild", "fidelity": "approximate"}, **ASKED)


ERRORS: dict[str, tuple[type[openai.APIStatusError], dict[str, Any], str]] = {
    "unknown model": (openai.NotFoundError, {"model": "gpt-5"}, "model"),
    "unknown field": (openai.BadRequestError, {"extra_body": {"temprature": 1}}, "temprature"),
    "field of another kind": (openai.BadRequestError, {"temperature": "hot"}, "temperature"),
    "value out of range": (openai.BadRequestError, {"temperature": -1}, "temperature"),
    "too many samples": (openai.BadRequestError, {"n": 500}, "n"),
    "no token": (openai.BadRequestError, {"prompt": []}, "prompt"),
    "token that is none": (openai.BadRequestError, {"prompt": [10**7]}, None),
    "prompt beyond the context": (openai.BadRequestError, {"prompt": [5] * 3000}, "prompt"),
    "best_of": (openai.BadRequestError, {"best_of": 4}, "best_of"),
    "suffix": (openai.BadRequestError, {"suffix": "end"}, "suffix"),
    "unknown method": (openai.BadRequestError, {"extra_body": {"method": "plane"}}, "method"),
    "tenant of one's choice": (openai.BadRequestError, {"extra_body": {"tenant": "a"}}, "tenant"),
    "long stop list": (openai.BadRequestError, {"stop": ["a"] * 17}, "stop"),
    "two forms": (openai.BadRequestError, {"extra_body": {"regex": "a", "grammar": "b"}}, "regex"),
    "regex too long": (openai.BadRequestError, {"extra_body": {"regex": "a" * 2001}}, "regex"),
    "grammar that is none": (openai.BadRequestError, {"extra_body": {"grammar": "start: ("}}, "grammar"),
}


def test_a_deadline_leaves_what_was_written_and_is_an_error_before_that():
    assert ended({"finish_reason": "timeout", "token_ids": [7]}) == "timeout"
    with pytest.raises(ApiError) as raised:
        ended({"finish_reason": "timeout", "token_ids": []})
    assert raised.value.status == 429 and raised.value.code == "deadline"


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token_is_a_429_that_is_not_tried_again(address: str, stream: bool):
    """A prompt that takes some hundred milliseconds to read has one; the server goes on."""
    prompt = [10 + (7 * place + stream) % 3000 for place in range(1200)]
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "stream": stream}
    late = post(address, "/v1/completions", asked | {"deadline_ms": 1})
    assert late.status_code == 429 and late.headers["x-should-retry"] == "false"
    assert late.json()["error"]["code"] == "deadline"
    in_time = post(address, "/v1/completions", asked | {"prompt": "Once", "deadline_ms": 600_000})
    assert in_time.status_code == 200


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_the_client_raises_the_fitting_exception(ask: openai.OpenAI, name: str, stream: bool):
    kind, given, param = ERRORS[name]
    with pytest.raises(kind) as raised:
        ask.completions.create(**{"prompt": "Once", "stream": stream, **ASKED, **given})
    assert raised.type is kind
    error = raised.value.body
    assert error["message"] and error["type"]
    assert param is None or error["param"] == param


def test_errors_outside_the_endpoints_have_the_same_shape(address: str):
    for found, status in (
        (httpx.get(f"{address}/v2/models"), 404),
        (httpx.get(f"{address}/v1/completions"), 405),
        (post(address, "/v1/completions", []), 400),
        (httpx.post(f"{address}/v1/completions", content=b"{", headers={"content-type": "application/json"}), 400),
        (post(address, "/v1/completions", {"prompt": "a"}), 400),
    ):
        assert found.status_code == status and found.json()["error"]["message"]


def test_models_text_to_tokens_and_back(ask: openai.OpenAI, address: str, llm: LLM):
    (model,) = ask.models.list().data
    assert model.id == MODEL == ask.models.retrieve(MODEL).id and model.max_model_len == llm.model.context
    with pytest.raises(openai.NotFoundError):
        ask.models.retrieve("other/model")
    ids = post(address, "/tokenize", {"prompt": "Grüße, 日本!"}).json()["tokens"]
    assert ids == llm.tokenizer.encode("Grüße, 日本!")
    plain = post(address, "/tokenize", {"prompt": "Grüße, 日本!", "add_special_tokens": False}).json()
    assert post(address, "/detokenize", {"tokens": plain["tokens"]}).json() == {"prompt": "Grüße, 日本!"}
    talk = post(address, "/tokenize", {"messages": TALK}).json()
    assert talk["tokens"] == llm.encode_chat(TALK) and talk["count"] == len(talk["tokens"])
    for body in ({}, {"prompt": "a", "messages": TALK}, {"prompt": "\ud800"}):
        found = httpx.post(
            f"{address}/tokenize", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert found.status_code == 400
    assert post(address, "/detokenize", {"tokens": [-1]}).status_code == 400


def test_health_metrics_and_schema(ask: openai.OpenAI, address: str):
    ask.completions.create(prompt="Once upon a time", **ASKED)
    assert httpx.get(f"{address}/health").json() == {"status": "alive"}
    told = httpx.get(f"{address}/metrics").text
    for name in ("requests_total", "queue_seconds_count", "ttft_seconds_sum", "tpot_seconds_bucket", "rows_total"):
        assert f"\nstretto_{name}" in told, name
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/ready"} <= paths.keys()
