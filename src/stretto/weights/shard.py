"""One safetensors file, read tensor by tensor.

The file is read, not mapped: pages of a mapping count as this process's memory for as long as the mapping lives, so a
mapped load peaks at twice the model. Format: https://github.com/huggingface/safetensors (a little-endian 64-bit
length, that many bytes of JSON, then the tensors' bytes).
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from stretto.weights.documents import parse_document

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
_MAX_HEADER = 25_000_000  # bytes; what the hub itself reads of a file
_MAX_TENSORS = 100_000  # of one file
_MAX_AXES, _MAX_LENGTH = 8, 1 << 48  # of a shape
_SAMPLE = 4096  # bytes
_PIECE = 4 << 20  # bytes read at a time when a tensor is converted


@dataclass(frozen=True, slots=True)
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
        """Raises ValueError when the file is damaged, lays tensors over each other or holds a dtype not known."""
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{path} is not a complete safetensors file ({size} bytes); download it again")
            if length > _MAX_HEADER:
                raise ValueError(f"{path} has a header of {length} bytes, expected at most {_MAX_HEADER}")
            header = file.read(length)
        if header.count(b"{") > _MAX_TENSORS:  # each has one; to count first costs a hundredth of reading them
            raise ValueError(f"{path} holds more than {_MAX_TENSORS} tensors; expected several files of fewer each")
        try:
            facts = parse_document(header)
            facts.pop("__metadata__", None)
            self.entries = {name: _entry(name, each, 8 + length) for name, each in facts.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} has a header that cannot be read ({error}); download it again") from None
        self.header_size = length
        self._check_layout(8 + length, size)

    def _check_layout(self, origin: int, size: int) -> None:
        """Refuse a file whose tensors do not fill the bytes from ``origin`` to ``size`` one behind another."""
        end = origin
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != end:
                what = "begins inside the tensor before it" if entry.start < end else "leaves bytes before it unused"
                raise ValueError(
                    f"{self.path}: tensor {name!r:.200} {what}; the file was not written by a known writer"
                )
            end = entry.end
        if end > size:
            raise ValueError(f"{self.path} is cut off at byte {size} of {end}; download it again")
        if end < size:
            raise ValueError(f"{self.path} goes on for {size - end} bytes behind its last tensor; download it again")

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


def _entry(name: str, facts: dict[str, Any], origin: int) -> Entry:
    """Return where a tensor lies; ``origin`` is the byte of the file from which its header counts."""
    if facts["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r:.200} has dtype {facts['dtype']!r:.50}, expected one of {', '.join(_DTYPES)}")
    dtype, shape, (start, end) = _DTYPES[facts["dtype"]], facts["shape"], facts["data_offsets"]
    whole = all(type(number) is int and 0 <= number < _MAX_LENGTH for number in (*shape[: _MAX_AXES + 1], start, end))
    if not whole or len(shape) > _MAX_AXES or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"tensor {name!r:.200} has shape {shape!r:.100} and dtype {facts['dtype']}, but lies at bytes "
            f"{start!r:.50} to {end!r:.50}"
        )
    return Entry(dtype, tuple(shape), origin + start, origin + end)
