"""Matrix products whose rows do not know their company.

A matrix library picks its loop by the number of rows, and the order of its additions with it. Every product here is
made of tiles of exactly 16 rows over a matrix whose sides are multiples of 16, which keeps one row's bits the same
at any number of rows, at any place among them and at any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

TILE = 16
"""Rows of a tile, and the multiple to which the sides of a matrix are padded with zeros."""

SHARDS = 8
"""Partial products of a matrix whose input several devices would share; added in index order also on one device."""


def round_up(size: int, multiple: int = TILE) -> int:
    """Return the smallest multiple of ``multiple`` that holds ``size``."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix as the products read it: bf16 only where the activations are bf16 too, else widened to fp32."""

    weight: Tensor
    """[out, in] padded, or where ``sharded`` [8, in / 8, out] padded."""
    bias: Tensor | None
    sharded: bool

    @property
    def depth(self) -> int:
        """Padded number of inputs."""
        return self.weight.shape[0] * self.weight.shape[1] if self.sharded else self.weight.shape[1]


def compute_dtype(weight: torch.dtype, activations: torch.dtype) -> torch.dtype:
    """Return the dtype of a product: bf16 when both sides are bf16, fp32 otherwise."""
    return torch.bfloat16 if weight == activations == torch.bfloat16 else torch.float32


def pack(
    weights: Iterable[Tensor],
    biases: Iterable[Tensor | None] = (),
    *,
    dtype: torch.dtype,
    align: int = 1,
    sharded: bool = False,
) -> Packed:
    """Pack matrices [out, in] that read the same input into one whose result holds theirs side by side.

    ``dtype`` is that of the activations. Each matrix's part of the result is padded with zeros to a multiple of
    ``align``, the whole to a multiple of 16. A matrix that needs neither is taken as it is, without a copy.
    """
    weights = list(weights)
    compute = compute_dtype(weights[0].dtype, dtype)
    inputs = weights[0].shape[1]
    starts = list(accumulate((round_up(len(weight), align) for weight in weights), initial=0))
    height, depth = round_up(starts[-1]), round_up(inputs, TILE * SHARDS if sharded else TILE)
    if weights[0].shape == (height, depth):
        packed = weights[0].to(compute).contiguous()
    else:
        packed = torch.zeros(height, depth, dtype=compute, device=weights[0].device)
        for start, weight in zip(starts, weights, strict=False):
            packed[start : start + len(weight), :inputs] = weight
    bias = None
    for start, part in zip(starts, biases, strict=False):
        if part is not None:
            bias = torch.zeros(height, dtype=compute, device=packed.device) if bias is None else bias
            bias[start : start + len(part)] = part
    if sharded:
        packed = packed.view(height, SHARDS, depth // SHARDS).permute(1, 2, 0).contiguous()
    return Packed(packed, bias, sharded)


def linear(x: Tensor, packed: Packed) -> Tensor:
    """Return ``x @ weight.T + bias`` [rows, padded out] rounded to the dtype of ``x`` [rows, in or padded in]."""
    rows, inputs = x.shape
    weight, dtype, full = packed.weight, x.dtype, round_up(rows)
    x = x.to(weight.dtype).contiguous()
    if inputs != packed.depth or full != rows:
        x = torch.constant_pad_nd(x, (0, packed.depth - inputs, 0, full - rows))
    if packed.sharded:
        out = _sharded(x, weight)
    else:
        columns = weight.t()
        out = x.new_empty(full, weight.shape[0])
        for row in range(0, full, TILE):
            torch.mm(x[row : row + TILE], columns, out=out[row : row + TILE])
    if packed.bias is not None:
        out += packed.bias
    return out[:rows].to(dtype)


def _sharded(x: Tensor, weight: Tensor) -> Tensor:
    """Return the 8 partial products of each tile added in index order, fp32 [rows, out]."""
    shards, depth, width = weight.shape
    tiles = x.view(-1, TILE, shards, depth).transpose(1, 2)
    partial = x.new_empty(tiles.shape[0], shards, TILE, width)
    for tile, into in zip(tiles, partial, strict=True):
        torch.bmm(tile, weight, out=into)
    first, second, *others = partial.float().unbind(1)
    out = first + second
    for other in others:
        out += other
    return out.view(-1, width)
