"""What every token of a model spells, as bytes, and the trie of them that grammars are matched against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from stretto.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_MARK = "\x02"
"""A character that no other merges with: put before a text, it takes the blank that some tokenizers add."""
_LONGEST, _DOUBTFUL = 1024, 16
"""Characters of a forced text that are spelled at a time, and the last tokens of a longer one that are left out, since
what follows might spell them differently: a mask must not cost more the longer the text is that it forces."""


class Words:
    """The bytes of each token id of a model, made when they are first asked for.

    ``size`` is the model's vocabulary, which may be padded beyond the tokenizer's; ``eos_ids`` are the ids that end a
    text. An id without a token, and one that is no text of its own, spells nothing and matches nothing.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.size = size
        self.eos_ids = frozenset(token for token in eos_ids if token < size)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids that are no text: special tokens, which decoding passes over, and those that end a text."""
        known, shows = self._tokenizer.spelling, self._tokenizer.shows
        hidden = (token for token in range(self.size) if known(token) is not None and not shows(token))
        return self.eos_ids.union(hidden)

    @cached_property
    def spelled(self) -> list[bytes]:
        """By id: the bytes that the token adds to a text, of special tokens the name; nothing where there is none."""
        tokenizer, special = self._tokenizer, self.special
        words = [(tokenizer.spelling(token) or "").encode() if token in special else b"" for token in range(self.size)]
        ordinary = [token for token in range(self.size) if token not in special and tokenizer.shows(token)]
        adds = [tokenizer.token_bytes(token) for token in ordinary] if tokenizer.byte_level else self._added(ordinary)
        for token, word in zip(ordinary, adds, strict=True):
            words[token] = word
        return words

    @cached_property
    def trie(self) -> LLTokenizer:
        """The trie of all tokens, as llguidance walks it. Raises ``ValueError`` where no token ends a text."""
        from llguidance import LLTokenizer, TokenizerWrapper  # a text without a grammar does not need it

        if not self.eos_ids:
            raise ValueError("expected a model with an end token, so that a text can be complete; this one has none")
        return LLTokenizer(TokenizerWrapper(_Spoken(self)), eos_token=sorted(self.eos_ids))

    def spell(self, text: str) -> list[int]:
        """Return the tokenizer's own ids of ``text`` in the middle of another; ``[]`` where it has none of its own."""
        wanted, mark = text.encode(), _MARK.encode()
        for before in ("", _MARK):
            ids = self._tokenizer.encode_plain(before + text)
            read = b""
            for place in range(len(ids) + 1):
                if read.endswith(mark if before else b"") and b"".join(map(self._word, ids[place:])) == wanted:
                    return ids[place:]
                if not before or place == len(ids):
                    break
                read += self._word(ids[place])
        return []

    def _word(self, token: int) -> bytes:
        return self.spelled[token] if token < self.size else b""

    def _added(self, tokens: Sequence[int]) -> list[bytes]:
        """Return what each token adds behind another one, by the tokenizer's own decoder."""
        tokenizer = self._tokenizer
        anchor = next((token for token in tokens if tokenizer.decode([token]).isalpha()), None)
        before = [] if anchor is None else [anchor]
        known = len(tokenizer.decode(before))
        words = []
        for token in tokens:
            if tokenizer.is_byte(token):
                words.append(bytes([int((tokenizer.spelling(token) or "")[3:5], 16)]))
            else:
                text = tokenizer.decode([*before, token], skip_special=False)[known:]
                words.append(b"" if "\ufffd" in text else text.encode())
        return words


class _Spoken:
    """A tokenizer in the form that llguidance takes."""

    def __init__(self, words: Words) -> None:
        self.eos_token_id = min(words.eos_ids)
        self.bos_token_id = None
        self.tokens = words.spelled
        self.special_token_ids = sorted(words.special)
        self._spell = words.spell

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        if len(text) <= _LONGEST:
            return self._spell(text)
        return self._spell(text[:_LONGEST])[:-_DOUBTFUL]
