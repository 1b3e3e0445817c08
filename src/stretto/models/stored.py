"""The weights of checkpoints that are stored quantized: as they are where a kernel reads them, else widened."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.models.families import Family
from stretto.models.gguf import GgufCheckpoint
from stretto.models.latent import fills_up
from stretto.models.sources import CheckpointParameters, own_precision
from stretto.models.spec import ModelSpec
from stretto.tokens.gguf_header import find_gguf
from stretto.weights import Checkpoint
from stretto.weights.formats import FORMATS, WeightFormat, own_format
from stretto.weights.packed_checkpoint import PackedCheckpoint, is_packed
from stretto.weights.stored import StoredQuantized, select_rows

_LOOKED_UP = ("embed", "positions")


def open_checkpoint(place: Path) -> Checkpoint:
    """Open a checkpoint of any kind: a folder of safetensors, packed or not, a GGUF file, or a folder with one.

    Raises ``FileNotFoundError`` and ``ValueError`` as each kind does.
    """
    if (file := find_gguf(place)) is not None:
        return GgufCheckpoint(file)
    checkpoint = Checkpoint(place)
    return PackedCheckpoint(place) if is_packed(checkpoint.config) else checkpoint


class StoredParameters(CheckpointParameters):
    """The tensors of a quantized checkpoint. Matrices keep what they are stored in where they can; lookups, and what no
    kernel reads, become floating point that holds the same values exactly."""

    def __init__(self, checkpoint: StoredQuantized, family: Family, spec: ModelSpec) -> None:
        super().__init__(checkpoint, family, spec, own_format(own_precision(checkpoint)))
        self._stored = checkpoint
        embedding = self._plan["embed"]
        if spec.tied and embedding.name in checkpoint.keeps:
            self._shapes["head"] = self._shapes["embed"]
            self._plan["head"] = embedding
        self.matrices = replace(self._floats, name=f"stored, else {self._floats.name}", bits=self._bits())

    def _bits(self) -> float:
        """Return how many bits a weight of the model's matrices takes on average, all copies of it counted."""
        sizes = {name: math.prod(shape) for name, shape in self._shapes.items() if len(shape) > 1}
        taken = sum(size * (self.form_of(name) or self._floats).bits for name, size in sizes.items())
        return taken / sum(size for name, size in sizes.items() if name != "head" or not self._spec.tied)

    def form_of(self, name: str) -> WeightFormat | None:
        """Return the format of a matrix that keeps its numbers; None if it is kept in floating point."""
        stored = self._plan[name]
        looked_up = name in _LOOKED_UP or name.endswith("router.weight")
        attention = self._attention(name)
        filled = attention is not None and fills_up(name.split(".")[-2], attention)
        if stored.name not in self._stored.keeps or stored.transposed or looked_up or filled:
            return None
        return FORMATS[self._stored.readable[stored.name]]

    def _read(self, name: str) -> Tensor | Quantized:
        if self.form_of(name) is None:
            return super()._read(name)
        matrix = self._stored.matrix(self._plan[name].name)
        rows = self._arranged(name, torch.arange(len(matrix.values))[:, None])[:, 0]
        return select_rows(matrix, rows)
