"""Try hostile checkpoints, each in a child process under a memory limit of 1 GB; print what came of it, line by line.

    python refusals.py FOLDER CASE...

The children are forked from this process, which has everything imported: what is measured lies above the bare import.
The limit is RLIMIT_DATA, which counts heap and private writable mappings, touched or not, and so catches an allocation
even where nothing is written to it; address space (RLIMIT_AS) would also count PyTorch's libraries. Needs Linux.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from hostile_cases import CASES, Case, healthy

from stretto.engine.llm import LLM
from stretto.tokens.tokenizer import Tokenizer
from stretto.weights.gguf import GgufFile
from stretto.weights.shard import Shard

LIMIT = 1 << 30
"""Bytes."""
READERS = ((Shard, "read"), (Shard, "sample"), (GgufFile, "_bytes"), (GgufFile, "sample"))
"""What reads bytes of tensors."""
SECONDS = 60.0
"""A generous timeout."""


def nothing(folder: Path) -> None:
    """Leave the checkpoint healthy."""


CONTROLS = {
    "healthy": Case(nothing, "", "load"),
    "healthy chat": Case(nothing, "", "chat"),
    "greedy reader": Case(CASES["config of two gigabytes"].spoil, "", "greedy"),
    "endless reader": Case(nothing, "", "endless"),
}
"""What must load, and what a careless program would do, which must be seen."""


def attempt(does: str, folder: Path) -> None:
    if does == "load":
        LLM(str(folder), threads=1, cache_tokens=64)
    elif does == "chat":
        tokenizer = Tokenizer.load(folder)
        assert tokenizer is not None
        tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    elif does == "greedy":
        (folder / "config.json").read_bytes()
    else:
        signal.alarm(2)
        while True:
            pass


def child(does: str, folder: Path, pipe: int) -> NoReturn:
    """Try it, write what came of it to ``pipe``, and end without going back."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    touched: list[str] = []
    for kind, name in READERS:
        usual = getattr(kind, name)
        setattr(kind, name, lambda *given, usual=usual: touched.append(given[1]) or usual(*given))
    found: dict[str, Any] = {"error": None, "message": ""}
    began, before = time.perf_counter(), peak()
    try:
        attempt(does, folder)
    except BaseException as error:
        known = next((kind.__name__ for kind in (ValueError, FileNotFoundError) if isinstance(error, kind)), None)
        found = {"error": known or type(error).__name__, "message": str(error)[:2000], "length": len(str(error))}
    found |= {"seconds": time.perf_counter() - began, "bytes": peak() - before, "read": len(touched)}
    os.write(pipe, json.dumps(found).encode())
    os._exit(0)


def peak() -> int:
    """Return the largest resident size of this process until now, in bytes; a fork starts with its present size."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Write the checkpoint of ``case`` to ``folder``, try it in a child process, and remove it."""
    healthy(folder)
    case.spoil(folder)
    source, pipe = os.pipe()
    process = os.fork()
    if not process:
        child(case.does, folder, pipe)
    os.close(pipe)
    ready, _, _ = select.select([source], [], [], SECONDS)
    said = os.read(source, 1 << 16) if ready else b""
    os.close(source)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    shutil.rmtree(folder)
    if said:
        return json.loads(said)
    return {
        "error": f"signal {status}" if ready else "timeout",
        "message": "",
        "seconds": SECONDS,
        "bytes": 0,
        "read": 0,
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    known = CASES | CONTROLS
    for name in sys.argv[2:] or known:
        print(json.dumps({"case": name, **run(known[name], place / "model")}), flush=True)
