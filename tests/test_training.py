"""The training recipe: resumes behind a kill with the same losses, never sees held-out documents; and ``eval``."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stretto.cli.evaluate import bits_per_byte, windows
from stretto.engine.llm import LLM
from stretto.training.corpus import document_hash, read_documents
from stretto.training.llama import LlamaShape
from stretto.training.tiny import Schedule, load_training_documents, train_tiny
from stretto.weights.resolve import resolve

SCHEDULE = Schedule(steps=24, rows=256, window=32, warmup=3)
SHAPE = LlamaShape(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder, words = (
        tmp_path_factory.mktemp("corpus"),
        ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "fox"],
    )
    source = random.Random(0)
    for split, count in (("train", 60), ("valid", 5), ("test", 5)):
        lines = [{"text": " ".join(source.choices(words, k=120))} for _ in range(count)]
        if split == "train":
            lines.append(lines[0])
        (folder / f"toy.{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(corpus: Path, out: Path) -> list[str]:
    lines: list[str] = []
    train_tiny(corpus, out, SCHEDULE, SHAPE, save_every=5, report_every=1, report=lines.append)
    return [line.rsplit(" minutes", 1)[0] for line in lines if line.startswith("step")]


def test_a_killed_run_resumes_with_the_same_losses(corpus, tmp_path):
    straight = train(corpus, tmp_path / "straight")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; import test_training as t\n"
        "def report(line):\n"
        f"    if line.startswith('step 13 '): os.kill(os.getpid(), {int(getattr(signal, 'SIGKILL', signal.SIGTERM))})\n"
        "t.train_tiny(Path(sys.argv[1]), Path(sys.argv[2]), t.SCHEDULE, t.SHAPE, save_every=5, report_every=1, "
        "report=report)"
    )
    killed = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", code, str(corpus), str(killed), str(Path(__file__).parent)], timeout=120
    )
    assert done.returncode != 0 and not (killed / "model.safetensors").exists()
    assert train(corpus, killed) == straight[10:]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    losses = [float(line.split()[-1]) for line in straight]
    assert losses[-1] < losses[0] - 1


def test_what_was_trained_loads_and_is_measured(corpus, tmp_path):
    train(corpus, tmp_path)
    llm = LLM(str(tmp_path), dtype="fp32", weights="fp32", cache_tokens=256)
    documents = read_documents(corpus / "toy.test.jsonl")
    found = bits_per_byte(llm, documents)
    nats, size = 0.0, 0
    for text in documents:
        ids = llm.tokenizer.encode(text)
        assert len(ids) > 64, "the document must be longer than the context"
        scored: set[int] = set()
        for start, first, stop in windows(len(ids), 64):
            logprobs = torch.log_softmax(llm.logits(ids[start:stop]).double(), -1)
            assert first - start in (1, 32) or start == 0
            for place in range(first, stop):
                nats -= logprobs[place - start - 1, ids[place]].item()
                scored.add(place)
        assert scored == set(range(1, len(ids)))
        size += len(text.encode())
    assert found == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert 0.2 < found < 3.0


def test_held_out_documents_are_left_out(corpus, tmp_path):
    for path in corpus.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    leaked = read_documents(corpus / "toy.test.jsonl")[0]
    with (tmp_path / "toy.train.jsonl").open("a") as lines:
        lines.write(json.dumps({"text": leaked}) + "\n")
    assert leaked not in load_training_documents(tmp_path)["toy"]


def test_the_embedded_model_never_saw_held_out_documents():
    trained = set((resolve("stretto-tiny") / "train_documents.txt").read_text().split())
    held_out = set((Path(__file__).parent / "data" / "held_out_documents.txt").read_text().split())
    assert len(trained) > 10_000 and len(held_out) > 1_000
    assert all(len(name) == len(document_hash("x")) for name in trained | held_out)
    assert not trained & held_out


def test_the_embedded_model_has_a_card():
    card = (resolve("stretto-tiny") / "README.md").read_text()
    assert all(word in card for word in ("Gutenberg", "GSM8K", "CPython", "GPTeacher", "MIT", "PSF", "5.77 M", "1.37"))
