"""The block table: where one sequence's positions lie in one lane."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np

from stretto.cache.blocks import BLOCK

_OFFSETS = np.arange(BLOCK, dtype=np.int64)


class Table:
    """A sequence's blocks in one lane. ``blocks`` is changed through the methods only.

    The slots of all positions are kept written out, so that reading a whole context costs one slice.
    """

    __slots__ = ("_slots", "address", "blocks", "filled")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.filled = 0
        self._slots = np.empty(4 * BLOCK, dtype=np.int64)
        self.address = self._slots.ctypes.data

    @property
    def reserved(self) -> int:
        """Positions that have a slot."""
        return len(self.blocks) * BLOCK

    def slot(self, position: int) -> int:
        """Return the storage slot of ``position``."""
        return self.blocks[position >> 4] * BLOCK + (position & 15)

    def slots(self, start: int, stop: int) -> np.ndarray:
        """Return int64 [stop - start]: the storage slots of the positions from ``start`` to ``stop``.

        It is a view that holds until the table changes. ``IndexError`` where a position has no slot.
        """
        if stop > len(self.blocks) * BLOCK:
            raise IndexError(f"position {stop - 1} has no slot: {self.reserved} positions are reserved")
        return self._slots[start:stop]

    def extend(self, blocks: Iterable[int]) -> None:
        """Append blocks."""
        start = self.reserved
        self.blocks.extend(blocks)
        if self.reserved > len(self._slots):
            grown = np.empty(2 * self.reserved, dtype=np.int64)
            grown[:start] = self._slots[:start]
            self._slots = grown
            self.address = grown.ctypes.data
        added = np.array(self.blocks[start // BLOCK :], dtype=np.int64)
        self._slots[start : self.reserved] = (added[:, None] * BLOCK + _OFFSETS).ravel()

    def replace(self, number: int, block: int) -> None:
        """Put ``block`` in place of the table's block ``number``."""
        self.blocks[number] = block
        self._slots[number * BLOCK : (number + 1) * BLOCK] = block * BLOCK + _OFFSETS

    def cut(self, count: int) -> list[int]:
        """Drop the blocks behind the first ``count`` and return them, the last one first."""
        dropped = self.blocks[count:]
        del self.blocks[count:]
        return dropped[::-1]


class StateTable(Table):
    """The table of a state lane: one slot, whatever the position."""

    __slots__ = ()

    @property
    def reserved(self) -> int:
        """Any position has the slot."""
        return sys.maxsize

    def slot(self, position: int) -> int:
        """Return the sequence's slot."""
        return self.blocks[0]

    def slots(self, start: int, stop: int) -> np.ndarray:
        """Return int64 [stop - start], all the sequence's slot."""
        return np.full(stop - start, self.blocks[0], dtype=np.int64)
