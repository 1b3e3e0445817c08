"""What every benchmark says beside its numbers: when, where and of what; and tables that any terminal shows."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Return the circumstances of a measurement as plain data: date, machine, versions, commit, threads, load."""
    load = getattr(os, "getloadavg", None)  # Windows has none
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_at_start": round(load()[0], 2) if load else None,
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that at least ``share`` of them do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with equal keys as a plain-text table, numbers to the right."""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [all(isinstance(row[name], int | float) for row in rows) for name in names]

    def line(parts: Sequence[str]) -> str:
        padded = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), "  ".join("-" * width for width in widths), *map(line, cells)])


def save(path: Path, benchmark: str, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Write one run as JSON: the benchmark's name, its circumstances and its results."""
    content = {"benchmark": benchmark, "environment": facts, "results": results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _commit() -> str | None:
    """Return the commit that the benchmarks lie in, marked where files differ from it; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} with changes" if changed else head


def _cpu() -> str:
    """Return the processor's name as the system tells it."""
    if sys.platform.startswith("linux"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()
