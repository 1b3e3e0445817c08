"""The tokenizer of a checkpoint folder, as its ``tokenizer.json`` defines it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from stretto.tokens.chat import render

# Files of tokenizers that other libraries read and that hold no tokenizer.json.
_LEGACY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """Text to token ids and back.

    ``bos`` is the id of the begin token or None, ``eos_ids`` the ids that end a text (the union of ``config.json``,
    ``generation_config.json`` and the tokenizer's own), ``special_tokens`` their spelling by role, ``chat_template``
    the default template or None, ``vocab_size`` the number of tokens, added ones included (a model's output may be
    padded beyond it).
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: frozenset[int] = frozenset(),
        chat_template: str | None = None,
    ) -> None:
        """``special_tokens`` maps roles such as ``bos_token`` and ``eos_token`` to the text of their tokens."""
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self.bos = self._id_of("bos_token")
        own_eos = self._id_of("eos_token")
        self.eos_ids = eos_ids if own_eos is None else eos_ids | {own_eos}
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)
        self._hidden = frozenset(i for i, token in core.get_added_tokens_decoder().items() if token.special)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer | None:
        """Read the tokenizer of a checkpoint folder; None when the folder has none (it then serves token ids).

        Raises ValueError when a file cannot be read or only a legacy format is there.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            legacy = [name for name in _LEGACY if (folder / name).is_file()]
            if legacy:
                raise ValueError(
                    f"{folder} holds its tokenizer only as {legacy[0]}; Stretto reads tokenizer.json. Write one with "
                    "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                )
            return None
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer this version of `tokenizers` can read: {error}") from None
        config = _read_json(folder / "tokenizer_config.json")
        special = {**_special(_read_json(folder / "special_tokens_map.json")), **_special(config)}
        template = _chat_template(folder, config)
        return cls(core, special_tokens=special, eos_ids=end_ids(folder), chat_template=template)

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
        return self._core.decode([i for i in ids if i >= 0], skip_special_tokens=skip_special)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation in the checkpoint's chat template; see :func:`stretto.tokens.chat.render`.

        Raises ValueError when the checkpoint has no chat template.
        """
        if self.chat_template is None:
            raise ValueError(
                "this checkpoint has no chat template (neither chat_template.jinja nor chat_template in "
                "tokenizer_config.json); write the prompt as text instead"
            )
        variables = {"bos_token": "", "eos_token": "", **self.special_tokens, **kwargs}
        text = render(
            self.chat_template, messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )
        return self.encode_plain(text)

    def shows(self, token: int, skip_special: bool = True) -> bool:
        """Whether a token takes part in decoding: it exists and is not a special token to be skipped."""
        return token >= 0 and self._core.id_to_token(token) is not None and not (skip_special and token in self._hidden)

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
        return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)

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


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is not there."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}; expected a JSON object")
    return value


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """Spelling of the special tokens by role: an entry is a string or a dict with ``content``."""
    found: dict[str, str] = {}
    for role, value in config.items():
        spelling = value.get("content") if isinstance(value, dict) else value
        if role.endswith("_token") and isinstance(spelling, str):
            found[role] = spelling
    return found


def end_ids(folder: str | Path) -> frozenset[int]:
    """The ids that end a text according to ``config.json`` and ``generation_config.json`` of a checkpoint folder."""
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _read_json(Path(folder) / name).get("eos_token_id")
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: a file of its own, a string, or the entry named ``default`` of a list of templates."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template
