"""Incremental detokenization: committed tokens in, text out, at a cost that does not grow with the text so far.

Text is only ever given out for good, so two things are held back: a character whose bytes are not all there, and the
beginning of what may become a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from stretto.tokens.tokenizer import Tokenizer


class _Source(Protocol):
    """Turns one token after another into text that later tokens cannot change."""

    def push(self, token: int) -> str: ...

    def finish(self) -> str: ...


class _ByteStream:
    """Byte-level tokenizers: the text is the tokens' bytes, so a UTF-8 decoder that waits for the rest is enough."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """Any other tokenizer: decode the last tokens given out together with the new ones, and give out the difference.

    The tokens given out before supply the context that decoders look at (a leading blank is stripped only at the
    start of the text). A run of byte tokens is decoded as a whole and comes out as U+FFFD altogether if one byte in
    it is wrong, so nothing of it is certain before the token that follows the run.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._given: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        self._held.append(token)
        if self._tokenizer.is_byte(token):
            return ""
        before, text = self._texts()
        if text.endswith("\ufffd"):
            return ""
        self._given, self._held = self._held, []
        return text[len(before) :]

    def finish(self) -> str:
        before, text = self._texts()
        self._given, self._held = self._held, []
        return text[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._given, False), decode(self._given + self._held, False)


class StreamDecoder:
    """Decodes a growing sequence of tokens; the joined results equal ``tokenizer.decode`` of all of them.

    The special tokens in ``reveal`` are shown all the same.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, reveal: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._reveal = reveal
        self._source: _Source = _ByteStream(tokenizer) if tokenizer.byte_level else _Window(tokenizer)

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that has become certain with these tokens; it never ends inside a character."""
        return "".join([self._source.push(token) for token in token_ids if self._shows(token)])

    def finish(self) -> str:
        """The text still held back: bytes that never became a character come out as U+FFFD."""
        return self._source.finish()

    def _shows(self, token: int) -> bool:
        return self._tokenizer.shows(token, self._skip_special and token not in self._reveal)


class TextStream:
    """The text of one sample as it grows, ended by stop strings.

    The stop string that is complete first, reading character by character, ends the text (of several that are
    complete at the same character, the longest); the text is cut before it, or after it with ``include_stop``.
    One that is complete within the first ``min_tokens`` tokens does not count. The deltas of :meth:`push` and
    :meth:`flush` joined are ``.text`` at any time.

    The special tokens in ``reveal`` are shown with ``skip_special`` too. ``tokens`` counts the tokens pushed until the
    text stopped, that is, how many were needed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        *,
        skip_special: bool = True,
        min_tokens: int = 0,
        reveal: frozenset[int] = frozenset(),
    ) -> None:
        if "" in stop:
            raise ValueError("stop holds an empty string, which would end every text at once; leave it out")
        self._decoder = StreamDecoder(tokenizer, skip_special, reveal)
        self._stop = stop
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._pending = ""
        self._parts: list[str] = []
        self.tokens = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._parts)

    def push(self, token: int) -> tuple[str, bool]:
        """Take one committed token; returns the new text and whether a stop string has ended it.

        The new text ends neither inside a character nor inside a possible stop string. After the end nothing changes.
        """
        if self.stopped:
            return "", True
        self.tokens += 1
        if not self._stop:  # nothing that was decoded is ever held back
            delta = self._decoder.push((token,))
            self._parts.append(delta)
            return delta, False
        self._read(self._decoder.push((token,)))
        return self._give(0 if self.stopped else self._held_back()), self.stopped

    def flush(self) -> str:
        """The text held back, when no token follows. ``stopped`` tells if it completed a stop string after all."""
        if not self.stopped:
            self._read(self._decoder.finish())
        return self._give(0)

    def _read(self, delta: str) -> None:
        """Add decoded text to what is pending, and cut it at the first stop string complete within it."""
        before = len(self._pending)
        self._pending += delta
        if self.tokens <= self._min_tokens or not delta:
            return
        found = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._pending.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if found:
            end, start = min(found)
            self._pending = self._pending[: end if self._include_stop else start]
            self.stopped = True

    def _held_back(self) -> int:
        """Length of the longest end of the pending text that begins a stop string."""
        return max((overlap(self._pending, stop) for stop in self._stop), default=0)

    def _give(self, keep: int) -> str:
        border = len(self._pending) - keep
        delta, self._pending = self._pending[:border], self._pending[border:]
        self._parts.append(delta)
        return delta


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
