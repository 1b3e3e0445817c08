"""Products of integer matrices with rows that are brought to integers too: the definition of int8, int8x2 and int4.

A row is cut into groups of 32 inputs; each group gets a scale of its own and whole numbers of 8 or 15 bits. The sum of
products of a group is a whole number that fp32 holds exactly, in whatever order a library adds; so a row's bits depend
on the order of the groups alone, which ascends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from stretto.kernels.linear import SHARDS, TILE, round_up

GROUP = 32
"""Inputs that share a scale: of the rows always, of the matrix in int4."""

LIMITS = {"int8": 127, "int8_row": 127, "int8x2": 127 * 256 + 127}
"""Largest whole number that a row's values are brought to, by how rows are read; int8x2 is 256 * high + low digit."""

SMALLEST = 2.0**-100
"""A group of a row whose values are all smaller is read as zeros: the reciprocal of its scale might be infinite."""

NIBBLE_ZERO = 8
"""The nibble that means 0 in int4, unless ``Quantized.zeros`` says otherwise."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [out, in] as whole numbers times scales, with how the rows that it multiplies are read."""

    layout: str
    """int8: one scale for each output; int4: one for each output and group of 32 inputs."""
    activations: str
    """A key of ``LIMITS``: int8 and int8x2 read rows with a scale for each group of 32 inputs, int8_row with one."""
    values: Tensor
    """[out, in]; int8: int8 from -127 to 127; int4: uint8 from 0 to 15, one value a byte."""
    scales: Tensor
    """int8: fp32 [out]; int4: fp16 [out, groups], of either sign; groups = in / 32, rounded up."""
    zeros: Tensor | None = None
    """int4: uint8 [out, groups], the value that means 0; None: 8 everywhere."""

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.values.shape

    def to(self, device: torch.device) -> Quantized:
        """Return the matrix on ``device``."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return Quantized(self.layout, self.activations, self.values.to(device), self.scales.to(device), zeros)

    def centred(self) -> Tensor:
        """Return the whole numbers that the scales multiply, int8 [out, in]: the values without their zeros."""
        if self.layout == "int8":
            return self.values
        if self.zeros is None:
            return self.values.to(torch.int8) - NIBBLE_ZERO
        return self.values.to(torch.int8) - self.zeros.to(torch.int8).repeat_interleave(GROUP, 1)[:, : self.shape[1]]

    def dequantize(self) -> Tensor:
        """Return the matrix that the integers stand for, fp32 [out, in]."""
        scales = self.scales.float()
        if self.layout == "int8":
            return self.values * scales[:, None]
        return self.centred() * scales.repeat_interleave(GROUP, 1)[:, : self.shape[1]]


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """A ``Quantized`` matrix as the reference products read it."""

    activations: str
    values: Tensor
    """int8 [groups, 32, padded out]."""
    scales: Tensor
    """fp32 [1, padded out] for the whole sum, or [groups, padded out] for each group's."""
    bias: Tensor | None
    """fp32 [padded out]."""
    borders: tuple[int, ...]
    """First input of each part that adds up on its own, and the end behind the last; multiples of 32."""


