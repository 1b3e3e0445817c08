"""What the server makes of a given text, whatever pieces it comes in: thinking, tool calls, JSON, stop strings, UTF-8.

The model spells the text: in its usual tokens, and in tokens of one byte each, so that every character and every
marker is cut at every byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import tokenizers
from server import Speller, client, served
from small_tokenizers import byte_level

from stretto.serving.answers import Spelling
from stretto.serving.chats import Chats
from stretto.serving.wanted import Wanted
from stretto.tokens import Tokenizer, harmony
from stretto.weights.resolve import resolve

MODEL = "stretto-tiny"
TALK: list[Any] = [{"role": "user", "content": "Go on."}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "ask", "parameters": {"type": "object"}}}]
CALL = {"name": "ask", "arguments": {"what": "größe 🦊", "n": [1, 2]}}
HERMES = f"<tool_call>\n{json.dumps(CALL, ensure_ascii=False)}\n</tool_call>"
MISTRAL = f"[TOOL_CALLS][{json.dumps(CALL)}, {json.dumps(CALL)}]"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.load(resolve(MODEL))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def speller() -> Iterator[Speller]:
    with pytest.MonkeyPatch.context() as patch:
        yield Speller(patch)


@pytest.fixture(scope="module")
def ask(speller: Speller) -> Iterator[openai.OpenAI]:
    with served() as address:
        yield client(address)


@pytest.fixture(params=["tokens", "bytes"])
def say(request: pytest.FixtureRequest, speller: Speller, tokenizer: Tokenizer) -> Callable[[str], None]:
    """Let the model say a text next."""
    single = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}

    def next_time(text: str) -> None:
        cut = [single[bytes([byte])] for byte in text.encode()]
        speller.say(cut if request.param == "bytes" else tokenizer.encode_plain(text))

    return next_time


def streamed(ask: openai.OpenAI, **asked: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the message that a stream adds up to, with its ``finish_reason``, and the pieces of its content."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": [], "finish_reason": None}
    pieces = []
    for piece in ask.chat.completions.create(model=MODEL, messages=TALK, stream=True, max_tokens=400, **asked):
        for choice in piece.choices:
            told = choice.delta.model_dump()
            pieces.append(told.get("content") or "")
            message["content"] += pieces[-1]
            message["reasoning_content"] += told.get("reasoning_content") or ""
            for call in told.get("tool_calls") or []:
                assert call["index"] == len(message["tool_calls"]) and call["id"]
                message["tool_calls"].append(call["function"])
            message["finish_reason"] = choice.finish_reason
    return message, pieces


def whole(ask: openai.OpenAI, **asked: Any) -> dict[str, Any]:
    (choice,) = ask.chat.completions.create(model=MODEL, messages=TALK, max_tokens=400, **asked).choices
    told = choice.message.model_dump()
    calls = [call["function"] for call in told.get("tool_calls") or []]
    return {
        "content": told["content"] or "",
        "reasoning_content": told.get("reasoning_content") or "",
        "tool_calls": calls,
        "finish_reason": choice.finish_reason,
    }


def plain(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"content": text, "reasoning_content": "", "tool_calls": [], "finish_reason": finish}


ONE = {"name": "ask", "arguments": json.dumps(CALL["arguments"], ensure_ascii=False)}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("A fox. 🦊🦊 Grüße — 日本語!", {}, plain("A fox. 🦊🦊 Grüße — 日本語!")),
    "stop string": ("One, two. Then 日本 came.", {"stop": ["n 日", "never"]}, plain("One, two. The")),
    "almost a stop string": ("a STO and a STOX", {"stop": "STOP"}, plain("a STO and a STOX")),
    "thinking": ("<think>\nHm… 🦊\n</think>\n\nYes.", {}, {**plain("Yes."), "reasoning_content": "Hm… 🦊\n"}),
    "json": ('{"a": ["ü", 1.5], "b": null}', {}, plain('{"a": ["ü", 1.5], "b": null}')),
    "call of Hermes": (HERMES, {"tools": TOOLS}, {**plain("", "tool_calls"), "tool_calls": [ONE]}),
    "text and a call": (
        f"Wait.{HERMES}",
        {"tools": TOOLS},
        {**plain("Wait.", "tool_calls"), "tool_calls": [ONE]},
    ),
    "two calls of Mistral": (MISTRAL, {"tools": TOOLS}, {**plain("", "tool_calls"), "tool_calls": [ONE, ONE]}),
    "a bare call": (json.dumps(CALL), {"tools": TOOLS}, {**plain("", "tool_calls"), "tool_calls": [ONE]}),
    "no more than one call": (
        f"Wait.{HERMES}{HERMES}",
        {"tools": TOOLS, "parallel_tool_calls": False},
        {**plain("Wait.", "tool_calls"), "tool_calls": [ONE]},
    ),
    "one call of two at once": (
        MISTRAL,
        {"tools": TOOLS, "parallel_tool_calls": False},
        {**plain("", "tool_calls"), "tool_calls": [ONE]},
    ),
    "a call of no tool": (HERMES.replace("ask", "tell"), {"tools": TOOLS}, plain(HERMES.replace("ask", "tell"))),
    "a call where there are no tools": (HERMES, {}, plain(HERMES)),
    "almost a call": ("<tool_call>no</tool_call>!", {"tools": TOOLS}, plain("<tool_call>no</tool_call>!")),
    "a call that is cut off": ('<tool_call>{"name": "a', {"tools": TOOLS}, plain('<tool_call>{"name": "a')),
}


@pytest.mark.parametrize("name", CASES)
def test_a_text_is_told_the_same_whole_and_streamed(ask: openai.OpenAI, say: Callable[[str], None], name: str):
    text, asked, expected = CASES[name]
    say(text)
    assert whole(ask, **asked) == expected
    say(text)
    found, pieces = streamed(ask, **asked)
    assert found == expected
    assert not any("\ufffd" in piece for piece in pieces)


def test_thinking_in_channels_is_no_content():
    """The channels of gpt-oss, whose markers are special tokens: the text alone does not show where they are."""
    core = tokenizers.Tokenizer.from_str(byte_level()._core.to_str())
    core.add_special_tokens(list(harmony.MARKERS))
    tokenizer = Tokenizer(core, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    written = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    ids = tokenizer.encode_plain(written)
    speech = Chats(Wanted([[0]], {}, "plain"), Spelling(tokenizer), tokenizer, MODEL, "", stream=True)
    event = {"text": tokenizer.decode(ids), "token_ids": ids, "completion": {"finish_reason": "stop"}}
    delta = json.loads(f"{{{speech.piece(0, event)[0]}}}")["delta"]
    assert (delta["content"], delta["reasoning_content"]) == ("Yes.", "Hm.")


def test_text_streams_while_it_is_written(ask: openai.OpenAI, say: Callable[[str], None]):
    """Otherwise a server that tells all at the end would pass."""
    say("One two three four five six " * 40)  # tokens that nobody has read yet are told together
    assert sum(bool(piece) for piece in streamed(ask)[1]) >= 3


def test_a_character_that_never_becomes_whole(ask: openai.OpenAI, speller: Speller, tokenizer: Tokenizer):
    (first,) = (token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) == "🦊".encode()[:1])
    speller.say([first, first])
    assert whole(ask) == plain("\ufffd\ufffd")


def test_an_answer_goes_back_into_the_conversation(ask: openai.OpenAI, speller: Speller, tokenizer: Tokenizer):
    """The client's own message object, dumped, with all the empty fields that it has."""
    speller.say(tokenizer.encode_plain("Yes."))
    (choice,) = ask.chat.completions.create(model=MODEL, messages=TALK, max_tokens=20).choices
    speller.say(tokenizer.encode_plain("No."))
    talk = [*TALK, choice.message.model_dump(), {"role": "user", "content": "Why?"}]
    (choice,) = ask.chat.completions.create(model=MODEL, messages=talk, max_tokens=20).choices
    assert choice.message.content == "No."


def test_token_strings_of_log_probabilities_are_bytes(ask: openai.OpenAI, say: Callable[[str], None]):
    say("日 fox")
    (choice,) = ask.chat.completions.create(
        model=MODEL, messages=TALK, max_tokens=20, logprobs=True, top_logprobs=1, temperature=0
    ).choices
    places = choice.logprobs.content[:-1]
    assert b"".join(bytes(place.bytes) for place in places).decode() == "日 fox"
    assert [place.top_logprobs[0].token for place in places] == [place.token for place in places]
