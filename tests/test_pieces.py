"""``tokenizer.model``: ids equal those of the sentencepiece library, and of transformers where tokens are added."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import SENTENCES
from test_detokenize import TEXT, check_stream

from stretto.tokens import StreamDecoder, Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma": {**LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["<start_of_turn>", "\n\n"]},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "hard_vocab_limit": False},
    "no bytes": {"model_type": "bpe"},
}
ADDED = {
    "0": {"content": "<unk>", "special": True},
    "1": {"content": "<s>", "special": True},
    "2": {"content": "</s>", "special": True},
    "400": {"content": "<|end|>", "special": True, "rstrip": True},
    "401": {"content": "[plain]", "special": False, "lstrip": True},
}


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    """Trained on four sentences: the model of each kind, serialized."""
    trained = {}
    for name, options in KINDS.items():
        into = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3),
            model_writer=into,
            vocab_size=400 if "byte_fallback" in options else 120,
            character_coverage=0.98,
            minloglevel=2,
            num_threads=1,
            **options,
        )
        trained[name] = into.getvalue()
    return trained


def library(model: bytes) -> Any:
    """The library's own reading of a model: the oracle."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(model)
    return processor


def load(folder: Path, model: bytes, **config: Any) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(folder)
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [True, False])
def test_ids_and_text_equal_the_library(kind: str, legacy: bool, models: dict[str, bytes], tmp_path: Path) -> None:
    mine, oracle = load(tmp_path, models[kind], legacy=legacy), library(models[kind])

    @settings(max_examples=150, deadline=None)
    @given(TEXT.filter(lambda text: not any(spelling in text for spelling in ("<s>", "</s>", "<unk>"))))
    def check(text: str) -> None:
        ids = oracle.encode(text)
        assert mine.encode_plain(text) == ids and mine.encode(text) == [oracle.bos_id(), *ids]
        if oracle.unk_id() not in ids:
            assert mine.decode(mine.encode(text)) == oracle.decode(ids)
        check_stream(StreamDecoder(mine), mine, ids)

    check()
    for text in SENTENCES:
        assert mine.encode_plain(text) == oracle.encode(text)
    assert (mine.bos, mine.eos_ids, mine.vocab_size) == (1, {2}, oracle.get_piece_size())
    assert mine.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_stream_of_ids_joins_to_the_whole_decode(
    legacy: bool, data: st.DataObject, models: Any, folder: Path
) -> None:
    mine = load(folder, models["llama"], legacy=legacy, added_tokens_decoder=ADDED)
    ids = data.draw(st.lists(st.integers(0, 410) | st.sampled_from([0, 1, 2, 400, 401]), max_size=30))
    skip_special = data.draw(st.booleans())
    check_stream(StreamDecoder(mine, skip_special), mine, ids, skip_special)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


PARTS = ["<s>", "</s>", "<|end|>", "[plain]", "<unk>", " ", "  ", "fox", " hello", "é", "\n", "🦊", "<|end", "▁"]


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=8))
def test_added_tokens_cut_the_text_as_transformers_does(parts: list[str], models: Any, folder: Path) -> None:
    text, mine = "".join(parts), load(folder, models["llama"], added_tokens_decoder=ADDED)
    oracle = slow(folder)
    assert mine.encode_plain(text) == oracle.encode(text, add_special_tokens=False)


def slow(folder: Path) -> Any:
    """Transformers' tokenizer on the sentencepiece library."""
    from tokenizers import AddedToken
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    added = {int(i): AddedToken(**entry) for i, entry in ADDED.items()}
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"), added_tokens_decoder=added, **names)


def test_only_the_beginning_has_a_marked_blank_unless_legacy(models: dict[str, bytes], tmp_path: Path) -> None:
    both = [load(tmp_path, models["llama"], legacy=legacy) for legacy in (True, False)]
    first, later = ([mine._core.id_to_token(i) for i in mine.encode_plain("a<s>a")] for mine in both)
    assert first[0][0] == later[0][0] == first[first.index("<s>") + 1][0] == "▁"
    assert later[later.index("<s>") + 1] == "a"
    for mine in both:
        assert mine.decode(mine.encode_plain("a<s>a"), skip_special=False) == "a<s>a"


def test_the_frame_of_a_text_is_what_the_configuration_asks_for(models: dict[str, bytes], tmp_path: Path) -> None:
    plain = load(tmp_path, models["llama"]).encode_plain("a fox")
    assert load(tmp_path, models["llama"], add_bos_token=False).encode("a fox") == plain
    assert load(tmp_path, models["llama"], add_eos_token=True).encode("a fox") == [1, *plain, 2]
    other = load(
        tmp_path, models["llama"], bos_token="<|end|>", added_tokens_decoder=ADDED, chat_template="{{ bos_token }}a"
    )
    assert other.encode("a fox") == [400, *plain]
    assert other.encode_chat([{"role": "user", "content": ""}])[0] == 400 and other.vocab_size == 402


def test_models_that_cannot_be_read_say_why(models: dict[str, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.model is not a SentencePiece model"):
        load(tmp_path, b"\x0a")
    with pytest.raises(ValueError, match="sets single_word"):
        load(tmp_path, models["llama"], added_tokens_decoder={"9": {"content": "x", "single_word": True}})
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ValueError, match="package sentencepiece, which is missing"):
        load(tmp_path, models["llama"])
