"""What rows see: the entries of each segment, from its chunk's words to slots of one lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stretto.core.batch import LaneTable
from stretto.core.chunk import CONTEXT, Chunk, Segment

Ints = npt.NDArray[np.int64]

SEEN_BY_ALL = -1
"""Order of an entry that every row of the segment sees."""


@dataclass(slots=True)
class View:
    """One segment's rows and their entries: cached, held, siblings', ancestors', its own, in this order.

    A row sees the entries whose ``order`` is at most its ``reach``.
    """

    rows: Ints
    """Numbers of the rows in the pass."""
    at: Ints
    """Logical index of each row."""
    reach: Ints
    slots: Ints
    index: Ints
    """Logical index of each entry."""
    order: Ints


@dataclass(slots=True)
class Path:
    """What the rows of a segment see beside their own segment."""

    segment: Segment
    first: int
    spans: tuple[tuple[int, int], ...]
    held: tuple[tuple[int, int], ...]
    also: tuple[int, ...]
    ancestors: tuple[int, ...]

    def own(self, row: int) -> range:
        """Return the rows of the segment that its row ``row`` sees."""
        return range(self.first, self.first + self.segment.rows if self.segment.mutual else row + 1)


def views(chunk: Chunk, first: int, table: LaneTable, slots: Sequence[int], scratch: int) -> list[View]:
    """Return one view per segment of ``chunk``.

    ``first`` is the number in the pass of the chunk's first row, ``slots`` hold where the chunk's rows lie in the
    lane, ``scratch`` is the lane's slot of scratch row 0.
    """
    index, lies = np.array(chunk.index), np.array(slots)
    cached: dict[tuple[tuple[int, int], ...], tuple[Ints, Ints]] = {}
    anew = bool(index.min() < table.filled)
    found = []
    for path in paths(chunk, table.filled):
        own = np.arange(path.first, path.first + path.segment.rows)
        others = np.array(list(dict.fromkeys(path.also + path.ancestors)), dtype=np.int64)
        if path.spans not in cached:
            cached[path.spans] = _cached(path.spans, table)
        where, positions = cached[path.spans]
        rows = np.concatenate((others, own)) if len(others) else own
        if anew:  # a position computed anew is seen as the row that computes it, not twice
            keep = ~np.isin(where, lies[rows])
            where, positions = where[keep], positions[keep]
        held = np.array(path.held, dtype=np.int64).reshape(-1, 2)
        order = np.full(len(where) + len(held) + len(rows), SEEN_BY_ALL)
        steps = np.arange(len(own))
        order[len(order) - len(own) :] = steps
        found.append(
            View(
                rows=first + own,
                at=index[own],
                reach=np.full(len(own), len(own)) if path.segment.mutual else steps,
                slots=np.concatenate((where, scratch + held[:, 1], lies[rows])),
                index=np.concatenate((positions, held[:, 0], index[rows])),
                order=order,
            )
        )
    return found


def paths(chunk: Chunk, filled: int) -> list[Path]:
    """Return what the rows of each segment see beside it, following its parents to the context."""
    found: list[Path] = []
    of_row: list[Path] = []
    starts: list[range] = []
    root: tuple[tuple[int, int], ...] = ((0, filled),) if filled else ()
    for segment in chunk.segments or (Segment(len(chunk)),):
        spans, held = root, segment.held
        also: tuple[int, ...] = ()
        ancestors: tuple[int, ...] = ()
        if segment.parent != CONTEXT:
            parent = of_row[segment.parent]
            spans, held, also = parent.spans, parent.held + segment.held, parent.also
            ancestors = (*parent.ancestors, *parent.own(segment.parent))
        if segment.sees is not None:
            spans = segment.sees
        for other in segment.also:
            also = (*also, *starts[other])
        path = Path(segment, len(of_row), spans, held, also, ancestors)
        starts.append(range(path.first, path.first + segment.rows))
        of_row += [path] * segment.rows
        found.append(path)
    return found


def _cached(spans: tuple[tuple[int, int], ...], table: LaneTable) -> tuple[Ints, Ints]:
    """Return slots and logical indices of the cached positions in ``spans``."""
    if len(spans) == 1:
        return table.slots(*spans[0]), np.arange(*spans[0])
    if not spans:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    return np.concatenate([table.slots(*span) for span in spans]), np.concatenate([np.arange(*span) for span in spans])
