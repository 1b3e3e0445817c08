"""Chat templates: ten formats rendered as transformers renders them, and templates that mean harm."""

from __future__ import annotations

import json
import threading
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers
from small_tokenizers import byte_level

from stretto.tokens import TemplateLimitError, Tokenizer, render
from stretto.tokens import chat as chat_module

TEMPLATES = Path(__file__).parent / "data" / "templates"
# Begin, end, what ends an assistant's turn, and the other special tokens of each format.
FORMATS: dict[str, tuple[str, str, str, list[str]]] = {
    "llama2": ("<s>", "</s>", "</s>", []),
    "llama3": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"],
    ),
    "chatml": ("<|endoftext|>", "<|endoftext|>", "<|im_end|>", ["<|im_start|>"]),
    "qwen": ("<|endoftext|>", "<|endoftext|>", "<|im_end|>", ["<|im_start|>"]),
    "mistral": (
        "<s>",
        "</s>",
        "</s>",
        ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"],
    ),
    "gemma": ("<bos>", "<eos>", "<end_of_turn>", ["<start_of_turn>"]),
    "phi3": ("<s>", "<|endoftext|>", "<|end|>", ["<|user|>", "<|assistant|>", "<|system|>"]),
    "zephyr": ("<s>", "</s>", "</s>", []),
    "command": (
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        ["<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"],
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ["<｜User｜>", "<｜Assistant｜>"],
    ),
}
BEGINS = {"llama2", "llama3", "mistral", "gemma", "command", "deepseek"}
USER, SYSTEM = {"role": "user", "content": " What is 2 < 3 & 'é'?\n"}, {"role": "system", "content": "Be brief. 🦊"}
ANSWER = {"role": "assistant", "content": "It is\ntrue. ", "reasoning_content": "2 is less."}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "ask", "arguments": {"what": "größe", "n": 2}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "ask",
        "description": "Asks <b>\nall</b>",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}, "n": {"type": "integer"}}},
    },
}
OTHER = {"type": "function", "function": {**TOOL["function"], "name": "act"}}
TALKS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "question": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "turns": ([SYSTEM, USER, ANSWER, USER, {**ANSWER, "reasoning_content": None}, USER], None),
    "answered": ([USER, ANSWER], None),
    "tools": ([SYSTEM, USER], [TOOL, OTHER]),
    "called": (
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "42", "tool_call_id": "abcdefghi", "name": "ask"},
            ANSWER,
            USER,
        ],
        [TOOL],
    ),
}
# What a format has no words for, so that its template refuses it.
REFUSED = {("llama2", "called"), ("gemma", "called")}


@cache
def oracle(name: str) -> Any:
    """Transformers' tokenizer for a format: a small vocabulary, and the format's special tokens."""
    from transformers import PreTrainedTokenizerFast

    bos, eos, end, others = FORMATS[name]
    core = tokenizers.Tokenizer.from_str(byte_level()._core.to_str())
    core.add_special_tokens([bos, eos, end, *others])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    fast.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return fast


@pytest.fixture
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """The same, written by transformers and read by Stretto."""
    oracle(request.param).save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None
    return loaded


def both(name: str, mine: Any, talk: str, opens: bool, **keywords: Any) -> tuple[Any, Any]:
    """Token ids by transformers and by ``mine``; None where the template refuses."""
    messages, tools = TALKS[talk]
    keywords |= {"tools": tools, "date": "1 May 2024"}
    try:
        theirs = oracle(name).apply_chat_template(
            messages, add_generation_prompt=opens, return_dict=False, tokenize=True, **keywords
        )
    except jinja2.TemplateError:
        theirs = None
    try:
        ours = mine.encode_chat(messages, add_generation_prompt=opens, **keywords)
    except ValueError:
        ours = None
    return theirs, ours


@pytest.mark.parametrize(("name", "mine"), [(name, name) for name in FORMATS], indirect=["mine"])
def test_ids_of_ten_formats_equal_transformers(name: str, mine: Tokenizer) -> None:
    seen = set()
    for talk in TALKS:
        for opens in (False, True):
            for keywords in ({}, {"enable_thinking": False}):
                theirs, ours = both(name, mine, talk, opens, **keywords)
                assert theirs == ours, talk
                assert (ours is None) == ((name, talk) in REFUSED)
                if ours is not None:
                    assert (ours[0] == mine.bos) == (name in BEGINS) and ours[1] != mine.bos
                    seen.add(tuple(ours))
    assert len(seen) >= 4
    _, eos, end, _ = FORMATS[name]
    assert mine.eos_ids == {mine._core.token_to_id(eos), mine._core.token_to_id(end)}


class Doubling(Tokenizer):
    """Control: encodes the template's text like a prompt, which adds a begin token to the template's own."""

    def encode_plain(self, text: str) -> list[int]:
        return self.encode(text)


