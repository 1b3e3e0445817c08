"""The native library: loads it where it was built, says once where it was not.

The library is an accelerator, never a condition. Without it the PyTorch kernels serve: same contracts, slower.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

ABI_VERSION = 6
"""The signatures this Python code calls; ``native/src/module.cpp`` states the ones it offers."""

NOTICE = """\
stretto: the native library is missing, so the slower PyTorch kernels are in use. The results are sound.
         To build it: install a C++ compiler and Python's headers (Debian, Ubuntu: sudo apt-get install g++ python3-dev;
         macOS: xcode-select --install; Windows: Visual Studio Build Tools), then
         pip install --force-reinstall --no-deps .
"""


def _load() -> tuple[ModuleType | None, str]:
    try:
        library = import_module("stretto.kernels._native")
    except ImportError as error:
        return None, str(error)
    if library.abi_version() != ABI_VERSION:
        found = f"the native library has ABI version {library.abi_version()}, expected {ABI_VERSION}"
        return None, f"{found}; reinstall stretto so that both are built together"
    return library, ""


_library, reason = _load()
"""``reason``: why there is no native library, or the empty string if there is one."""

_noticed = False


def load() -> ModuleType | None:
    """Return the native library, or None if this installation has none (``reason`` says why)."""
    return _library


def required() -> ModuleType:
    """Return the native library; ``RuntimeError`` says why there is none."""
    if _library is None:
        raise RuntimeError(f"the native kernels were asked for, but {reason}")
    return _library


def set_threads(count: int) -> None:
    """Run every native pass of this process on ``count`` threads from now on; ``ValueError`` outside 1 to 256."""
    if _library is not None:
        _library.set_threads(count)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run PyTorch's operations on the calling thread alone.

    Its other threads spin for some milliseconds behind every operation that they share (OpenMP's way to be ready for
    the next one), on cores that the next native pass needs: a pass of eight rows took a third longer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def move_rows(storage: Sequence[Tensor], source: list[int], target: list[int]) -> None:
    """Copy rows between slots of a lane in blocks: keys and values [layers, slots, kv_heads, head_size]."""
    keys, values = storage
    layers, _, heads, size = keys.shape
    stride = keys.stride(0) * keys.element_size()
    bf16 = keys.dtype is torch.bfloat16
    required().move_rows(keys.data_ptr(), values.data_ptr(), layers, stride, bf16, heads, size, source, target)


def seconds() -> float:
    """Return the seconds that callers spent in native passes since the process began."""
    return float(required().seconds())


def sums_groups() -> bool:
    """Return whether int8 matrices have sums of their groups in memory beside them: 2 bytes for 32 weights."""
    return _library is not None and bool(_library.sums_groups())


def streaming_read(size: int, repeats: int) -> float:
    """Return the GB/s at which all threads of the pool together read ``size`` bytes, the median of ``repeats``."""
    return float(required().streaming_read(size, repeats))


def peak(kind: str) -> float:
    """Return the operations per second of all threads in a loop on registers; ``kind`` is fp32, bf16 or int8."""
    return float(required().peak(("fp32", "bf16", "int8").index(kind)))


def notice_once() -> None:
    """Say on stderr that the PyTorch kernels are in use, if they are: once per installation and user.

    Where nothing can be remembered (no writable home), once per process.
    """
    global _noticed
    if _library is not None or _noticed:
        return
    _noticed = True
    try:
        memory = _memory()
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.touch(exist_ok=False)
    except FileExistsError:
        return
    except (OSError, RuntimeError):  # not writable; no home at all
        pass
    sys.stderr.write(NOTICE)


def _memory() -> Path:
    """Return the file whose existence says that this installation gave its notice to this user."""
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    installation = zlib.crc32(str(Path(__file__).parent).encode())
    return cache / "stretto" / f"noticed-pytorch-kernels-{installation:08x}"
