"""The parts of a decoder layer: weights packed once at load, called with rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from stretto.kernels.linear import Packed
from stretto.kernels.quantized import PackedIntegers, Quantized
from stretto.kernels.table import REFERENCE, Ops
from stretto.models.spec import AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, NormSpec


class Weights:
    """A checkpoint's tensors by name, each read once and put on the model's device."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor | Quantized],
        device: torch.device,
        dtype: torch.dtype,
        ops: Ops = REFERENCE,
    ) -> None:
        self._parameters = parameters
        self.ops = ops
        self.device = device
        self.dtype = dtype
        """Precision of the activations."""

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def __getitem__(self, name: str) -> Tensor:
        """Return a vector, or a matrix whose rows are looked up."""
        found = self.matrix(name)
        assert isinstance(found, Tensor), name
        return found

    def matrix(self, name: str) -> Tensor | Quantized:
        """Return a matrix that is multiplied with, in its weights format."""
        try:
            return self._parameters[name].to(self.device)
        except KeyError:
            raise ValueError(f"the checkpoint has no tensor for {name}, which its configuration asks for") from None

    def packed(
        self, prefix: str, names: Iterable[str], bias: bool, *, align: int = 1, sharded: bool = False
    ) -> Packed | PackedIntegers:
        """Return the matrices ``prefix + name`` fused into one that reads their common input."""
        weights = [self.matrix(f"{prefix}{name}.weight") for name in names]
        biases = [self[f"{prefix}{name}.bias"] for name in names] if bias else []
        return self.ops.pack(weights, biases, dtype=self.dtype, align=align, sharded=sharded)

    def norm(self, name: str, spec: NormSpec) -> Norm:
        """Return the norm whose weights are ``name.weight`` and perhaps ``name.bias``."""
        weight = self[f"{name}.weight"].float() + spec.offset
        if spec.kind == "rms":
            return partial(self.ops.rms_norm, weight=weight, eps=spec.eps)
        bias = self[f"{name}.bias"].float() if spec.bias else None
        return partial(self.ops.layer_norm, weight=weight, bias=bias, eps=spec.eps)


Norm = Callable[[Tensor], Tensor]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called with query [rows, heads, head_size], key and value [rows, kv_heads, head_size], behind rope; keeps key and
value and returns what the rows read, [rows, heads * head_size]."""

Turn = tuple[Tensor, Tensor]
"""Cosine and sine, fp32 [rows, 1, pairs]."""


class Projection:
    """Query, key and value as products of the row."""

    def __init__(self, spec: AttentionSpec, weights: Weights, prefix: str) -> None:
        self._spec = spec
        self._ops = weights.ops
        self._input = weights.packed(prefix, ("query", "key", "value"), spec.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the heads of query, key and value, [rows, heads + 2 * kv_heads, head_size]."""
        size = self._spec.head_size
        fused = self._ops.linear(x, self._input)[:, : (self._spec.heads + 2 * self._spec.kv_heads) * size]
        return fused.view(x.shape[0], -1, size)


class Latent:
    """Query, key and value by way of latents (``LatentSpec``)."""

    def __init__(self, spec: AttentionSpec, weights: Weights, prefix: str) -> None:
        assert spec.latent is not None
        self._spec, self._latent = spec, spec.latent
        self._ops = weights.ops
        self._query_norm: Norm | None = None
        if spec.latent.query_size is None:
            self._query = weights.packed(prefix, ("query",), False)
        else:
            self._query_latent = weights.packed(prefix, ("query_latent",), spec.bias)
            self._query_norm = weights.norm(f"{prefix}query_latent_norm", spec.latent.norm)
            self._query = weights.packed(prefix, ("latent_query",), False)
        self._shared = weights.packed(prefix, ("latent", "turned"), spec.bias)
        self._norm = weights.norm(f"{prefix}latent_norm", spec.latent.norm)
        self._heads = weights.packed(prefix, ("latent_key", "latent_value"), False)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the heads of query, key and value, [rows, 3 * heads, head_size]."""
        spec, latent, linear = self._spec, self._latent, self._ops.linear
        wide = spec.heads * spec.head_size
        shared = linear(x, self._shared)
        both = linear(self._norm(shared[:, : latent.size]), self._heads)[:, : 2 * wide]
        if self._query_norm is not None:
            x = self._query_norm(linear(x, self._query_latent)[:, : latent.query_size])
        heads = torch.cat((linear(x, self._query)[:, :wide], both), -1).view(len(x), -1, spec.head_size)
        heads[:, spec.heads : 2 * spec.heads, : spec.turned] = shared[:, None, latent.size : latent.size + spec.turned]
        return heads


class Attention:
    """Projections, head norms and rope around an attention that knows where keys and values lie."""

    def __init__(self, spec: AttentionSpec, weights: Weights, prefix: str) -> None:
        self.spec = spec
        self._ops = weights.ops
        self._project: Callable[[Tensor], Tensor]
        """From normed rows to heads of query, key and value, [rows, heads + 2 * kv_heads, head_size]."""
        self._project = Projection(spec, weights, prefix) if spec.latent is None else Latent(spec, weights, prefix)
        self._output = weights.packed(prefix, ("output",), spec.output_bias, sharded=True)
        self._norms: list[Norm] = []
        """Of query and key."""
        if spec.head_norm is not None:
            self._norms = [weights.norm(f"{prefix}{name}_norm", spec.head_norm) for name in ("query", "key")]

    def __call__(self, x: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        """Return the branch's result [rows, width] for the normed rows ``x``."""
        spec = self.spec
        turned = spec.heads + spec.kv_heads
        heads = self._project(x)
        both, value = heads[:, :turned], heads[:, turned:]
        if not spec.norm_behind_rope:
            both = self._normed(both)
        if turn is not None:
            both = self._ops.rotate(both, *turn)
        if spec.norm_behind_rope:
            both = self._normed(both)
        out = attend(both[:, : spec.heads], both[:, spec.heads :], value)
        return self._ops.linear(out, self._output)[:, : x.shape[1]]

    def _normed(self, both: Tensor) -> Tensor:
        """Return query and key [rows, heads + kv_heads, head_size] behind their norms, if there are any."""
        if not self._norms:
            return both
        parts = both[:, : self.spec.heads], both[:, self.spec.heads :]
        if self.spec.norm_span == "all":
            normed = [norm(part.flatten(1)).view_as(part) for norm, part in zip(self._norms, parts, strict=True)]
        else:
            normed = [norm(part) for norm, part in zip(self._norms, parts, strict=True)]
        return torch.cat(normed, 1)


