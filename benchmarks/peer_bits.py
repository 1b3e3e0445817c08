"""llama.cpp's bits on given token ids, for a Llama checkpoint of bf16 in formats that it quantizes to itself.

A program of its own, so that it can run in another interpreter: needs gguf, llama-cpp-python and torch.

    python benchmarks/peer_bits.py JOB.json

JOB.json: {"folder": checkpoint, "kinds": ["bf16", "q8_0", "q4_0"], "windows": [[token ids, first scored], ...]}; the
last line on standard output: {"version": ..., "bits": {kind: [bits of each window's scored tokens, ...]}}.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from gguf_llama import write_gguf
from peer_worker import quantize, quiet_llama

THREADS = 2


def bits(path: Path, windows: list[tuple[list[int], int]]) -> list[float]:
    """Return for each window the bits of its tokens from the first scored one on, each given those before it."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = max(len(ids) for ids, _ in windows)
    options.n_threads = options.n_threads_batch = THREADS
    context = llama_cpp.llama_init_from_model(model, options)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    found = []
    for ids, first in windows:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not decode a window")
        pointer = llama_cpp.llama_get_logits(context)
        logits = torch.from_numpy(np.ctypeslib.as_array(pointer, (len(ids), vocabulary)))[first - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[first:]), reduction="sum")
        found.append(float(nats) / math.log(2))
        llama_cpp.llama_batch_free(batch)
    return found


def main(job: dict[str, Any]) -> None:
    """Answer one job."""
    quiet_llama(llama_cpp)
    answer: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "bf16.gguf"
        write_gguf(Path(job["folder"]), plain)
        for kind in job["kinds"]:
            path = plain.with_name(f"{kind}.gguf")
            if path != plain:
                quantize(str(plain), str(path), kind, THREADS)
            answer[kind] = bits(path, job["windows"])
    print(json.dumps({"version": version("llama-cpp-python"), "bits": answer}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