def test_a_begin_token_added_to_the_templates_own_is_caught() -> None:
    wrong = Doubling(
        oracle("llama3").backend_tokenizer,
        special_tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        chat_template=oracle("llama3").chat_template,
    )
    theirs, ours = both("llama3", wrong, "system", True)
    assert theirs.count(wrong.bos) == 1 and ours == [wrong.bos, *theirs]


def test_templates_stand_in_files_of_their_own_or_in_the_configuration(tmp_path: Path) -> None:
    byte_level()._core.save(str(tmp_path / "tokenizer.json"))

    def written(tools: Any = None) -> str:
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer is not None
        return tokenizer.decode(tokenizer.encode_chat([USER], tools=tools))

    named = [{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert (written(), written([TOOL])) == ("listed", "with tools")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "plain"}))
    assert written() == written([TOOL]) == "plain"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "in json"}))
    assert written() == "in json"
    (tmp_path / "chat_template.jinja").write_text("in a file")
    assert written() == "in a file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("its tools")
    assert (written(), written([TOOL])) == ("in a file", "its tools")
    for path in (tmp_path / "chat_template.jinja", tmp_path / "additional_chat_templates" / "tool_use.jinja"):
        path.unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(ValueError, match=r"chat_template in .*chat_template\.json is 7"):
        written()


SNIPPETS = [
    "{% set a, b = 1, [2, 3] %}{{ a }}{{ b }}{{ b[::-1] }}{{ (a, b) }}{{ {'k': b} }}",
    "{{ 1 < 2 < 3 }}{{ 2 in [1, 2] and 'x' not in 'abc' }}{{ 3 is in [3] }}{{ 4 is divisibleby 2 }}",
    "{{ [3, 1, 2] | sort | reverse | list }}{{ 'abc' | reverse }}{{ [1, 1, 2] | unique | join('-') }}",
    "{{ messages | map(attribute='role') | map('upper') | join(', ') }}{{ messages | map(attribute='x') | first }}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ loop.cycle('o', 'e') }}{{ k }}={{ v }}{{ loop.last }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.index }}{% else %}none{% endfor %}",
    "{% for n in [1, [2, [3]]] recursive %}{{ loop(n) if n is iterable else n }}{% endfor %}",
    "{% macro f(a, b=[1]) %}{{ a ~ b ~ varargs ~ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, c=4) }}",
    "{% set ns = namespace(a=1, b='x') %}{% set ns.a = ns.a + 1 %}{{ ns.a * 3 - 1 }}{{ ns.a ** 3 }}{{ 7 // 2 / 2 }}",
    "{{ '%(k)s' % {'k': [1]} }}{{ '%05.1f|%s|%%' % (2.25, [1]) }}{{ '{:>5}|{k}'.format(1, k=2) }}",
    "{{ 'a\tb'.expandtabs(4) }}{{ 'a'.ljust(3) }}{{ 'x' | center(5) }}{{ ' a '.split() }}{{ 'a,b'.split(',', 1)[-1] }}",
    "{{ [1, 2, 3, 4, 5] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ [1, 2] | sum(start=1) }}",
    "{{ messages | groupby('role') | map('first') | list }}{{ 2.5 | round }}{{ '3' | int + 1 }}{{ none or 'd' }}",
    "{{ missing }}{{ missing is defined }}{{ missing | default([]) }}{{ ('a' if messages else 'b') ~ none ~ 1.0 }}",
    "{{ messages | tojson(indent=2, separators=(',', ': '), sort_keys=true) }}{{ 'é<&' | tojson }}{{ '<&' | e }}",
    "{% filter upper %}a{% set x | trim %} b {% endset %}{{ x }}{% endfilter %}{% with y = 3 %}{{ y }}{% endwith %}",
]


