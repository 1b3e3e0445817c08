"""The channels of gpt-oss, a format called harmony: what a header says, and whether a reply begins with one.

A reply is messages, ``HEADER<|message|>CONTENT`` and an end, and its first header goes on where the prompt stopped,
behind ``<|start|>assistant``. A header names a channel: ``analysis`` is thinking, ``final`` and ``commentary`` are
said. It may name who is to read the message, before or behind the channel: ``to=functions.NAME``, a call whose content
is its arguments. Source: ``docs/format.md`` of https://github.com/openai/harmony.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
MARKERS = (CHANNEL, MESSAGE, "<|start|>", "<|constrain|>", *ENDS)
MAX_HEADER = 200
"""Characters; names of functions have at most 64."""
_TO = r"\s*to=(?P<{}>[\w.-]+)"
# Any part may be missing, as in a reply that was cut short.
_HEADER = re.compile(
    rf"\s*(?:<\|start\|>\s*(?:assistant)?)?(?:{_TO.format('early')})?\s*"
    rf"(?:<\|channel\|>\s*(?P<channel>\w*)(?:{_TO.format('late')})?\s*(?:<\|constrain\|>)?\s*\w*\s*)?"
)
_OPENS = re.compile(r"(?:to=[\w.-]*\s*)?")


@dataclass(frozen=True, slots=True)
class Header:
    """Of a message: its channel, and the function it calls, without the namespace ``functions``; both may be empty."""

    channel: str
    function: str


def read_header(text: str) -> Header | None:
    """Return what a header says, also of one that was cut short; None for what is no header."""
    found = _HEADER.fullmatch(text)
    if found is None:
        return None
    return Header(found["channel"] or "", (found["early"] or found["late"] or "").removeprefix("functions."))


def may_open(text: str) -> bool | None:
    """Whether a reply that begins with ``text``, blanks left out, begins with a header; None: not yet known."""
    if "to=".startswith(text):
        return None
    opened = _OPENS.match(text)
    assert opened is not None
    if opened.end() > MAX_HEADER:
        return False
    rest = text[opened.end() :]
    if rest.startswith(CHANNEL):
        return True
    return None if CHANNEL.startswith(rest) else False


def until_end(text: str) -> tuple[str, str, str]:
    """Return ``text`` before the first end of a message, that end (empty where there is none), and what follows it."""
    places = {end: place for end in ENDS if (place := text.find(end)) >= 0}
    if not places:
        return text, "", ""
    end = min(places, key=places.__getitem__)
    body, _, after = text.partition(end)
    return body, end, after
