"""From views to tiles: the index tensors of a pass, built once per pass and lane.

Entries are laid out by logical index (group = index // 128, lane = index % 128). Entries of one view with the same
index, as sibling blocks over the same positions have, go to further tiles of the same group, in the view's order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stretto.kernels.attention import LANES, Block, Plan, Run
from stretto.kernels.linear import TILE
from stretto.models.views import Ints, View

NEVER = np.int64(2**31 - 1)
"""Order of an empty lane."""

ITEMS = 64
"""Pairs of query tile and key tile that short views are computed in at a time; bounds the gathered copies."""


class Layout:
    """Views in tiles. Rows are numbered through the views, in their order."""

    def __init__(self, views: Sequence[View], null: int, device: torch.device, *, traced: bool = False) -> None:
        """``null`` is the lane's slot of zeros; ``traced`` plans name the rows and entries of every score."""
        self._device = device
        self._traced = traced
        self.at = np.concatenate([view.at for view in views])
        self.index = np.concatenate([view.index for view in views])
        self._reach = np.concatenate([view.reach for view in views])
        self._rows = np.array([len(view.rows) for view in views])
        sizes = np.array([len(view.index) for view in views])
        owner = np.repeat(np.arange(len(views)), sizes)
        tile, first = _tiles((owner << 32) | self.index)
        self._counts = np.bincount(owner[first], minlength=len(views))
        self._starts = np.cumsum(self._counts) - self._counts
        place = tile * LANES + (self.index & (LANES - 1))
        shape = (len(first), LANES)
        self._slots = _spread(shape, null, place, np.concatenate([view.slots for view in views]))
        self._order = _spread(shape, NEVER, place, np.concatenate([view.order for view in views]))
        self._lanes = _spread(shape, -NEVER, place, self.index)
        self._latest, self._oldest = self._order.max(1), self._lanes.min(1)
        self._entries = _spread(shape, len(tile), place, np.arange(len(tile))) if traced else None
        self._plans: dict[tuple[int, int, int | None], Plan] = {}

    def plan(self, heads: int, kv_heads: int, window: int | None) -> Plan:
        """Return the plan of layers of this shape."""
        key = (heads, kv_heads, window)
        if key not in self._plans:
            self._plans[key] = self._plan(heads, kv_heads, window)
        return self._plans[key]

    def _plan(self, heads: int, kv_heads: int, window: int | None) -> Plan:
        group = heads // kv_heads
        lines = self._rows * group
        tiles = -(-lines // TILE)
        owner = np.repeat(np.arange(len(lines)), tiles)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        line = within[:, None] * TILE + np.arange(TILE)
        real = line < lines[owner][:, None]
        line = np.minimum(line, lines[owner][:, None] - 1)
        row = (np.cumsum(self._rows) - self._rows)[owner][:, None] + line // group
        reach, at = self._reach[row], self.at[row]
        start, stop = self._seen(owner, reach, at, window)

        alone = np.flatnonzero(tiles[owner] == 1)
        alone = alone[np.argsort(start[alone] - stop[alone], kind="stable")]
        many = np.flatnonzero(tiles[owner] > 1)
        chosen = np.concatenate((alone, many))
        row, line, real, reach, at = (part[chosen] for part in (row, line, real, reach, at))
        owner, start, stop = owner[chosen], start[chosen], stop[chosen]

        blocks = []
        for first, last in _bounded(stop[: len(alone)] - start[: len(alone)]):
            counts = stop[first:last] - start[first:last]
            present = np.arange(counts[0])[:, None] < counts
            level, member = np.nonzero(present)
            key_tiles = start[first + member] + level
            mask = self._mask(key_tiles, reach[first + member], at[first + member], window)
            run = Run(self._tensor(first + member), slice(0, len(member)), first, present.sum(1).tolist(), *mask)
            blocks.append(self._block(key_tiles, kv_heads, [run]))
        for view in np.unique(owner[len(alone) :]):
            queries = np.flatnonzero(owner == view).tolist()
            base, end = int(start[queries].min()), int(stop[queries].max())
            runs: list[Run] = []
            for query in queries:
                low, high = int(start[query]), int(stop[query])
                items = torch.full((high - low,), query, device=self._device)
                mask = self._mask(np.arange(low, high), reach[None, query], at[None, query], window)
                runs.append(Run(items, slice(low - base, high - base), query, [1] * (high - low), *mask))
            blocks.append(self._block(np.arange(base, end), kv_heads, runs))

        head = np.arange(kv_heads)[:, None] * group
        named = (row * heads + line % group)[:, None, :] + head
        places = np.arange(named.size).reshape(named.shape)
        outputs = np.empty(len(self.at) * heads, dtype=np.int64)
        kept = np.broadcast_to(real[:, None, :], named.shape)
        outputs[named[kept]] = places[kept]
        plan = Plan(self._tensor(named.reshape(-1)), self._tensor(outputs), blocks, len(chosen))
        if self._traced:
            plan.rows = self._tensor(np.where(real, row, len(self.at)))
        return plan

    def _seen(self, owner: Ints, reach: Ints, at: Ints, window: int | None) -> tuple[Ints, Ints]:
        """Return for each query tile the first and last + 1 of the key tiles that any of its lines may see."""
        start, stop = self._starts[owner], (self._starts + self._counts)[owner]
        earliest, latest = self._order.min(1), self._lanes.max(1)
        furthest, oldest = reach.max(1), at.min(1)
        for query in np.flatnonzero((stop - start > 1) & ((window is not None) | (self._rows[owner] > 1))):
            tiles = slice(start[query], stop[query])
            seen = earliest[tiles] <= furthest[query]
            if window is not None:
                seen &= latest[tiles] > oldest[query] - window
            numbers = np.flatnonzero(seen)
            start[query], stop[query] = start[query] + numbers[0], start[query] + numbers[-1] + 1
        return start, stop

    def _mask(self, tiles: Ints, reach: Ints, at: Ints, window: int | None) -> tuple[slice, Tensor]:
        """Return which of the pairs of key tile and query tile need a mask, and fp32 [those, 1, 16, 128].

        ``reach`` and ``at`` are those of the pairs' lines, or of one query tile's for all pairs.
        """
        partial = self._latest[tiles] > reach.min(1)
        if window is not None:
            partial |= at.max(1) - self._oldest[tiles] >= window
        found = np.flatnonzero(partial)
        masked = slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
        tiles = tiles[masked]
        if len(reach) > 1:
            reach, at = reach[masked], at[masked]
        unseen = self._order[tiles][:, None, :] > reach[:, :, None]
        if window is not None:
            unseen |= at[:, :, None] - self._lanes[tiles][:, None, :] >= window
        mask = np.where(unseen, np.float32(-np.inf), np.float32(0))
        return masked, torch.from_numpy(mask[:, None]).to(self._device)

    def _block(self, tiles: Ints, kv_heads: int, runs: list[Run]) -> Block:
        places = self._slots[tiles][:, None, :] * kv_heads + np.arange(kv_heads)[:, None]
        block = Block(self._tensor(places.reshape(-1)), runs)
        if self._entries is not None:
            block.entries = self._tensor(self._entries[tiles])
        return block

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _tiles(key: Ints) -> tuple[Ints, Ints]:
    """Return each entry's tile number and the number of one entry of each tile; ``key`` holds view and index."""
    tile_key = key >> (LANES.bit_length() - 1)
    if not np.all(key[1:] > key[:-1]):
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        begins = np.flatnonzero(new)
        copies = np.empty_like(key)
        copies[order] = np.arange(len(key)) - begins[np.cumsum(new) - 1]
        _, first, tile = np.unique((tile_key << 16) | copies, return_index=True, return_inverse=True)
        return tile, first
    new = np.concatenate(([True], tile_key[1:] != tile_key[:-1]))
    return np.cumsum(new) - 1, np.flatnonzero(new)


def _spread(shape: tuple[int, int], empty: int | np.int64, place: Ints, values: Ints) -> Ints:
    """Return an array of ``empty`` with ``values`` at the flat places ``place``."""
    spread = np.full(shape, empty, dtype=np.int64)
    spread.reshape(-1)[place] = values
    return spread


def _bounded(counts: Ints) -> list[tuple[int, int]]:
    """Return ranges of query tiles, each of at most ``ITEMS`` key tiles or a single query tile."""
    ranges = []
    first = total = 0
    for number, count in enumerate(counts.tolist()):
        if number > first and total + count > ITEMS:
            ranges.append((first, number))
            first, total = number, 0
        total += count
    if len(counts):
        ranges.append((first, len(counts)))
    return ranges
