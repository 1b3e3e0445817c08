"""Whole numbers of a few bits, packed into words of 32, with a scale and a zero for each group of inputs.

The layouts that AWQ, GPTQ and compressed-tensors publish differ in which way they pack and where zeros lie; each is a
``Layout``, and unpacked they are all the same: (value - zero of its group) * scale of its group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stretto.kernels.quantized import GROUP, Quantized

Parts = Mapping[str, Tensor]
"""The tensors of one matrix by the last component of their names."""

Shapes = Mapping[str, tuple[int, ...]]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output, of each eight, that the i-th nibble from below of an AWQ word holds."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What the whole numbers of a matrix [out, in] count from and in which steps."""

    bits: int
    zeros: Tensor
    """int16 [out, groups]."""
    scales: Tensor
    """fp32 [out, groups]."""
    group: Tensor
    """int64 [in]: the group of each input."""

    def dequantize(self, values: Tensor) -> Tensor:
        """Return the fp32 [out, in] that ``values``, int16 [out, in], stand for."""
        return (values - self.zeros[:, self.group]) * self.scales[:, self.group]

    def reader(self) -> Literal["int4", "int8"] | None:
        """Return the format of our own that keeps such a matrix to the bit, None where there is no such.

        int4 takes 4 bits or fewer in groups of whole multiples of 32 consecutive inputs, with scales that fp16 holds;
        int8 takes 8 bits, symmetric, with one scale for an output.
        """
        if self.bits == 8:
            return "int8" if self.scales.shape[1] == 1 and bool((self.zeros == 128).all()) else None
        in_order = torch.equal(self.group[::GROUP].repeat_interleave(GROUP)[: len(self.group)], self.group)
        return "int4" if in_order and torch.equal(self.scales.half().float(), self.scales) else None

    def quantized(self, values: Tensor) -> Quantized:
        """Return ``values``, int16 [out, in], in the format of ``reader``."""
        if self.reader() == "int8":
            return Quantized("int8", "int8", (values - 128).to(torch.int8), self.scales[:, 0].contiguous())
        first = self.group[::GROUP]
        zeros = None if bool((self.zeros == 8).all()) else self.zeros[:, first].to(torch.uint8)
        return Quantized("int4", "int8", values.to(torch.uint8), self.scales[:, first].half(), zeros)


