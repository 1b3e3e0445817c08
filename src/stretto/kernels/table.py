"""The op table: what a model computes with, as data, so that one backend can stand in for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stretto.kernels import reference
from stretto.kernels.linear import Packed
from stretto.kernels.quantized import PackedIntegers


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations of one backend. Each is defined by its namesake in ``kernels.reference``.

    Other backends match the definition within a stated tolerance and are row-invariant like it. ``name`` carries the
    version and enters the fingerprint: other bits, other name.
    """

    name: str
    pack: Callable[..., Packed | PackedIntegers]
    linear: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    activate: Callable[..., Tensor]
    softcap: Callable[..., Tensor]
    rotate: Callable[..., Tensor]
    choose_experts: Callable[..., tuple[Tensor, Tensor]]
    mixture: Callable[..., Tensor]
    attention: Callable[..., Tensor]


REFERENCE = Ops(
    "reference-1",
    reference.pack,
    reference.linear,
    reference.rms_norm,
    reference.layer_norm,
    reference.activate,
    reference.softcap,
    reference.rotate,
    reference.choose_experts,
    reference.mixture,
    reference.attention,
)
"""Plain PyTorch: the definition, on every device that PyTorch runs on."""
