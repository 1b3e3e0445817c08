"""The largest amount of memory that this process has held."""

from __future__ import annotations

import ctypes
import sys


def peak_bytes() -> int | None:
    """Return the peak of this process's resident memory in bytes, None where the system does not say."""
    if sys.platform == "win32":
        return _windows()
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _windows() -> int | None:
    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("faults", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in ("peak", "now", "a", "b", "c", "d", "e", "f")),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    windows = getattr(ctypes, "windll")  # noqa: B009 - the attribute exists on Windows only
    windows.kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    ask = windows.kernel32.K32GetProcessMemoryInfo
    ask.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    done = ask(windows.kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.size)
    return int(counters.peak) if done else None
