"""Other engines behind one small protocol: a line of JSON in, a line of JSON out. ``peers.py`` starts it.

Runs in a Python of its own that has any of llama-cpp-python with gguf, transformers with torch, openvino-genai with
optimum-intel, and imports nothing of Stretto. Each engine is asked for passes as bare as it offers them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

from openvino_peer import OpenVino, export

PACKAGES = {
    "llama.cpp": ("llama_cpp_python", "gguf"), "transformers": ("transformers", "torch"),
    "openvino": ("openvino-genai", "openvino", "optimum-intel"),
}  # fmt: skip


class Peer(Protocol):
    """One model in one engine."""

    flags: dict[str, Any]
    """How it was opened, and what the engine says of itself."""

    def rows(self, rows: int, context: int) -> Callable[[], float]:
        """Return what times one pass over ``rows`` new rows behind ``context`` positions, logits at each."""

    def prompt(self, tokens: int) -> float:
        """Return the seconds of a new prompt up to the logits behind its last token."""


class LlamaCpp:
    """llama.cpp on the CPU through its C interface."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import llama_cpp

        self._c = llama_cpp
        quiet_llama(llama_cpp)
        model_options = llama_cpp.llama_model_default_params()
        model_options.n_gpu_layers = 0
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = context, 2048, 512, 1
        options.n_threads = options.n_threads_batch = threads
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_options)
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._filled = 0
        self._random = random.Random(0)
        self.flags = {
            "threads": threads, "n_ctx": context, "n_batch": 2048, "n_ubatch": 512,
            "flash_attn_type": options.flash_attn_type, "use_extra_bufts": model_options.use_extra_bufts,
            "cache": "f16", "build": llama_cpp.llama_print_system_info().decode().strip(),
        }  # fmt: skip

    def rows(self, rows: int, context: int) -> Callable[[], float]:
        """See ``Peer``; the new rows are taken out of the cache again."""
        if self._filled > context:
            self._cut(context)
        while self._filled < context:
            self._decode(min(512, context - self._filled), every=False)

        def run() -> float:
            self._cut(context)
            return self._decode(rows, every=True)

        return run

    def prompt(self, tokens: int) -> float:
        """See ``Peer``."""
        self._c.llama_memory_clear(self._memory, True)
        self._filled = 0
        return self._decode(tokens, every=False)

    def _cut(self, filled: int) -> None:
        self._c.llama_memory_seq_rm(self._memory, 0, filled, -1)
        self._filled = filled

    def _decode(self, rows: int, every: bool) -> float:
        batch = self._batch
        batch.n_tokens = rows
        for row in range(rows):
            batch.token[row] = self._random.randrange(2, self._vocabulary)
            batch.pos[row] = self._filled + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = every or row == rows - 1
        begun = perf_counter()
        code = self._c.llama_decode(self._context, batch)
        self._c.llama_get_logits(self._context)
        seconds = perf_counter() - begun
        if code:
            raise RuntimeError(f"llama_decode of {rows} rows behind {self._filled} returned {code}")
        self._filled += rows
        return seconds

    def close(self) -> None:
        """Give the memory back."""
        self._c.llama_batch_free(self._batch)
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)


class Transformers:
    """transformers in bfloat16 with PyTorch's own attention, the cache cut back between passes."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch, self._cache_type = torch, DynamicCache
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._model = model.eval()
        self._cache = DynamicCache()
        capability = torch.backends.cpu.get_cpu_capability()
        self.flags = {"threads": threads, "dtype": "bfloat16", "attention": "sdpa", "instruction_set": capability}

    def rows(self, rows: int, context: int) -> Callable[[], float]:
        """See ``Peer``."""
        length = self._cache.get_seq_length()
        if length < context:
            self._pass(context - length, last=True)

        def run() -> float:
            extra = self._cache.get_seq_length() - context
            if extra:
                self._cache.crop(-extra)
            return self._pass(rows, last=False)

        return run

    def prompt(self, tokens: int) -> float:
        """See ``Peer``."""
        self._cache = self._cache_type()
        return self._pass(tokens, last=True)

    def _pass(self, rows: int, last: bool) -> float:
        with self._torch.inference_mode():
            ids = self._torch.randint(2, self._model.config.vocab_size, (1, rows))
            begun = perf_counter()
            self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=int(last))
            return perf_counter() - begun

    def close(self) -> None:
        """Give the memory back."""
        del self._model, self._cache


_HELD: list[Any] = []
"""What llama.cpp calls and Python must not collect."""


def quiet_llama(llama_cpp: Any) -> None:
    """Keep llama.cpp's log to itself."""
    _HELD.append(llama_cpp.llama_log_callback(lambda *_: None))
    llama_cpp.llama_log_set(_HELD[-1], ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def quantize(source: str, target: str, kind: str, threads: int) -> None:
    """Write a bf16 GGUF anew in one of llama.cpp's formats: ``q8_0``, ``q4_0``."""
    import llama_cpp

    quiet_llama(llama_cpp)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"), threads
    unfinished = f"{target}.part"
    if llama_cpp.llama_model_quantize(source.encode(), unfinished.encode(), ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp cannot quantize {source} to {kind}")
    os.replace(unfinished, target)


def convert(source: str, target: str) -> None:
    """Write a bf16 checkpoint folder as bf16 GGUF."""
    from gguf_llama import write_gguf

    write_gguf(Path(source), Path(target))


ENGINES: dict[str, Callable[[str, int, int], Any]] = {
    "llama.cpp": LlamaCpp, "transformers": Transformers, "openvino": OpenVino,
}  # fmt: skip


class Worker:
    """Answers commands; holds at most one model."""

    def __init__(self) -> None:
        self._peer: Any = None

    def versions(self) -> dict[str, dict[str, str] | str]:
        """Return for each engine the versions of its packages, or the reason why it is not here."""
        found: dict[str, dict[str, str] | str] = {}
        for engine, packages in PACKAGES.items():
            try:
                found[engine] = {package: version(package) for package in packages}
            except PackageNotFoundError as missing:
                found[engine] = f"{missing.name} is not installed"
        return found

    def open(self, engine: str, path: str, threads: int, context: int) -> dict[str, Any]:
        """Load a model in place of the one before; return its flags."""
        self.close()
        self._peer = ENGINES[engine](path, threads, context)
        return dict(self._peer.flags)

    def rows(self, rows: int, context: int, repeats: int) -> float:
        """Return the median seconds of ``repeats`` passes, behind a pass over one row that warms up."""
        self._peer.rows(1, context)()
        run = self._peer.rows(rows, context)
        return median(run() for _ in range(repeats))

    def prompt(self, tokens: int) -> float:
        """Return the seconds of a prompt."""
        return float(self._peer.prompt(tokens))

    def close(self) -> None:
        """Give the model's memory back."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an engine prints must not look like an answer
    worker = Worker()
    commands = {
        "versions": worker.versions, "open": worker.open, "rows": worker.rows, "prompt": worker.prompt,
        "close": worker.close, "convert": convert, "quantize": quantize, "export": export,
    }  # fmt: skip
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"result": commands[command.pop("do")](**command)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
