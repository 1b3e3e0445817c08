"""The ragged batch: the chunks of one model laid end to end, without padding, as a pass reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stretto.core.chunk import Chunk


class LaneTable(Protocol):
    """Where one request's rows lie in one lane."""

    filled: int
    """Positions below this one hold their rows."""
    address: int
    """Where the slots of all positions lie written out, as int64; valid until the table changes."""

    def slot(self, position: int) -> int:
        """Return the storage slot of ``position``."""
        ...

    def slots(self, start: int, stop: int) -> np.ndarray:
        """Return int64 [stop - start]: the storage slots of the positions from ``start`` to ``stop``."""
        ...


@dataclass(slots=True)
class Part:
    """One chunk's place in the batch."""

    chunk: Chunk
    start: int
    """Number in the batch of the chunk's first row."""
    tables: Mapping[str, LaneTable]
    """The request's table in each lane of the model."""


@dataclass(slots=True)
class Batch:
    """All rows of one pass. Lists run over the rows of the batch."""

    parts: list[Part] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rope: list[int] = field(default_factory=list)
    slots: dict[str, list[int]] = field(default_factory=dict)
    """By lane: the slot that each row's keys and values are written to."""
    wanted: list[int] = field(default_factory=list)
    """Rows of the batch whose logits are wanted, ascending."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(slots=True)
class Result:
    """What a pass returns for a batch."""

    logits: Tensor
    """float32 [len(batch.wanted), vocabulary]."""
    hidden: list[dict[int, Tensor]] = field(default_factory=list)
    """Per part, hidden states [rows, width] by layer border; empty when no chunk asked."""


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """What one lane stores. A model has at least one lane; each layer belongs to exactly one of kind ``kv``."""

    name: str
    kind: str = "kv"
    """``kv`` (keys and values per layer), ``feature`` (one vector per position) or ``state`` (one per sequence)."""
    layers: tuple[int, ...] = ()
    kv_heads: int = 0
    head_size: int = 0
    width: int = 0
    """Length of a feature or state vector."""
    dtype: str = "fp32"
    layout: str = "rows"
    """``rows`` (one row of a slot after the other) or ``blocks`` (as the native attention reads them)."""

    def bytes_per_token(self) -> int:
        """Return the bytes that one position takes in this lane (a state lane takes none per position)."""
        size = {"fp32": 4, "bf16": 2, "fp16": 2}[self.dtype]
        if self.kind == "kv":
            return 2 * len(self.layers) * self.kv_heads * self.head_size * size
        return self.width * size if self.kind == "feature" else 0


class PassPrice(Protocol):
    """What passes of a model cost on this machine."""

    def ms(self, rows: int, context: int = 0, pairs: int | None = None) -> float:
        """Return the milliseconds expected of a pass of ``rows`` rows.

        ``context`` counts the cached positions of its sequences, ``pairs`` the positions that each row sees, summed
        over the rows (default: as if all rows saw the whole context).
        """
        ...


class Model(Protocol):
    """One set of weights aboard. The transformer is one; a null model of fixed logits in tests is another."""

    name: str
    vocab_size: int
    context: int
    """Largest number of positions."""
    width: int
    layers: int
    lanes: tuple[LaneSpec, ...]
    fingerprint: str
    """Checkpoint, weights format, dtype, rope variant and kernel version, hashed: part of the numerics."""
    rope_border: int | None
    """Texts of more positions turn by other frequencies, all of them (LongRoPE, arXiv 2402.13753): then rope position p
    of a shorter text has number 2 * p in ``Batch.rope``, of a longer one 2 * p + 1."""
    own_threads: bool
    """Whether its passes run on threads of their own, which then want the cores between PyTorch's operations."""

    @property
    def price(self) -> PassPrice | None:
        """What its passes cost here, where that was measured."""
        ...

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        """Take the lanes' storage once, at load; passes read and write it by slot."""
        ...

    def forward(self, batch: Batch) -> Result:
        """Run one pass: write the rows' keys and values to their slots, return what the chunks asked for."""
        ...


@dataclass(slots=True)
class LaneStorage:
    """The memory of one lane: ``slots`` rows, of which one is always zero and never written."""

    spec: LaneSpec
    keys: Tensor
    """kv: [layers of the lane, slots, kv_heads, head_size]; feature and state: [slots, width].

    In a lane of layout ``blocks`` only the first two dimensions mean something: 16 slots lie interleaved in the order
    that ``native/src/attention/attention.hpp`` draws."""
    values: Tensor | None
    null: int
    """The slot that is always zero."""
    scratch: int
    """Slot of scratch row 0; scratch row i lies at ``scratch + i``."""
