"""The tokenizer that a GGUF file describes in its metadata: a vocabulary, merges or scores, and a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from stretto.tokens.gguf_header import read_header

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BLANK = "▁"
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Split:
    """How text is cut before merges, under the names of ``tokenizer.ggml.pre``."""

    pattern: str | None = None
    """What a piece looks like; None: GPT-2's own pattern."""
    digits: bool = False
    """Whether digits stand alone."""
    whole: bool = False
    """Whether a piece that is a token needs no merges to become it."""
    begins: bool = False
    """Whether texts begin with the begin token unless the file says otherwise."""
    composed: bool = False
    """Whether text is brought to Unicode's composed form (NFC)."""


_GPT2 = _Split()
_DIGITS = _Split(digits=True)
_LLAMA3 = _Split(rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", whole=True, begins=True)
_DBRX = _Split(_LLAMA3.pattern)
_QWEN2 = _Split(rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|\p{{N}}|{_REST}", composed=True)
_TEKKEN = _Split(
    rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_REST}", whole=True, begins=True
)
_GPT4O = _Split(
    rf"{_FIRST}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_FIRST}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_REST}"
)
_SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "gigachat", "mellum"), _GPT2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _DBRX),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """What ``Tokenizer`` is made of."""

    core: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    """Spelling by role, ``bos_token`` and so on."""
    eos_ids: frozenset[int]
    templates: dict[str, str]
    """Chat templates by name, the usual one as ``default``."""

    def files(self) -> dict[str, str]:
        """Return the files that a checkpoint folder has instead, by name."""
        config: dict[str, Any] = dict(self.special_tokens)
        if self.templates:
            config["chat_template"] = [{"name": name, "template": text} for name, text in self.templates.items()]
        told = json.dumps(config, indent=1) + "\n"
        return {"tokenizer.json": self.core.to_str(pretty=True), "tokenizer_config.json": told}


def load_gguf_tokenizer(path: Path) -> GgufTokenizer | None:
    """Return the tokenizer of the GGUF file ``path``; None when it holds no vocabulary.

    Raises ``ValueError`` for a kind of tokenizer, or a way of cutting text, that is not implemented.
    """
    metadata = read_header(path, vocabulary=True).metadata
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, kind = said.get("tokens"), said.get("model", "no_vocab")
    if not tokens or kind == "no_vocab":
        return None
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {kind!r}, expected one of {', '.join(builders)}; use the checkpoint that "
            "the file was made from"
        )
    try:
        for key in ("token_type", "scores"):
            if len(said.get(key, tokens)) != len(tokens):
                raise ValueError(f"{path}: tokenizer.ggml.{key} has {len(said[key])} entries for {len(tokens)} tokens")
        core = builders[kind](said, tokens, path)
        _add(core, said, tokens)
        special = {
            role: tokens[said[f"{name}_token_id"]] for role, name in _ROLES.items() if f"{name}_token_id" in said
        }
        ends = frozenset(said[f"{end}_token_id"] for end in ("eos", "eot", "eom") if f"{end}_token_id" in said)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its tokenizer contradicts itself ({error!r}); download it again") from None
    prefix = "tokenizer.chat_template"
    named = {key[len(prefix) :].removeprefix("."): text for key, text in metadata.items() if key.startswith(prefix)}
    templates = {name or "default": text for name, text in named.items() if isinstance(text, str)}
    return GgufTokenizer(core, special, ends, templates)


def _byte_level(said: dict[str, Any], tokens: Sequence[str], path: Path) -> tokenizers.Tokenizer:
    """Merges of bytes, each spelled as one character (GPT-2)."""
    name = said.get("pre")
    if name not in _SPLITS:
        raise ValueError(
            f"{path}: tokenizer.ggml.pre is {name!r}, expected one of {', '.join(_SPLITS)}: nothing else says how text "
            "is cut; use the checkpoint that the file was made from"
        )
    split = _SPLITS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in said["merges"]]
    core = _bpe(path, tokens, merges, ignore_merges=split.whole)
    if split.composed:
        core.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    _frame(core, said, tokens, begins=split.begins)
    return core


def _sentencepiece(said: dict[str, Any], tokens: Sequence[str], path: Path) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: the pair whose result scores highest is merged first; unknown characters become bytes."""
    # Gemma's files spell runs of blanks as such, and its scores do not follow the order of merges: the tokens do.
    ordered = any(len(token) > 1 and not token.strip(" ") for token in tokens)
    pieces = [_BLANK * len(token) if token and not token.strip(" ") else token for token in tokens]
    kinds = said.get("token_type") or [_NORMAL] * len(pieces)
    ranks = range(len(pieces)) if ordered else [-score for score in said["scores"]]
    usable = [kind == _NORMAL or not piece.strip(_BLANK) for kind, piece in zip(kinds, pieces, strict=True)]
    unknown = pieces[said["unknown_token_id"]] if "unknown_token_id" in said else None
    options = {} if unknown is None else {"unk_token": unknown}
    core = _bpe(path, pieces, _merges(pieces, ranks, usable), byte_fallback=True, fuse_unk=True, **options)
    blanks = normalizers.Replace(" ", _BLANK)
    prefix = said.get("add_space_prefix", True)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blanks]) if prefix else blanks
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    _frame(core, said, tokens, begins=True)
    return core


def _merges(pieces: Sequence[str], ranks: Sequence[float], usable: Sequence[bool]) -> list[tuple[str, str]]:
    """Return the pairs of usable pieces whose union is one, those of lower rank first, then of longer first halves."""
    known = {piece for piece, fits in zip(pieces, usable, strict=True) if fits}
    found = [
        (rank, cut, piece)
        for piece, rank, fits in zip(pieces, ranks, usable, strict=True)
        if fits
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    found.sort(key=lambda each: (each[0], -each[1]))
    return [(piece[:cut], piece[cut:]) for _, cut, piece in found]


def _bpe(path: Path, tokens: Sequence[str], merges: Sequence[Any], **options: Any) -> tokenizers.Tokenizer:
    vocabulary = {token: place for place, token in enumerate(tokens)}
    try:
        return tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: its tokens and merges do not fit each other ({error}); download it again") from None


def _frame(core: tokenizers.Tokenizer, said: dict[str, Any], tokens: Sequence[str], *, begins: bool) -> None:
    """Put the begin and the end token around texts, as the file asks or its kind of tokenizer has it."""
    asked = {"bos": said.get("add_bos_token", begins), "eos": said.get("add_eos_token", False)}
    ids = {name: said[f"{name}_token_id"] for name, wanted in asked.items() if wanted and f"{name}_token_id" in said}
    if not ids:
        return
    spelled = {name: tokens[number] for name, number in ids.items()}
    template = [spelled.get("bos"), "$A", spelled.get("eos")]
    core.post_processor = processors.TemplateProcessing(
        single=[each for each in template if each is not None],
        special_tokens=[(spelled[name], number) for name, number in ids.items()],
    )


def _add(core: tokenizers.Tokenizer, said: dict[str, Any], tokens: Sequence[str]) -> None:
    """Have tokens that the file marks as control or as the user's own matched as wholes, control ones as special."""
    kinds = said.get("token_type") or []
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _UNKNOWN) and token]
    further = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _USER_DEFINED and token.strip(" ")]
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    core.add_tokens([AddedToken(token, normalized=False) for token in further])
