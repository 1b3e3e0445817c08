"""An assistant's reply taken apart: its thinking, what it says, and the tools it calls.

Formats read, by their published descriptions: thinking between ``<think>`` and ``</think>`` (also when the template
has opened it); calls as ``<tool_call>{...}</tool_call>`` (Hermes, Qwen), ``[TOOL_CALLS][{...}]`` and
``[TOOL_CALLS]name[ARGS]{...}`` (Mistral), ``<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}`` in a list (DeepSeek),
``<|python_tag|>{...}`` and, where tools were offered, a reply that is one JSON object with a name and its arguments
(Llama 3); the channels of gpt-oss (``harmony``). What looks like a call and is not one stays text, and so does a call
of something that was not offered, where it is known what was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stretto.tokens import harmony
from stretto.tokens.detokenize import TextStream, overlap
from stretto.tokens.tokenizer import Tokenizer

_THINK, _UNTHINK = "<think>", "</think>"
# What opens a call, and what closes it; None: the end of the reply.
_CALLS = {
    "<tool_call>": "</tool_call>",
    "[TOOL_CALLS]": None,
    "<|python_tag|>": None,
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",
}
# A call whose name stands before its arguments, as ``name`` and ``arguments``; by what opens it.
_NAMED = {
    "[TOOL_CALLS]": re.compile(
        r"(?:\[TOOL_CALLS\])?(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\](?P<arguments>\{.*?\})\s*(?=\[TOOL_CALLS\]|$)",
        re.DOTALL,
    ),
    "<｜tool▁calls▁begin｜>": re.compile(
        r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[\w.-]+)(?:<｜tool▁sep｜>|\n```json\n)"
        r"(?P<arguments>\{.*?\})(?:\n```)?<｜tool▁call▁end｜>\s*",
        re.DOTALL,
    ),
}
_NAME_BEGINS = re.compile(r"[\w.-]+(?:$|\[)")
"""What follows ``[TOOL_CALLS]`` where a name comes first, so far."""
_BEGINNINGS = frozenset(opening[0] for opening in _CALLS)
_INNER = ("[ARGS]", "[CALL_ID]", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
"""Markers inside a call."""
_KEYS = ('"name"', '"type"', '"function"')
"""First keys of a reply that is one call."""
_MAX_BLANKS = 4
"""Blanks before a thinking block or a bare call."""
MARKERS = (_THINK, _UNTHINK, *_CALLS, *(closing for closing in _CALLS.values() if closing), *_INNER)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called."""

    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Reply:
    """A reply, or what a piece of one adds to it."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, other: Reply) -> None:
        """Append what ``other`` adds."""
        self.text += other.text
        self.thinking += other.thinking
        self.tool_calls += other.tool_calls


class ReplyParser:
    """Takes a reply apart while it is written; what :meth:`push` and :meth:`finish` return, added up, is the reply.

    Text and thinking come at once, except an end that may become a marker. A call comes when it is whole.
    """

    def __init__(self, thinking: bool = False, tools: bool = False, names: Collection[str] | None = None) -> None:
        """``thinking``: the prompt has opened a thinking block. ``tools``: tools were offered; ``names``: which, where
        that is known.
        """
        self._tools, self._names = tools, names
        self._pending = ""
        self._closing: str | None = None
        self._opening = ""
        self._skip_blanks = thinking
        self._head = harmony.Header("", "")
        self._written: dict[str, harmony.Header] = {}
        """By field: the last message of a channel that wrote to it."""
        self._read = self._thinking if thinking else self._start
        self._final = False

    def push(self, piece: str) -> Reply:
        """Take the next piece of the reply; returns what has become certain."""
        plain = self._read == self._text and not self._pending and not self._skip_blanks
        if plain and _BEGINNINGS.isdisjoint(piece):
            return Reply(piece)
        self._pending += piece
        return self._advance()

    def finish(self) -> Reply:
        """What was held back, when nothing follows."""
        self._final = True
        return self._advance()

    def _advance(self) -> Reply:
        found = Reply()
        while self._read(found):
            pass
        return found

    def _start(self, found: Reply) -> bool:
        """Nothing but blanks so far: thinking or a bare call may begin. Returns whether to go on reading."""
        begun = self._pending.lstrip()
        if len(self._pending) - len(begun) > _MAX_BLANKS:
            self._read = self._text
        elif begun.startswith(_THINK):
            self._pending = begun.removeprefix(_THINK)
            self._read, self._skip_blanks = self._thinking, True
        elif self._tools and begun.startswith("{"):
            self._opening, self._closing, self._pending = "", None, begun
            self._read = self._call
        elif (channels := harmony.may_open(begun)) is True:
            self._read = self._header
        elif self._final or (channels is False and not _THINK.startswith(begun)):
            self._read = self._text
        else:
            return False
        return True

    def _thinking(self, found: Reply) -> bool:
        if self._blanks():
            return False
        before, marker, after = self._pending.partition(_UNTHINK)
        if not marker:
            found.thinking += self._certain((_UNTHINK,))
            return False
        found.thinking += before
        self._pending = after
        self._read, self._skip_blanks = self._text, True
        return True

    def _text(self, found: Reply) -> bool:
        if self._blanks():
            return False
        place, opening = min(
            ((place, opening) for opening in _CALLS if (place := self._pending.find(opening)) >= 0), default=(-1, "")
        )
        if place < 0:
            found.text += self._certain(tuple(_CALLS))
            return False
        found.text += self._pending[:place]
        self._pending = self._pending[place + len(opening) :]
        self._opening, self._closing = opening, _CALLS[opening]
        self._read = self._call
        return True

    def _call(self, found: Reply) -> bool:
        """A call has begun; it is read when it is whole, and is text when it turns out to be none."""
        body, closing, after = self._pending.partition(self._closing) if self._closing else (self._pending, "", "")
        if not _may_be_call(self._opening, body):
            calls = None
        elif closing or self._final:
            calls = self._offered(_named(self._opening, body) or _calls(body, bare=not self._opening))
        else:
            return False
        if calls is None and not closing and not self._final:
            body, after = "", body
        if calls is None:
            found.text += self._opening + body + closing
        else:
            found.tool_calls += calls
        self._pending, self._read, self._skip_blanks = after, self._text, calls is not None
        return True

    def _header(self, found: Reply) -> bool:
        """A message of a channel begins: read its header when it is whole. Of one that is cut short nothing is kept."""
        place, most = self._pending.find(harmony.MESSAGE), harmony.MAX_HEADER
        whole = 0 <= place <= most
        if not whole and len(self._pending) < most + len(harmony.MESSAGE) and not self._final:
            return False
        head = harmony.read_header(self._pending[:place] if whole else self._pending)
        if head is None or not (whole or self._final):
            self._read = self._text
            return True
        self._head, self._pending = head, self._pending[place + len(harmony.MESSAGE) :] if whole else ""
        self._read = self._arguments if head.function else self._message
        return whole

    def _message(self, found: Reply) -> bool:
        body, end, after = harmony.until_end(self._pending)
        if not end:
            self._say(found, self._certain(harmony.ENDS))
            return False
        self._say(found, body)
        self._pending, self._read = after, self._header
        return True

    def _arguments(self, found: Reply) -> bool:
        """A message to a function is read when it is whole; one that is no call goes where its channel goes."""
        body, end, after = harmony.until_end(self._pending)
        if not end and not self._final:
            return False
        call = _one_call({"name": self._head.function, "arguments": body if body.strip() else "{}"}, bare=False)
        calls = None if call is None else self._offered([call])
        if calls is None:
            self._say(found, body)
        else:
            found.tool_calls += calls
        self._pending, self._read = after, self._header
        return bool(end)

    def _offered(self, calls: list[ToolCall] | None) -> list[ToolCall] | None:
        """The calls, None where there are none or one is of what nobody offered."""
        known = calls is None or self._names is None or all(call.name in self._names for call in calls)
        return calls if known else None

    def _say(self, found: Reply, words: str) -> None:
        """Add words of a channel, on a new line behind an earlier message's."""
        name = "thinking" if self._head.channel == "analysis" else "text"
        if words:
            apart = "\n" if self._written.get(name, self._head) is not self._head else ""
            setattr(found, name, getattr(found, name) + apart + words)
            self._written[name] = self._head

    def _blanks(self) -> bool:
        """Drop blanks behind a marker; returns whether there may be more of them to drop."""
        if self._skip_blanks:
            self._pending = self._pending.lstrip()
            self._skip_blanks = not self._pending
        return self._skip_blanks

    def _certain(self, markers: Sequence[str]) -> str:
        """Take what is pending, except an end that begins one of ``markers``."""
        keep = 0 if self._final else max(overlap(self._pending, marker) for marker in markers)
        border = len(self._pending) - keep
        text, self._pending = self._pending[:border], self._pending[border:]
        return text