@pytest.mark.parametrize("template", SNIPPETS)
def test_the_limits_change_nothing_that_a_template_writes(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    talk = [SYSTEM, USER, {"role": "assistant", "content": "Yes."}, USER]
    (theirs,), _ = render_jinja_template([talk], chat_template=template)
    assert render(template, talk, bos_token="", eos_token="") == theirs


TIME, WORK, OUTPUT, WIDTH = "max_seconds", "MAX_WORK", "max_characters", "width or count"
BOMBS = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": TIME,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": TIME,
    "{% for a in range(99999) recursive %}{% if a < 60 %}{{ loop(range(a + 1, 99)) }}{% endif %}{% endfor %}": TIME,
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'abcdefgh' }}{% endfor %}{% endfor %}": OUTPUT,
    "{% for a in range(99999) %}{{ 'x' * 9000 }}{% endfor %}": OUTPUT,
    "{{ 'x' * 10 ** 9 }}": WORK,
    "{{ 10 ** 9 * 'x' }}": WORK,
    "{{ ([1] * 10 ** 8) | length }}": WORK,
    "{{ ('%999999999d' % 1) | length }}": WIDTH,
    "{{ ('%*d' % (999999999, 1)) | length }}": "from an argument",
    "{{ (('%9999d' * 9999) % ((1,) * 9999)) | length }}": WORK,
    "{{ ('%(a)s' * 9999 % {'a': 'x' * 9999}) | length }}": WORK,
    "{{ '{:999999999}'.format(1) | length }}": WIDTH,
    "{{ '{:{}}'.format(1, 999999999) | length }}": WIDTH,
    "{{ ('{0:9999}' * 9999).format(1) | length }}": WORK,
    "{{ '%999999999d' | format(1) | length }}": WIDTH,
    "{{ 'x' | center(999999999) | length }}": WIDTH,
    "{{ 'x'.ljust(999999999) | length }}": WIDTH,
    "{{ ('x' * 9999) | replace('x', 'y' * 9999) | length }}": WORK,
    "{{ ('x' * 9999).replace('', 'y' * 9999) | length }}": WORK,
    "{{ (['x'] * 9999) | join('y' * 9999) | length }}": WORK,
    "{{ ('y' * 9999).join(['x'] * 9999) | length }}": WORK,
    "{{ ('\n' * 9999) | indent(9999) | length }}": WORK,
    "{{ ('\t' * 9999).expandtabs(9999) | length }}": WORK,
    "{{ [1, 2] | tojson(indent=999999999) }}": WIDTH,
    "{{ 1.5 | round(999999999, 'ceil') }}": WIDTH,
    "{{ 9 ** (9 ** 9) }}": WORK,
    "{% set ns = namespace(a=3) %}{% for i in range(60) %}{% set ns.a = ns.a * ns.a %}{% endfor %}": WORK,
    "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}": WORK,
    "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}": WORK,
    "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set t %}{{ ns.a }}{{ ns.a }}{% endset %}"
    "{% set ns.a = t %}{% endfor %}": WORK,
    "{% macro f(a) %}{{ a }}{{ a }}{% endmacro %}{% set ns = namespace(a='x') %}"
    "{% for i in range(60) %}{% set ns.a = f(ns.a) %}{% endfor %}": WORK,
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}": WORK,
    "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a = {'x': ns.a, 'y': ns.a} %}{% endfor %}"
    "{{ ns.a | tojson }}": WORK,
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = dict(x=ns.a, y=ns.a) %}{% endfor %}": WORK,
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}"
    "{{ ns.a == ns.a }}": WORK,
    "{% for i in range(9999999) %}{% endfor %}": "MAX_RANGE",
    "{{ lipsum(n=9999999) }}": "'lipsum' is undefined",
    "{{ 'x'.encode('utf-32') }}": "unsafe",
    "{{ 'x' | wordwrap(1, wrapstring='y' * 9999) }}": "No filter named 'wordwrap'",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "nests too deep",
    "x" * 100_001: "more than 100000",
}


@pytest.mark.parametrize("template", BOMBS, ids=lambda text: text[:60])
def test_templates_that_mean_harm_end_in_an_error_that_names_the_limit(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 100 MB, and in a thread of its own, as a server runs it."""
    errors: list[Exception] = []
    seconds = 0.3 if BOMBS[template] == TIME else 60.0

    def attempt() -> None:
        try:
            render(template, [USER], bos_token="", eos_token="", max_seconds=seconds, max_characters=200_000)
        except ValueError as error:
            errors.append(error)

    monkeypatch.setattr(chat_module, "MAX_WORK", 2_000_000)
    tracemalloc.start()
    try:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(errors) == 1 and BOMBS[template] in str(errors[0]), errors
    assert peak < 100e6


def test_a_folder_whose_template_never_ends_is_refused(tmp_path: Path) -> None:
    byte_level()._core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ 'x' * 10 ** 12 }}")
    with pytest.raises(TemplateLimitError, match="MAX_WORK"):
        Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('not with me') }}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer is not None and tokenizer.eos_ids == frozenset()


def test_long_conversations_stay_within_the_limits() -> None:
    """A million tokens' worth of text in a thousand turns, which a real template copies several times."""
    turns = [{**USER, "content": "word " * 800}, {**ANSWER, "content": "reply " * 600}] * 500
    text = render((TEMPLATES / "llama2.jinja").read_text(), turns, bos_token="<s>", eos_token="</s>", max_seconds=60)
    assert len(text) > 3_500_000


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ ''|attr('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% include '/etc/passwd' %}",
    "{{ dict.mro() }}",
]


def escapes(run: Any) -> list[str]:
    """The templates of ESCAPES that ``run`` lets through with something to show for it."""
    through = []
    for template in ESCAPES:
        try:
            if run(template).strip():
                through.append(template)
        except (ValueError, jinja2.TemplateError, TypeError, AttributeError):
            continue
    return through


def test_nothing_leads_out_of_the_sandbox() -> None:
    assert escapes(lambda template: render(template, [USER], bos_token="", eos_token="")) == []


def test_a_renderer_without_sandbox_is_caught() -> None:
    plain = jinja2.Environment()
    plain.globals["raise_exception"] = render
    through = escapes(lambda template: plain.from_string(template).render(messages=[dict(USER)]))
    assert "{{ ''.__class__.__mro__ }}" in through and len(through) > 5
