"""Weights formats: how matrices are stored for the products, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way to store matrices [out, in]. A format enters the fingerprint by its name."""

    name: str
    op: str
    """The operation of the op table that reads it."""
    bits: float
    """Bits per weight, scales included."""
    encode: Callable[[Tensor], Tensor]
    """Stored form of a matrix of the checkpoint, at load."""
    decode: Callable[[Tensor], Tensor]
    """Reference dequantization: stored form -> float32 [out, in]."""
    lossless: frozenset[torch.dtype] = frozenset()
    """Checkpoint precisions that it keeps to the bit; from any other it is lossy and must be asked for by name."""
    folds: bool = False
    """Whether scales of its input channels may be folded into the norm before it."""
    prepares: bool = False
    """Whether activations are prepared once for all products that read them (quantized, say)."""
    subset: bool = False
    """Whether a product may compute some output rows alone (neurons, experts)."""


FORMATS: dict[str, WeightFormat] = {
    each.name: each
    for each in (
        WeightFormat(
            "fp32",
            "linear",
            32.0,
            lambda matrix: matrix.float(),
            lambda stored: stored.float(),
            lossless=frozenset({torch.float32, torch.bfloat16, torch.float16}),
        ),
        WeightFormat(
            "bf16",
            "linear",
            16.0,
            lambda matrix: matrix.bfloat16(),
            lambda stored: stored.float(),
            lossless=frozenset({torch.bfloat16}),
        ),
    )
}


def own_format(stored: torch.dtype) -> WeightFormat:
    """Return the smallest format that keeps a checkpoint of that precision to the bit: what ``auto`` means."""
    return min((each for each in FORMATS.values() if stored in each.lossless), key=lambda each: each.bits)
