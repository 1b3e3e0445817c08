"""One decoder, driven by its specification: every family is this class with other data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stretto.core.batch import Batch, LaneSpec, Result
from stretto.kernels.elementwise import RopeTable
from stretto.kernels.linear import Packed
from stretto.kernels.quantized import Quantized
from stretto.kernels.table import REFERENCE, Ops
from stretto.models.base import Described
from stretto.models.layers import Layer, Weights
from stretto.models.passes import TorchPass
from stretto.models.spec import ModelSpec, RopeSpec


class Transformer(Described):
    """A ``Model`` (see ``core.batch``): logits, keys and values of ragged batches."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Mapping[str, Tensor | Quantized],
        *,
        name: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        fingerprint: str,
        lanes: tuple[LaneSpec, ...] | None = None,
        ops: Ops = REFERENCE,
    ) -> None:
        """Pack ``parameters`` (names as in ``spec.PARAMETERS``, in a weights format), reading each once.

        A ``head`` beside a tied embedding is the same matrix in another format than the lookups'.

        ``dtype`` is the precision of activations and cache. ``lanes`` defaults to one of all layers, named ``main``;
        where layers differ in their heads to one for each of their shapes. ``ops`` is the backend that computes.
        """
        super().__init__(spec, name, dtype, fingerprint, lanes)
        self.device = torch.device(device)
        self.ops = ops
        weights = Weights(parameters, self.device, dtype, ops)
        embed = weights["embed"]
        shared = spec.tied and "head" not in weights
        self._head = ops.pack([embed if shared else weights.matrix("head")], dtype=dtype)
        if shared and isinstance(self._head, Packed):
            embed = self._head.weight[: spec.vocab_size, : spec.width]
        self._embed = embed
        self._positions = weights["positions"] if spec.positions else None
        self._norm = weights.norm("norm", spec.norm)
        self.stack = [Layer(layer, weights, f"layers.{number}.") for number, layer in enumerate(spec.layers)]
        ropes = {layer.attention.rope for layer in spec.layers} - {None}
        self._tables = {
            rope: RopeTable(rope.inverse, rope.attention, self.device, rope.beyond) for rope in ropes if rope
        }

    @torch.no_grad()
    def forward(self, batch: Batch) -> Result:
        """Run one pass: write the rows' keys and values to their slots, return what the chunks asked for."""
        return TorchPass(self, batch).run()

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
