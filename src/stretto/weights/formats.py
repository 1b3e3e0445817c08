"""Weights formats: how matrices are stored for the products, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.weights.quantize import quantize_int4, quantize_int8

Matrix = Tensor | Quantized
"""A matrix [out, in] in one of the formats: fp32, bf16, or whole numbers times scales."""


def dequantize(matrix: Matrix) -> Tensor:
    """Return the fp32 [out, in] that a stored matrix stands for."""
    return matrix.dequantize() if isinstance(matrix, Quantized) else matrix.float()


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way to store matrices [out, in]. A format enters the fingerprint by its name and version."""

    name: str
    layout: str
    """What is stored: fp32 | bf16 | int8 | int4."""
    activations: str
    """What products read their rows as: fp32 | bf16 (both: as they come) | int8 | int8x2 | int8_row."""
    bits: float
    """Bits per weight, with the scales of groups; one scale for a whole output is not counted."""
    encode: Callable[[Tensor], Matrix]
    """Stored form of a matrix of the checkpoint, at load."""
    decode: Callable[[Matrix], Tensor] = dequantize
    """Reference dequantization: stored form -> float32 [out, in]."""
    lossless: frozenset[torch.dtype] = frozenset()
    """Checkpoint precisions that it keeps to the bit; from any other it is lossy and must be asked for by name."""
    head: str = ""
    """Name of the format of the output head, where it is another one."""
    folds: bool = False
    """Whether scales of its input channels may be folded into the norm before it."""
    prepares: bool = False
    """Whether activations are prepared once for all products that read them (quantized, say)."""
    subset: bool = False
    """Whether a product may compute some output rows alone (neurons, experts)."""
    version: int = 1
    """Counts changes to what ``encode`` gives."""

    @property
    def quantized(self) -> bool:
        """Whether matrices become ``Quantized``. Lookups and routers then keep the checkpoint's own precision."""
        return self.layout in ("int8", "int4")


def _int8(activations: str) -> Callable[[Tensor], Matrix]:
    return lambda matrix: quantize_int8(matrix, activations)


FORMATS: dict[str, WeightFormat] = {
    each.name: each
    for each in (
        WeightFormat(
            "fp32",
            "fp32",
            "fp32",
            32.0,
            lambda matrix: matrix.float(),
            lossless=frozenset({torch.float32, torch.bfloat16, torch.float16}),
        ),
        WeightFormat(
            "bf16", "bf16", "bf16", 16.0, lambda matrix: matrix.bfloat16(), lossless=frozenset({torch.bfloat16})
        ),
        WeightFormat("int8", "int8", "int8", 8.0, _int8("int8"), folds=True, prepares=True, version=2),
        WeightFormat("int8x2", "int8", "int8x2", 8.0, _int8("int8x2"), folds=True, prepares=True),
        WeightFormat("int8-fast", "int8", "int8_row", 8.0, _int8("int8_row"), prepares=True, version=2),
        WeightFormat("int4", "int4", "int8", 4.5, quantize_int4, head="int8", folds=True, prepares=True, version=2),
    )
}


def own_format(stored: torch.dtype) -> WeightFormat:
    """Return the smallest format that keeps a checkpoint of that precision to the bit: what ``auto`` means."""
    return min((each for each in FORMATS.values() if stored in each.lossless), key=lambda each: each.bits)
