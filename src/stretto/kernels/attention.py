"""Attention whose additions are ordered by logical index, never by where keys lie.

The entry at logical index i is lane i % 128 of group i // 128. A tile is the 128 lanes of one group; each tile gives a
partial result (max, sum, out), and the partial results of a row are merged in ascending order of their groups. A lane
that a row does not see adds exactly nothing, so that a drafted row whose ancestors lie in scratch rows, among siblings
or behind other requests gets the bits of plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.kernels.elementwise import softcap
from stretto.kernels.linear import TILE, round_up

LANES = 128
"""Entries of a tile."""

LOW = -1e30
"""Maximum of a tile of which a row sees nothing: finite, so that no difference of two of them is NaN."""


Cells = tuple[Tensor, Tensor, Tensor]


@dataclass(slots=True)
class Run:
    """Tiles of queries that are computed in one go. An item is a pair of query tile and key tile."""

    queries: Tensor
    """int64 [items]: query tile of each item. Items are sorted by level (first key tile of each query tile, second
    key tile of each, ...); within a level by query tile."""
    tiles: slice
    """The key tiles of the items, in their order, among those of the block."""
    first: int
    """First query tile of the run."""
    levels: list[int]
    """How many query tiles have a first, second, ... key tile; descending."""
    masked: slice
    """The items of which some line does not see every lane; the others need no mask."""
    mask: Tensor
    """fp32 [masked items, 1, 16, 128], added to the scores: -inf where a line does not see a lane, else 0."""


@dataclass(slots=True)
class Block:
    """Key tiles that are gathered once, and the runs that read them."""

    places: Tensor
    """int64 [tiles * kv_heads * 128]: slot * kv_heads + head of each lane; empty lanes name a slot of zeros."""
    runs: list[Run]
    entries: Tensor | None = None
    """int64 [tiles, 128]: number of each lane's entry, empty lanes the number of entries; in traced plans only."""


@dataclass(slots=True)
class Asked:
    """What one view's policy adds to the scores and learns from them; views without one have none."""

    bias: Tensor | None
    """float32 [rows, 1 or kv_heads, entries], added to the scores; -inf hides."""
    mass: Tensor | None
    """float32 [rows + 1, kv_heads, entries + 1]: receives the normalised attention mass, summed over a group's heads.
    The last row and column take what the lines that fill a tile up and the empty lanes have."""


@dataclass(slots=True)
class Plan:
    """What an attention call needs to know beside the tensors; built once per pass, lane and layer shape."""

    lines: Tensor
    """int64 [query tiles * kv_heads * 16]: row * heads + head of each line."""
    outputs: Tensor
    """int64 [rows * heads]: number of the line that holds the result of each row and head."""
    blocks: list[Block]
    tiles: int
    """Number of query tiles."""
    rows: Tensor | None = None
    """int64 [query tiles, 16]: row of each line, the number of rows for lines that fill a tile up; in traced plans
    only."""


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: Plan,
    *,
    scale: float,
    cap: float | None = None,
    asked: Asked | None = None,
) -> Tensor:
    """Return attention's result [rows of the plan, heads * head_size] in the dtype of ``query``.

    ``query`` is [rows, heads, head_size]; ``keys`` and ``values`` are the lane's storage [slots, kv_heads, head_size],
    where the rows' own keys and values lie already. All arithmetic is in fp32. ``asked`` needs a traced plan.
    """
    _, heads, size = query.shape
    kv_heads = keys.shape[1]
    padded = round_up(size)
    lines = query.reshape(-1, size).index_select(0, plan.lines).float() * scale
    lines = _widen(lines, padded).view(plan.tiles, kv_heads, TILE, padded)
    result = lines.new_empty(plan.tiles, kv_heads, TILE, padded)
    for block in plan.blocks:
        key, value = (_gather(storage, block.places, padded) for storage in (keys, values))
        for run in block.runs:
            stop = run.first + run.levels[0]
            trace = None if asked is None else (asked, _cells(plan, block, run, kv_heads))
            result[run.first : stop] = _run(lines, key[run.tiles], value[run.tiles], run, cap, trace)
    out = result.view(-1, padded).index_select(0, plan.outputs)[:, :size]
    return out.reshape(-1, heads * size).to(query.dtype)


def _widen(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else torch.constant_pad_nd(x, (0, size - x.shape[-1]))


def _gather(storage: Tensor, places: Tensor, padded: int) -> Tensor:
    """Return rows of ``storage`` [slots, kv_heads, size] as tiles, fp32 [tiles, kv_heads, 128, padded]."""
    _, kv_heads, size = storage.shape
    rows = storage.view(-1, size).index_select(0, places).float()
    return _widen(rows, padded).view(-1, kv_heads, LANES, padded)


def _run(
    lines: Tensor, key: Tensor, value: Tensor, run: Run, cap: float | None, trace: tuple[Asked, Cells] | None
) -> Tensor:
    """Return the result fp32 [query tiles of the run, kv_heads, 16, size]; ``key`` [items, kv_heads, 128, size]."""
    items, kv_heads, _, size = key.shape
    query = lines.index_select(0, run.queries)
    shape = (items, kv_heads, TILE, LANES)
    scores = torch.bmm(query.view(-1, TILE, size), key.reshape(-1, LANES, size).transpose(1, 2)).view(shape)
    if cap is not None:
        scores = softcap(scores, cap)
    if trace is not None and trace[0].bias is not None:
        bias, cells = torch.constant_pad_nd(trace[0].bias.float(), (0, 1, 0, 0, 0, 1)), trace[1]
        scores += bias.expand(-1, kv_heads, -1)[cells]
    scores[run.masked] += run.mask
    largest = scores.amax(-1, keepdim=True).clamp_(min=LOW)
    weights = torch.exp(scores.sub_(largest))
    out = torch.bmm(weights.view(-1, TILE, LANES), value.reshape(-1, LANES, size)).view(items, kv_heads, TILE, size)
    partial = torch.cat((out, weights.sum(-1, keepdim=True)), -1)
    peak = _by_level(largest, run.levels, torch.maximum)
    local = run.queries - run.first
    factor = torch.exp(largest - peak.index_select(0, local))
    merged = _by_level(partial * factor, run.levels, torch.add)
    total = merged[..., size:]
    if trace is not None and trace[0].mass is not None:
        trace[0].mass.index_put_(trace[1], weights * (factor / total.index_select(0, local)), accumulate=True)
    return merged[..., :size] / total


def _by_level(items: Tensor, levels: list[int], merge: Callable[..., Tensor]) -> Tensor:
    """Return ``items`` merged level by level, ascending, into one row per query tile."""
    start = levels[0]
    merged = items[:start].clone()
    for count in levels[1:]:
        merge(merged[:count], items[start : start + count], out=merged[:count])
        start += count
    return merged


def _cells(plan: Plan, block: Block, run: Run, kv_heads: int) -> Cells:
    """Return for every score of the run its row, K/V head and entry, ready to broadcast."""
    if plan.rows is None or block.entries is None:
        raise ValueError("attention: asked was given, but the plan is not traced; lay the view out with traced=True")
    rows = plan.rows.index_select(0, run.queries)
    heads = torch.arange(kv_heads, device=rows.device)
    return rows[:, None, :, None], heads[None, :, None, None], block.entries[run.tiles][:, None, None, :]
