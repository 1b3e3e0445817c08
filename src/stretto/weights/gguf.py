"""The tensors of a GGUF file, one at a time: as floating point, or as the whole numbers that a kernel reads.

What the bytes of each kind mean is the ``gguf`` package's knowledge (https://pypi.org/project/gguf). Files are read,
not mapped: pages of a mapping would count as this process's memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.kernels.quantized import GROUP, Quantized
from stretto.tokens.gguf_header import GgufTensor, read_header

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Kinds that are not quantized."""

READABLE = "Q4_0"
"""The kind that is our int4 to the bit: symmetric around 8, groups of 32, fp16 scales."""

_PIECE = 1 << 20
"""Weights that are dequantized at a time."""
_SAMPLE = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of ``kind`` (F16, Q4_K, ...), [..., in]: rows of ``row`` bytes each, ``start`` bytes into the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    row: int

    @property
    def rows(self) -> int:
        """Number of rows, all leading dimensions taken as one."""
        return math.prod(self.shape[:-1])


class GgufFile:
    """Metadata and tensors of one file; only its header is read until a tensor is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ``ValueError`` for a damaged file, and for a kind that the installed ``gguf`` cannot read."""
        self.path = path
        header = read_header(path)
        self.metadata = header.metadata
        self.entries = {name: self._entry(name, found) for name, found in header.tensors.items()}

    def _entry(self, name: str, found: GgufTensor) -> Entry:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        if found.kind not in {kind.value for kind in GGMLQuantizationType}:
            raise ValueError(
                f"{self.path}: {name} is of kind {found.kind}, which this gguf package does not know; renew it"
            )
        kind = GGMLQuantizationType(found.kind)
        block, size = GGML_QUANT_SIZES[kind]
        if found.shape[-1] % block or not all(found.shape):
            raise ValueError(
                f"{self.path}: {name} has shape {list(found.shape)}, expected rows of a multiple of {block}"
            )
        entry = Entry(kind.name, found.shape, found.start, found.shape[-1] // block * size)
        if found.start + entry.rows * entry.row > self.path.stat().st_size:
            raise ValueError(f"{self.path} is cut off inside {name}; download it again")
        return entry

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """Return a tensor, or some rows of it (counted over all leading dimensions), as floating point.

        F32, F16 and BF16 come as they are stored; every other kind as the fp32 that it stands for, exactly.
        """
        entry = self.entries[name]
        rows = range(entry.rows) if rows is None else rows
        shape = entry.shape if len(rows) == entry.rows else (len(rows), entry.shape[-1])
        if entry.kind in FLOATS:
            return torch.from_numpy(self._bytes(entry, rows)).view(FLOATS[entry.kind]).reshape(shape)
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        result = torch.empty(len(rows), entry.shape[-1])
        step = max(1, _PIECE // entry.shape[-1])
        for first in range(0, len(rows), step):
            piece = rows[first : first + step]
            values = dequantize(self._bytes(entry, piece), GGMLQuantizationType[entry.kind])
            result[first : first + len(piece)] = torch.from_numpy(values)
        return result.reshape(shape)

    def matrix(self, name: str, rows: range | None = None) -> Quantized:
        """Return a matrix of the kind Q4_0, or some of its rows, as it is stored."""
        entry = self.entries[name]
        rows = range(entry.rows) if rows is None else rows
        blocks = torch.from_numpy(self._bytes(entry, rows)).view(len(rows), -1, 2 + GROUP // 2)
        scales = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
        nibbles = blocks[..., 2:]  # the low halves are the group's first 16 values, the high ones its last
        values = torch.cat((nibbles & 15, nibbles >> 4), -1).flatten(1)
        return Quantized("int4", "int8", values, scales)

    def sample(self, name: str) -> bytes:
        """Return the first and last 4 KiB of a tensor's bytes, all of a small one's."""
        entry = self.entries[name]
        size = entry.rows * entry.row
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if size <= 2 * _SAMPLE:
                return file.read(size)
            head = file.read(_SAMPLE)
            file.seek(entry.start + size - _SAMPLE)
            return head + file.read(_SAMPLE)

    def _bytes(self, entry: Entry, rows: range) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Return consecutive rows, uint8 [rows, bytes of a row]."""
        start, count = entry.start + rows.start * entry.row, len(rows) * entry.row
        found = np.fromfile(self.path, np.uint8, count, offset=start)
        if len(found) < count:
            raise ValueError(f"{self.path} ended inside a tensor; download it again")
        return found.reshape(len(rows), entry.row)
