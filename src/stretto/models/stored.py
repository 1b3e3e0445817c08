"""The weights of checkpoints that are stored quantized: as they are where a kernel reads them, else widened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.models.families import Family
from stretto.models.gguf import GgufCheckpoint
from stretto.models.sources import CheckpointParameters, own_precision
from stretto.models.spec import ModelSpec
from stretto.tokens.gguf_header import find_gguf
from stretto.weights import Checkpoint
from stretto.weights.formats import own_format
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
        floats = own_format(own_precision(checkpoint))
        super().__init__(checkpoint, family, spec, replace(floats, name=f"stored, else {floats.name}"))
        self._stored = checkpoint
        embedding = self._plan["embed"]
        if spec.tied and embedding.name in checkpoint.keeps:
            self._shapes["head"] = self._shapes["embed"]
            self._plan["head"] = embedding

    def _read(self, name: str) -> Tensor | Quantized:
        stored = self._plan[name]
        looked_up = name in _LOOKED_UP or name.endswith("router.weight")
        if stored.name not in self._stored.keeps or stored.transposed or looked_up:
            return super()._read(name)
        matrix = self._stored.matrix(stored.name)
        rows = self._arranged(name, torch.arange(len(matrix.values))[:, None])[:, 0]
        return select_rows(matrix, rows)
