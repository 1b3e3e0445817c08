"""The decoder on the native kernels: the same specification, lowered to an op list that one call replays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stretto.core.batch import Batch, LaneSpec, LaneStorage, Part, Result
from stretto.kernels import native
from stretto.kernels.linear import round_up
from stretto.kernels.quantized import Quantized
from stretto.models.base import Described
from stretto.models.lowering import HIDDEN, PANEL, Lowering
from stretto.models.native_pass import NativePass
from stretto.models.price import CONTEXT, KNOTS, Price
from stretto.models.script import Script, script
from stretto.models.spec import ModelSpec

TIMINGS = 3
"""How often a pass is timed at load; the fastest counts, since other processes only ever hold it up."""


class CompiledTransformer(Described):
    """A ``Model`` (see ``core.batch``) whose passes run in the native library. Hidden states are fp32."""

    device = torch.device("cpu")
    own_threads = True

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Mapping[str, Tensor | Quantized],
        *,
        name: str,
        dtype: torch.dtype,
        fingerprint: str,
        lanes: tuple[LaneSpec, ...] | None = None,
    ) -> None:
        """Pack ``parameters`` (names as in ``spec.PARAMETERS``, in a weights format), reading each once.

        Arguments as for ``Transformer``; ``dtype`` is the precision of the cache, and of what bf16 matrices read.
        Raises ``RuntimeError`` where there is no native library.
        """
        super().__init__(spec, name, dtype, fingerprint, lanes)
        self.lanes = tuple(blocked(lane) for lane in self.lanes)
        self._numbers = {lane.name: number for number, lane in enumerate(self.kv_lanes)}
        order = [(self._numbers[lane], place) for lane, place in self.places]
        lowered = Lowering(native.required(), spec, parameters, order, dtype)
        self.program = lowered.program
        self.stack = lowered.layers
        self.weight_bytes = lowered.bytes
        """Of weights and scales that a pass reads."""
        self._lowered = lowered
        self._stride = round_up(spec.vocab_size, PANEL)
        self.main = next(iter(self._numbers))
        self.price: Price | None = None
        """What passes cost here, once ``measure`` has been called."""

    @property
    def kv_lanes(self) -> tuple[LaneSpec, ...]:
        """The lanes that layers read, in the order of their numbers."""
        return tuple(lane for lane in self.lanes if lane.kind == "kv")

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        """Take the lanes' storage once, at load; passes read and write it by slot."""
        super().bind(storage)
        for name, number in self._numbers.items():
            keys, values = storage[name].keys, storage[name].values
            assert values is not None
            stride, bf16 = keys.stride(0) * keys.element_size(), keys.dtype is torch.bfloat16
            self.program.bind(number, keys.data_ptr(), values.data_ptr(), stride, bf16, *keys.shape[2:])

    @torch.no_grad()
    def forward(self, batch: Batch) -> Result:
        """Run one pass: write the rows' keys and values to their slots, return what the chunks asked for."""
        if any(_special(part) for part in batch.parts):
            return NativePass(self, batch).run()
        index: list[int] = []
        for part in batch.parts:
            index += part.chunk.index
        logits = self.new_logits(len(batch.wanted))
        start = time.perf_counter()
        self.program.forward(
            batch.tokens,
            batch.rope,
            index,
            [batch.slots[lane] for lane in self._numbers],
            self.scripts(batch, [(part, part.start) for part in batch.parts]),
            batch.wanted,
            logits.data_ptr(),
        )
        if self.price is not None:
            self.price.observe(*_reads(batch, self.main), (time.perf_counter() - start) * 1e3)
        return Result(logits[:, : self.vocab_size])

    def measure(self) -> None:
        """Time eleven passes, of two layers where there are more than four, and keep their ``price``.

        The rows go to the first free slots of the cache, which must not be in use yet.
        """
        timed = self.layers if self.layers <= 4 else 2
        first, last = self.stack[0].start, self.stack[timed - 1].stop
        room = min(self.storage[name].null for name in self._numbers)

        def timer(rows: int, context: int) -> float:
            context = min(context, room // 2)
            index = list(range(context, context + rows))
            slots = [position % room for position in index]
            seen = np.arange(context)
            spans = [1, seen.ctypes.data, 0, context] if context else [0]
            own = [word for row, slot in enumerate(slots) for word in (slot, context + row, row)]
            view = [0, rows, 0, *spans, rows, *own]
            lanes = len(self._numbers)
            self.take([0] * rows, index, index, [slots] * lanes, [view] * lanes)
            logits = self.new_logits(rows)
            self.program.want(list(range(rows)), logits.data_ptr())
            return min(once() for _ in range(TIMINGS))

        def once() -> float:
            began = time.perf_counter()
            self.program.run(first, last)
            between = time.perf_counter()
            self.program.run(len(self.program) - 1, len(self.program))
            ended = time.perf_counter()
            return 1e3 * ((between - began) * self.layers / timed + ended - between)

        timer(max(KNOTS), CONTEXT)  # the first one brings memory in
        self.price = Price(timer)

    def scripts(self, batch: Batch, parts: list[tuple[Part, int]]) -> list[Script]:
        """Return for each lane what the rows of ``parts``, each with the number of its first row, see."""
        found: list[Script] = []
        for lane in self._numbers:
            words: Script = []
            slots, scratch = batch.slots[lane], self.storage[lane].scratch
            for part, first in parts:
                own = slots[part.start : part.start + len(part.chunk.tokens)]
                words += script(part.chunk, first, part.tables[lane], own, scratch)
            found.append(words)
        return found

    def new_logits(self, rows: int) -> Tensor:
        """Return room for logits, fp32 [rows, vocabulary padded to panels]."""
        return torch.empty(rows, self._stride)

    def embed(self, batch: Batch) -> Tensor:
        """Return the hidden states, fp32 [rows, width], with which the rows of ``batch`` begin."""
        self.take(batch.tokens, batch.rope)
        for part in batch.parts:
            given = part.chunk.embeddings
            for row, token in enumerate(part.chunk.tokens if given is not None else ()):
                if given is not None and token < 0:
                    self.write_rows(given[-1 - token].float()[None], part.start + row)
        self.program.run(0, 1)
        return self.read_rows(HIDDEN, 0, self.width, 0, len(batch))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 [rows, vocabulary] for the hidden states [rows, width] with which rows leave."""
        rows = len(hidden)
        self.take([0] * rows, [0] * rows)
        self.write_rows(hidden, 0)
        logits = self.new_logits(rows)
        self.program.want(list(range(rows)), logits.data_ptr())
        self.program.run(len(self.program) - 1, len(self.program))
        return logits[:, : self.vocab_size]

    def take(
        self,
        tokens: list[int],
        rope: list[int],
        index: list[int] | None = None,
        slots: list[list[int]] | None = None,
        scripts: list[Script] | None = None,
    ) -> None:
        """Begin a pass over rows that its caller runs op by op; without scripts no row attends."""
        lanes = len(self._numbers)
        self.program.start(tokens, rope, index or tokens, slots or [[]] * lanes, scripts or [[]] * lanes)

    def read_rows(self, buffer: int, column: int, width: int, first: int, rows: int) -> Tensor:
        """Return a copy, fp32 [rows, width], of columns of rows of one of the program's buffers."""
        out = torch.empty(rows, width)
        self.program.read(buffer, column, width, first, rows, out.data_ptr())
        return out

    def write_rows(self, hidden: Tensor, first: int) -> None:
        """Replace the hidden states of the rows from ``first`` on by ``hidden`` [rows, width]."""
        hidden = hidden.float().contiguous()
        self.program.write(HIDDEN, 0, self.width, first, len(hidden), hidden.data_ptr())

    def queries(self, layer: int, rows: Tensor, count: int) -> Tensor:
        """Return the queries behind rope of ``rows``, fp32 [rows, heads, head_size], in a pass of ``count`` rows."""
        spec = self.spec.layers[layer].attention
        query = self.read_rows(self._lowered.fused, 0, spec.heads * spec.head_size, 0, count)
        return query.index_select(0, rows).view(-1, spec.heads, spec.head_size)


def _reads(batch: Batch, lane: str) -> tuple[int, int, int]:
    """Return rows, cached positions read, and pairs of row and cached position that a pass has."""
    context = pairs = 0
    for part in batch.parts:
        filled = part.tables[lane].filled
        context += filled
        pairs += filled * len(part.chunk.tokens)
    return len(batch.tokens), context, pairs


def blocked(lane: LaneSpec) -> LaneSpec:
    """Return the lane with keys and values as the native attention reads them."""
    return replace(lane, layout="blocks") if lane.kind == "kv" else lane


def _special(part: Part) -> bool:
    """Whether a chunk wants more of its pass than logits behind all layers."""
    chunk = part.chunk
    return (
        chunk.layers is not None
        or bool(chunk.hidden)
        or chunk.sight is not None
        or chunk.hook is not None
        or chunk.entering is not None
        or chunk.embeddings is not None
        or chunk.feature is not None
    )
