"""Timing two things in alternation, each between streaming reads that say which mode the memory was in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from stretto.kernels import native

READ_BYTES = 256 << 20
"""Of a streaming read: far more than the caches hold, and still short beside a pass."""
STEADY = 1.10
"""The reads around a pair may differ by this factor; else the memory changed its mode and the pair is repeated."""
TRIES = 4
"""How often one pair is tried before it is taken as it is."""

Timed = Callable[[], float]
"""Does one thing and returns its seconds."""


@dataclass(slots=True)
class Pairs:
    """Seconds of two things in alternation (of one alone where there is no second), and the reads around them."""

    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    """By pair: bytes/s of the streaming reads before and behind the first."""
    repeated: int = 0
    unsteady: int = 0
    """Pairs that were taken although the memory kept changing its mode."""

    def ratio(self) -> float | None:
        """Return the median over pairs of second / first, None without a second."""
        return median(b / a for a, b in zip(self.first, self.second, strict=True)) if self.second else None

    def record(self) -> dict[str, Any]:
        """Return the samples as plain data: milliseconds and GB/s."""
        return {
            "pairs": len(self.first), "repeated": self.repeated, "unsteady": self.unsteady,
            "read_gb_s": median(self.reads) / 1e9, "reads_gb_s": [read / 1e9 for read in self.reads],
            "first_ms": [1e3 * t for t in self.first], "second_ms": [1e3 * t for t in self.second],
        }  # fmt: skip


def streaming_read() -> float:
    """Return the bytes/s of one streaming read by all threads."""
    return float(native.streaming_read(READ_BYTES, 2)) * 1e9


def alternate(first: Timed, second: Timed | None, pairs: int) -> Pairs:
    """Time ``pairs`` pairs behind one of each that does not count; who comes first changes from pair to pair."""
    for run in (first, second):
        if run is not None:
            run()
    done = Pairs()
    for number in range(pairs):
        for attempt in range(TRIES):
            times, reads = _pair([first] if second is None else [first, second], backwards=number % 2 == 1)
            steady = max(reads) <= STEADY * min(reads)
            if steady or attempt == TRIES - 1:
                break
            done.repeated += 1
        done.unsteady += not steady
        done.first.append(times[0])
        done.second += times[1:]
        place = len(times) - 1 if number % 2 else 0
        done.reads.append((reads[place] + reads[place + 1]) / 2)
    return done


def _pair(runs: list[Timed], backwards: bool) -> tuple[list[float], list[float]]:
    """Return the seconds of each, in the order of ``runs``, and the reads before, between and behind them."""
    times, reads = [0.0] * len(runs), [streaming_read()]
    for place in sorted(range(len(runs)), reverse=backwards):
        times[place] = runs[place]()
        reads.append(streaming_read())
    return times, reads


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run that many processes that do nothing but compute, as long as the block lasts."""
    program = "print(flush=True)\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()
