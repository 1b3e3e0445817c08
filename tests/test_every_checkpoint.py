"""``stretto eval`` and ``stretto quantize`` on every family and every stored format, as a person calls them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import gguf_files
import packed_files
import pytest
import small_tokenizers
import torch
from test_gguf import KINDS
from test_packed import CASES as PACKED
from test_packed import PLAIN

from stretto.cli.main import main

TEXTS = small_tokenizers.SENTENCES
VOCABULARY = 512
"""Of the checkpoints; the tokenizer has fewer tokens."""
FAMILIES = [case for case in checkpoints.CASES if "-" not in case] + ["deepseek_v2-query"]
LAYOUTS = [
    "awq", "gptq, zeros", "gptq, groups in any order", "gptq, 8 bits, one group", "compressed", "compressed, 8 bits",
    "compressed, bytes",
]  # fmt: skip


@pytest.fixture
def stretto(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs the command line, which must end well, and returns what it wrote."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["stretto", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        return told.out

    return run


@pytest.fixture
def evaluated(stretto: Callable[..., str], tmp_path: Path) -> Callable[..., tuple[float, str]]:
    """Return a function that returns bits per byte and the fingerprint that ``stretto eval`` gives."""
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")

    def run(model: Path, *options: str) -> tuple[float, str]:
        found = json.loads(stretto("eval", model, documents, "--json", *options))
        return found["bits_per_byte"]["documents.jsonl"], found["fingerprint"]

    return run


@torch.inference_mode()
def expected(model: Any, texts: Sequence[str] = TEXTS) -> float:
    """Return bits per byte by transformers' model."""
    nats = 0.0
    for text in texts:
        ids = torch.tensor(small_tokenizers.byte_level().encode(text))
        odds = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        nats -= float(odds[torch.arange(len(ids) - 1), ids[1:]].sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def check(
    place: Path,
    model: Any,
    stretto: Callable[..., str],
    evaluated: Callable[..., Any],
    tolerance: float,
    form: str = "int8x2",
) -> None:
    """Assert that eval measures what transformers' model has, and the same of a quantized folder as when loading."""
    bits, fingerprint = evaluated(place)
    assert bits == pytest.approx(expected(model), rel=tolerance)
    stretto("quantize", place, place.parent / "quantized", "--weights", form)
    found = evaluated(place.parent / "quantized")
    assert found == evaluated(place, "--weights", form) and found[1] != fingerprint
    assert found[0] == pytest.approx(bits, rel=0.1 if form == "int8x2" else 1.0)


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family(case: str, stretto: Any, evaluated: Any, tmp_path: Path):
    model = checkpoints.make(tmp_path / "model", case, vocab_size=VOCABULARY)
    small_tokenizers.save(tmp_path / "model")
    form = ("int8x2", "int4")[FAMILIES.index(case) % 2]
    check(tmp_path / "model", model, stretto, evaluated, 1e-4, form)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gguf(kind: str, stretto: Any, evaluated: Any, tmp_path: Path):
    path = tmp_path / "model.gguf"
    model = gguf_files.write_gguf(
        path, "llama", gguf_files.Kind[kind], speaks=True, vocab_size=VOCABULARY, head_dim=64, **gguf_files.MATRICES
    )
    check(path, model, stretto, evaluated, 0.05 if kind in ("Q4_0", "BF16") else 1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_packed_layout(name: str, stretto: Any, evaluated: Any, tmp_path: Path):
    case, folder = PACKED[name], tmp_path / "packed"
    model = packed_files.write_packed(folder, case.write, case.described, case.dtype, vocab_size=VOCABULARY, **PLAIN)
    small_tokenizers.save(folder)
    check(folder, model, stretto, evaluated, 1e-4 if case.layout is None else 0.05)
