"""The op table in plain PyTorch: the definition that every other kernel is measured against.

Row-invariant: a row's bits come from its own inputs, in an order that the number of rows, their places, the batch, the
slicing and the threads cannot change.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from stretto.kernels import linear as floats
from stretto.kernels import quantized as integers
from stretto.kernels.attention import Asked, Block, Plan, Run, attention
from stretto.kernels.elementwise import RopeTable, activate, layer_norm, rms_norm, rotate, softcap
from stretto.kernels.linear import Packed
from stretto.kernels.mixture import choose_experts, mixture
from stretto.kernels.quantized import PackedIntegers, Quantized

__all__ = [
    "Asked",
    "Block",
    "Packed",
    "PackedIntegers",
    "Plan",
    "Quantized",
    "RopeTable",
    "Run",
    "activate",
    "attention",
    "choose_experts",
    "layer_norm",
    "linear",
    "mixture",
    "pack",
    "rms_norm",
    "rotate",
    "softcap",
]


def pack(
    weights: Iterable[Tensor | Quantized],
    biases: Iterable[Tensor | None] = (),
    *,
    dtype: torch.dtype,
    align: int = 1,
    sharded: bool = False,
) -> Packed | PackedIntegers:
    """Pack matrices [out, in] of one format that read the same input into one whose result holds theirs side by side.

    ``dtype`` is that of the activations. Each matrix's part of the result is padded with zeros to a multiple of
    ``align``, the whole to a multiple of 16. Where ``sharded``, the inputs add up in 8 parts, and
    these in index order.
    """
    weights = list(weights)
    quantized = [weight for weight in weights if isinstance(weight, Quantized)]
    if quantized:
        return integers.pack(quantized, biases, align=align, sharded=sharded)
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    return floats.pack(plain, biases, dtype=dtype, align=align, sharded=sharded)


def linear(x: Tensor, packed: Packed | PackedIntegers) -> Tensor:
    """Return ``x @ weight.T + bias`` [rows, padded out] rounded to the dtype of ``x`` [rows, in or padded in]."""
    return integers.linear(x, packed) if isinstance(packed, PackedIntegers) else floats.linear(x, packed)
