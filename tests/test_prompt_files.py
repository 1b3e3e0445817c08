"""Prompt files in every form, and what is said of those that cannot be read."""

from __future__ import annotations

import json
import lzma
import re
from dataclasses import replace

import pytest

from stretto import LLM, SamplingParams
from stretto.race.prompts import read_course

PARAMS = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def llm():
    return LLM("stretto-tiny", cache_tokens=2048)


def test_prompt_files_in_every_form(llm, tmp_path):
    lines = [
        {"prompt": "Once upon", "category": "a"},
        {"prompt": "Two", "completion": " cats", "source": "b"},
        {"prompt": [5, 6, 7]},
        {"text": "A document"},
        {"question": "Why?"},
        {"question_id": 1, "category": "c", "turns": ["First?", "Second?", "Third?"]},
        {"messages": [{"role": "user", "content": "First?"}]},
        {"prompt": ""},
        {"prompt": "long " * 3000},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    (tmp_path / "mixed.x.jsonl").write_text(text)
    with lzma.open(tmp_path / "mixed.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write(text)
    (tmp_path / "prose.txt").write_text("One paragraph\nof two lines\r\n\r\nAnother\n")
    (tmp_path / "lines.txt").write_text("One\nTwo\nThree\n")
    encode, user = llm.tokenizer.encode, llm.encode_chat
    first = user([{"role": "user", "content": "First?"}])
    expected = [encode("Once upon"), encode("Two"), [5, 6, 7], encode("A document")]
    expected += [user([{"role": "user", "content": "Why?"}]), first, first]
    for name in ("mixed.x.jsonl", "mixed.jsonl.xz"):
        course = read_course([tmp_path / name], llm, PARAMS)
        assert [list(each.ids) for each in course.asked] == expected
        assert [each.category for each in course.asked] == ["a", "b", "mixed", "mixed", "mixed", "c", "mixed"]
        assert [re.findall(r"\d+", note)[0] for note in course.notes] == ["2", "1", "1"]
    plain = read_course([tmp_path / "prose.txt", tmp_path / "lines.txt"], llm, PARAMS)
    assert [each.text for each in plain.asked] == ["One paragraph\nof two lines", "Another", "One", "Two", "Three"]
    few = read_course([tmp_path / "lines.txt", tmp_path / "prose.txt"], llm, PARAMS, limit=2)
    assert [each.text for each in few.asked] == ["One", "Three"] and "2 of 5" in few.notes[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "is not JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "is not JSON"),
        ("[1]", "expected an object with one of messages, "),
        ('{"x": 1}', "has the keys ['x']; expected one of messages, "),
        ('{"turns": []}', "turns is []; expected a list of texts"),
        ('{"turns": ["a", 1]}', "turns is ['a', 1]; expected a list of texts"),
        ('{"question": ["a"]}', "question is ['a']; expected a text"),
        ('{"messages": ["hi"]}', "messages is ['hi']; expected a list of objects with role and content"),
        ('{"messages": [{"content": "hi"}]}', "messages[0] is {'content': 'hi'}"),
        ('{"prompt": {"a": 1}}', "prompt is {'a': 1}; expected a text or a list of token ids"),
        ('{"prompt": ["a"]}', "prompt token 0 is 'a', expected a whole number from 0 to "),
        ('{"prompt": [1.5, 2]}', "prompt token 0 is 1.5"),
        ('{"prompt": [5, true]}', "prompt token 1 is True"),
        ('{"prompt": [5, 99999]}', "prompt token 1 is 99999"),
        ('{"prompt": "\\ud800"}', r"holds '\ud800', half of a character"),
        ('{"prompt": "a", "category": "\\udc00"}', r"holds '\udc00', half of a character"),
    ],
)
def test_a_bad_line_is_named(llm, tmp_path, line, told):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        read_course([tmp_path / "bad.jsonl"], llm, PARAMS)
    assert str(refused.value).startswith(f"{tmp_path}/bad.jsonl, line 2")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", '{"prompt": "Once"}'), ("a.txt", "Once"), ("a.txt.xz", "Once")])
def test_a_byte_order_mark_is_no_part_of_a_prompt(llm, tmp_path, name, text):
    with (lzma.open if name.endswith("xz") else open)(tmp_path / name, "wt", encoding="utf-8-sig") as file:
        file.write(text)
    assert [each.text for each in read_course([tmp_path / name], llm, PARAMS).asked] == ["Once"]


def test_more_tokens_than_there_is_room_for_are_refused(llm, tmp_path):
    (tmp_path / "p.txt").write_text("Once")
    with pytest.raises(ValueError, match=r"max_tokens=4000 leaves no room for a prompt: .* 2048 .* at most 2047"):
        read_course([tmp_path / "p.txt"], llm, replace(PARAMS, max_tokens=4000))
