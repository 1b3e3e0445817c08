"""The header of a GGUF file: what it says about itself, and where its tensors lie.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is checked against the bytes that are
left, so that a damaged or hostile header ends in an error, never in a long loop or a large allocation. The reader of
the ``gguf`` package checks none, and makes two arrays of every token: 10 s and 400 MB for a vocabulary of 150,000,
which takes 0.4 s here.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_ENTRIES = 1 << 20
"""Of an array, and of all keys or tensors: twice as many as the longest list of merges has."""
_LONGEST_TEXT = 1 << 24
"""Bytes of one string: far more than any chat template."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies: ``kind`` is the format's number of its encoding, ``start`` counts from the file's first
    byte, ``shape`` is in PyTorch's order ([out, in])."""

    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """``metadata`` by key and ``tensors`` by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def find_gguf(place: Path) -> Path | None:
    """Return the GGUF file that ``place`` is, or the only one of a folder without safetensors; None for any other.

    Raises ``ValueError`` for a folder that holds several.
    """
    if place.is_file():
        return place if place.suffix.lower() == ".gguf" else None
    if not place.is_dir() or any(place.glob("*.safetensors")):
        return None
    found = sorted(place.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{place} holds several GGUF files ({names}), expected one; give the path of the one you want")
    return found[0] if found else None


def read_header(path: Path, *, vocabulary: bool = False) -> GgufHeader:
    """Return the header of a GGUF file (version 2 or 3, little-endian).

    Of the arrays under ``tokenizer.``, which make up nearly all of it, only the lengths are given unless
    ``vocabulary`` is true. Raises ``ValueError`` for a file that is damaged, or one part of several.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Reader(data, vocabulary).header()
    except (ValueError, struct.error) as error:  # an empty file cannot be mapped, which is a ValueError too
        raise ValueError(f"{path} is not a GGUF file that can be read ({error}); download it again") from None
    if (parts := header.metadata.get("split.count", 1)) not in (0, 1):
        raise ValueError(f"{path} is one of {parts} parts, expected a whole model; merge them with llama-gguf-split")
    return header


class _Reader:
    """Reads from ``data`` what begins at ``place``, and moves on."""

    def __init__(self, data: mmap.mmap, vocabulary: bool) -> None:
        self._data, self._place, self._vocabulary = data, 0, vocabulary

    def header(self) -> GgufHeader:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._place = 4
        version, tensors, keys = self._number("I"), self._number("Q"), self._number("Q")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}, expected 2 or 3")
        if max(tensors, keys) > _MOST_ENTRIES:
            raise ValueError(f"{tensors} tensors and {keys} keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self._text()
            metadata[name] = self._value(self._number("I"), keep=self._vocabulary or not name.startswith("tokenizer."))
        entries = [(self._text(), *self._entry()) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment {alignment!r}")
        origin = -(-self._place // alignment) * alignment
        placed = {name: GgufTensor(kind, shape, origin + offset) for name, shape, kind, offset in entries}
        if len(placed) != tensors:
            raise ValueError("two tensors of one name")
        return GgufHeader(metadata, placed)

    def _entry(self) -> tuple[tuple[int, ...], int, int]:
        """Return shape, kind and offset of a tensor."""
        dimensions = self._number("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return shape, self._number("I"), self._number("Q")

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._place)
        self._place += struct.calcsize(f"<{code}")
        return value

    def _text(self) -> str:
        start, length = self._place + 8, self._number("Q")
        if length > min(_LONGEST_TEXT, len(self._data) - start):
            raise ValueError(f"a text of {length} bytes at byte {start}")
        self._place = start + length
        return self._data[start : self._place].decode("utf-8")

    def _value(self, kind: int, keep: bool) -> Any:
        """Return a value; of an array that is not kept, its length."""
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(_code(kind))
        inner, count = self._number("I"), self._number("Q")
        if count > _MOST_ENTRIES:
            raise ValueError(f"an array of {count} entries")
        if inner != _STRING:
            code = f"<{count}{_code(inner)}"
            values = struct.unpack_from(code, self._data, self._place)
            self._place += struct.calcsize(code)
            return list(values) if keep else count
        if keep:
            return [self._text() for _ in range(count)]
        for _ in range(count):
            length = self._number("Q")
            if length > len(self._data) - self._place:
                raise ValueError(f"a text of {length} bytes at byte {self._place}")
            self._place += length
        return count


def _code(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value of the unknown kind {kind}")
    return _SCALARS[kind]
