"""What passes cost beside the memory's speed, the processor's peak, and other engines on the same weights.

    python benchmarks/kernels.py [--json OUT] [--quick] [--only SECTION ...] [--peer-python PATH] [--models DIR]

Random weights of a published shape. Each figure is the median over pairs timed in alternation, between streaming reads;
a row's pass is a whole step of the engine. Other engines run in a process of ``--peer-python``; those that are not
installed there are "not run". Run it on a machine that does nothing else; the load at the start is part of the record.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from alternate import Pairs, Timed, alternate, busy, streaming_read
from checkpoints import SHAPES, random_checkpoint
from floors import judge, markdown
from limits import Work, work
from ours import PROMPT, Stretto
from peers import Loaded, Peers
from report import environment, save

from stretto.kernels import native
from stretto.weights.resolve import resolve

SECTIONS = ("rows", "prompt", "attention", "python", "busy", "openvino", "small")
FORMATS = ("int8", "int4", "bf16")
ROWS = (1, 2, 4, 8, 16, 32)
CONTEXT, LONG, SHORT = 512, 8000, 64
"""Positions behind which rows are timed; attention is what ``LONG`` costs more than ``SHORT``."""

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What the sections share."""

    peers: Peers
    peaks: dict[str, float]
    """Operations/s of register-only loops, by kind of product instruction."""
    sections: Sequence[str]
    threads: int
    pairs: int
    prompts: int
    """Pairs of prompts, which take seconds each."""

    def cell(self, section: str, ours: Stretto, rows: int, peer: str, pairs: Pairs, need: Work | None) -> Cell:
        """Return a measured cell: times, ratio, and how near ``need``'s limit the first of each pair came."""
        ratio = pairs.ratio()
        found: Cell = {
            "section": section, "weights": ours.weights, "rows": rows, "peer": peer,
            "ms": 1e3 * median(pairs.first), "second_ms": 1e3 * median(pairs.second) if pairs.second else None,
            "ratio": ratio, "of_read": None, "to_limit": None, "limit": None, "samples": pairs.record(),
        }  # fmt: skip
        found["read_gb_s"] = found["samples"]["read_gb_s"]
        if need is not None:
            timed = list(zip(pairs.first, pairs.reads, strict=True))
            limits = [need.seconds(read, self.peaks) for _, read in timed]
            found["of_read"] = median(need.bytes / seconds / read for seconds, read in timed)
            found["to_limit"] = median(t / limit for (t, _), (limit, _) in zip(timed, limits, strict=True))
            found["limit"] = limits[len(limits) // 2][1]
        return found


def measure_format(run: Run, checkpoint: Path, weights: str) -> Iterator[Cell]:
    """Measure everything about one checkpoint in one weights format: ours, and its counterparts elsewhere."""
    ours = Stretto(checkpoint, weights, run.threads)
    print(f"\n{checkpoint.name}, {weights}: loaded in {ours.load_seconds:.1f} s", flush=True)
    peer = run.peers.open("llama.cpp", checkpoint, weights, 2 * CONTEXT)
    if "rows" in run.sections:
        yield from measure_rows(run, ours, peer, ROWS)
        yield measure_eight(run, ours)
    if "prompt" in run.sections:
        yield measure_prompt(run, ours, peer, "llama.cpp")
    if weights == "int8":
        if "busy" in run.sections:
            yield from measure_busy(run, ours, peer)
        if "attention" in run.sections:
            yield from (measure_attention(run, ours, rows) for rows in (1, 8))
        if "python" in run.sections:
            yield measure_python(ours)
        if "prompt" in run.sections:
            peer = run.peers.open("transformers", checkpoint, weights, 2 * CONTEXT)
            yield measure_prompt(run, ours, peer, "transformers")
    if "openvino" in run.sections:
        peer = run.peers.open("openvino", checkpoint, weights, 2 * CONTEXT)
        if peer is not None:
            yield from (cell | {"peer": "openvino"} for cell in measure_rows(run, ours, peer, (1,)))
            yield measure_prompt(run, ours, peer, "openvino")


def measure_rows(
    run: Run, ours: Stretto, peer: Loaded | None, counts: Sequence[int], repeats: int = 1
) -> Iterator[Cell]:
    """Time passes of 1 to 32 rows behind 512 positions: one request decoding, or verifying what was drafted for it."""
    for rows in counts:

        def first(rows: int = rows) -> float:
            return ours.rows(rows, CONTEXT, repeats)

        def second(rows: int = rows) -> float:
            assert peer is not None
            return peer.rows(rows, CONTEXT, repeats)

        pairs = alternate(first, second if peer else None, run.pairs)
        need = work(ours.llm.model, ours.weights, rows, CONTEXT, rows)
        yield run.cell("rows", ours, rows, "llama.cpp", pairs, need)


def measure_eight(run: Run, ours: Stretto) -> Cell:
    """Time passes of 8 rows beside passes of 1."""
    pairs = alternate(lambda: ours.rows(1, CONTEXT), lambda: ours.rows(8, CONTEXT), run.pairs)
    need = work(ours.llm.model, ours.weights, 8, CONTEXT, 8)
    cell = run.cell("eight to one", ours, 8, "", pairs, None)
    limits = [need.seconds(read, run.peaks) for read in pairs.reads]
    cell["to_limit"] = median(t / limit for t, (limit, _) in zip(pairs.second, limits, strict=True))
    cell["limit"] = limits[len(limits) // 2][1]
    cell["arithmetic_ms"] = 1e3 * need.computing(run.peaks) / 0.60
    return cell


def measure_prompt(run: Run, ours: Stretto, peer: Loaded | None, engine: str) -> Cell:
    """Time a prompt of 512 in one slice."""
    pairs = alternate(ours.prompt, (lambda: peer.prompt(PROMPT)) if peer else None, run.prompts)
    need = work(ours.llm.model, ours.weights, PROMPT, 0, 1)
    return run.cell("prompt", ours, PROMPT, engine, pairs, need)


def measure_attention(run: Run, ours: Stretto, rows: int) -> Cell:
    """Time passes behind 8,000 and behind 64 positions; what lies between is attention."""
    pairs = alternate(lambda: ours.rows(rows, LONG), lambda: ours.rows(rows, SHORT), run.pairs)
    model = ours.llm.model
    need = work(model, ours.weights, rows, LONG, rows).minus(work(model, ours.weights, rows, SHORT, rows))
    long, short = median(pairs.first), median(pairs.second)
    pairs.first = [max(a - b, 1e-9) for a, b in zip(pairs.first, pairs.second, strict=True)]
    pairs.second = []
    cell = run.cell("attention", ours, rows, "", pairs, need)
    return cell | {
        "pass_ms": 1e3 * long, "short_ms": 1e3 * short,
        "of_peak": median(need.computing(run.peaks) / seconds for seconds in pairs.first),
    }  # fmt: skip


def measure_python(ours: Stretto) -> Cell:
    """Measure the share of a one-row step outside native calls."""
    share = ours.outside(CONTEXT, 50)
    return {"section": "python", "weights": ours.weights, "rows": 1, "peer": "", "share": share}


def measure_busy(run: Run, ours: Stretto, peer: Loaded | None) -> Iterator[Cell]:
    """Time one row beside a busy process per core: against its quiet time, and against llama.cpp's under that load."""

    def loaded(timed: Timed) -> Timed:
        def under_load() -> float:
            with busy(os.cpu_count() or 1):
                return timed()

        return under_load

    def quiet() -> float:
        return ours.rows(1, CONTEXT, 5)

    yield run.cell("busy", ours, 1, "", alternate(quiet, loaded(quiet), run.pairs), None)
    second = loaded(lambda: peer.rows(1, CONTEXT, 5)) if peer else None
    yield run.cell("busy", ours, 1, "llama.cpp", alternate(loaded(quiet), second, run.pairs), None)


def measure_small(run: Run, checkpoint: Path, formats: Sequence[str]) -> Iterator[Cell]:
    """Measure a model that is mostly overhead and arithmetic; it has no floors. Its cells carry its name."""
    for weights in formats:
        ours = Stretto(checkpoint, weights, run.threads)
        for engine in ("llama.cpp", "transformers") if weights == "bf16" else ("llama.cpp",):
            peer = run.peers.open(engine, checkpoint, weights, 2 * CONTEXT)
            section = f"{checkpoint.name} rows"
            for cell in measure_rows(run, ours, peer, (1, 8, 32), repeats=9):
                yield cell | {"section": section, "peer": engine}
            yield measure_prompt(run, ours, peer, engine) | {"section": f"{checkpoint.name} prompt"}


def measure(run: Run, shape: str, formats: Sequence[str], models: Path) -> Iterator[Cell]:
    """Measure everything that was asked for, cell after cell."""
    if set(run.sections) - {"small"}:
        checkpoint = random_checkpoint(shape, models)
        for weights in formats:
            yield from measure_format(run, checkpoint, weights)
    tiny = resolve("stretto-tiny")
    if "python" in run.sections:
        yield measure_python(Stretto(tiny, "auto", run.threads))
    if "small" in run.sections:
        for checkpoint in (random_checkpoint("135m", models), tiny):
            yield from measure_small(run, checkpoint, formats)


def brief(cell: Cell) -> str:
    """Return a line that says what has just been measured."""
    named = " ".join(str(cell[name]) for name in ("section", "weights", "rows", "peer"))
    values = {name: cell[name] for name in ("ms", "second_ms", "ratio", "share") if cell.get(name) is not None}
    return f"{named}: {', '.join(f'{name} {value:.3g}' for name, value in values.items())}"


def show(cells: Sequence[Cell]) -> None:
    """Print what was measured, section by section."""
    shown = ("weights", "rows", "peer", "ms", "second_ms", "ratio", "of_read", "to_limit", "limit", "read_gb_s")
    for section in dict.fromkeys(cell["section"] for cell in cells):
        rows = [cell for cell in cells if cell["section"] == section]
        names = [name for name in shown if name in rows[0]]
        extra = [name for name in ("share", "arithmetic_ms", "pass_ms", "short_ms", "of_peak") if name in rows[0]]
        print(f"\n### {section}\n")
        print(markdown([{name: row[name] for name in (*names, *extra)} for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything to this file")
    parser.add_argument("--quick", action="store_true", help="5 pairs, 2 of prompts; no small models, no OpenVINO")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, metavar="SECTION", help=str(SECTIONS))
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="that has the other engines")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where models are written once and kept")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b", help="the floors are stated for 1b")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="FORMAT", help=str(FORMATS))
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        report(asked, asked.models or Path(fresh))


def report(asked: argparse.Namespace, models: Path) -> None:
    """Measure what was asked for, print it, judge it, write it."""
    begun = perf_counter()
    torch.set_num_threads(asked.threads)
    native.set_threads(asked.threads)
    with Peers(asked.peer_python, models, asked.threads) as peers:
        peaks = {kind: native.peak(kind) for kind in ("int8", "bf16", "fp32")}
        left_out = ("openvino", "small") if asked.quick else ()
        sections = [section for section in asked.only if section not in left_out]
        run = Run(peers, peaks, sections, asked.threads, 5 if asked.quick else 15, 2 if asked.quick else 15)
        facts: dict[str, Any] = environment() | {
            "quick": asked.quick, "shape": asked.shape,
            "peak_gop_s": {kind: peak / 1e9 for kind, peak in peaks.items()},
            "read_gb_s": streaming_read() / 1e9, "peers": peers.versions,
        }  # fmt: skip
        print("\n".join(f"{name}: {value}" for name, value in facts.items()))
        cells: list[Cell] = []
        for cell in measure(run, asked.shape, asked.formats, models):
            cells.append(cell)
            print(brief(cell), flush=True)
    reads = [cell["read_gb_s"] for cell in cells if "read_gb_s" in cell]
    facts |= {"peer_flags": peers.flags, "not_run": peers.absent, "seconds": perf_counter() - begun}
    facts["reads_gb_s"] = [min(reads), max(reads)] if reads else None
    floors = judge(cells)
    print()
    show(cells)
    print(f"\n### floors (stated for shape 1b; this is {asked.shape})\n\n{markdown(floors)}\n")
    for name in ("not_run", "reads_gb_s", "seconds"):
        print(f"{name}: {facts[name]}")
    if asked.json:
        save(asked.json, "kernels", facts | {"floors": floors}, cells)
        print(f"written to {asked.json}")


if __name__ == "__main__":
    main()
