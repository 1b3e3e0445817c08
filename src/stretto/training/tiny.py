"""The recipe of ``stretto-tiny``: a Llama of 5.8 M weights on four small corpora, two hours on two cores.

``train_tiny`` resumes from its last checkpoint, also after ``kill -9``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from stretto.training.batches import Batches, Documents, Schedule
from stretto.training.bpe import BEGIN, END, SPECIAL, save_tokenizer, train_tokenizer
from stretto.training.corpus import document_hash, load_training_documents
from stretto.training.llama import Llama, LlamaShape, save_model
from stretto.training.loop import train
from stretto.weights.files import write_whole


def prepare(data: Path, out: Path, shape: LlamaShape) -> Documents:
    """Train the tokenizer and encode the corpora, each document BOS ... EOS, once: later calls read the files."""
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "tokens.npz"
    if not cache.exists():
        documents = [text for texts in load_training_documents(data).values() for text in texts]
        tokenizer = train_tokenizer(documents, shape.vocab_size)
        save_tokenizer(tokenizer, out, shape.max_position_embeddings)
        hashes = sorted(map(document_hash, documents))
        write_whole(out / "train_documents.txt", "\n".join(hashes) + "\n")
        Documents.of([*e.ids, SPECIAL.index(END)] for e in tokenizer.encode_batch(documents)).save(cache)
    return Documents.load(cache)


def train_tiny(
    data: Path,
    out: Path,
    schedule: Schedule | None = None,
    shape: LlamaShape | None = None,
    *,
    seed: int = 0,
    compiled: bool = False,
    save_every: int = 100,
    report_every: int = 20,
    report: Callable[[str], None] = print,
) -> None:
    """Train and write ``model.safetensors``, ``config.json``, the tokenizer and document hashes into ``out``.

    ``compiled`` uses ``torch.compile`` (needs a C++ compiler; a quarter faster).
    """
    schedule = schedule or Schedule()
    shape = shape or LlamaShape(hidden_size=256, intermediate_size=768, num_attention_heads=4)
    documents = prepare(data, out, shape)
    batches = Batches(documents, schedule, shape.max_position_embeddings, seed)
    torch.manual_seed(seed)
    model = Llama(shape)
    report(
        f"{model.size() / 1e6:.2f} M weights, {len(documents.tokens) / 1e6:.2f} M tokens an epoch, "
        f"{schedule.steps} steps"
    )
    loss_of = torch.compile(model.loss) if compiled else model.loss
    train(
        model,
        loss_of,
        batches,
        schedule,
        out / "checkpoint.pt",
        save_every=save_every,
        report_every=report_every,
        report=report,
    )
    save_model(model, out, SPECIAL.index(BEGIN), SPECIAL.index(END))
