"""Ops that read one row at a time: norms, activations, rotary positions. All compute in fp32.

Written out in elementary functions because the fused ones (``silu``, ``gelu``) take another path for the last
elements of a row, and where a row ends in memory depends on its company.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``x / rms(x) * weight`` over the last dimension, in the dtype of ``x`` (arXiv 1910.07467)."""
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return ``(x - mean) / deviation * weight + bias`` over the last dimension, in the dtype of ``x``."""
    wide = x.float()
    wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight
    return (wide if bias is None else wide + bias).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(x)``."""
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    """Return ``x * Phi(x)`` (arXiv 1606.08415)."""
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU's approximation by tanh."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def relu(x: Tensor) -> Tensor:
    """Return ``max(x, 0)``; NaN stays NaN."""
    return x.clamp(min=0)


def relu_squared(x: Tensor) -> Tensor:
    """Return ``max(x, 0) ** 2`` (arXiv 2109.08668); NaN stays NaN."""
    return relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu_squared": relu_squared,
}


def activate(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """Return ``act(gate) * up``, or ``act(gate)`` without ``up``, in the dtype of ``gate``."""
    wide = ACTIVATIONS[activation](gate.float())
    return (wide if up is None else wide * up.float()).to(gate.dtype)


def softcap(x: Tensor, cap: float) -> Tensor:
    """Return ``cap * tanh(x / cap)`` (Gemma 2, arXiv 2408.00118)."""
    return torch.tanh(x / cap) * cap


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return ``x`` [rows, heads, head_size] with its pairs (i, i + pairs) turned (RoFormer, arXiv 2104.09864).

    ``cosine`` and ``sine`` are fp32 [rows, 1, pairs]; entries behind the first ``2 * pairs`` pass unchanged.
    """
    pairs = cosine.shape[-1]
    first, second, rest = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float(), x[..., 2 * pairs :]
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), -1)


class RopeTable:
    """Cosines and sines by position, computed once in pages of fixed size.

    Angles are rounded to fp32 as published models were trained with; their cosines are exact to fp32.
    """

    PAGE = 1024

    def __init__(
        self,
        inverse: tuple[float, ...],
        attention: float,
        device: torch.device,
        beyond: tuple[float, ...] | None = None,
    ) -> None:
        """``inverse`` are radians per position, one per pair; ``attention`` multiplies cosine and sine.

        With ``beyond``, other radians, position p has number 2 * p in the first and 2 * p + 1 in the second.
        """
        variants = [inverse] if beyond is None else [inverse, beyond]
        self._inverse = torch.tensor(variants, dtype=torch.float32)
        self._attention = attention
        self._table = torch.empty(0, 2, len(inverse), device=device)

    def rows(self, positions: Tensor, largest: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine fp32 [rows, 1, pairs] of int64 ``positions`` [rows], none above ``largest``."""
        variants = len(self._inverse)
        while len(self._table) <= largest:
            page = torch.arange(len(self._table), len(self._table) + self.PAGE)
            angle = ((page // variants).float()[:, None] * self._inverse[page % variants]).double()
            turns = torch.stack((angle.cos(), angle.sin()), 1) * self._attention
            self._table = torch.cat((self._table, turns.float().to(self._table.device)))
        turns = self._table.index_select(0, positions)
        return turns[:, :1], turns[:, 1:]
