"""A small random decoder, lanes to run it on, and the same decoder written densely in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stretto.core.batch import Batch, LaneSpec, LaneStorage, Part, Result
from stretto.core.chunk import Chunk
from stretto.kernels import native
from stretto.kernels.table import REFERENCE, Ops
from stretto.models.backend import AnyTransformer
from stretto.models.compiled import CompiledTransformer
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from stretto.models.transformer import Transformer
from stretto.weights.formats import FORMATS

BLOCK = 16


def specify(
    *, heads: int = 4, kv_heads: int = 2, size: int = 16, width: int = 64, inner: int = 96, vocab: int = 128,
    window: int | None = None, softcap: float | None = None, experts: int = 0, layers: int = 2,
) -> ModelSpec:  # fmt: skip
    """Return the specification of a decoder; its odd layers have the window."""
    rope = RopeSpec(tuple(10000 ** (-2 * pair / size) for pair in range(size // 2)))
    attention = AttentionSpec(heads, kv_heads, size, size**-0.5, rope, softcap=softcap)
    mlp: MlpSpec | ExpertsSpec = MlpSpec(inner)
    if experts:
        mlp = ExpertsSpec(experts, 2, MlpSpec(inner))
    layer = LayerSpec(attention, mlp, NormSpec())
    odd = replace(layer, attention=replace(attention, window=window))
    stack = tuple(odd if number % 2 else layer for number in range(layers))
    return ModelSpec("test", vocab, width, 2048, stack, NormSpec())


def draw(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    """Return random parameters that make attention peaked."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in parameter_shapes(spec).items()
    }


CASES = {
    "reference-fp32": (REFERENCE, torch.float32, "fp32"),
    "reference-bf16": (REFERENCE, torch.bfloat16, "bf16"),
} | (
    {}
    if native.load() is None
    else {
        "native-fp32": (None, torch.float32, "fp32"),
        "native-bf16": (None, torch.bfloat16, "bf16"),
        "native-int8": (None, torch.bfloat16, "int8"),
        "native-int8x2": (None, torch.float32, "int8x2"),
        "native-int4": (None, torch.bfloat16, "int4"),
    }
)
"""What a decoder computes with: ops of PyTorch (None: the native library), precision of activations, weights format."""

EXACT = ["reference-fp32", *(["native-fp32"] if "native-fp32" in CASES else [])]
"""Those that are compared with numbers in float64."""


def build(
    spec: ModelSpec, case: str = EXACT[-1], lanes: tuple[LaneSpec, ...] | None = None, ops: Ops | None = None
) -> AnyTransformer:
    """Return the decoder with random weights; ``ops`` stands in for those of the case."""
    given, dtype, weights = CASES[case]
    encode = FORMATS[weights].encode
    parameters = {
        name: tensor if tensor.ndim < 2 else tensor.to(dtype) if name in ("embed", "positions") else encode(tensor)
        for name, tensor in draw(spec).items()
    }
    common = {"name": "test", "dtype": dtype, "fingerprint": "test", "lanes": lanes}
    if (ops := ops or given) is None:
        return CompiledTransformer(spec, parameters, **common)
    return Transformer(spec, parameters, **common, ops=ops)


