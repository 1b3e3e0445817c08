"""What rows see, as the native attention reads it: one flat list of whole numbers per lane.

A view is ``first, rows, mutual, spans, (address, start, count)..., extras, (slot, index, order)...``: the rows of one
segment, the cached positions that all of them see, whose slots lie at ``address``, and single entries, which a row sees
from its own number in the segment on (a mutual segment's rows see all).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from stretto.core.batch import LaneTable
from stretto.core.chunk import Chunk
from stretto.models.views import SEEN_BY_ALL, View, paths

Script = list[int]

SLOT_BYTES = 8


def plain_script(chunk: Chunk, first: int, table: LaneTable, slots: Sequence[int]) -> Script:
    """Return the one view of a chunk without segments whose rows lie behind the cached context."""
    rows = len(chunk.tokens)
    own = list(chain.from_iterable(zip(slots, chunk.index, range(rows), strict=True)))
    if not table.filled:
        return [first, rows, 0, 0, rows, *own]
    return [first, rows, 0, 1, table.address, 0, table.filled, rows, *own]


def script(chunk: Chunk, first: int, table: LaneTable, slots: Sequence[int], scratch: int) -> Script:
    """Return the views of ``chunk``, one per segment; arguments as for ``views.views``."""
    anew: set[int] = set()
    if min(chunk.index) < table.filled:
        anew = {index for index, slot in zip(chunk.index, slots, strict=True) if _lies_at(table, index, slot)}
    if not chunk.segments and not anew:
        return plain_script(chunk, first, table, slots)
    words: Script = []
    for path in paths(chunk, table.filled):
        others = tuple(dict.fromkeys(path.also + path.ancestors))
        # A position computed anew is seen as the row that computes it, not twice.
        rows = (*others, *range(path.first, path.first + path.segment.rows))
        seen = {chunk.index[row] for row in rows} & anew
        spans = [part for span in path.spans for part in _without(span, seen)]
        extras = [(scratch + row, index, SEEN_BY_ALL) for index, row in path.held]
        extras += [(slots[row], chunk.index[row], SEEN_BY_ALL) for row in others]
        extras += [(slots[row], chunk.index[row], number) for number, row in enumerate(rows[len(others) :])]
        words += (first + path.first, path.segment.rows, int(path.segment.mutual), len(spans))
        words += chain.from_iterable((table.address + SLOT_BYTES * start, start, stop - start) for start, stop in spans)
        words.append(len(extras))
        words += chain.from_iterable(extras)
    return words


def view_script(view: View) -> Script:
    """Return one view with every entry written out, in the order in which the view numbers them."""
    mutual = int(view.reach[0] > 0)
    entries = zip(view.slots.tolist(), view.index.tolist(), view.order.tolist(), strict=True)
    return [int(view.rows[0]), len(view.rows), mutual, 0, len(view.slots), *chain.from_iterable(entries)]


def _lies_at(table: LaneTable, index: int, slot: int) -> bool:
    return index < table.filled and table.slot(index) == slot


def _without(span: tuple[int, int], positions: set[int]) -> list[tuple[int, int]]:
    """Return the parts of ``span`` between ``positions``."""
    start, stop = span
    parts = []
    for position in sorted(positions):
        if start <= position < stop:
            parts.append((start, position))
            start = position + 1
    parts.append((start, stop))
    return [(start, stop) for start, stop in parts if start < stop]
