"""Lays the chunks of one model end to end: rows, positions, and the slot that each row's keys and values go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stretto.core.batch import Batch, Part
from stretto.core.chunk import ALL_ROWS

if TYPE_CHECKING:
    from stretto.cache.manager import ModelCache, View
    from stretto.core.chunk import Chunk


def pack(
    chunks: Sequence[Chunk], views: Sequence[View], cache: ModelCache, variants: Sequence[int] | None = None
) -> tuple[Batch, list[int], list[Sequence[int | None]]]:
    """Return the batch, where each chunk's wanted logits begin, and each chunk's scratch rows.

    ``variants``: for a model with a rope border, which of its two ropes each chunk's text has.
    Raises ``RuntimeError`` when the step's scratch rows are used up.
    """
    bases = {name: lane.storage.scratch for name, lane in cache.lanes.items() if lane.paged}
    batch = Batch(slots={lane: [] for lane in bases})
    starts: list[int] = []
    scratch_of: list[Sequence[int | None]] = []
    for number, (chunk, view) in enumerate(zip(chunks, views, strict=True)):
        start, tables = len(batch.tokens), view.tables
        batch.parts.append(Part(chunk, start, tables))
        batch.tokens += chunk.tokens
        rope = chunk.index if chunk.rope is None else chunk.rope
        batch.rope += rope if variants is None else [2 * position + variants[number] for position in rope]
        starts.append(len(batch.wanted))
        rows = len(chunk.tokens)
        if tuple(chunk.logits) == (ALL_ROWS,):
            batch.wanted += range(start, start + rows)
        else:
            batch.wanted += [start + row for row in chunk.logits]
        if chunk.roles is None and chunk.write is None:
            scratch_of.append(())
            for lane, slots in batch.slots.items():
                table = tables[lane]
                slots += [table.slot(position) for position in chunk.index]
            continue
        scratch = _scratch_rows(chunk, cache)
        scratch_of.append(scratch)
        for lane, slots in batch.slots.items():
            table, base = tables[lane], bases[lane]
            slots += [
                table.slot(position) if row is None else base + row
                for position, row in zip(chunk.index, scratch, strict=True)
            ]
    return batch, starts, scratch_of


def _scratch_rows(chunk: Chunk, cache: ModelCache) -> list[int | None]:
    """Return per row its scratch row: None where it is kept, the one it names where it re-enters, else a new one."""
    if chunk.scratch is not None:
        return list(chunk.scratch)
    kept = chunk.kept()
    fresh = iter(cache.take_scratch(kept.count(False)))
    return [None if keep else next(fresh) for keep in kept]
