"""How much memory is left for a cache, control groups and operating systems counted."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

from stretto.cache.blocks import BLOCK

MOST_TOKENS = 262_144
MOST_CONTEXTS = 256
_UNKNOWN = 4 << 30


def default_cache_tokens(bytes_per_token: int, context: int, share: float = 0.5, free: int | None = None) -> int:
    """Return the number of positions a cache gets by default: what ``share`` of the free memory holds.

    At most 262,144 positions and 256 contexts, at least one block, in whole blocks. ``bytes_per_token`` is the sum
    over the model's lanes, ``free`` the free bytes (None: ask the system).
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: expected a fraction of the free memory, above 0 and at most 1")
    fitting = int((free_memory() if free is None else free) * share) // max(1, bytes_per_token)
    return max(BLOCK, min(MOST_TOKENS, MOST_CONTEXTS * context, fitting) // BLOCK * BLOCK)


def free_memory() -> int:
    """Return the bytes of memory that this process can still take without swapping.

    A guess of 4 GiB where the system does not say.
    """
    try:
        if sys.platform == "win32":
            return _windows()
        if sys.platform == "darwin":
            return macos_memory(
                subprocess.run(["vm_stat"], capture_output=True, text=True, check=True, timeout=10).stdout
            )
        return linux_memory(Path("/"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return _installed() // 2


def give_back() -> None:
    """Return what this process has freed to the system, where the C library would keep it.

    Between the tensors that stay, those that loading frees leave holes which glibc fills again badly: a third of a
    small model's size.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries have nothing to give back
        if trim is not None:
            trim(ctypes.c_size_t(0))


def linux_memory(root: Path) -> int:
    """Return what /proc/meminfo and the control groups (version 2 and 1) leave, read under ``root``.

    Each group up to the topmost may set a limit; pages of files that a group could drop do not count as used.
    """
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise ValueError("/proc/meminfo has no MemAvailable")
    free = int(match[1]) * 1024
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, droppable = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        names = [name for name in path.split("/") if name not in ("", "..")]
        for depth in range(len(names) + 1):
            folder = (root / base).joinpath(*names[:depth])
            bound = _number(folder / limit)
            used = _number(folder / usage)
            if bound is not None and used is not None:
                free = min(free, bound - used + _entry(folder / "memory.stat", droppable))
    return max(0, free)


def _number(path: Path) -> int | None:
    """Return the number in a file, None if there is no file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _entry(path: Path, name: str) -> int:
    try:
        match = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def macos_memory(report: str) -> int:
    """Return the bytes that a report of ``vm_stat`` calls free or reclaimable."""
    size = re.search(r"page size of (\d+) bytes", report)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", report, re.MULTILINE)
    if size is None or not pages:
        raise ValueError("vm_stat answered in an unknown form")
    return int(size[1]) * sum(map(int, pages))


def _windows() -> int:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "free", "pages", "free_pages", "space", "free_space", "x")),
        )

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - the attribute exists on Windows only
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status.free)


def _installed() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN * 2
