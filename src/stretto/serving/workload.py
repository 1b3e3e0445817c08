"""What a load generator asks: conversations of one or several turns, of prompt files or of made-up words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stretto.race.prompts import JSON_SUFFIXES, json_lines, open_text

WORDS = ("fox", "wood", "river", "lantern", "winter", "stone", "bread", "letter", "harbour", "violin", "garden", "salt")

Talk = list[str]
"""What a user says, turn by turn."""


def talks(files: list[Path], *, number: int, words: int, shared: int, turns: int, rng: random.Random) -> list[Talk]:
    """Return ``number`` conversations.

    Of ``files`` in turn, or of ``words`` random words for each message. ``shared`` random words, the same ones, stand
    before the first message of each; ``turns``: messages of a conversation, as far as a file does not hold several
    itself. Raises ``ValueError`` for files without prompts.
    """
    prefix = [made_up(shared, rng)] if shared else []
    found = [talk for path in files for talk in read(path)]
    if files and not found:
        raise ValueError(f"{', '.join(map(str, files))}: no prompt in it; expected JSON Lines or paragraphs of text")
    listed: list[Talk] = []
    for place in range(number):
        if found:
            own = found[place % len(found)]
            talk = own if len(own) > 1 else [found[(place + turn) % len(found)][0] for turn in range(turns)]
        else:
            talk = [made_up(words, rng) for _ in range(turns)]
        listed.append([" ".join([*prefix, talk[0]]), *talk[1:]])
    return listed


def made_up(words: int, rng: random.Random) -> str:
    """Return so many random words."""
    return " ".join(rng.choices(WORDS, k=words))


def read(path: Path) -> Iterator[Talk]:
    """Yield the conversations of a file: JSON Lines with ``prompt``, ``messages``, ``turns``, ``question`` or
    ``text``, else paragraphs. Raises ``ValueError`` naming a line."""
    if not any(suffix in JSON_SUFFIXES for suffix in path.suffixes):
        yield from ([part.strip()] for part in open_text(path).split("\n\n") if part.strip())
        return
    for number, entry in json_lines(path):
        said = _said(entry)
        if not said or not all(isinstance(each, str) and each for each in said):
            raise ValueError(
                f"{path}, line {number} has the keys {sorted(entry)}; expected one of prompt, messages, turns, "
                "question and text, with text in it"
            )
        yield said


def _said(entry: dict[str, Any]) -> list[Any]:
    if isinstance(entry.get("messages"), list):
        return [
            each.get("content") for each in entry["messages"] if isinstance(each, dict) and each.get("role") == "user"
        ]
    if isinstance(entry.get("turns"), list):
        return list(entry["turns"])
    return [next((entry[key] for key in ("question", "prompt", "text") if key in entry), None)]
