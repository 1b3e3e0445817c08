"""Models for testing the engine without a transformer.

``ToyModel`` writes (token, index) to the cache and its logits are a hash of everything that a row sees, read back
from the cache: a row that sees one position too many, too few or somebody else's gets other logits.
``NullModel`` has fixed logits.
"""

from __future__ import annotations

import numpy as np
import torch

from stretto.core.batch import Batch, LaneSpec, LaneStorage, Part, Result
from stretto.core.chunk import Segment


class NullModel:
    """The same logits for every row."""

    own_threads, rope_border, price = False, None, None

    def __init__(self, vocab_size: int = 4096, context: int = 8192) -> None:
        self.name, self.vocab_size, self.context = "null", vocab_size, context
        self.width, self.layers, self.fingerprint = 1, 1, "null"
        self.lanes = (LaneSpec("main", "kv", (0,), 1, 1),)
        self.fixed = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        self.storage = storage

    def forward(self, batch: Batch) -> Result:
        return Result(self.fixed.expand(len(batch.wanted), -1))


class ToyModel(NullModel):
    """Logits are a hash of the multiset of (token, index) pairs that the row sees."""

    def __init__(self, vocab_size: int = 64, context: int = 512, salt: int = 1) -> None:
        super().__init__(vocab_size, context)
        self.lanes = (LaneSpec("main", "kv", (0,), 1, 2),)
        self.salt, self.fingerprint = salt, f"toy-{salt}"
        self.broken_at: int | None = None
        """A token whose row raises, for tests of isolation."""
        self.nan_at: int | None = None
        """A token whose row gives NaN."""
        self.calls = 0

    def forward(self, batch: Batch) -> Result:
        self.calls += 1
        keys = self.storage["main"].keys[0, :, 0]
        slots = torch.tensor(batch.slots["main"])
        index = [position for part in batch.parts for position in part.chunk.index]
        keys[slots] = torch.tensor([batch.tokens, index], dtype=torch.float32).T
        if self.broken_at in batch.tokens:
            raise RuntimeError("the toy broke")
        sums = [value for part in batch.parts for value in self._seen(part, slots, keys)]
        rows = []
        for row in batch.wanted:
            generator = torch.Generator().manual_seed(int(sums[row] % (1 << 62)))
            logits = torch.randn(self.vocab_size, generator=generator) * 3
            rows.append(torch.full_like(logits, float("nan")) if batch.tokens[row] == self.nan_at else logits)
        return Result(torch.stack(rows) if rows else torch.empty(0, self.vocab_size))

    def _hash(self, pairs: np.ndarray) -> int:
        token, index = pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.uint64)
        x = (token + np.uint64(7)) * np.uint64(0x9E3779B97F4A7C15) + (index + np.uint64(self.salt)) * np.uint64(
            0xC2B2AE3D27D4EB4F
        )
        x ^= x >> np.uint64(29)
        x *= np.uint64(0x165667B19E3779F9)
        x ^= x >> np.uint64(32)
        return int(x.sum(dtype=np.uint64))

    def _seen(self, part: Part, slots: torch.Tensor, keys: torch.Tensor) -> list[int]:
        chunk, table = part.chunk, part.tables["main"]
        segments = chunk.segments or [Segment(len(chunk))]
        visible: list[frozenset[int]] = []  # rows of the chunk
        cached: list[tuple[tuple[int, int], ...]] = []
        held: list[tuple[int, ...]] = []
        first = 0
        spans_of: list[range] = []
        for segment in segments:
            rows = range(first, first + segment.rows)
            spans_of.append(rows)
            root = segment.parent < 0
            behind = frozenset() if root else visible[segment.parent]
            behind |= {row for other in segment.also for row in spans_of[other]}
            spans = segment.sees
            if spans is None:
                spans = ((0, min(table.filled, chunk.index[0])),) if root else cached[segment.parent]
            for row in rows:
                own = rows if segment.mutual else range(first, row + 1)
                visible.append(behind | frozenset(own))
                cached.append(spans)
                held.append(tuple(row for _, row in segment.held) + (() if root else held[segment.parent]))
            first += segment.rows
        scratch = self.storage["main"].scratch
        result = []
        for row in range(len(chunk)):
            places = [int(slots[part.start + other]) for other in visible[row]]
            places += [scratch + other for other in held[row]]
            for start, stop in cached[row]:
                places += table.slots(start, stop).tolist()
            result.append(self._hash(keys[places].numpy()))
        return result