def shard_borders(depth: int) -> tuple[int, ...]:
    """Return the 9 borders of the 8 shards of ``depth`` inputs: multiples of 32; shards may be uneven or empty."""
    groups = -(-depth // GROUP)
    return tuple(GROUP * (groups * shard // SHARDS) for shard in range(SHARDS + 1))


def pack(
    matrices: Iterable[Quantized], biases: Iterable[Tensor | None] = (), *, align: int = 1, sharded: bool = False
) -> PackedIntegers:
    """Pack matrices of one format that read the same input into one whose result holds theirs side by side.

    ``align`` and the padding of outputs are those of ``linear.pack``; inputs are padded to a multiple of 32.
    """
    matrices = list(matrices)
    first = matrices[0]
    depth, device = round_up(first.shape[1], GROUP), first.values.device
    starts = list(accumulate((round_up(matrix.shape[0], align) for matrix in matrices), initial=0))
    height = round_up(starts[-1], TILE)
    values = torch.zeros(height, depth, dtype=torch.int8, device=device)
    scales = torch.zeros(height, 1 if first.layout == "int8" else depth // GROUP, device=device)
    bias = None
    for start, matrix in zip(starts, matrices, strict=False):
        outputs, inputs = matrix.shape
        values[start : start + outputs, :inputs] = matrix.centred()
        scales[start : start + outputs] = matrix.scales.view(outputs, -1)
    for start, part in zip(starts, biases, strict=False):
        if part is not None:
            bias = torch.zeros(height, device=device) if bias is None else bias
            bias[start : start + len(part)] = part
    borders = shard_borders(depth) if sharded else (0, depth)
    grouped = values.view(height, -1, GROUP).permute(1, 2, 0).contiguous()
    return PackedIntegers(first.activations, grouped, scales.t().contiguous(), bias, borders)


def quantize_rows(x: Tensor, activations: str) -> tuple[Tensor, Tensor]:
    """Return whole numbers, fp32 [rows, groups, 32], and scales, fp32 [rows, groups], of the rows ``x`` [rows, depth].

    ``depth`` is a multiple of 32. scale = largest magnitude / limit; number = x * (limit / largest magnitude), rounded
    to nearest, halves to even. A group that holds NaN or an infinity gets zeros and the scale NaN: what its row yields
    is NaN. int8_row takes the whole row for one group, and gives each group the row's scale.
    """
    limit = LIMITS[activations]
    x = x.float().view(x.shape[0], x.shape[1] // GROUP, GROUP)
    peak = x.abs().amax(-1, keepdim=True)
    if activations == "int8_row":
        peak = peak.amax(1, keepdim=True).expand(-1, x.shape[1], -1)
    usable = (peak >= SMALLEST) & peak.isfinite()
    numbers = torch.where(usable, (x * (limit / peak)).round(), 0.0)
    scales = torch.where(peak.isfinite(), torch.where(usable, peak / limit, 0.0), torch.nan)
    return numbers, scales.squeeze(-1)


def linear(x: Tensor, packed: PackedIntegers) -> Tensor:
    """Return ``x @ weight.T + bias`` [rows, padded out], rounded to the dtype of ``x`` [rows, in or padded in].

    Each part between two borders adds up in fp32, its groups in ascending order, from zero (under int8_row its whole
    numbers add up exactly and are rounded once); the parts add up in index order.
    """
    depth = packed.borders[-1]
    wide = torch.constant_pad_nd(x, (0, depth - x.shape[1]))  # cuts off zeros where x is padded further
    numbers, scales = quantize_rows(wide, packed.activations)
    parts = [
        _exact(packed, numbers, scales, range(start // GROUP, stop // GROUP))
        if packed.activations == "int8_row" and len(packed.scales) == 1
        else _grouped(packed, numbers, scales, range(start // GROUP, stop // GROUP))
        for start, stop in pairwise(packed.borders)
    ]
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    if len(packed.scales) == 1:
        out = out * packed.scales
    if packed.bias is not None:
        out = out + packed.bias
    return out.to(x.dtype)


def _grouped(packed: PackedIntegers, numbers: Tensor, scales: Tensor, groups: range) -> Tensor:
    """Return the sum of the groups' products times their scales, fp32 [rows, padded out]."""
    total = numbers.new_zeros(len(numbers), packed.values.shape[-1])
    for group in groups:
        scale = scales[:, group, None]
        if len(packed.scales) > 1:
            scale = scale * packed.scales[group]
        total = total + _sums(packed, numbers, group) * scale
    return total


def _exact(packed: PackedIntegers, numbers: Tensor, scales: Tensor, groups: range) -> Tensor:
    """Return the sum of the groups' products, rounded once, times the row's scale, fp32 [rows, padded out]."""
    total = numbers.new_zeros(len(numbers), packed.values.shape[-1], dtype=torch.float64)
    for group in groups:
        total += _sums(packed, numbers, group)
    return total.float() * scales[:, :1]


def _sums(packed: PackedIntegers, numbers: Tensor, group: int) -> Tensor:
    """Return the exact sums of one group's products rounded once, fp32 [rows, padded out]."""
    values, digits = packed.values[group].float(), numbers[:, group]
    if packed.activations != "int8x2":
        return digits @ values
    high = ((digits + 128) / 256).floor()
    low = digits - 256 * high
    return (256 * (high @ values).double() + (low @ values)).float()
