"""Checkpoints whose matrices are stored quantized, seen as if they were not: by the names of a plain checkpoint."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.weights.checkpoint import Checkpoint
from stretto.weights.dtypes import dtype_name

_SIDE_BY_SIDE = [
    (re.compile(r"\.experts\.\d+\."), ".experts."),
    (re.compile(r"\.[qkv]_proj\."), ".qkv."),
    (re.compile(r"\.(gate|up)_proj\."), ".inner."),
    (re.compile(r"\.w[13]\."), ".inner."),
]
"""Parts of names that tell matrices apart which products read as one."""


class StoredQuantized(Checkpoint):
    """A checkpoint with quantized matrices: ``get`` returns what they stand for, ``matrix`` some of them as they are.

    Subclasses fill in ``kinds`` and ``readable`` when they open.
    """

    kinds: dict[str, str]
    """Of every quantized matrix, how it is stored, as people call it (Q4_K, say)."""
    readable: dict[str, str]
    """Those whose numbers and scales are a ``Quantized`` to the bit, and the name of its format."""
    lookups: frozenset[str] = frozenset()
    """Those that serve lookups, which read floating point; as a tied head they may be kept besides."""

    @abstractmethod
    def matrix(self, name: str) -> Quantized:
        """Return a matrix of ``keeps`` as it is stored."""

    @abstractmethod
    def floating(self) -> Counter[torch.dtype]:
        """Return how many weights of matrices are stored in each floating-point precision."""

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    @cached_property
    def keeps(self) -> frozenset[str]:
        """Names of the matrices that can stay as they are stored: those whose whole product is ``readable``."""
        broken = {_product(name) for name in self.names() if name.endswith(".weight") and name not in self.readable}
        return frozenset(name for name in self.readable if _product(name) not in broken)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision that the rest is stored in; fp32 as soon as a quantized matrix has to be widened."""
        floating = self.floating()
        if self._widened() or not floating:
            return torch.float32
        return max(floating, key=floating.__getitem__)

    def stored_as(self) -> str:
        """Return the kinds in which matrices are stored, those of floating point included."""
        return _listed([*self.kinds.values(), *map(dtype_name, self.floating())])

    def note(self) -> str:
        """Return the line that says which matrices stay as they are stored and which are widened; empty if none is
        quantized."""
        kept, widened = _listed(self.kinds[name] for name in self.keeps), _listed(self._widened().values())
        parts = [f"{kept} kept as stored, its inputs rounded to int8 in groups of 32"] if kept else []
        if widened:
            parts.append(
                f"{widened} widened to fp32, for want of a kernel that reads it as it is; weights='int8' or 'int4' "
                "makes it small again"
            )
        return f"{self.folder}: {'; '.join(parts)}" if parts else ""

    def _widened(self) -> dict[str, str]:
        """Return the quantized matrices that are read as fp32, and how they are stored."""
        found = {name: kind for name, kind in self.kinds.items() if name not in self.keeps}
        return found | {name: f"{self.kinds[name]} lookups" for name in self.lookups & self.kinds.keys()}


def select_rows(matrix: Quantized, rows: Tensor) -> Quantized:
    """Return the outputs ``rows``, int64, of a matrix, in that order."""
    zeros = None if matrix.zeros is None else matrix.zeros[rows]
    return Quantized(matrix.layout, matrix.activations, matrix.values[rows], matrix.scales[rows], zeros)


def _product(name: str) -> str:
    """Return what matrices that lie side by side in one product have in common."""
    for pattern, common in _SIDE_BY_SIDE:
        name = pattern.sub(common, name)
    return name


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(set(kinds)))
