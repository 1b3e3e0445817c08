"""What each weights format costs in quality: bits per byte, on the plain model and on its outlier twin.

    python benchmarks/quality.py CORPUS_FOLDER [--split test] [--kilobytes 200] [--peer-python PYTHON] [--json OUT]

CORPUS_FOLDER holds <corpus>.<split>.jsonl[.xz]. Peers are llama.cpp's formats of the same weights, on the same token
ids; they run in the interpreter --peer-python, which has gguf, llama-cpp-python and torch ("not run" if it has not).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from report import environment, save

from stretto.cli.evaluate import windows
from stretto.engine.llm import LLM
from stretto.training.corpus import read_documents
from stretto.weights.formats import FORMATS
from stretto.weights.resolve import resolve
from stretto.weights.twin import write_twin

OURS = ["bf16", "int8", "int8x2", "int4", "int8-fast", "int8-unfolded"]
PEERS = ["bf16", "q8_0", "q4_0"]
CORPORA = ["stories", "math", "code", "chat"]
FLOORS = {
    ("plain", "int8"): 0.1,
    ("plain", "int8x2"): 0.02,
    ("plain", "int4"): 1.5,
    ("twin", "int8"): 0.5,
    ("twin", "int8x2"): 0.05,
}
"""Percent above bf16 at most. Beside these: int4 on the twin no worse than Q4_0, and int8-fast there beyond 0.5."""

Window = tuple[list[int], int]
"""Token ids, and the place of the first that is scored."""


def read_windows(llm: LLM, path: Path, size: int) -> tuple[list[Window], int]:
    """Return the windows of the first documents of ``path``, about ``size`` bytes, and their bytes."""
    assert llm.tokenizer is not None
    found: list[Window] = []
    seen = 0
    for document in read_documents(path):
        if seen >= size:
            break
        ids = llm.tokenizer.encode(document)
        if llm.tokenizer.bos is not None and ids[:1] != [llm.tokenizer.bos]:
            ids.insert(0, llm.tokenizer.bos)
        found += [(ids[start:stop], scored - start) for start, scored, stop in windows(len(ids), llm.model.context)]
        seen += len(document.encode())
    return found, seen


def our_bits(llm: LLM, given: Iterable[Window]) -> float:
    """Return the bits of the scored tokens of all windows."""
    nats = 0.0
    for ids, first in given:
        logits = llm.logits(ids)[first - 1 : -1].double()
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:]), reduction="sum"))
    return nats / math.log(2)


def peer_bits(python: str, folder: Path, texts: dict[str, list[Window]]) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the peer's version, and the bits of each corpus by kind; nothing but the reason where it does not run."""
    job = {"folder": str(folder), "kinds": PEERS, "windows": [window for each in texts.values() for window in each]}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [python, str(Path(__file__).with_name("peer_bits.py")), str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            return f"not run: {words[-1]}", {}
    answer = json.loads(done.stdout.splitlines()[-1])
    found: dict[str, dict[str, float]] = {}
    for kind, bits in answer["bits"].items():
        rest = iter(bits)
        found[f"llama.cpp {kind}"] = {corpus: sum(next(rest) for _ in each) for corpus, each in texts.items()}
    return f"llama-cpp-python {answer['version']}", found


def rows(model: str, bits: dict[str, dict[str, float]], sizes: dict[str, int], base: str) -> list[dict[str, Any]]:
    """Return a row per format: bits per byte of each corpus and their mean, and percent above the format ``base``."""
    found = []
    for name, each in bits.items():
        per_byte = {corpus: each[corpus] / size for corpus, size in sizes.items()}
        mean = sum(per_byte.values()) / len(per_byte)
        plain = sum(bits[base][corpus] / size for corpus, size in sizes.items()) / len(sizes)
        above = 100 * (mean / plain - 1)
        found.append({"model": model, "format": name, **per_byte, "mean": mean, "percent": above})
    return found


def verdicts(results: list[dict[str, Any]]) -> list[str]:
    """Return a line on each floor."""
    above = {(row["model"], row["format"]): row["percent"] for row in results}
    lines = [
        f"{'holds' if above[key] <= most else 'FAILS'}: {key[1]} on {key[0]} {above[key]:+.3f} %, at most {most} %"
        for key, most in FLOORS.items()
    ]
    fast = above["twin", "int8-fast"]
    lines.append(f"{'holds' if fast > 0.5 else 'FAILS'}: int8-fast on twin {fast:+.3f} %, beyond 0.5 %")
    peer = above.get(("twin", "llama.cpp q4_0"))
    if peer is not None:
        mine = above["twin", "int4"]
        lines.append(
            f"{'holds' if mine <= peer else 'FAILS'}: int4 on twin {mine:+.3f} %, the peer's q4_0 {peer:+.3f} %"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--model", default="stretto-tiny", help="a Llama with a tokenizer")
    parser.add_argument("--split", default="test")
    parser.add_argument("--kilobytes", type=int, default=200, help="of each corpus")
    parser.add_argument("--dtype", default="auto", help="precision of activations: auto, fp32, bf16")
    parser.add_argument("--formats", default=",".join(OURS))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    FORMATS["int8-unfolded"] = replace(FORMATS["int8"], name="int8-unfolded", folds=False)
    facts = environment() | {"split": options.split, "kilobytes": options.kilobytes, "dtype": options.dtype}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        plain, twin = resolve(options.model), Path(place) / "twin"
        write_twin(plain, twin)
        texts: dict[str, list[Window]] = {}
        sizes: dict[str, int] = {}
        for model, folder in {"plain": plain, "twin": twin}.items():
            bits: dict[str, dict[str, float]] = {}
            for name in options.formats.split(","):
                llm = LLM(str(folder), weights=name, dtype=options.dtype, cache_tokens=2048)
                for corpus in CORPORA if not texts or len(texts) < len(CORPORA) else ():
                    path = next(options.corpora.glob(f"{corpus}.{options.split}.jsonl*"))
                    texts[corpus], sizes[corpus] = read_windows(llm, path, options.kilobytes << 10)
                bits[name] = {corpus: our_bits(llm, each) for corpus, each in texts.items()}
                show(rows(model, bits, sizes, "bf16")[-1])
            results += rows(model, bits, sizes, "bf16")
            facts[f"peer ({model})"], theirs = peer_bits(options.peer_python, folder, texts)
            print(facts[f"peer ({model})"])
            for row in rows(model, theirs, sizes, "llama.cpp bf16") if theirs else ():
                results.append(row)
                show(row)
    if set(OURS) <= set(options.formats.split(",")):
        print("\n".join(verdicts(results)))
    if options.json:
        save(options.json, "quality", facts, results)


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    each = "  ".join(f"{corpus} {row[corpus]:.4f}" for corpus in CORPORA)
    print(f"{row['model']:6} {row['format']:14} {each}  mean {row['mean']:.4f}  {row['percent']:+.3f} %", flush=True)


if __name__ == "__main__":
    main()