class Mlp:
    """A feed-forward block."""

    ALIGN = 128
    """The inner width is padded to what the sharded product behind it reads."""

    def __init__(self, spec: MlpSpec, weights: Weights, prefix: str) -> None:
        self._spec = spec
        self._ops = weights.ops
        names = ("gate", "up") if spec.gated else ("up",)
        self._input = weights.packed(prefix, names, spec.bias, align=self.ALIGN)
        self._output = weights.packed(prefix, ("down",), spec.bias, sharded=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the block's result [rows, width] for the normed rows ``x``."""
        inner = self._ops.linear(x, self._input)
        gate, up = inner.chunk(2, -1) if self._spec.gated else (inner, None)
        return self._ops.linear(self._ops.activate(gate, up, self._spec.activation), self._output)[:, : x.shape[1]]


class Experts:
    """A mixture of feed-forward blocks."""

    def __init__(self, spec: ExpertsSpec, weights: Weights, prefix: str) -> None:
        self._spec = spec
        self._ops = weights.ops
        self._router = weights.packed(prefix, ("router",), False)
        self._experts: list[Callable[[Tensor], Tensor]] = [
            Mlp(spec.expert, weights, f"{prefix}experts.{number}.") for number in range(spec.count)
        ]
        self._shared = Mlp(spec.shared, weights, f"{prefix}shared_") if spec.shared else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the weighted sum [rows, width] of the experts that each normed row of ``x`` chose."""
        logits = self._ops.linear(x, self._router)[:, : self._spec.count]
        ids, shares = self._ops.choose_experts(logits, self._spec.chosen, self._spec.normalised)
        mixed = self._ops.mixture(x, ids, shares, self._experts)
        return mixed if self._shared is None else mixed + self._shared(x)


class Branch(Protocol):
    """A feed-forward block or a mixture of them."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Layer:
    """The two branches of a layer, and their norms."""

    def __init__(self, spec: LayerSpec, weights: Weights, prefix: str) -> None:
        self.attention = Attention(spec.attention, weights, prefix)
        self._mlp: Branch = (
            Experts(spec.mlp, weights, prefix) if isinstance(spec.mlp, ExpertsSpec) else Mlp(spec.mlp, weights, prefix)
        )
        self._parallel = spec.parallel
        self._before = self._norms(weights, prefix, "norm", spec.norm)
        self._after = self._norms(weights, prefix, "after", spec.after)

    @staticmethod
    def _norms(weights: Weights, prefix: str, kind: str, spec: NormSpec | None) -> list[Norm]:
        """Return the norms of both branches."""
        if spec is None:
            return [_as_it_is] * 2
        return [weights.norm(f"{prefix}{branch}_{kind}", spec) for branch in ("attention", "mlp")]

    def __call__(self, x: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        """Return the rows [rows, width] behind the layer."""
        between = x + self._after[0](self.attention(self._before[0](x), turn, attend))
        return between + self._after[1](self._mlp(self._before[1](x if self._parallel else between)))


def _as_it_is(x: Tensor) -> Tensor:
    return x
