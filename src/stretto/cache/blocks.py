"""The pool of blocks: who holds which piece of a lane's memory, counted by reference."""

from __future__ import annotations

from collections import OrderedDict

BLOCK = 16
"""Positions in a block."""


class BlockPool:
    """Reference counts over ``count`` blocks, some of which the prefix tree also keeps for later requests.

    A *cached* block that nobody but the tree holds is *idle*. Idle blocks stand in the order in which their last
    request let go of them, which is the order of eviction: the pool's logical clock is that order, not the time.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.cached: set[int] = set()
        self._references = [0] * count
        self._unused = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._unused)

    def references(self, block: int) -> int:
        """Return how many hold ``block``, the prefix tree included."""
        return self._references[block]

    def allocate(self) -> int | None:
        """Return a block with one reference, or None if none is free."""
        if not self._unused:
            return None
        block = self._unused.pop()
        self._references[block] = 1
        return block

    def retain(self, block: int) -> None:
        """Add a reference to a block that is held already; ``RuntimeError`` if it is free."""
        if self._references[block] == 0:
            raise RuntimeError(f"block {block} is free and cannot be retained")
        self._references[block] += 1
        self.idle.pop(block, None)

    def release(self, block: int) -> None:
        """Drop a reference; ``RuntimeError`` if the block is free already."""
        left = self._references[block] - 1
        if left < 0:
            raise RuntimeError(f"block {block} is free and was released again")
        self._references[block] = left
        if left == 0:
            self._unused.append(block)
        elif left == 1 and block in self.cached:
            self.idle[block] = None

    def adopt(self, block: int) -> None:
        """Add the prefix tree's reference."""
        self.retain(block)
        self.cached.add(block)

    def disown(self, block: int) -> None:
        """Drop the prefix tree's reference."""
        self.cached.remove(block)
        self.idle.pop(block, None)
        self.release(block)

    def check(self, holders: dict[int, int], cached: set[int]) -> None:
        """Raise ``AssertionError`` unless ``holders`` (block: references) and ``cached`` are what the pool says."""
        held = {block: count for block, count in enumerate(self._references) if count}
        assert held == holders, f"pool counts {held}, holders are {holders}"
        assert len(set(self._unused)) == len(self._unused), "a block is free twice"
        assert set(self._unused) == set(range(self.count)) - set(holders), "a block is neither held nor free"
        assert self.cached == cached, f"pool says {self.cached} are cached, the tree holds {cached}"
        assert set(self.idle) == {block for block in cached if held[block] == 1}, "idle blocks are not those unused"