def parse(text: str, thinking: bool = False, tools: bool = False, names: Collection[str] | None = None) -> Reply:
    """Take a whole reply apart; see :class:`ReplyParser` for the arguments."""
    parser = ReplyParser(thinking, tools, names)
    reply = parser.push(text)
    reply.add(parser.finish())
    return reply


def marker_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the special tokens, which a text leaves out, that take a reply apart."""
    channels = harmony.MARKERS if tokenizer.special_ids((harmony.CHANNEL,)) else ()
    return tokenizer.special_ids((*MARKERS, *channels))  # other families end a turn with <|end|>


def names_of(tools: Iterable[Any]) -> frozenset[str] | None:
    """Return the names of tools as a template takes them; None where one has none that we know of: any may be meant."""
    names: set[str] = set()
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str):
            return None
        names.add(name)
    return frozenset(names)


class ReplyStream:
    """Takes apart the tokens that a model writes behind ``prompt``, a conversation as its template writes it.

    Markers that are special tokens, which the text leaves out, are read as well. ``stop``, ``include_stop`` and
    ``min_tokens`` are those of :class:`TextStream`; ``tools`` are what was offered, None for none. The prompt tells
    whether the template has opened a thinking block.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        opened = tokenizer.decode(prompt[-16:], skip_special=False).rstrip().endswith(_THINK)
        self._stream = TextStream(tokenizer, stop, include_stop, min_tokens=min_tokens, reveal=marker_ids(tokenizer))
        self._parser = ReplyParser(opened, tools is not None, None if tools is None else names_of(tools))

    def push(self, tokens: Sequence[int]) -> Reply:
        """Take the next tokens; returns what has become certain."""
        return self._parser.push("".join(self._stream.push(token)[0] for token in tokens))

    def finish(self) -> Reply:
        """What was held back, when no token follows."""
        found = self._parser.push(self._stream.flush())
        found.add(self._parser.finish())
        return found


