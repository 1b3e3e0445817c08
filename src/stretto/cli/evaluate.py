"""``stretto eval``: bits per byte of whole documents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from stretto.cli.progress import EverySecond
from stretto.engine.llm import LLM
from stretto.training.corpus import read_documents


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first scored, stop) so that every token but the first is scored once, with stride context / 2."""
    start, scored = 0, 1
    while scored < length:
        stop = min(length, start + context)
        yield start, scored, stop
        scored, start = stop, stop - context // 2


def bits_per_byte(llm: LLM, documents: list[str]) -> float:
    """Return the bits that the model needs per UTF-8 byte of the documents, each begun with BOS."""
    if llm.tokenizer is None:
        raise ValueError(f"{llm.name} has no tokenizer: bits per byte need text")
    nats, size = 0.0, 0
    for document in documents:
        ids = llm.tokenizer.encode(document)
        if llm.tokenizer.bos is not None and ids[:1] != [llm.tokenizer.bos]:
            ids.insert(0, llm.tokenizer.bos)
        size += len(document.encode())
        for start, scored, stop in windows(len(ids), llm.model.context):
            logits = llm.logits(ids[start:stop])[scored - start - 1 : -1]
            target = torch.tensor(ids[scored:stop])
            nats += float(torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum"))
    return nats / math.log(2) / size


def run(model: str, files: list[Path], *, limit: int | None, weights: str, device: str, as_json: bool) -> None:
    """Print bits per byte for each file."""
    llm = LLM(model, weights=weights, device=device, progress=EverySecond())
    results: dict[str, float] = {}
    for path in files:
        results[path.name] = bits_per_byte(llm, read_documents(path)[:limit])
        if not as_json:
            print(f"{path.name:32} {results[path.name]:.3f} bits per byte", flush=True)
    if as_json:
        print(json.dumps({"model": model, "fingerprint": llm.fingerprint, "bits_per_byte": results}))
