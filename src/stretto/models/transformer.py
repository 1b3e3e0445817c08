"""One decoder, driven by its specification: every family is this class with other data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stretto.core.batch import Batch, LaneSpec, LaneStorage, Result
from stretto.kernels.elementwise import RopeTable
from stretto.kernels.table import REFERENCE, Ops
from stretto.models.layers import Layer, Weights
from stretto.models.passes import Pass
from stretto.models.spec import ModelSpec, RopeSpec

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
"""Precisions of activations and cache."""


class Transformer:
    """A ``Model`` (see ``core.batch``): logits, keys and values of ragged batches."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Mapping[str, Tensor],
        *,
        name: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        fingerprint: str,
        lanes: tuple[LaneSpec, ...] | None = None,
        ops: Ops = REFERENCE,
    ) -> None:
        """Pack ``parameters`` (names as in ``spec.PARAMETERS``, fp32 or bf16), reading each once.

        ``dtype`` is the precision of activations and cache. ``lanes`` defaults to one of all layers, named ``main``;
        where layers differ in their heads to one for each of their shapes. ``ops`` is the backend that computes.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16")
        self.spec = spec
        self.name = name
        self.dtype = dtype
        self.device = torch.device(device)
        self.fingerprint = fingerprint
        self.vocab_size, self.context, self.width = spec.vocab_size, spec.context, spec.width
        self.layers = len(spec.layers)
        self.lanes = _default_lanes(spec, DTYPES[dtype]) if lanes is None else lanes
        self.places = _places(self.lanes, self.layers)
        self.ops = ops
        weights = Weights(parameters, self.device, dtype, ops)
        embed = weights["embed"]
        head = embed if spec.tied else weights["head"]
        self._head = ops.pack([head], dtype=dtype)
        self._embed = self._head.weight[: spec.vocab_size, : spec.width] if spec.tied else embed
        self._positions = weights["positions"] if spec.positions else None
        self._norm = weights.norm("norm", spec.norm)
        self.stack = [Layer(layer, weights, f"layers.{number}.") for number, layer in enumerate(spec.layers)]
        ropes = {layer.attention.rope for layer in spec.layers} - {None}
        self._tables = {rope: RopeTable(rope.inverse, rope.attention, self.device) for rope in ropes if rope}
        self.storage: dict[str, LaneStorage] = {}

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        """Take the lanes' storage once, at load; passes read and write it by slot."""
        self.storage = storage

    @torch.no_grad()
    def forward(self, batch: Batch) -> Result:
        """Run one pass: write the rows' keys and values to their slots, return what the chunks asked for."""
        return Pass(self, batch).run()

    def embed(self, batch: Batch) -> Tensor:
        """Return the hidden states [rows, width] with which the rows of ``batch`` begin."""
        tokens = torch.tensor(batch.tokens, device=self.device)
        x = self._embed.index_select(0, tokens.clamp(min=0)).to(self.dtype)
        for part in batch.parts:
            given = part.chunk.embeddings
            for row, token in enumerate(part.chunk.tokens if given is not None else ()):
                if given is not None and token < 0:
                    x[part.start + row] = given[-1 - token].to(x)
        if self.spec.embedding_scale != 1:
            x = (x.float() * self.spec.embedding_scale).to(self.dtype)
        if self._positions is not None:
            x = x + self._positions.index_select(0, torch.tensor(batch.rope, device=self.device)).to(self.dtype)
        return x

    def turns(self, batch: Batch) -> dict[RopeSpec, tuple[Tensor, Tensor]]:
        """Return cosine and sine, fp32 [rows, 1, pairs], for each kind of rope that the layers use."""
        positions, largest = torch.tensor(batch.rope, device=self.device), max(batch.rope)
        return {rope: table.rows(positions, largest) for rope, table in self._tables.items()}

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 [rows, vocabulary] for the hidden states [rows, width] with which rows leave."""
        logits = self.ops.linear(self._norm(hidden), self._head)[:, : self.vocab_size].float()
        if self.spec.logit_scale != 1:
            logits = logits * self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            logits = self.ops.softcap(logits, self.spec.logit_softcap)
        return logits.contiguous()


def _default_lanes(spec: ModelSpec, dtype: str) -> tuple[LaneSpec, ...]:
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, layer in enumerate(spec.layers):
        by_shape.setdefault((layer.attention.kv_heads, layer.attention.head_size), []).append(number)
    return tuple(
        LaneSpec(
            name="main" if len(by_shape) == 1 else f"main-{heads}x{size}",
            layers=tuple(layers),
            kv_heads=heads,
            head_size=size,
            dtype=dtype,
        )
        for (heads, size), layers in by_shape.items()
    )


def _places(lanes: tuple[LaneSpec, ...], layers: int) -> list[tuple[str, int]]:
    """Return for each layer its lane and its number in the lane's storage."""
    places = {
        layer: (lane.name, place) for lane in lanes if lane.kind == "kv" for place, layer in enumerate(lane.layers)
    }
    if sorted(places) != list(range(layers)):
        raise ValueError(f"lanes hold the layers {sorted(places)}, expected each of 0 to {layers - 1} once")
    return [places[layer] for layer in range(layers)]
