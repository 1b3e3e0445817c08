"""From a specification and its weights to the native op list: built once, with every pointer taken at load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stretto.cache.memory import give_back
from stretto.kernels.linear import SHARDS, round_up
from stretto.kernels.quantized import Quantized
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

PANEL = 32
"""Outputs of a panel; each fused matrix begins at a panel of its own."""

LAYOUTS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
ACTIVATIONS = {"fp32": 0, "bf16": 1, "int8": 2, "int8_row": 3, "int8x2": 4}
FUNCTIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu_squared": 4}

NormWords = tuple[int, int, int, int, float]
"""Kind (1: rms, 2: layer), addresses of weight and bias, their size, epsilon."""

NO_NORM: NormWords = (0, 0, 0, 0, 0.0)

HIDDEN = 0
"""Number of the buffer of hidden states."""


@dataclass(frozen=True, slots=True)
class LayerOps:
    """Numbers of a layer's ops: [start, stop), of which ``attend`` reads the cache."""

    start: int
    attend: int
    stop: int


@dataclass(frozen=True, slots=True)
class Fused:
    """Matrices that read the same rows, side by side."""

    matrix: Any
    activations: int
    columns: tuple[int, ...]
    """Where each one's outputs begin, and where the last one's end."""


class Lowering:
    """Builds the ``program`` of one model. The lists of ``layers`` tell its caller where to cut it."""

    def __init__(
        self,
        library: ModuleType,
        spec: ModelSpec,
        parameters: Mapping[str, Tensor | Quantized],
        places: list[tuple[int, int]],
        dtype: torch.dtype,
    ) -> None:
        """``places``: for each layer, the number of its lane and its own number in it."""
        self.program = library.Program()
        self.bytes = 0
        """Of weights and scales that a pass reads."""
        self._spec, self._parameters, self._dtype = spec, parameters, dtype
        self._kept: list[Tensor] = []
        """Tensors that the program reads where they lie."""
        for _ in range(1 + max(lane for lane, _ in places)):
            self.program.lane()
        self._shapes = parameter_shapes(spec)
        self._shapes["head"] = self._shapes["embed"]
        self.fused, self._attended, self._inner, self._branch, self._routes, self._part, self._total = self._buffers()
        self._latent, self._turned, self._query_latent = self._latent_buffers()
        self._spreads: dict[tuple[int, int, int], Any] = {}
        ropes = dict.fromkeys(layer.attention.rope for layer in spec.layers if layer.attention.rope)
        self._ropes = {rope: self._rope(rope) for rope in ropes if rope}
        self.head = self._embed()
        self.layers: list[LayerOps] = []
        for number, layer in enumerate(spec.layers):
            self.layers.append(self._layer(number, layer, *places[number]))
            give_back()
        self._logits()

    def _rope(self, rope: RopeSpec) -> int:
        variants = [rope.inverse] if rope.beyond is None else [rope.inverse, rope.beyond]
        return int(self.program.rope([each for one in variants for each in one], len(variants), rope.attention))

    def _buffers(self) -> tuple[int, ...]:
        attentions = [layer.attention for layer in self._spec.layers]
        experts = [layer.mlp for layer in self._spec.layers if isinstance(layer.mlp, ExpertsSpec)]
        mlps = [mlp for layer in self._spec.layers for mlp in _blocks(layer)]
        width = self._spec.width
        assert self.program.buffer(width) == HIDDEN
        sizes = (
            max(sum(_padded(heads * each.head_size) for heads in _parts(each)) for each in attentions),
            max(each.heads * each.head_size for each in attentions),
            max((2 if mlp.gated else 1) * _padded(mlp.width) for mlp in mlps),
            width,
            max((mixture.count for mixture in experts), default=1),
            width if experts else 1,
            width if experts else 1,
        )
        return tuple(self.program.buffer(size) for size in sizes)

    def _latent_buffers(self) -> tuple[int, ...]:
        """Return the buffers of the latent, of the entries that rope turns, and of the query's latent."""
        attentions = [layer.attention for layer in self._spec.layers if layer.attention.latent]
        latents = [each.latent for each in attentions if each.latent]
        if not latents:
            return -1, -1, -1
        sizes = (
            max(_padded(each.size) for each in latents),
            max(_padded(each.turned) for each in attentions),
            max(_padded(each.query_size or 1) for each in latents),
        )
        return tuple(self.program.buffer(size) for size in sizes)

    def _tensor(self, name: str) -> Tensor | Quantized:
        try:
            return self._parameters[name]
        except KeyError:
            raise ValueError(f"the checkpoint has no tensor for {name}, which its configuration asks for") from None

    def _vector(self, name: str) -> Tensor:
        found = self._tensor(name)
        assert isinstance(found, Tensor), name
        return found.float().contiguous()

    def _norm(self, name: str, norm: NormSpec | None) -> NormWords:
        """Return the words of a norm; the library copies what they point to when the op is added."""
        if norm is None:
            return NO_NORM
        weight = self._vector(f"{name}.weight") + norm.offset
        bias = self._vector(f"{name}.bias") if norm.bias else None
        self._kept += [weight] if bias is None else [weight, bias]
        kind = 1 if norm.kind == "rms" else 2
        return kind, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), len(weight), norm.eps

    def _fuse(self, names: Iterable[str], *, bias: bool = False, sharded: bool = False, behind: int = 0) -> Fused:
        """Pack matrices (names without ``.weight``) side by side, each read once, behind ``behind`` outputs of zero."""
        names = list(names)
        stored = [name if name in ("head", "embed") else f"{name}.weight" for name in names]
        sizes = [self._shapes[name][0] for name in stored]
        starts = list(accumulate((_padded(size) for size in sizes), initial=behind))
        fused, reading = None, 0
        for name, tensor, outputs, start in zip(names, stored, sizes, starts, strict=False):
            layout, activations, *parts = self._words(self._tensor(tensor))
            if fused is None:
                reading, shards = ACTIVATIONS[activations], SHARDS if sharded else 1
                fused = self.program.matrix(
                    LAYOUTS[layout], reading, starts[-1] // PANEL, self._shapes[tensor][1], shards
                )
            parts.append(self._vector(f"{name}.bias") if bias else None)
            self.program.fill(
                fused, start // PANEL, outputs, *(0 if part is None else part.data_ptr() for part in parts)
            )
            parts.clear()  # before the next matrix is read
        assert fused is not None
        self.bytes += fused.bytes
        return Fused(fused, reading, tuple(starts))

    def _words(self, matrix: Tensor | Quantized) -> tuple[str, str, *tuple[Tensor | None, ...]]:
        """Return layout and activations of a stored matrix, then its values, scales and zeros.

        Where activations are fp32 a bf16 matrix is widened, so that the rows that it reads are not rounded.
        """
        if isinstance(matrix, Quantized):
            zeros = None if matrix.zeros is None else matrix.zeros.contiguous()
            return matrix.layout, matrix.activations, matrix.values.contiguous(), matrix.scales.contiguous(), zeros
        if matrix.dtype is torch.bfloat16 and self._dtype is torch.bfloat16:
            return "bf16", "bf16", matrix.contiguous(), None, None
        return "fp32", "fp32", matrix.float().contiguous(), None, None

    def _embed(self) -> Fused:
        """Add the lookups; return the head. A tied head of the same precision serves them too, packed as it is."""
        spec = self._spec
        positions = self._vector("positions") if spec.positions else None
        table = None
        if not spec.tied or "head" in self._parameters:
            found = self._tensor("embed")
            assert isinstance(found, Tensor)
            table = found.contiguous()
        self._kept += [tensor for tensor in (table, positions) if tensor is not None]
        head = self._fuse(["embed" if table is None else "head"])
        self.program.embed(
            0 if table is None else table.data_ptr(),
            head.matrix if table is None else None,
            head.activations == ACTIVATIONS["bf16"] if table is None else table.dtype is torch.bfloat16,
            spec.width,
            spec.embedding_scale,
            0 if positions is None else positions.data_ptr(),
            HIDDEN,
        )
        return head

    def _layer(self, number: int, layer: LayerSpec, lane: int, place: int) -> LayerOps:
        prefix, start = f"layers.{number}.", len(self.program)
        if layer.parallel:  # the second branch comes first, because it reads what the first one adds to
            self._mlp(layer, prefix, self._branch)
            attend = self._attention(layer, prefix, lane, place)
            self.program.add_normed(NO_NORM, self._branch, HIDDEN, self._spec.width)
            return LayerOps(start, attend, len(self.program))
        attend = self._attention(layer, prefix, lane, place)
        out = HIDDEN if layer.after is None else self._branch
        self._mlp(layer, prefix, out)
        if layer.after is not None:
            self.program.add_normed(self._norm(f"{prefix}mlp_after", layer.after), out, HIDDEN, self._spec.width)
        return LayerOps(start, attend, len(self.program))

    def _mlp(self, layer: LayerSpec, prefix: str, out: int) -> None:
        """Add a layer's second branch, whose result joins the hidden states or goes to the buffer ``out``."""
        program, mlp, width = self.program, layer.mlp, self._spec.width
        norm = self._norm(f"{prefix}mlp_norm", layer.norm)
        if isinstance(mlp, ExpertsSpec):
            if mlp.shared is None:
                self._mixture(mlp, prefix, norm, out, out == HIDDEN)
                return
            self._block(mlp.shared, f"{prefix}shared_", norm, self._branch)
            self._mixture(mlp, prefix, norm, self._branch, True)
            if out == HIDDEN:
                program.add_normed(NO_NORM, self._branch, HIDDEN, width)
            return
        self._block(mlp, prefix, norm, out)

    def _block(self, mlp: MlpSpec, prefix: str, norm: NormWords, out: int) -> None:
        program = self.program
        into = self._fuse(_inputs(mlp, prefix), bias=mlp.bias)
        down = self._fuse([f"{prefix}down"], bias=mlp.bias, sharded=True)
        program.prepare(norm, HIDDEN, self._spec.width, into.activations)
        program.multiply(into.matrix, self._inner, False)
        gate, up = _gate_and_up(mlp, into)
        program.activate(FUNCTIONS[mlp.activation], self._inner, gate, up, mlp.width, down.activations)
        program.multiply(down.matrix, out, out == HIDDEN)

    def _attention(self, layer: LayerSpec, prefix: str, lane: int, place: int) -> int:
        """Add a layer's first branch; return the number of the op that reads the cache."""
        program, spec, width = self.program, layer.attention, self._spec.width
        norm = self._norm(f"{prefix}attention_norm", layer.norm)
        project = self._latents if spec.latent else self._heads
        query, key, value = project(spec, prefix, norm)
        output = self._fuse([f"{prefix}output"], bias=spec.output_bias, sharded=True)
        norms = [NO_NORM, NO_NORM]
        if spec.head_norm is not None:
            norms = [self._norm(f"{prefix}{name}_norm", spec.head_norm) for name in ("query", "key")]
        rope = -1 if spec.rope is None else self._ropes[spec.rope]
        together = spec.norm_span == "all"
        program.heads(
            self.fused, query, key, value, spec.heads, *norms, together, spec.norm_behind_rope, rope, lane, place
        )
        cap, window = spec.softcap or 0.0, spec.window or 0
        attend = program.attend(self.fused, self._attended, query, spec.heads, lane, place, spec.scale, cap, window)
        program.prepare(NO_NORM, self._attended, spec.heads * spec.head_size, output.activations)
        out = HIDDEN if layer.after is None else self._branch
        program.multiply(output.matrix, out, out == HIDDEN)
        if layer.after is not None:
            program.add_normed(self._norm(f"{prefix}attention_after", layer.after), out, HIDDEN, width)
        return int(attend)

    def _heads(self, spec: AttentionSpec, prefix: str, norm: NormWords) -> tuple[int, ...]:
        """Add the products that give query, key and value; return their columns."""
        into = self._fuse((f"{prefix}{name}" for name in ("query", "key", "value")), bias=spec.bias)
        self.program.prepare(norm, HIDDEN, self._spec.width, into.activations)
        self.program.multiply(into.matrix, self.fused, False)
        return into.columns[:3]

    def _latents(self, spec: AttentionSpec, prefix: str, norm: NormWords) -> tuple[int, ...]:
        """Add the products by way of latents that give query, key and value; return their columns.

        A product writes from the first column on. So keys and values come first, behind zeros; the entries that rope
        turns are added to every key by a matrix of ones and zeros, in fp32, and the query to the zeros.
        """
        program, width, latent = self.program, self._spec.width, spec.latent
        assert latent is not None
        wide = _padded(spec.heads * spec.head_size)
        shared = [self._fuse([f"{prefix}{name}"], bias=spec.bias) for name in ("latent", "turned")]
        heads = self._fuse([f"{prefix}latent_key", f"{prefix}latent_value"], behind=wide)
        source, size, query_norm = HIDDEN, width, norm
        program.prepare(norm, HIDDEN, width, shared[0].activations)
        for each, buffer in zip(shared, (self._latent, self._turned), strict=True):
            program.multiply(each.matrix, buffer, False)
        if latent.query_size is None:
            query = self._fuse([f"{prefix}query"])
        else:
            into = self._fuse([f"{prefix}query_latent"], bias=spec.bias)
            program.multiply(into.matrix, self._query_latent, False)
            query = self._fuse([f"{prefix}latent_query"])
            source, size = self._query_latent, latent.query_size
            query_norm = self._norm(f"{prefix}query_latent_norm", latent.norm)
        program.prepare(self._norm(f"{prefix}latent_norm", latent.norm), self._latent, latent.size, heads.activations)
        program.multiply(heads.matrix, self.fused, False)
        program.prepare(NO_NORM, self._turned, spec.turned, ACTIVATIONS["fp32"])
        program.multiply(self._spread(spec), self.fused, True)
        program.prepare(query_norm, source, size, query.activations)
        program.multiply(query.matrix, self.fused, True)
        return 0, *heads.columns[:2]

    def _spread(self, spec: AttentionSpec) -> Any:
        """Return the matrix that lays the turned entries at the beginning of every key; layers share it."""
        key = (spec.heads, spec.head_size, spec.turned)
        if key not in self._spreads:
            ones = torch.eye(spec.head_size, spec.turned).repeat(spec.heads, 1)
            before, fp32 = _padded(len(ones)) // PANEL, LAYOUTS["fp32"]
            self._spreads[key] = self.program.matrix(fp32, ACTIVATIONS["fp32"], 2 * before, spec.turned, 1)
            self.program.fill(self._spreads[key], before, len(ones), ones.data_ptr(), 0, 0, 0)
        return self._spreads[key]

    def _mixture(self, mixture: ExpertsSpec, prefix: str, norm: NormWords, out: int, adds: bool) -> None:
        program, mlp, width = self.program, mixture.expert, self._spec.width
        router = self._fuse([f"{prefix}router"])
        inputs, outputs = [], []
        for expert in range(mixture.count):
            inputs.append(self._fuse(_inputs(mlp, f"{prefix}experts.{expert}."), bias=mlp.bias))
            outputs.append(self._fuse([f"{prefix}experts.{expert}.down"], bias=mlp.bias, sharded=True))
        program.prepare(norm, HIDDEN, width, router.activations)
        program.multiply(router.matrix, self._routes, False)
        if inputs[0].activations != router.activations:
            program.prepare(norm, HIDDEN, width, inputs[0].activations)
        program.mixture(
            [each.matrix for each in inputs],
            [each.matrix for each in outputs],
            *_gate_and_up(mlp, inputs[0]),
            mixture.chosen,
            mixture.normalised,
            FUNCTIONS[mlp.activation],
            width,
            mlp.width,
            [self._routes, self._inner, self._part, self._total, out],
            adds,
        )

    def _logits(self) -> None:
        spec = self._spec
        norm, cap = self._norm("norm", spec.norm), spec.logit_softcap or 0.0
        self.program.logits(norm, HIDDEN, spec.width, spec.vocab_size, self.head.matrix, spec.logit_scale, cap)


def _padded(size: int) -> int:
    return round_up(size, PANEL)


def _blocks(layer: LayerSpec) -> list[MlpSpec]:
    """Return the feed-forward blocks of a layer, one for all experts."""
    if isinstance(layer.mlp, MlpSpec):
        return [layer.mlp]
    return [layer.mlp.expert, *([layer.mlp.shared] if layer.mlp.shared else [])]


def _parts(attention: AttentionSpec) -> tuple[int, int, int]:
    """Return the heads of query, key and value."""
    return attention.heads, attention.kv_heads, attention.kv_heads


def _inputs(mlp: MlpSpec, prefix: str) -> list[str]:
    return [prefix + name for name in (("gate", "up") if mlp.gated else ("up",))]


def _gate_and_up(mlp: MlpSpec, into: Fused) -> tuple[int, int]:
    """Return the columns of the activation's input and of what it is multiplied with, -1 for none."""
    return (into.columns[0], into.columns[1]) if mlp.gated else (into.columns[0], -1)
