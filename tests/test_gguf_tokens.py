"""Tokenizers out of GGUF metadata: the ids that the tokenizer they were written from gives, and its text back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stretto import LLM
from stretto.tokens import Tokenizer
from stretto.tokens.gguf import load_gguf_tokenizer

TEXTS = [
    *small_tokenizers.SENTENCES,
    *("", " ", "  two  blanks ", "\n\n\tx = 1234567.89", "I'll say WE'RE here; don't", "ḀÅe\u0301"),
]
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def write(path: Path, tokens: list[str], kinds: list[int], architecture: str = "llama", **keys: Any) -> Path:
    """Write a file without tensors whose metadata under ``tokenizer.ggml.`` are ``keys``."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_chat_template(TEMPLATE)
    gguf_files.add_tokenizer_keys(writer, keys)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def byte_level(path: Path, pre: str = "gpt-2", **keys: Any) -> Path:
    """Write the byte-level tokenizer of ``small_tokenizers``."""
    tokens, kinds, said = gguf_files.byte_level(pre)
    return write(path, tokens, kinds, **said | keys)


def test_byte_level(tmp_path: Path):
    ours = Tokenizer.load(byte_level(tmp_path / "model.gguf", add_bos_token=True, eot_token_id=2))
    theirs = small_tokenizers.byte_level()
    assert ours is not None and ours.byte_level and ours.vocab_size == theirs.vocab_size
    for text in [*TEXTS, "<s>[plain]日本</s>x"]:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert (ours.bos, ours.eos_ids) == (0, {1, 2})
    assert ours.encode_chat([{"role": "user", "content": "hello"}]) == [0, *ours.encode_plain("hello"), 1]


@pytest.mark.parametrize(("pre", "begins"), [("gpt-2", False), ("llama-bpe", True), ("qwen2", False), ("tekken", True)])
def test_texts_begin_as_the_kind_has_it(pre: str, begins: bool, tmp_path: Path):
    tokenizer = Tokenizer.load(byte_level(tmp_path / "model.gguf", pre))
    assert tokenizer is not None and (tokenizer.encode("hello")[0] == 0) == begins


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_transformers_cuts_text_alike(pre: str, tmp_path: Path):
    """Its patterns were copied from the models' own files; what a piece is, its tokenizer says before merging."""
    byte_level(tmp_path / "model.gguf", pre)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf").backend_tokenizer.pre_tokenizer
    ours = load_gguf_tokenizer(tmp_path / "model.gguf")
    assert ours is not None
    for text in [*TEXTS, "Straße 12345 HTTPServer's naïve-café...\r\n\r\n  /x", "日本語123テキスト"]:
        assert ours.core.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenize_str(text), text


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A SentencePiece model with bytes for unknown characters, trained by the library that defines it."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text(
        "\n".join([*small_tokenizers.SENTENCES * 3, Path(__file__).read_text("utf-8")]), "utf-8"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "model"), vocab_size=700, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))


def of_pieces(path: Path, pieces: Any, sign: float = 1.0, **keys: Any) -> Tokenizer:
    count = pieces.get_piece_size()
    kinds = [
        2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
        for i in range(count)
    ]
    said: dict[str, Any] = {"model": "llama", "scores": [sign * pieces.get_score(i) for i in range(count)]}
    said |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0} | keys
    tokenizer = Tokenizer.load(write(path, [pieces.id_to_piece(i) for i in range(count)], kinds, **said))
    assert tokenizer is not None
    return tokenizer


def test_sentencepiece(pieces: Any, tmp_path: Path):
    ours = of_pieces(tmp_path / "model.gguf", pieces)

    @settings(max_examples=60, deadline=None)
    @given(st.text(alphabet="aehlotw .,'\n😀éß日<>", max_size=30))
    def check(text: str) -> None:
        assert ours.encode_plain(text) == pieces.encode(text), text
        assert ours.encode(text) == [1, *pieces.encode(text)]
        assert ours.decode(ours.encode(text)) == text

    check()
    for text in TEXTS:
        assert ours.encode_plain(text) == pieces.encode(text), text
    reversed_scores = of_pieces(tmp_path / "wrong.gguf", pieces, sign=-1.0)
    assert any(reversed_scores.encode_plain(text) != pieces.encode(text) for text in TEXTS)
    bare = of_pieces(tmp_path / "bare.gguf", pieces, add_space_prefix=False, add_bos_token=False)
    assert bare.encode("hello") == ours.encode_plain(" hello")[1:] or bare.decode(bare.encode("hello")) == "hello"


def test_gemma_spells_runs_of_blanks(pieces: Any, tmp_path: Path):
    """And orders merges by token: transformers' reader of such files, which knows both, is the oracle."""
    count = pieces.get_piece_size()
    tokens = [pieces.id_to_piece(i) for i in range(count)]
    kinds = [2 if i == 0 else 3 if i < 3 else 6 if pieces.is_byte(i) else 1 for i in range(count)]
    tokens[3:3], kinds[3:3] = ["  ", "   ", "    "], [4, 4, 4]
    said: dict[str, Any] = {"model": "llama", "scores": [0.0] * len(tokens), "add_space_prefix": False}
    said |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    write(tmp_path / "model.gguf", tokens, kinds, "gemma2", **said)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert ours is not None
    for text in [*TEXTS, "if x:\n    y\n      z", "   a  b"]:
        assert ours.encode_plain(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text
    assert 3 in ours.encode_plain("a  b")


def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre is 'other', expected one of gpt-2"):
        Tokenizer.load(byte_level(tmp_path / "pre.gguf", "other"))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model is 't5', expected one of gpt2, llama"):
        Tokenizer.load(byte_level(tmp_path / "model.gguf", model="t5"))
    for name, keys in {"ends": {"eos_token_id": 10**6}, "merges": {"merges": [1, 2]}, "kinds": {"scores": 3}}.items():
        with pytest.raises(ValueError, match="contradicts itself"):
            Tokenizer.load(byte_level(tmp_path / f"{name}.gguf", **keys))
    with pytest.raises(ValueError, match="1 entries for 401 tokens"):
        Tokenizer.load(byte_level(tmp_path / "scores.gguf", scores=[1.0]))
    assert Tokenizer.load(byte_level(tmp_path / "none.gguf", model="no_vocab")) is None


def test_a_file_alone_answers_a_chat(tmp_path: Path):
    """Weights, tokenizer, template and end tokens out of one file."""
    path = tmp_path / "model.gguf"
    byte_level(path)
    source = gguf.GGUFReader(str(path))
    writer = gguf.GGUFWriter(str(tmp_path / "whole.gguf"), "llama")
    for key, each in source.fields.items():
        if key.startswith("tokenizer."):
            kind = each.types[0]
            writer.add_key_value(
                key, each.contents(), kind, each.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    size = len(source.fields["tokenizer.ggml.tokens"].data)
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 32), (writer.add_head_count, 2), (writer.add_layer_norm_rms_eps, 1e-5),
    ):  # fmt: skip
        add(value)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (size, 32), "output": (size, 32)} | {
        f"blk.0.{name}": (32, 32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.2, shape).astype(np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    llm = LLM(str(tmp_path / "whole.gguf"))
    (answer,) = llm.chat([{"role": "user", "content": "hello"}])
    assert answer.error is None and llm.intake.eos_ids == {1}
