"""Prompt files: JSON Lines, Spec-Bench's format, plain text, each also compressed with xz.

Per line of JSON Lines one object; what its prompt is follows from its keys, the first of these that it has:

- ``messages``: a conversation, through the checkpoint's chat template.
- ``turns``: Spec-Bench (arXiv 2401.07851). The first turn is asked, further ones are counted and left out.
- ``question``: one thing that a user says. Like a turn it goes through the chat template if the checkpoint has one.
- ``prompt``: a text that is continued, or a list of token ids. A ``completion`` beside it is somebody else's answer and
  is left out.
- ``text``: a document, taken as a text that is continued.

``category`` (or else ``source``) names the group that a prompt is counted in; without either it is the file's name up
to its first dot. Any other file is plain text: one prompt a paragraph, or one a line where it has no empty lines.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM

FORMS = {
    "messages": "a list of objects with role and content",
    "turns": "a list of texts",
    "question": "a text",
    "prompt": "a text or a list of token ids",
    "text": "a text",
}
"""What each key holds."""
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt as it is run."""

    ids: tuple[int, ...]
    params: SamplingParams
    category: str
    text: str
    """For people: what the ids say."""


@dataclass(slots=True)
class Course:
    """The prompts of a race, and what was left out on the way to them."""

    asked: list[Asked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out and why, each a sentence."""

    @property
    def categories(self) -> list[str]:
        """The categories in the order in which they first appear."""
        return list(dict.fromkeys(each.category for each in self.asked))


def open_text(path: Path) -> str:
    """Return the text of a file, plain or ``.xz``, without a byte order mark.

    Raises ``OSError`` and, for what is no UTF-8 text, ``ValueError``; both name the file.
    """
    try:
        if path.suffix == ".xz":
            with lzma.open(path, "rt", encoding="utf-8-sig") as file:
                return file.read()
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror}; expected a file with prompts or records") from None
    except (UnicodeDecodeError, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}; expected text in UTF-8, plain or compressed as .xz"
        ) from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file, without empty lines. Raises ``ValueError`` naming the line."""
    for number, line in enumerate(open_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(
                f"{path}, line {number} holds {half!r}, half of a character; write both halves or the character itself"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); expected one object a line") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number} is {line:.60}; expected an object with one of {', '.join(FORMS)}")
        yield number, found


def read_course(paths: Sequence[Path], llm: LLM, params: SamplingParams, *, limit: int | None = None) -> Course:
    """Return the prompts of some files, encoded, each to be run with ``params``.

    Left out are empty prompts, those that leave no room for ``max_tokens`` in the model's context or in the cache, and,
    with ``limit``, all but so many, taken evenly over the files. Raises ``ValueError`` when none is left or could be,
    and naming the place of a prompt that cannot be read.
    """
    course = Course()
    held = min(llm.model.context, llm.engine.caches["target"].capacity)
    room = held - (params.max_tokens or 1)
    if room < 1:
        raise ValueError(
            f"max_tokens={params.max_tokens} leaves no room for a prompt: context and cache hold {held} tokens; "
            f"use at most {held - 1}"
        )
    found = [entry for path in paths for entry in _entries(path)]
    if later := sum(len(entry.value) - 1 for entry in found if isinstance(entry.value, _Turns)):
        course.notes.append(f"of each conversation the first turn is asked; {_some(later, 'later turn')} left out")
    if limit is not None and limit < len(found):
        course.notes.append(f"{limit} of {len(found)} prompts are taken, evenly over the files")
        found = [found[place * len(found) // limit] for place in range(limit)]
    empty = long = 0
    for entry in found:
        ids = _encode(llm, entry)
        empty += not ids
        long += len(ids) > room
        if 0 < len(ids) <= room:
            text = entry.value if isinstance(entry.value, str) else llm.tokenizer.decode(ids) if llm.tokenizer else ""
            course.asked.append(Asked(tuple(ids), params, entry.category, text))
    if empty:
        course.notes.append(f"{_some(empty, 'empty prompt')} left out")
    if long:
        course.notes.append(
            f"{_some(long, 'prompt')} left out: longer than the {room} tokens that {params.max_tokens} new ones leave"
        )
    if not course.asked:
        told = "; ".join(course.notes) or "there is none; write one a paragraph, or objects with a prompt as .jsonl"
        raise ValueError(f"no prompt is left of {', '.join(map(str, paths))}: {told}")
    return course


def _some(count: int, what: str) -> str:
    return f"{count} {what} is" if count == 1 else f"{count} {what}s are"


class _Turns(list[str]):
    """What a user says, turn by turn; only the first is asked."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One prompt of a file."""

    value: Any
    """A text, token ids, turns or messages."""
    category: str
    where: str
    """File, and place in it."""


def _entries(path: Path) -> list[_Entry]:
    """Return the prompts of a file."""
    name = path.name.partition(".")[0]
    if (path.with_suffix("") if path.suffix == ".xz" else path).suffix not in JSON_SUFFIXES:
        parts = enumerate(_paragraphs(open_text(path)), 1)
        return [_Entry(text, name, f"{path}, prompt {number}") for number, text in parts]
    found: list[_Entry] = []
    for number, entry in json_lines(path):
        where = f"{path}, line {number}"
        key = next((key for key in FORMS if key in entry), None)
        if key is None:
            raise ValueError(f"{where} has the keys {sorted(entry)}; expected one of {', '.join(FORMS)}")
        value = entry[key]
        if not _fits(key, value):
            raise ValueError(f"{where}: {key} is {value!r:.60}; expected {FORMS[key]}")
        if key in ("turns", "question"):
            value = _Turns(value if key == "turns" else [value])
        found.append(_Entry(value, str(entry.get("category") or entry.get("source") or name), where))
    return found


def _fits(key: str, value: Any) -> bool:
    """Whether a value has the form of its key; token ids are left to ``_encode``, which knows the vocabulary."""
    if key in ("messages", "turns"):
        kind = dict if key == "messages" else str
        return isinstance(value, list) and bool(value) and all(isinstance(each, kind) for each in value)
    return isinstance(value, str | list if key == "prompt" else str)


def _paragraphs(text: str) -> list[str]:
    text = text.replace("\r\n", "\n").strip()
    parts = text.split("\n\n") if "\n\n" in text else text.split("\n")
    return [part.strip() for part in parts if part.strip()]


def _encode(llm: LLM, entry: _Entry) -> list[int]:
    """Return the token ids of a prompt. Raises ``ValueError`` that names its place."""
    value = entry.value
    if isinstance(value, _Turns):
        template = None if llm.tokenizer is None else llm.tokenizer.chat_template
        value = value[0] if template is None else [{"role": "user", "content": value[0]}]
    if not value:
        return []
    try:
        return llm.encode_chat(value) if isinstance(value[0], dict) else llm.intake.encode(value)
    except ValueError as error:
        raise ValueError(f"{entry.where}: {error}") from None
