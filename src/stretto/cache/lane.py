"""A lane: the memory that one kind of row lies in, and the pool that hands it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stretto.cache.blocks import BLOCK, BlockPool
from stretto.core.batch import LaneSpec, LaneStorage
from stretto.kernels import native

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_PAGE = 4096


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of zeros, on the CPU at the border of a page, taken from the system only when first touched."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + _PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % _PAGE
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(*shape)


class Lane:
    """Storage and pool of one ``LaneSpec``.

    ``blocks`` blocks, a slot that stays zero, and ``scratch`` rows of scratch. A block has ``BLOCK`` slots, or one
    in a state lane.
    """

    def __init__(self, spec: LaneSpec, blocks: int, scratch: int, device: torch.device) -> None:
        self.spec = spec
        self.name = spec.name
        self.pool = BlockPool(blocks)
        self.paged = spec.kind != "state"
        self._size = BLOCK if self.paged else 1
        null = blocks * self._size
        slots = null + 1 + scratch
        if spec.layout == "blocks":
            slots = -(-slots // BLOCK) * BLOCK
        dtype = _DTYPES[spec.dtype]
        values = None
        if spec.kind == "kv":
            shape = (len(spec.layers), slots, spec.kv_heads, spec.head_size)
            keys, values = zeros(shape, dtype, device), zeros(shape, dtype, device)
        else:
            keys = zeros((slots, spec.width), dtype, device)
        self.storage = LaneStorage(spec=spec, keys=keys, values=values, null=null, scratch=null + 1)
        self._tensors = [keys] if values is None else [keys, values]
        self._axis = 1 if spec.kind == "kv" else 0

    def copy(self, source: int, target: int) -> None:
        """Copy the rows of one block to another."""
        for tensor in self._tensors:
            rows = tensor.narrow(self._axis, source * self._size, self._size)
            tensor.narrow(self._axis, target * self._size, self._size).copy_(rows)

    def clear(self, block: int) -> None:
        """Write zeros to a block."""
        for tensor in self._tensors:
            tensor.narrow(self._axis, block * self._size, self._size).zero_()

    def keep(self, moves: dict[int, int]) -> None:
        """Copy rows to their slots: ``moves`` is scratch row by slot. One indexed copy for all rows and layers."""
        if self.spec.layout == "blocks":
            native.move_rows(self._tensors, [self.storage.scratch + row for row in moves.values()], list(moves))
            return
        device = self.storage.keys.device
        source = torch.tensor(list(moves.values()), dtype=torch.int64, device=device) + self.storage.scratch
        target = torch.tensor(list(moves), dtype=torch.int64, device=device)
        for tensor in self._tensors:
            tensor.index_copy_(self._axis, target, tensor.index_select(self._axis, source))


def read_rows(storage: LaneStorage, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return copies of the keys and values in ``slots``, [layers, len(slots), kv_heads, head_size], in any layout."""
    keys, values = storage.keys, storage.values
    assert values is not None, f"lane {storage.spec.name} has no values"
    place = torch.tensor(slots, dtype=torch.int64, device=keys.device)
    if storage.spec.layout != "blocks":
        return keys[:, place], values[:, place]
    layers, count, heads, size = keys.shape
    block, offset = place // BLOCK, place % BLOCK
    pair = 2 if keys.element_size() == 2 else 1
    inside = keys.view(layers, count // BLOCK, heads, size // pair, BLOCK, pair)
    key = inside[:, block, :, :, offset].flatten(3)
    inside = values.view(layers, count // BLOCK, heads, BLOCK // pair, size, pair)
    value = inside[:, block, :, offset // pair, :, offset % pair]
    return key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous()
