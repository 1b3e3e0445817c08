"""The page of messages tells the truth: each is provoked, and said in the very words that stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from messages_of_use import PROVOKED, tiny

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
ENTRY = re.compile(r"^### ([^\n]+)\n\n```message\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLANK = re.compile(r"<[a-z ]+>")


def entries(text: str) -> dict[str, str]:
    """Return the messages of a page by their headings."""
    found = ENTRY.findall(text)
    assert len(found) == text.count("\n### "), "a heading has no message"
    assert len(found) == len(dict(found)), "two headings are the same"
    return dict(found)


MESSAGES = entries(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def models() -> Iterator[None]:
    """Let go of the model that the messages share."""
    yield
    tiny.cache_clear()


def says(written: str, said: str) -> bool:
    """Whether ``said`` is the message ``written`` on the page, where ``<...>`` stands for some text and any blank for
    any other."""
    written, said = (" ".join(each.split()) for each in (written, said))
    return re.fullmatch(".+?".join(map(re.escape, BLANK.split(written))), said) is not None


def test_the_page_and_the_tests_have_the_same_messages():
    assert MESSAGES.keys() == PROVOKED.keys()


@pytest.mark.parametrize("title", PROVOKED)
def test_each_message_is_said_as_it_is_written(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And as no other of the page is: a message of blanks alone would be anything."""
    said = PROVOKED[title](tmp_path, monkeypatch)
    assert [name for name, written in MESSAGES.items() if says(written, said)] == [title], said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("<file> is cut off at byte <n> of <n>", "a.gguf is cut off inside b; download it again"),
        ("method='<name>' is not known", "method='plane' is not known; did you mean plain?"),
        ("the prompt is empty", "a prompt is empty"),
    ],
)
def test_other_words_are_noticed(written: str, said: str):
    assert not says(written, said) and says(said, said)
