"""The tokenizer of a checkpoint folder: ``tokenizer.json``, or ``tokenizer.model`` of SentencePiece."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from stretto.tokens.bounds import check_growth, check_parts
from stretto.tokens.chat import render, turn_end
from stretto.tokens.folder import chat_templates, check_size, end_ids, special_tokens
from stretto.tokens.gguf import load_gguf_tokenizer
from stretto.tokens.gguf_header import find_gguf
from stretto.tokens.pieces import SentencePiece, load_pieces

# Files of tokenizers that only other libraries read.
_LEGACY = ("spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
LONG = 10_000
"""Characters of a text whose encoding takes long enough for others to notice."""


class Tokenizer:
    """Text to token ids and back.

    ``bos`` is the id of the begin token or None, ``eos_ids`` the ids that end a text (the union of ``config.json``,
    ``generation_config.json``, the tokenizer's own and what the chat template writes behind an assistant's words),
    ``special_tokens`` their spelling by role, ``chat_template`` the default template or None, ``vocab_size`` the number
    of tokens, added ones included (a model's output may be padded beyond it).
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer | SentencePiece,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: frozenset[int] = frozenset(),
        chat_template: str | Mapping[str, str] | None = None,
    ) -> None:
        """``special_tokens`` maps roles such as ``bos_token`` and ``eos_token`` to the text of their tokens.

        ``chat_template`` is one template, or several by name: ``default``, and ``tool_use`` for where tools are given.
        """
        if isinstance(core, tokenizers.Tokenizer):
            core.no_truncation()
            core.no_padding()
        self._core = core
        self.special_tokens = dict(special_tokens or {})
        named = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self._templates: dict[str, str] = named
        self.chat_template = named.get("default")
        self.bos = self._id_of("bos_token")
        own_eos = self._id_of("eos_token")
        self.eos_ids = eos_ids if own_eos is None else eos_ids | {own_eos}
        self._added = core.get_added_tokens_decoder()
        self._hidden = frozenset(i for i, token in self._added.items() if token.special)
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)
        self._bytes: dict[int, bytes] = {}
        self.eos_ids |= self._turn_ends()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer | None:
        """Read the tokenizer of a checkpoint folder; None when the folder has none (it then serves token ids).

        Raises ValueError when a file cannot be read, when only a legacy format is there, and when the chat template
        goes beyond a limit.
        """
        folder = Path(folder)
        if (file := find_gguf(folder)) is not None:
            return cls._of_gguf(file)
        path = folder / "tokenizer.json"
        if not path.is_file():
            pieces = folder / "tokenizer.model"
            if pieces.is_file():
                model, special = load_pieces(pieces)
                return cls(model, special_tokens=special, eos_ids=end_ids(folder), chat_template=chat_templates(folder))
            legacy = [name for name in _LEGACY if (folder / name).is_file()]
            if legacy:
                raise ValueError(
                    f"{folder} holds its tokenizer only as {legacy[0]}; Stretto reads tokenizer.json and "
                    "tokenizer.model. Write one with transformers: "
                    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                )
            return None
        check_size(path)
        check_parts(path)
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer this version of `tokenizers` can read: {error}") from None
        check_growth(core, path)
        special = special_tokens(folder)
        return cls(core, special_tokens=special, eos_ids=end_ids(folder), chat_template=chat_templates(folder))

    @classmethod
    def _of_gguf(cls, file: Path) -> Tokenizer | None:
        found = load_gguf_tokenizer(file)
        if found is None:
            return None
        return cls(
            found.core, special_tokens=found.special_tokens, eos_ids=found.eos_ids, chat_template=found.templates
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the begin token exactly where the tokenizer's own post-processor puts it."""
        return self._encode(text, add_special_tokens=True)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids with nothing added; special tokens spelled out in the text (by a chat template) are still found."""
        return self._encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids. Bytes that are not UTF-8 become U+FFFD; ids without a token are passed over.

        Decoding is the tokenizer's own: the cleaning of blanks before punctuation that some configurations ask
        transformers for (``clean_up_tokenization_spaces``) is not applied, because it loses what the model wrote.
        """
        held = [i for i in ids if 0 <= i < 1 << 32]  # what the library can take
        return self._core.decode(held, skip_special_tokens=skip_special)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation in the checkpoint's chat template; see :func:`stretto.tokens.chat.render`.

        The text of the template decides about the begin token; none is added to it. Raises ValueError when the
        checkpoint has no chat template.
        """
        named = self._templates.get("tool_use") if tools is not None else None
        template = self.chat_template if named is None else named
        if template is None:
            raise ValueError(
                "this checkpoint has no chat template (neither chat_template.jinja nor chat_template in "
                "chat_template.json or tokenizer_config.json); write the prompt as text instead"
            )
        variables = {"bos_token": "", "eos_token": "", **self.special_tokens, **kwargs}
        text = render(template, messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)
        return self.encode_plain(text)

    def spelling(self, token: int) -> str | None:
        """The tokenizer's own spelling of a token, None for an id without one."""
        return self._core.id_to_token(token)

    def speaks_like(self, other: Tokenizer) -> bool:
        """Whether both give every id to the same token, so that ids of one mean the same to the other."""
        return self.vocab_size == other.vocab_size and all(
            self.spelling(token) == other.spelling(token) for token in range(self.vocab_size)
        )

    def shows(self, token: int, skip_special: bool = True) -> bool:
        """Whether a token takes part in decoding: it exists and is not a special token to be skipped."""
        return token >= 0 and self._core.id_to_token(token) is not None and not (skip_special and token in self._hidden)

    def special_ids(self, spellings: Sequence[str]) -> frozenset[int]:
        """The ids of those special tokens, which decoding passes over, that have one of these spellings."""
        return frozenset(i for i in self._hidden if self._added[i].content in spellings)

    @cached_property
    def byte_level(self) -> bool:
        """Whether decoding is the concatenation of :meth:`token_bytes`, read as UTF-8 (byte-level BPE)."""
        return isinstance(self._core.decoder, tokenizers.decoders.ByteLevel)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token of a byte-level tokenizer stands for; empty for an id without a token."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = _spelled_bytes(self._core.id_to_token(token) or "")
        return known

    def is_byte(self, token: int) -> bool:
        """Whether a token is one byte of a character, such as ``<0xE2>`` (byte fallback), readable only in company."""
        return _BYTE_TOKEN.fullmatch(self._core.id_to_token(token) or "") is not None

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds half a character (U+{ord(text[error.start]):04X}) at position {error.start}; "
                "expected text that can be written as UTF-8"
            ) from None
        if len(text) < LONG or not isinstance(self._core, tokenizers.Tokenizer):
            return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)
        # Of a batch, even of one, other threads of Python can run meanwhile.
        return list(self._core.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids)

    def _turn_ends(self) -> frozenset[int]:
        """The added token that the chat template writes behind an assistant's words, wherever they stand."""
        if self.chat_template is None:
            return frozenset()
        behind = [self.encode_plain(text.lstrip())[:1] for text in turn_end(self.chat_template, **self.special_tokens)]
        always = [first for first in behind[:1] if behind.count(first) == len(behind)]
        return frozenset(token for first in always for token in first if token in self._added)

    def _id_of(self, role: str) -> int | None:
        spelling = self.special_tokens.get(role)
        return None if spelling is None else self._core.token_to_id(spelling)


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE spells each byte as one printable character: bytes that print as themselves stand for
    themselves, the others follow from U+0100 in order (Radford et al., GPT-2, 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _spelled_bytes(spelling: str) -> bytes:
    """Bytes of a token's spelling; an added token that uses other characters stands for its own UTF-8."""
    try:
        return bytes(_ALPHABET[character] for character in spelling)
    except KeyError:
        return spelling.encode("utf-8")
