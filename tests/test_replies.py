"""Replies taken apart: the common formats, whatever the pieces they come in."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level

from stretto import SamplingParams
from stretto.engine.host import Host
from stretto.tokens import Reply, ReplyParser, Tokenizer, ToolCall, harmony, parse, read_reply
from stretto.tokens.replies import MARKERS

HERMES = '<tool_call>\n{"name": "ask", "arguments": {"n": 1}}\n</tool_call>'
ASK = [ToolCall("ask", {"n": 1})]
DEEPSEEK = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>ask<｜tool▁sep｜>{"n": 1}<｜tool▁call▁end｜>'
    '<｜tool▁call▁begin｜>b<｜tool▁sep｜>{"list": [{}, {"z": "}"}]}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
DEEPSEEK_R1 = (
    "<｜tool▁calls▁begin｜>"
    + "\n".join(['<｜tool▁call▁begin｜>function<｜tool▁sep｜>ask\n```json\n{"n": 1}\n```<｜tool▁call▁end｜>'] * 2)
    + "<｜tool▁calls▁end｜>"
)
ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
ASK_IN_CHANNEL = '<|channel|>commentary to=functions.ask <|constrain|>json<|message|>{"n": 1}<|call|>'
OTHER = {"tools": True, "names": {"other"}}
CASES: list[tuple[str, dict[str, Any], Reply]] = [
    ("Hello.", {}, Reply("Hello.")),
    ("  \n Hello.\n", {}, Reply("  \n Hello.\n")),
    ("<think>\nHm.\n</think>\n\nYes.", {}, Reply("Yes.", "Hm.\n")),
    ("\n<think>Hm.</think>", {}, Reply("", "Hm.")),
    ("\nHm. <think>?</think> Yes.", {"thinking": True}, Reply("Yes.", "Hm. <think>?")),
    ("Hm., cut short", {"thinking": True}, Reply("", "Hm., cut short")),
    ("Tags such as <think> and </think> are read.", {}, Reply("Tags such as <think> and </think> are read.")),
    (HERMES, {}, Reply(tool_calls=ASK)),
    (f"<think>a</think>Wait.\n{HERMES}\n{HERMES}\n", {}, Reply("Wait.\n", "a", ASK + ASK)),
    (HERMES.removesuffix("\n</tool_call>"), {}, Reply(tool_calls=ASK)),
    (f"{HERMES} then text", {}, Reply("then text", tool_calls=ASK)),
    ("<tool_call>{'name': 1}</tool_call> so", {}, Reply("<tool_call>{'name': 1}</tool_call> so")),
    ('<tool_call>{"name": "now"}</tool_call>', {}, Reply(tool_calls=[ToolCall("now", {})])),
    (
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        {},
        Reply('<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    ),
    (
        '[TOOL_CALLS][{"name": "ask", "arguments": {"n": 1}}, {"name": "b", "arguments": {}}]',
        {},
        Reply(tool_calls=[*ASK, ToolCall("b", {})]),
    ),
    ('[TOOL_CALLS] [{"name": "ask", "arguments": "{\\"n\\": 1}", "id": "x"}]', {}, Reply(tool_calls=ASK)),
    ("[TOOL_CALLS] are markers", {}, Reply("[TOOL_CALLS] are markers")),
    ('[TOOL_CALLS]ask[ARGS]{"n": 1}', {}, Reply(tool_calls=ASK)),
    (
        'So: [TOOL_CALLS]ask[CALL_ID]a9[ARGS]{"n": 1}[TOOL_CALLS]b.c-d[ARGS]{"text": "{[ARGS]} \\n", "x": {"y": 2}}',
        {},
        Reply("So: ", tool_calls=[*ASK, ToolCall("b.c-d", {"text": "{[ARGS]} \n", "x": {"y": 2}})]),
    ),
    ("[TOOL_CALLS]markers are so", {}, Reply("[TOOL_CALLS]markers are so")),
    ('[TOOL_CALLS]ask[ARGS]{"n": 1', {}, Reply('[TOOL_CALLS]ask[ARGS]{"n": 1')),
    (
        f"<think>a</think>Wait.{DEEPSEEK}",
        {},
        Reply("Wait.", "a", [*ASK, ToolCall("b", {"list": [{}, {"z": "}"}]})]),
    ),
    (DEEPSEEK_R1, {}, Reply(tool_calls=ASK + ASK)),
    (DEEPSEEK.replace("sep", "step"), {}, Reply(DEEPSEEK.replace("sep", "step"))),
    ('<|python_tag|>{"name": "ask", "parameters": {"n": 1}}', {}, Reply(tool_calls=ASK)),
    ("<|python_tag|>print(1)", {}, Reply("<|python_tag|>print(1)")),
    ('{"name": "ask", "parameters": {"n": 1}}', {"tools": True}, Reply(tool_calls=ASK)),
    (
        '{"type": "function", "function": {"name": "ask", "parameters": {"n": 1}}}; '
        '{"name": "ask", "parameters": {"n": 1}}',
        {"tools": True},
        Reply(tool_calls=ASK + ASK),
    ),
    ('{"name": "ask", "parameters": {"n": 1}}', {}, Reply('{"name": "ask", "parameters": {"n": 1}}')),
    ('{"name": "Ann", "age": 3}', {"tools": True}, Reply('{"name": "Ann", "age": 3}')),
    ('{ "weather": "fine"}', {"tools": True}, Reply('{ "weather": "fine"}')),
    (
        '{"name": "ask", "parameters": ' + "[" * 5000,
        {"tools": True},
        Reply('{"name": "ask", "parameters": ' + "[" * 5000),
    ),
    (f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>Yes.<|return|>", {}, Reply("Yes.", "Hm.")),
    ("<|channel|>final<|message|>Tags such as <think> are", {}, Reply("Tags such as <think> are")),
    (f"{ANALYSIS}<|start|>assistant{ASK_IN_CHANNEL}", {}, Reply("", "Hm.", ASK)),
    (ASK_IN_CHANNEL.removesuffix("<|call|>"), {}, Reply(tool_calls=ASK)),
    (
        f"{ANALYSIS}<|start|>assistant<|channel|>commentary<|message|>First I ask.<|end|><|start|>assistant"
        f"<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant{ASK_IN_CHANNEL}",
        {},
        Reply("First I ask.", "Hm.\nAsk.", ASK),
    ),
    (' to=functions.ask<|channel|>commentary json<|message|>{"n": 1}<|call|>', {}, Reply(tool_calls=ASK)),
    (
        '<|channel|>analysis to=browser.search code<|message|>{"query": "a"}<|call|>'
        "<|start|>assistant to=functions.now<|channel|>commentary<|message|><|call|>",
        {},
        Reply(tool_calls=[ToolCall("browser.search", {"query": "a"}), ToolCall("now", {})]),
    ),
    ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", {}, Reply("", "print(1)")),
    ('<|channel|>commentary to=functions.ask<|message|>{"n": <|call|>', {}, Reply('{"n": ')),
    (f"{ANALYSIS}<|start|>assistant<|channel|>fin", {}, Reply("", "Hm.")),
    ("<|channel|> is a token <|message|> too.", {}, Reply("<|channel|> is a token <|message|> too.")),
    ("<|channel|>" + "a" * 300, {}, Reply("<|channel|>" + "a" * 300)),
    ("to=everyone: hello", {}, Reply("to=everyone: hello")),
    (f"Wait.{HERMES}", {"tools": True, "names": {"ask"}}, Reply("Wait.", tool_calls=ASK)),
    *((text, OTHER, Reply(text)) for text in (HERMES, DEEPSEEK, '{"name": "ask", "parameters": {"n": 1}}')),
    (f"{ANALYSIS}<|start|>assistant{ASK_IN_CHANNEL}", OTHER, Reply('{"n": 1}', "Hm.")),
]


@pytest.mark.parametrize(("text", "options", "expected"), CASES)
def test_common_formats_are_read_into_fields(text: str, options: dict[str, Any], expected: Reply) -> None:
    assert parse(text, **options) == expected


def streamed(parser: Any, pieces: list[str]) -> Reply:
    """The reply as its pieces add up, the last of them what was held back."""
    reply = Reply()
    for piece in pieces:
        reply.add(parser.push(piece))
    reply.add(parser.finish())
    return reply


PARTS = st.sampled_from(
    [
        *MARKERS,
        *harmony.MARKERS,
        ANALYSIS,
        ASK_IN_CHANNEL,
        HERMES,
        '{"name": "a", "parameters": {}}',
        '[{"name": "a"}]',
        " ",
        "\n",
        "{",
        "<",
        "[T",
        "word",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(PARTS, max_size=8).map("".join),
    cuts=st.lists(st.integers(1, 9)),
    thinking=st.booleans(),
    tools=st.booleans(),
)
def test_pieces_add_up_to_the_whole(text: str, cuts: list[int], thinking: bool, tools: bool) -> None:
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    whole = parse(text, thinking, tools)
    assert streamed(ReplyParser(thinking, tools), [*pieces, rest]) == whole
    assert streamed(ReplyParser(thinking, tools), list(text)) == whole
    if not any(marker in text for marker in (*MARKERS, *harmony.MARKERS)) and not thinking and not tools:
        assert whole == Reply(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab<>think/ [TOOL_CALLS]|\n", max_size=60))
def test_no_more_is_held_back_than_a_marker(text: str) -> None:
    for thinking in (False, True):
        parser, shown = ReplyParser(thinking), 0
        for count, letter in enumerate(text, 1):
            delta = parser.push(letter)
            shown += len(delta.text) + len(delta.thinking)
            if (thinking and "</think>" in text) or "<t" in text or text[:count].isspace():
                break
            blanks = len(text) - len(text.lstrip()) if thinking else 0
            assert count - shown - blanks < max(map(len, MARKERS))


class Eager(ReplyParser):
    """Control: gives out the beginnings of markers."""

    def _certain(self, markers: Any) -> str:
        text, self._pending = self._pending, ""
        return text


def test_a_parser_that_gives_out_beginnings_of_markers_is_caught() -> None:
    text = f"<think>a</think>Wait. {HERMES}"
    assert streamed(Eager(), [text]) == parse(text)
    assert streamed(Eager(), list(text)) != parse(text)


@pytest.mark.parametrize("special", [True, False])
def test_markers_that_are_special_tokens_are_read_though_the_text_hides_them(special: bool) -> None:
    core = tokenizers.Tokenizer.from_str(byte_level()._core.to_str())
    added = [tokenizers.AddedToken(marker, special=special) for marker in MARKERS]
    (core.add_special_tokens if special else core.add_tokens)(added)
    tokenizer = Tokenizer(core, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    ids = tokenizer.encode_plain(f"Hm.</think>Yes. {HERMES}</s>")
    prompt = tokenizer.encode_plain("<s>How?<think>\n")
    assert read_reply(tokenizer, prompt, ids) == Reply("Yes. ", "Hm.", ASK)
    assert ("</think>" in tokenizer.decode(ids)) != special
    assert read_reply(tokenizer, prompt[:3], ids, stop=("Yes",)) == parse("Hm.</think>")


@pytest.mark.parametrize(("name", "calls"), [("ask", 1), ("other", 0)])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_reply_calls_only_what_was_offered(name: str, calls: int, wrapped: bool) -> None:
    tokenizer, said = byte_level(), '{"name": "ask", "arguments": {"x": 1}}'
    tool = {"type": "function", "function": {"name": name}} if wrapped else {"name": name}
    reply = read_reply(tokenizer, tokenizer.encode_plain("How?"), tokenizer.encode_plain(said), tools=[tool])
    assert len(reply.tool_calls) == calls and (reply.text == said) == (not calls)


@pytest.mark.parametrize("tool", [{"type": "function", "function": "ask"}, {"function": ["a"]}, "ask", {}, None])
def test_a_tool_of_another_shape_may_be_any(tool: Any) -> None:
    tokenizer, said = byte_level(), '{"name": "ask", "arguments": {"x": 1}}'
    assert read_reply(tokenizer, tokenizer.encode_plain("?"), tokenizer.encode_plain(said), tools=[tool]).tool_calls


@pytest.mark.parametrize("channels", [True, False])
def test_an_end_of_a_turn_is_read_where_there_are_channels_only(channels: bool) -> None:
    core = tokenizers.Tokenizer.from_str(byte_level()._core.to_str())
    core.add_special_tokens(list(harmony.MARKERS) if channels else ["<|end|>"])
    tokenizer = Tokenizer(core, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    said = f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>Yes.<|return|>" if channels else "Yes.<|end|>"
    expected = Reply("Yes.", "Hm." if channels else "")
    assert read_reply(tokenizer, tokenizer.encode_plain("<s>How?"), tokenizer.encode_plain(said)) == expected


def test_chats_return_their_fields(tiny: Any) -> None:
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=30, n=2)
    for completion in tiny.chat([{"role": "user", "content": "Who are you?"}], params):
        assert completion.reply == parse(completion.text)
        assert json.loads(json.dumps(completion.to_dict()))["reply"]["tool_calls"] == []
    assert tiny.generate("Once", SamplingParams(max_tokens=2))[0].reply is None


def test_fields_cross_the_border_as_plain_data(tiny: Any) -> None:
    events: list[dict[str, Any]] = []
    host = Host(tiny, events.append)
    talk = [{"role": "user", "content": "Who are you?"}]
    host.handle({"op": "submit", "id": 1, "messages": talk, "params": {"max_tokens": 8, "seed": 3}})
    while "completion" not in (events or [{}])[-1]:
        host.step()
    done = events[-1]["completion"]
    assert done["reply"] == asdict(parse(done["text"])) and done["reply"]["text"]
