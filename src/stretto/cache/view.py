"""A view: what one request holds of a model's cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from stretto.cache.blocks import BLOCK
from stretto.cache.table import StateTable, Table

if TYPE_CHECKING:
    from stretto.cache.lane import Lane
    from stretto.cache.manager import ModelCache
    from stretto.cache.prefix import Node


def blocks_for(positions: int) -> int:
    """Return the number of blocks that hold ``positions`` positions."""
    return -(-positions // BLOCK)


class View:
    """One request's tables in the lanes of a model. Made by ``ModelCache.open`` and ``fork``, ended by ``close``.

    Where a method takes ``lanes``, None means all of them.
    """

    def __init__(self, cache: ModelCache, request: int, lineage: str) -> None:
        self.request = request
        self.lineage = lineage
        self.closed = False
        self.tables: dict[str, Table] = {
            name: Table() if lane.paged else StateTable() for name, lane in cache.lanes.items()
        }
        self._cache = cache
        self._main = self.tables[cache.main]
        self._paged = [(lane, self.tables[name]) for name, lane in cache.lanes.items() if lane.paged]
        self._advancing = [table for name, table in self.tables.items() if cache.lanes[name].spec.kind != "feature"]
        self._path: list[Node] = []
        self._published = {lane.name: 0 for lane, _ in self._paged}
        """By lane: the blocks at the front that are the prefix tree's, those of the nodes in ``_path``."""

    @property
    def filled(self) -> int:
        """The watermark of the first lane of keys and values: positions below it hold their rows."""
        return self._main.filled

    def _lanes(self, lanes: Collection[str] | None) -> list[tuple[Lane, Table]]:
        if lanes is None:
            return self._paged
        if unknown := set(lanes) - set(self.tables):
            raise ValueError(f"lanes {sorted(unknown)} are not among the model's: {list(self.tables)}")
        return [(lane, table) for lane, table in self._paged if lane.name in lanes]

    def missing(self, upto: int, lanes: Collection[str] | None = None, start: int | None = None) -> dict[str, int]:
        """Return by lane the blocks that ``reserve`` with the same arguments would take; lanes with none are absent."""
        needs = {}
        for lane, table in self._lanes(lanes):
            need, lacking = len(_shared(lane, table, start)), upto - len(table.blocks) * BLOCK
            if lacking > 0:
                need += blocks_for(lacking)
            if need:
                needs[lane.name] = need
        return needs

    def reserve(self, upto: int, lanes: Collection[str] | None = None, start: int | None = None) -> bool:
        """Make the positions from ``start`` (None: each lane's watermark) to ``upto`` writable.

        Takes blocks for all positions below ``upto``, evicting prefixes if the pool is empty, and copies those
        from ``start`` on that somebody else holds too (copy-on-write). False if there are not enough blocks; then
        nothing has changed. If copying raises, the view has not changed.
        """
        cache = self._cache
        needs = self.missing(upto, lanes, start)
        if not needs:
            return True
        if any(need > cache.room(name) for name, need in needs.items()):
            return False
        taken = {name: cache.take(name, need) for name, need in needs.items()}
        plans = [(lane, table, _shared(lane, table, start)) for lane, table in self._lanes(lanes) if lane.name in needs]
        try:
            for lane, table, shared in plans:
                for number, block in zip(shared, taken[lane.name], strict=False):
                    lane.copy(table.blocks[number], block)
        except BaseException:
            for name, blocks in taken.items():
                cache.give(name, blocks)
            raise
        for lane, table, shared in plans:
            fresh = taken[lane.name]
            old = [table.blocks[number] for number in shared]
            for number, block in zip(shared, fresh, strict=False):
                table.replace(number, block)
            cache.give(lane.name, reversed(old))
            table.extend(fresh[len(shared) :])
            self._withdraw(lane, shared[0] if shared else len(table.blocks))
        return True

    def advance(self, upto: int, lanes: Collection[str] | None = None) -> None:
        """Raise the watermarks to ``upto``; ``ValueError`` where its positions were not reserved.

        ``lanes``: None means all but feature lanes, which only passes that ask for it write.
        """
        chosen = self._advancing if lanes is None else [self.tables[name] for name in lanes]
        for table in chosen:
            if upto > table.reserved:
                raise ValueError(
                    f"request {self.request}: watermark {upto} in a lane where {table.reserved} positions are "
                    f"reserved; reserve them first"
                )
        for table in chosen:
            table.filled = max(table.filled, upto)

    def truncate(self, to: int, lanes: Collection[str] | None = None) -> None:
        """Lower the watermarks to ``to`` and release the blocks behind it.

        ``ValueError`` where a state lane has passed ``to``, unless it is 0: states only restart.
        """
        states = [
            (name, table)
            for name, table in self.tables.items()
            if isinstance(table, StateTable) and table.filled > to and (lanes is None or name in lanes)
        ]
        for name, state in states if to else ():
            raise ValueError(
                f"request {self.request}: lane {name} cannot go back from position {state.filled} to {to}, because "
                f"it holds one state; truncate to 0 and compute again"
            )
        for name, state in states:
            self._cache.lanes[name].clear(state.blocks[0])
            state.filled = 0
        for lane, table in self._lanes(lanes):
            table.filled = min(table.filled, to)
            self._cache.give(lane.name, table.cut(blocks_for(to)))
            self._withdraw(lane, to // BLOCK)

    def publish(self, tokens: Sequence[int], upto: int | None = None) -> None:
        """Offer the full blocks below the watermarks to later requests; ``tokens`` are the request's token ids;
        none from ``upto`` on are offered.

        Where the tree has rows for the same tokens already, the view uses those from now on and releases its own.
        """
        if not self._cache.sharing:
            return
        known = len(tokens) if upto is None else min(upto, len(tokens))
        for lane, table in self._paged:
            first, stop = self._published[lane.name], min(table.filled, known) // BLOCK
            if first < stop:
                self._publish(lane, table, first, stop, tokens)

    def _publish(self, lane: Lane, table: Table, first: int, stop: int, tokens: Sequence[int]) -> None:
        for number in range(first, stop):
            parent = self._path[number - 1] if number else None
            own = table.blocks[number]
            ids = tokens[number * BLOCK : (number + 1) * BLOCK]
            node = self._cache.tree.insert(self.lineage, parent, ids, lane.name, own)
            block = node.blocks[lane.name]
            if block != own:
                lane.pool.retain(block)
                table.replace(number, block)
                lane.pool.release(own)
            if number == len(self._path):
                self._path.append(node)
            self._published[lane.name] = number + 1

    def _withdraw(self, lane: Lane, count: int) -> None:
        """Remember that at most the first ``count`` blocks in ``lane`` are the tree's."""
        if count < self._published[lane.name]:
            self._published[lane.name] = count
            del self._path[max(self._published.values()) :]

    def begin(self, path: Sequence[Node]) -> int:
        """Take over the rows of ``path`` (for a new view); return the number of positions that the main lane got."""
        main = self._cache.main
        self._path = [node for node in path if main in node.blocks]
        for lane, table in self._paged:
            blocks = [node.blocks[lane.name] for node in self._path if lane.name in node.blocks]
            for block in blocks:
                lane.pool.retain(block)
            table.extend(blocks)
            table.filled = len(blocks) * BLOCK
            self._published[lane.name] = len(blocks)
        return self._main.filled

    def fork(self, request: int) -> View:
        """Return a view of the same rows for another request. Blocks are shared until one of them writes.

        ``RuntimeError`` if the model has state lanes and no free state slot.
        """
        twin = self._cache.new_view(request, self.lineage)
        for name, table in self.tables.items():
            other, lane = twin.tables[name], self._cache.lanes[name]
            if lane.paged:
                blocks = table.blocks[: blocks_for(table.filled)]
                for block in blocks:
                    lane.pool.retain(block)
                other.extend(blocks)
            else:
                lane.copy(table.blocks[0], other.blocks[0])
            other.filled = table.filled
        twin._path = list(self._path)
        twin._published = dict(self._published)
        return twin

    def close(self) -> None:
        """Release everything. May be called again."""
        if self.closed:
            return
        self.closed = True
        for name, table in self.tables.items():
            table.filled = 0
            self._cache.give(name, table.cut(0))
        self._path.clear()
        self._published = dict.fromkeys(self._published, 0)
        self._cache.views.pop(self)

    def check(self) -> None:
        """Raise ``AssertionError`` if tables, watermarks and published blocks disagree."""
        for lane, table in self._paged:
            name, count = lane.name, self._published[lane.name]
            assert table.filled <= table.reserved, f"lane {name}: watermark {table.filled} of {table.reserved}"
            slots = [block * BLOCK + offset for block in table.blocks for offset in range(BLOCK)]
            assert table.slots(0, table.reserved).tolist() == slots, f"lane {name}: slots are not those of the blocks"
            published = [node.blocks.get(name) for node in self._path[:count]]
            assert published == table.blocks[:count], f"lane {name}: published blocks are not the tree's"


def _shared(lane: Lane, table: Table, start: int | None) -> list[int]:
    """Return the numbers of the table's blocks from ``start`` on that somebody else holds too.

    All of them, also behind the last position to be written: a view must not hold a node's block in the prefix
    tree without those of its ancestors.
    """
    first = table.filled if start is None else min(start, table.filled)
    blocks, references = table.blocks, lane.pool.references
    return [number for number in range(first // BLOCK, len(blocks)) if references(blocks[number]) > 1]