def read_reply(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], **options: Any) -> Reply:
    """Take a whole reply in tokens apart; see :class:`ReplyStream` for ``options``."""
    stream = ReplyStream(tokenizer, prompt, **options)
    reply = stream.push(tokens)
    reply.add(stream.finish())
    return reply


def _may_be_call(opening: str, body: str) -> bool:
    """Whether what follows ``opening`` so far is the beginning of a call; any text may stand in a tag that closes."""
    begun = body.lstrip()
    if opening:
        closes = _CALLS[opening] is not None
        return closes or begun[:1] in ("", "{", "[") or (opening in _NAMED and bool(_NAME_BEGINS.match(body)))
    inner = begun[1:].lstrip()
    return any(inner.startswith(key) or key.startswith(inner) for key in _KEYS)


def _named(opening: str, body: str) -> list[ToolCall] | None:
    """The calls of a body in which names stand before arguments; None when it is anything else."""
    pattern, calls, place = _NAMED.get(opening), [], 0
    while pattern is not None and (found := pattern.match(body, place)):
        call = _one_call({"name": found["name"], "arguments": found["arguments"]}, bare=False)
        if call is None:
            return None
        calls.append(call)
        place = found.end()
    return calls if calls and place == len(body) else None


def _calls(body: str, bare: bool) -> list[ToolCall] | None:
    """The calls that ``body`` spells as JSON values, side by side or in a list; None when it spells anything else."""
    calls: list[ToolCall] = []
    rest = body.strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        for entry in value if isinstance(value, list) else [value]:
            call = _one_call(entry, bare)
            if call is None:
                return None
            calls.append(call)
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return calls or None


def _one_call(entry: Any, bare: bool) -> ToolCall | None:
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters", None if bare else {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(entry["name"], arguments) if isinstance(arguments, dict) else None
