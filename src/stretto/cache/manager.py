"""The cache of one model: its lanes, its prefix tree and the views that requests hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch

from stretto.cache.blocks import BLOCK
from stretto.cache.lane import Lane
from stretto.cache.prefix import PrefixTree
from stretto.cache.view import View, blocks_for
from stretto.core.batch import Model

__all__ = ["ModelCache", "View"]


class ModelCache:
    """Memory for ``tokens`` positions of ``model`` (rounded up to whole blocks) and ``scratch`` scratch rows.

    Binds the model to the storage. ``sequences`` bounds the views of a model with state lanes. Such a model shares
    no prefixes: its states are those of whole sequences.
    """

    def __init__(self, model: Model, *, tokens: int, scratch: int, device: torch.device, sequences: int = 256) -> None:
        if tokens < 1 or scratch < 0:
            raise ValueError(
                f"cache of model {model.name}: tokens = {tokens} and scratch = {scratch}; expected at least 1 and 0"
            )
        blocks = blocks_for(tokens)
        self.model = model
        self.capacity = blocks * BLOCK
        self.lanes = {
            spec.name: Lane(spec, sequences if spec.kind == "state" else blocks, scratch, device)
            for spec in model.lanes
        }
        self.scratch_bases = {name: lane.storage.scratch for name, lane in self.lanes.items()}
        """By lane: the slot of scratch row 0."""
        self.main = next((spec.name for spec in model.lanes if spec.kind == "kv"), model.lanes[0].name)
        self.sharing = all(lane.paged for lane in self.lanes.values())
        self.views: dict[View, None] = {}
        self._paged = {name: lane for name, lane in self.lanes.items() if lane.paged}
        self.tree = PrefixTree({name: lane.pool for name, lane in self._paged.items()})
        self._scratch = scratch
        self.scratch_taken = 0
        """Scratch rows handed out since the step began."""
        self._lookups = 0
        self._hits = 0
        model.bind({name: lane.storage for name, lane in self.lanes.items()})

    def open(
        self, request: int, tokens: Sequence[int], lineage: str, *, reuse: bool = True, needs: Collection[str] = ()
    ) -> View:
        """Return a view for a request that begins with ``tokens``, holding what the prefix tree has of them.

        At least the last token is left to be computed, and all whose rows are missing in one of the lanes ``needs``.
        ``reuse=False`` computes all. ``RuntimeError`` if the model has state lanes and no free state slot.
        """
        view = self.new_view(request, lineage)
        if reuse and self.sharing:
            self._lookups += 1
            path = self.tree.match(lineage, tokens[: len(tokens) - 1])
            while path and not path[-1].blocks.keys() >= set(needs):
                path.pop()
            self._hits += view.begin(path)
        return view

    def new_view(self, request: int, lineage: str) -> View:
        """Return an empty view, with a zero state in each state lane."""
        view = View(self, request, lineage)
        states = [lane for lane in self.lanes.values() if not lane.paged]
        for lane in states:
            if not lane.pool.free:
                raise RuntimeError(
                    f"request {request}: all {lane.pool.count} state slots of lane {lane.name} are taken; close a "
                    f"request first or raise sequences"
                )
        for lane in states:
            view.tables[lane.name].blocks = self.take(lane.name, 1)
            lane.clear(view.tables[lane.name].blocks[0])
        self.views[view] = None
        return view

    def room(self, lane: str) -> int:
        """Return how many blocks of ``lane`` are free or hold prefixes that no request uses."""
        pool = self.lanes[lane].pool
        return pool.free + len(pool.idle)

    def take(self, lane: str, count: int) -> list[int]:
        """Return ``count`` blocks of ``lane``, evicting prefixes as needed; there must be ``room``."""
        pool = self.lanes[lane].pool
        if pool.free < count:
            self.tree.evict(lane, count - pool.free)
        return [block for _ in range(count) if (block := pool.allocate()) is not None]

    def give(self, lane: str, blocks: Iterable[int]) -> None:
        """Drop a reference to each of ``blocks``, those of the last positions first."""
        pool = self.lanes[lane].pool
        for block in blocks:
            pool.release(block)

    def available(self, lane: str | None = None) -> int:
        """Return the positions that could be reserved now in ``lane`` (None: in all at once)."""
        names = self._paged if lane is None else (lane,)
        return min((self.room(name) for name in names), default=self.capacity // BLOCK) * BLOCK

    def forget(self) -> None:
        """Evict all prefixes that no request uses."""
        for name in self._paged:
            self.tree.evict(name, self.capacity)

    def take_scratch(self, count: int) -> list[int]:
        """Return the numbers of ``count`` scratch rows, the caller's until ``reset_scratch``.

        ``RuntimeError`` if there are not as many.
        """
        first = self.scratch_taken
        if first + count > self._scratch:
            raise RuntimeError(
                f"cache of model {self.model.name}: {count} scratch rows were asked for, {self._scratch - first} of "
                f"{self._scratch} are left in this step; draft fewer rows or make the cache with more scratch"
            )
        self.scratch_taken = first + count
        return list(range(first, first + count))

    @property
    def scratch_left(self) -> int:
        """Scratch rows that can still be taken."""
        return self._scratch - self.scratch_taken

    def reset_scratch(self, to: int = 0) -> None:
        """Take scratch rows back: all at the end of a step, or those above ``to`` behind a pass that failed."""
        self.scratch_taken = to

    def keep(self, moves: Sequence[tuple[View, int, int]], lanes: Collection[str] | None = None) -> None:
        """Copy rows from scratch to where they stay: ``moves`` are (view, scratch row, position), ascending per view.

        In each of ``lanes`` (None: all). ``ValueError`` if a position was not reserved.
        """
        if not moves:
            return
        for name, lane in self.lanes.items():
            if lanes is not None and name not in lanes:
                continue
            targets: dict[int, int] = {}
            sound: tuple[View, int] | None = None  # the view and block looked at last
            for view, row, position in moves:
                table = view.tables[name]
                if lane.paged and (view, position // BLOCK) != sound:
                    if position >= table.reserved or lane.pool.references(table.blocks[position // BLOCK]) > 1:
                        raise ValueError(
                            f"request {view.request}: position {position} of lane {name} is not reserved for writing; "
                            f"call reserve({position + 1}) first"
                        )
                    sound = view, position // BLOCK
                targets[table.slot(position)] = row
            lane.keep(targets)

    def stats(self) -> dict[str, int]:
        """Return positions (capacity, free), blocks (cached), and since the start lookups, hits (positions), evictions.

        Free and cached are those of the first lane of keys and values.
        """
        return {
            "capacity": self.capacity,
            "free": self.lanes[self.main].pool.free * BLOCK,
            "cached": self.tree.cached(self.main) if self.sharing else 0,
            "lookups": self._lookups,
            "hits": self._hits,
            "evictions": self.tree.evictions,
        }

    def check(self) -> None:
        """Raise ``AssertionError`` if reference counts, prefix tree and tables disagree."""
        self.tree.check()
        cached = {name: {node.blocks[name] for node in self.tree.nodes() if name in node.blocks} for name in self.lanes}
        for name, lane in self.lanes.items():
            held = Counter(block for view in self.views for block in view.tables[name].blocks)
            held.update(cached[name])
            lane.pool.check(dict(held), cached[name])
        for view in self.views:
            view.check()