@dataclass(frozen=True, slots=True)
class Layout(ABC):
    """How one tool stores a matrix: ``label`` is what people call it, ``needed`` the parts that each matrix has."""

    label: str
    bits: int
    needed: frozenset[str]
    further: frozenset[str] = frozenset()
    """Parts that a matrix may have."""

    @abstractmethod
    def shape(self, parts: Parts, shapes: Shapes) -> tuple[int, int]:
        """Return [out, in] of a matrix, from the shapes of its parts where these tell."""

    @abstractmethod
    def grid(self, parts: Parts, shape: tuple[int, int]) -> Grid:
        """Return the grid of a matrix [out, in], which does not need its numbers."""

    @abstractmethod
    def values(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        """Return its numbers, int16 [out, in], not negative."""


class Awq(Layout):
    """AWQ's GEMM layout (arXiv 2306.00978): numbers [in, out / 8] and zeros [groups, out / 8] packed along the outputs,
    eight in an order of its own; scales [groups, out]."""

    def shape(self, parts: Parts, shapes: Shapes) -> tuple[int, int]:
        """Return [out, in]."""
        return shapes["scales"][1], shapes["qweight"][0]

    def grid(self, parts: Parts, shape: tuple[int, int]) -> Grid:
        """Return the grid."""
        scales = parts["scales"].float().T.contiguous()
        return Grid(4, _awq(parts["qzeros"]), scales, _even(shape[1], scales.shape[1]))

    def values(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        """Return the numbers."""
        return _awq(parts["qweight"])


@dataclass(frozen=True, slots=True)
class Gptq(Layout):
    """GPTQ's layout (arXiv 2210.17323): numbers [in * bits / 32, out] packed along the inputs, zeros
    [groups, out * bits / 32] along the outputs; scales [groups, out]; perhaps the group of each input."""

    zero_offset: int = 0
    """By how much zeros are stored too low: 1 in the first version of the layout."""

    def shape(self, parts: Parts, shapes: Shapes) -> tuple[int, int]:
        """Return [out, in]."""
        rows, outputs = shapes["qweight"]
        return outputs, rows * 32 // self.bits

    def grid(self, parts: Parts, shape: tuple[int, int]) -> Grid:
        """Return the grid."""
        scales = parts["scales"].float().T.contiguous()
        zeros = unpack(parts["qzeros"], self.bits, 1).T.contiguous() + self.zero_offset
        group = parts["g_idx"].long() if "g_idx" in parts else _even(shape[1], scales.shape[1])
        return Grid(self.bits, zeros, scales, group)

    def values(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        """Return the numbers."""
        return unpack(parts["qweight"], self.bits, 0).T.contiguous()


class Compressed(Layout):
    """The layout pack-quantized of compressed-tensors (https://github.com/vllm-project/compressed-tensors): numbers
    [out, in * bits / 32] packed along the inputs, zeros [out * bits / 32, groups] along the outputs, both raised by
    half the range; scales [out, groups], or fewer that serve all outputs."""

    def shape(self, parts: Parts, shapes: Shapes) -> tuple[int, int]:
        """Return [out, in]."""
        outputs, inputs = parts["weight_shape"].tolist()
        return outputs, inputs

    def grid(self, parts: Parts, shape: tuple[int, int]) -> Grid:
        """Return the grid."""
        outputs, inputs = shape
        stored = parts["weight_scale"].float()
        scales = stored.reshape(-1, stored.shape[-1]).expand(outputs, -1)
        zeros = torch.full(scales.shape, 1 << (self.bits - 1), dtype=torch.int16)
        if "weight_zero_point" in parts:
            zeros = unpack(parts["weight_zero_point"], self.bits, 0)[:outputs]
        group = parts["weight_g_idx"].long() if "weight_g_idx" in parts else _even(inputs, scales.shape[1])
        return Grid(self.bits, zeros, scales, group)

    def values(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        """Return the numbers."""
        return unpack(parts["weight_packed"], self.bits, 1)[:, : shape[1]].contiguous()


class Bytes(Layout):
    """The layout int-quantized of compressed-tensors: numbers int8 [out, in]; scales and zeros [out, 1], or one for all
    outputs."""

    def shape(self, parts: Parts, shapes: Shapes) -> tuple[int, int]:
        """Return [out, in]."""
        outputs, inputs = shapes["weight"]
        return outputs, inputs

    def grid(self, parts: Parts, shape: tuple[int, int]) -> Grid:
        """Return the grid."""
        outputs, inputs = shape
        zeros = torch.full((1, 1), 128, dtype=torch.int16)
        if "weight_zero_point" in parts:
            zeros = zeros + parts["weight_zero_point"].reshape(-1, 1).to(torch.int16)
        scales = parts["weight_scale"].float().reshape(-1, 1)
        return Grid(8, zeros.expand(outputs, 1), scales.expand(outputs, 1), _even(inputs, 1))

    def values(self, parts: Parts, shape: tuple[int, int]) -> Tensor:
        """Return the numbers."""
        return parts["weight"].to(torch.int16) + 128


def unpack(words: Tensor, bits: int, axis: int) -> Tensor:
    """Return the numbers in int32 [rows, columns], the lowest bits first, int16; ``axis`` becomes 32 / bits longer."""
    places = torch.arange(0, 32, bits, dtype=torch.int32)
    spread = (words.unsqueeze(axis + 1) >> places.view(-1, *(1,) * (1 - axis))) & ((1 << bits) - 1)
    return spread.to(torch.int16).flatten(axis, axis + 1)


def _awq(words: Tensor) -> Tensor:
    """Return the numbers in AWQ's int32 [rows, out / 8], int16 [out, rows]."""
    order = torch.argsort(torch.tensor(_AWQ_ORDER))
    return unpack(words, 4, 1).view(len(words), -1, 8)[..., order].flatten(1).T.contiguous()


def _even(inputs: int, groups: int) -> Tensor:
    """Return the group of each input where all groups, the last perhaps excepted, have the same size."""
    return torch.arange(inputs) // -(-inputs // groups)
