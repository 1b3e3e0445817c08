"""One safetensors file, read tensor by tensor.

The file is read, not mapped: pages of a mapping count as this process's memory for as long as the mapping lives, so a
mapped load peaks at twice the model. Format: https://github.com/huggingface/safetensors (a little-endian 64-bit
length, that many bytes of JSON, then the tensors' bytes).
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000  # bytes; the limit the format itself sets
_SAMPLE = 4096  # bytes
_PIECE = 4 << 20  # bytes read at a time when a tensor is converted


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its file: bytes ``start`` to ``end``, counted from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Shard:
    """The tensors of one file by name, in ``entries``; nothing but the header is read until :meth:`read`."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when the file is damaged or holds a dtype that is not known."""
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise ValueError(f"{path} is not a complete safetensors file ({size} bytes); download it again")
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                self.entries = {name: _entry(facts, 8 + length) for name, facts in header.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} has a header that cannot be read ({error}); download it again") from None
        needed = max((entry.end for entry in self.entries.values()), default=0)
        if needed > size:
            raise ValueError(f"{path} is cut off at byte {size} of {needed}; download it again")

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor in memory of its own, converted to ``dtype`` if given; 4 MiB is all it takes beside the result."""
        entry = self.entries[name]
        result = torch.empty(entry.shape, dtype=dtype or entry.dtype)
        flat = result.flatten()
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            if result.dtype == entry.dtype:
                self._fill(flat, file)
                return result
            # A mapping goes back to the system when it is dropped; freed heap memory of this size often does not.
            buffer = torch.frombuffer(mmap.mmap(-1, _PIECE), dtype=entry.dtype)
            for target in flat.split(len(buffer)):
                piece = buffer[: len(target)]
                self._fill(piece, file)
                target.copy_(piece)
        return result

    def _fill(self, tensor: torch.Tensor, file: FileIO) -> None:
        """Read the bytes of a flat tensor from where the file stands."""
        view = tensor.view(torch.uint8).numpy().data
        done = 0
        while done < len(view):  # one call reads 2 GiB at most
            count = file.readinto(view[done:])
            if not count:
                raise ValueError(f"{self.path} ended inside a tensor; download it again")
            done += count

    def sample(self, name: str) -> bytes:
        """The first and last 4 KiB of a tensor's bytes (all of a tensor that is no larger than both)."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if entry.size <= 2 * _SAMPLE:
                return file.read(entry.size)
            head = file.read(_SAMPLE)
            file.seek(entry.end - _SAMPLE)
            return head + file.read(_SAMPLE)


def _entry(facts: dict[str, Any], origin: int) -> Entry:
    if facts["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {facts['dtype']!r} is not known")
    start, end = facts["data_offsets"]
    entry = Entry(_DTYPES[facts["dtype"]], tuple(facts["shape"]), origin + start, origin + end)
    if start < 0 or min(entry.shape, default=0) < 0 or entry.size != math.prod(entry.shape) * entry.dtype.itemsize:
        raise ValueError(f"a tensor of shape {facts['shape']} and dtype {facts['dtype']} at bytes {start} to {end}")
    return entry
