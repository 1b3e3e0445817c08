"""SentencePiece models (``tokenizer.model``), read by the library that defines them.

A model knows pieces; what a checkpoint adds to it stands beside it in ``tokenizer_config.json``: further tokens, which
of them are special, whether a begin token comes first. As in transformers, the text is cut at the added tokens, and
what lies between them is given to the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, decoders

from stretto.tokens.folder import check_size, read_json, special_tokens

# The serialized model is a protocol-buffer message, in which a field given again at the end overrides the first:
# field 3 (normalizer_spec) holding field 3 (add_dummy_prefix) as false.
_NO_PREFIX = b"\x1a\x02\x18\x00"
_BLANK = "▁"


class Encoding(NamedTuple):
    """Token ids of a text."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a checkpoint puts around its model."""

    before: tuple[int, ...] = ()
    """Ids before a text."""
    after: tuple[int, ...] = ()
    """Ids after a text."""
    legacy: bool = True
    """Whether every part between added tokens begins with the blank that the model puts before a text, not only the
    text's own beginning."""


class SentencePiece:
    """A SentencePiece model and a checkpoint's added tokens; answers what ``Tokenizer`` asks of ``tokenizers``."""

    def __init__(self, model: bytes, added: Mapping[int, AddedToken], frame: Frame) -> None:
        """``model`` is the serialized model, ``added`` the checkpoint's own tokens by id, special or not."""
        self._plain, self._bare = _processor(model), _processor(model + _NO_PREFIX)
        self._frame = frame
        pieces: list[str] = [self._plain.id_to_piece(i) for i in range(self._plain.get_piece_size())]
        control = (i for i in range(len(pieces)) if self._plain.is_control(i) or self._plain.is_unknown(i))
        self._added = {i: AddedToken(pieces[i], special=True) for i in control} | dict(added)
        self._spelling = dict(enumerate(pieces)) | {i: token.content for i, token in self._added.items()}
        self._id = {spelling: i for i, spelling in self._spelling.items()}
        self._by_spelling = {token.content: token for token in self._added.values()}
        longest_first = sorted(self._by_spelling, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._prefixed = "".join(self._plain.encode("a", out_type=str)).startswith(_BLANK)
        self.decoder = decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Token ids of ``text``, within the frame if ``add_special_tokens``."""
        ids: list[int] = []
        parts = self._cut.split(text)
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self._id[part])
                continue
            if place and self._by_spelling[parts[place - 1]].rstrip:
                part = part.lstrip()
            if place + 1 < len(parts) and self._by_spelling[parts[place + 1]].lstrip:
                part = part.rstrip()
            if part:
                model = self._plain if self._frame.legacy or not ids else self._bare
                ids += model.encode(part)
        return Encoding([*self._frame.before, *ids, *self._frame.after] if add_special_tokens else ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of token ids; the blank that the model put before a part is taken away again."""
        shown = (i for i in ids if i in self._spelling and not (skip_special_tokens and self._is_special(i)))
        text = ""
        for is_added, run in groupby(shown, key=self._added.__contains__):
            spellings = [self._spelling[i] for i in run]
            if is_added:
                text += "".join(spellings)
                continue
            part = self.decoder.decode(spellings)
            text += part.removeprefix(" ") if self._prefixed and (self._frame.legacy or not text) else part
        return text

    def id_to_token(self, token: int) -> str | None:
        """Spelling of a token as the model has it; None for an id without a token."""
        return self._spelling.get(token)

    def token_to_id(self, spelling: str) -> int | None:
        """Id of the token of that spelling; None when there is none."""
        return self._id.get(spelling)

    def get_vocab_size(self, with_added_tokens: bool) -> int:
        """Number of tokens, the added ones included or not."""
        return len(self._spelling) if with_added_tokens else self._plain.get_piece_size()

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens at which a text is cut before the model sees it, by id."""
        return dict(self._added)

    def _is_special(self, token: int) -> bool:
        return token in self._added and self._added[token].special


def _processor(model: bytes) -> Any:
    """A processor of the library; raises ValueError for bytes that are not a model."""
    from sentencepiece import SentencePieceProcessor  # a text of another tokenizer does not need it

    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return processor


def load_pieces(path: Path) -> tuple[SentencePiece, dict[str, str]]:
    """Read the ``tokenizer.model`` at ``path`` with what lies beside it; returns it and the special tokens by role.

    Without a word on it in ``tokenizer_config.json`` a text begins with the begin token and ends without an end token,
    as Llama's tokenizer has it. Raises ValueError when a file cannot be read, or asks for what is not offered.
    """
    folder = path.parent
    config = read_json(folder / "tokenizer_config.json")
    try:
        model = check_size(path).read_bytes()
        known = _processor(model)
    except ImportError:
        raise ValueError(f"{path} is read by the package sentencepiece, which is missing: pip install it") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}. Fetch the file again") from None
    own = {"bos_token": known.bos_id(), "eos_token": known.eos_id(), "unk_token": known.unk_id()}
    roles = {role: known.id_to_piece(i) for role, i in own.items() if i >= 0} | special_tokens(folder)
    added = _added(folder, config)
    ids = {token.content: i for i, token in added.items()}
    for spelling in {*roles.values(), *_further(folder, config)} - set(ids):
        place = known.piece_to_id(spelling)
        if known.id_to_piece(place) == spelling:
            ids[spelling] = place
            added[place] = AddedToken(spelling, special=True)
    frame = Frame(
        before=_asked(config, "add_bos_token", True, ids.get(roles.get("bos_token", ""))),
        after=_asked(config, "add_eos_token", False, ids.get(roles.get("eos_token", ""))),
        legacy=config.get("legacy") is not False,
    )
    return SentencePiece(model, added, frame), roles


def _asked(config: Mapping[str, Any], key: str, default: bool, token: int | None) -> tuple[int, ...]:
    """The token as a text's frame, if the configuration asks for it and the token exists."""
    asked = config.get(key)
    return (token,) if token is not None and (default if asked is None else asked) else ()


def _added(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens that ``added_tokens.json`` (spelling to id) and ``tokenizer_config.json`` (id to entry) add."""
    found = {i: AddedToken(spelling) for spelling, i in read_json(folder / "added_tokens.json").items()}
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        if entry.get("single_word"):
            raise ValueError(
                f"added_tokens_decoder[{number}] in {folder / 'tokenizer_config.json'} sets single_word, which is not "
                "offered; write a tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder)."
                "save_pretrained(folder)"
            )
        flags = {flag: bool(entry.get(flag)) for flag in ("lstrip", "rstrip", "special")}
        found[int(number)] = AddedToken(entry["content"], **flags)
    return {i: token for i, token in found.items() if token.content}


def _further(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Spellings of special tokens without a role of their own."""
    maps = (config, read_json(folder / "special_tokens_map.json"))
    entries = [entry for one in maps for entry in one.get("additional_special_tokens") or []]
    return {entry["content"] if isinstance(entry, dict) else entry for entry in entries}