class Table:
    """One request's blocks, in an order that nothing but chance decides."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.filled = 0
        self._slots = np.empty(0, dtype=np.int64)

    @property
    def address(self) -> int:
        return self._slots.ctypes.data

    def extend(self, blocks: list[int]) -> None:
        self.blocks += blocks
        self._slots = np.concatenate([np.arange(BLOCK) + block * BLOCK for block in self.blocks])

    def slot(self, position: int) -> int:
        return int(self._slots[position])

    def slots(self, start: int, stop: int) -> np.ndarray:
        return self._slots[start:stop]


class Lanes:
    """Storage for a model, and a pass over chunks that lays their rows in it."""

    def __init__(self, model: AnyTransformer, positions: int = 4096, scratch: int = 256, seed: int = 0) -> None:
        self.model = model
        self.tables: dict[int, dict[str, Table]] = {}
        self._free = np.random.default_rng(seed).permutation(positions // BLOCK).tolist()
        storage = {}
        for lane in model.lanes:
            slots = -(-(positions + 1 + scratch) // BLOCK) * BLOCK
            shape = (slots, lane.width) if lane.kind == "feature" else (
                len(lane.layers), slots, lane.kv_heads, lane.head_size
            )  # fmt: skip
            keys = torch.zeros(shape, dtype=model.dtype)
            values = torch.zeros_like(keys) if lane.kind == "kv" else None
            storage[lane.name] = LaneStorage(lane, keys, values, positions, positions + 1)
        model.bind(storage)

    def run(self, *chunks: Chunk) -> Result:
        """Run one pass; rows that are not kept go to scratch rows 0, 1, ... in the order of the batch."""
        batch = Batch(slots={lane.name: [] for lane in self.model.lanes})
        scratch = 0
        for chunk in chunks:
            tables = self._reserve(chunk)
            start = len(batch)
            batch.parts.append(Part(chunk, start, dict(tables)))
            batch.tokens += chunk.tokens
            batch.rope += chunk.rope or chunk.index
            batch.wanted += [start + row for row in chunk.wanted]
            first = scratch
            for name, table in tables.items():
                scratch, slots = first, batch.slots[name]
                for row, index in enumerate(chunk.index):
                    if chunk.kept()[row]:
                        slots.append(int(table.slots(index, index + 1)[0]))
                    else:
                        again = scratch if chunk.scratch is None else chunk.scratch[row]
                        slots.append(self.model.storage[name].scratch + again)
                        scratch += 1
        result = self.model.forward(batch)
        for chunk in chunks:
            kept = [index + 1 for row, index in enumerate(chunk.index) if chunk.kept()[row]]
            for table in self.tables[chunk.request].values():
                table.filled = max([table.filled, *kept])
        return result

    def commit(self, request: int, rows: Sequence[int]) -> None:
        """Move scratch rows to the request's next positions."""
        tables = self._reserve(Chunk(request, "test", [0], [self.filled(request) + len(rows) - 1]))
        for name, table in tables.items():
            lane = self.model.storage[name]
            slots = table.slots(table.filled, table.filled + len(rows)).tolist()
            assert lane.values is not None
            if lane.spec.layout == "blocks":
                native.move_rows((lane.keys, lane.values), [lane.scratch + row for row in rows], slots)
            else:
                for tensor in (lane.keys, lane.values):
                    tensor[:, slots] = tensor[:, [lane.scratch + row for row in rows]]
            table.filled += len(rows)

    def filled(self, request: int) -> int:
        """Return the number of the request's positions."""
        return next(iter(self.tables[request].values())).filled

    def _reserve(self, chunk: Chunk) -> dict[str, Table]:
        tables = self.tables.setdefault(chunk.request, {lane.name: Table() for lane in self.model.lanes})
        positions = max((index + 1 for row, index in enumerate(chunk.index) if chunk.kept()[row]), default=0)
        missing = -(-positions // BLOCK) - len(next(iter(tables.values())).blocks)
        blocks = [self._free.pop() for _ in range(missing)]
        for table in tables.values():
            if blocks:
                table.extend(blocks)
        return tables


def dense(spec: ModelSpec, parameters: dict[str, Tensor], tokens: list[int], index: list[int], sees: Tensor) -> Tensor:
    """Return float64 logits [rows, vocabulary] of ``tokens`` at ``index``; ``sees`` is bool [rows, rows]."""
    weights = {name: tensor.double() for name, tensor in parameters.items()}
    positions = torch.tensor(index)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[f"{name}.weight"]

    def turn(x: Tensor, inverse: tuple[float, ...]) -> Tensor:
        angle = (positions[:, None] * torch.tensor(inverse, dtype=torch.float64))[:, None]
        first, second = x.chunk(2, -1)
        return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1)

    x = weights["embed"][tokens]
    for number, layer in enumerate(spec.layers):
        attention, prefix = layer.attention, f"layers.{number}."
        normed = norm(x, f"{prefix}attention_norm")
        query, key, value = (
            (normed @ weights[f"{prefix}{name}.weight"].T).view(len(x), -1, attention.head_size)
            for name in ("query", "key", "value")
        )
        assert attention.rope is not None
        query, key = turn(query, attention.rope.inverse), turn(key, attention.rope.inverse)
        group = attention.heads // attention.kv_heads
        scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(group, 1)) * attention.scale
        if attention.softcap is not None:
            scores = attention.softcap * torch.tanh(scores / attention.softcap)
        visible = sees
        if attention.window is not None:
            visible = sees & (positions[:, None] - positions < attention.window)
        shares = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        read = torch.einsum("hqk,khd->qhd", shares, value.repeat_interleave(group, 1)).reshape(len(x), -1)
        x = x + read @ weights[f"{prefix}output.weight"].T
        normed = norm(x, f"{prefix}mlp_norm")
        gate, up = (normed @ weights[f"{prefix}{name}.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ weights[f"{prefix}down.weight"].T
    return norm(x, "norm") @ weights["head"].T
