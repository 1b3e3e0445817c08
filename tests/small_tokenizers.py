"""Tokenizers of every kind of decoder, trained on four sentences."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from stretto.tokens import Tokenizer

SENTENCES = [
    "Once upon a time there was a little fox who lived in a wood.",
    "The fox said hello, hello, hello! and the wood said nothing at all.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "Grüße aus Köln — naïve café, 日本語テキスト, 👩‍👩‍👧 and 🦊🦊 once more.",
]
SPECIAL = ["<s>", "</s>", "<unk>"]


@cache
def byte_level() -> Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_tokens(["[plain]", "日本"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(core, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})


def save(folder: Path) -> None:
    """Write the byte-level tokenizer to a checkpoint's folder."""
    byte_level()._core.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@cache
def wrapped_byte_level() -> Tokenizer:
    """Byte-level in a sequence of decoders, which the general path has to cope with."""
    core = tokenizers.Tokenizer.from_str(byte_level()._core.to_str())
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return Tokenizer(core)


@cache
def metaspace() -> Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    return Tokenizer(core)


@cache
def byte_fallback() -> Tokenizer:
    """As SentencePiece models are converted: a marked blank before the text, bytes for unknown characters."""
    trained = json.loads(metaspace()._core.to_str())["model"]
    vocabulary = {token: place for place, token in enumerate(SPECIAL)}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *trained["vocab"]]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in trained["merges"]]
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(SPECIAL)
    return Tokenizer(core)


@cache
def word_piece() -> Tokenizer:
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return Tokenizer(core)
