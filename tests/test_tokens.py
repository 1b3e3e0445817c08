"""Tokenizers and chat templates of a checkpoint folder read as transformers reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from small_tokenizers import SENTENCES, byte_level

from stretto.tokens import Tokenizer, render

TEMPLATES = {
    "blocks": """
{{- bos_token }}
{% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    <|{{ message.role }}|>
{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}""",
    "tools": """
{%- if tools is not none %}Tools of {{ strftime_now('%Y') }}:
{% for tool in tools %}{{ tool | tojson }} {{ tool | tojson(indent=2) }}
{% endfor %}{% endif %}
{%- set ns = namespace(last='none') %}
{%- for message in messages %}{% set ns.last = message.role %}
[{{ message.role }}] {% if message.role == 'assistant' %}{% generation %}{{ message.content }}
{% endgeneration %}{% else %}{{ message.content }}{% endif %}
{% endfor %}{{ ns.last }}{{ documents is none }}""",
    "strict": """{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% endfor %}
{{- '' if not thinking is defined else thinking }}""",
}
CHAT = [
    {"role": "user", "content": " What is 2 < 3 & 'é'? "},
    {"role": "assistant", "content": "It is true.\n"},
    {"role": "user", "content": "Danke 🦊"},
]
TOOLS = [{"type": "function", "function": {"name": "ask", "description": "<b>é</b>", "parameters": {}}}]


def saved(folder: Path, template: str) -> Any:
    """A checkpoint's tokenizer as transformers writes it, and transformers' reading of it."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level()._core, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("opens", [True, False])
def test_chats_equal_transformers(name: str, opens: bool, tmp_path: Path) -> None:
    oracle = saved(tmp_path, TEMPLATES[name])
    mine = Tokenizer.load(tmp_path)
    assert mine is not None
    for keywords in ({"tools": TOOLS}, {"tools": None, "thinking": "on"}):
        text = oracle.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=opens, **keywords)
        assert (
            render(TEMPLATES[name], CHAT, bos_token="<s>", eos_token="</s>", add_generation_prompt=opens, **keywords)
            == text
        )
        ids = oracle.apply_chat_template(CHAT, add_generation_prompt=opens, return_dict=False, **keywords)
        assert mine.encode_chat(CHAT, add_generation_prompt=opens, **keywords) == ids


def test_a_checkpoint_folder_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    oracle = saved(tmp_path, "{% for m in messages %}{{ m.content }}<unk>{% endfor %}")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    mine = Tokenizer.load(tmp_path)
    assert mine is not None
    for text in [*SENTENCES, "", "<s>twice</s>"]:
        assert mine.encode(text) == oracle(text)["input_ids"] == [0, *mine.encode_plain(text)]
        assert mine.decode(mine.encode(text)) == oracle.decode(oracle(text)["input_ids"], skip_special_tokens=True)
    # Of the tokenizer, of the template, and of both configurations.
    assert (mine.bos, mine.eos_ids) == (0, {1, 2, 7, 8, 9})
    assert mine.vocab_size == len(oracle)


def test_a_length_limit_in_the_file_does_not_cut_prompts(tmp_path: Path) -> None:
    core = tokenizers.Tokenizer.from_str(byte_level()._core.to_str())
    core.enable_truncation(4)
    core.enable_padding(length=4)
    core.save(str(tmp_path / "tokenizer.json"))
    mine = Tokenizer.load(tmp_path)
    assert mine is not None
    assert mine.encode(SENTENCES[0]) == byte_level().encode(SENTENCES[0])
    assert mine.encode("a") == byte_level().encode("a")


def test_older_layouts_of_templates_and_special_tokens(tmp_path: Path) -> None:
    byte_level()._core.save(str(tmp_path / "tokenizer.json"))
    config = {
        "eos_token": {"content": "</s>", "lstrip": False},
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d{{ eos_token }}"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    mine = Tokenizer.load(tmp_path)
    assert mine is not None
    assert mine.encode_chat(CHAT) == mine.encode_plain("d</s>")
    assert (mine.bos, mine.eos_ids) == (None, {1})


def test_folders_without_a_readable_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.load(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(ValueError, match=r"only as vocab\.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (TEMPLATES["strict"], CHAT[1:], "refused the messages: roles must alternate"),
        ("{% for %}", CHAT, r"not valid Jinja \(line 1\)"),
        ("{{ messages.append(1) }}", CHAT, "refused the messages"),
        ("{{ ''.__class__.__mro__ }}", CHAT, "refused the messages"),
        ("{{ messages[0].content + 1 }}", CHAT, "failed on these messages: TypeError"),
        ("{% for i in range(1000) %}{{ 'long text' }}{% endfor %}", CHAT, "more than 1000 characters"),
        ("", [], "expected a list of dicts"),
        ("", "hello", "expected a list of dicts"),
        ("", [{"content": "hello"}], r"messages\[0\]"),
        ("", [{"role": "user", "content": b"hello"}], "messages must hold only what JSON can say"),
    ],
)
def test_a_chat_that_cannot_be_rendered_says_why(template: str, messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        render(template, messages, bos_token="", eos_token="", max_characters=1000)


def test_text_that_cannot_be_encoded_says_why() -> None:
    with pytest.raises(ValueError, match=r"half a character \(U\+D83E\) at position 2"):
        byte_level().encode("ab\ud83e")
    with pytest.raises(ValueError, match="no chat template"):
        byte_level().encode_chat(CHAT)


def test_the_tokens_floor_does_not_need_torch() -> None:
    code = "import sys, stretto.tokens; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
