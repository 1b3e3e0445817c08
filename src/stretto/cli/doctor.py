"""``stretto doctor``: what this installation runs on, and how fast this machine is."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version

import torch

from stretto.cache.memory import free_memory
from stretto.kernels import native

READ_BYTES = 256 << 20


def examine(*, measure: bool = True) -> dict[str, object]:
    """Return what there is, name by name; ``measure`` adds the speed of memory and arithmetic (about a second)."""
    found: dict[str, object] = {
        "stretto": version("stretto"),
        "python": platform.python_version(),
        "pytorch": torch.__version__,
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    found["free memory"] = f"{free_memory() / 1e9:.1f} GB"
    found |= {package: version(package) for package in ("numpy", "tokenizers", "safetensors", "huggingface_hub")}
    library = native.load()
    if library is None:
        return found | {"kernels": "PyTorch (reference)", "native library": f"missing: {native.reason}"}
    native.set_threads(torch.get_num_threads())
    found |= {
        "kernels": f"native, {library.path()}",
        "widest path of this machine": library.instruction_set(),
        "STRETTO_ISA": os.environ.get("STRETTO_ISA", "not set"),
        "threads": library.threads(),
    }
    if measure:
        found["memory"] = f"{native.streaming_read(READ_BYTES, 5):.1f} GB/s streaming read"
        for kind in ("int8", "bf16", "fp32"):
            found[f"arithmetic, {kind}"] = f"{native.peak(kind) / 1e9:.0f} G operations/s"
    return found


def run(*, as_json: bool) -> None:
    """Print what ``examine`` finds."""
    found = examine()
    if as_json:
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
