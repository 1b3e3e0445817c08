"""One pass: which rows run which layers, what they attend to, and what their chunks get back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stretto.core.batch import Batch, LaneStorage, Part, Result
from stretto.core.sight import Sight
from stretto.kernels.attention import Asked
from stretto.models.layers import Attend
from stretto.models.plan import Layout
from stretto.models.spec import AttentionSpec
from stretto.models.views import View, views

if TYPE_CHECKING:
    from stretto.models.transformer import Transformer


@dataclass(slots=True)
class _Policy:
    """A view whose chunk has a policy or wants attention mass, apart from the others."""

    sight: Sight
    mass: bool
    rows: Tensor
    """int64: rows of the view in the stage."""
    layout: Layout
    index: Tensor
    """int64: logical indices of the entries."""


class _Lane:
    """One lane in one stage: where its rows write and what they see."""

    def __init__(self, model: Transformer, batch: Batch, name: str, parts: list[tuple[Part, int]]) -> None:
        self._ops = model.ops
        self._storage = model.storage[name]
        all_slots = batch.slots[name]
        slots: list[int] = []
        plain: list[View] = []
        self._policies: list[_Policy] = []
        device, null = model.device, self._storage.null
        for part, first in parts:
            chunk, table = part.chunk, part.tables[name]
            own = all_slots[part.start : part.start + len(chunk)]
            slots += own
            found = views(chunk, first, table, own, self._storage.scratch)
            if chunk.sight is None:
                plain += found
                continue
            for view in found:
                layout = Layout([view], null, device, traced=True)
                rows, index = torch.from_numpy(view.rows).to(device), torch.from_numpy(view.index).to(device)
                self._policies.append(_Policy(chunk.sight, chunk.mass, rows, layout, index))
        self._slots = torch.tensor(slots, device=device)
        self._layout = Layout(plain, null, device) if plain else None
        self._rows: Tensor | None = None
        if self._policies and plain:
            self._rows = torch.cat([torch.from_numpy(view.rows) for view in plain]).to(device)

    def attend(self, layer: int, place: int, spec: AttentionSpec) -> Attend:
        """Return the attention of ``layer``, whose storage is the lane's number ``place``."""
        if self._storage.values is None:
            raise ValueError(f"lane {self._storage.spec.name} has no values; layer {layer} needs a lane of kind kv")
        keys, values = self._storage.keys[place], self._storage.values[place]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys.index_copy_(0, self._slots, key)
            values.index_copy_(0, self._slots, value)
            if not self._policies and self._layout is not None:
                plan = self._layout.plan(spec.heads, spec.kv_heads, spec.window)
                return self._ops.attention(query, keys, values, plan, scale=spec.scale, cap=spec.softcap)
            out = query.new_empty(len(query), spec.heads * spec.head_size)
            if self._layout is not None and self._rows is not None:
                plan = self._layout.plan(spec.heads, spec.kv_heads, spec.window)
                rows = query.index_select(0, self._rows)
                out[self._rows] = self._ops.attention(rows, keys, values, plan, scale=spec.scale, cap=spec.softcap)
            for policy in self._policies:
                out[policy.rows] = self._ask(policy, layer, query.index_select(0, policy.rows), keys, values, spec)
            return out

        return attend

    def _ask(
        self, policy: _Policy, layer: int, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec
    ) -> Tensor:
        """Return what the rows of one view read under its policy, which learns the attention mass if it wants to."""
        at = policy.layout.at.tolist()
        bias = policy.sight.bias(layer, query, at, policy.index)
        mass = None
        if policy.mass:
            shape = (len(query) + 1, spec.kv_heads, len(policy.index) + 1)
            mass = torch.zeros(shape, dtype=torch.float32, device=query.device)
        plan = policy.layout.plan(spec.heads, spec.kv_heads, spec.window)
        asked = Asked(bias, mass)
        out = self._ops.attention(query, keys, values, plan, scale=spec.scale, cap=spec.softcap, asked=asked)
        if mass is not None:
            policy.sight.mass(layer, at, policy.index, mass[:-1, :, :-1])
        return out


class Stack(Protocol):
    """What a pass calls of its model."""

    layers: int
    device: torch.device
    storage: dict[str, LaneStorage]

    def embed(self, batch: Batch) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Pass:
    """The state of one forward call: which rows run which layers, and what their chunks get back."""

    def __init__(self, model: Stack, batch: Batch) -> None:
        self._model = model
        self._batch = batch
        self._hidden = model.embed(batch)
        self._spans = [(0, model.layers) if part.chunk.layers is None else part.chunk.layers for part in batch.parts]
        self._borders = [_wanted(part, span) for part, span in zip(batch.parts, self._spans, strict=True)]
        for span in self._spans:
            if not 0 <= span[0] <= span[1] <= model.layers:
                raise ValueError(f"layers is {span}, expected a span [first, last) within 0 to {model.layers}")
        for part in batch.parts:
            if part.chunk.entering is not None:
                self._hidden[part.start : part.start + len(part.chunk)] = part.chunk.entering.to(self._hidden)
        self._kept: list[dict[int, Tensor]] = [{} for _ in batch.parts]

    def run(self) -> Result:
        """Take the rows through their layers."""
        for number, (part, span) in enumerate(zip(self._batch.parts, self._spans, strict=True)):
            if span[0] in self._borders[number]:
                self._kept[number][span[0]] = self._hidden[part.start : part.start + len(part.chunk)].clone()
        cuts = sorted({border for span in self._spans for border in span})
        for first, last in pairwise(cuts):
            active = [number for number, span in enumerate(self._spans) if span[0] <= first and last <= span[1]]
            if active:
                self._stage(first, last, active)
        self._keep_features()
        wanted = torch.tensor(self._batch.wanted, dtype=torch.int64, device=self._model.device)
        asked = any(self._borders)
        return Result(self._model.logits(self._hidden.index_select(0, wanted)), self._kept if asked else [])

    @abstractmethod
    def _stage(self, first: int, last: int, active: list[int]) -> None:
        """Take the rows of the parts ``active`` through the layers from ``first`` to ``last``."""

    def _cross(self, number: int, border: int, rows: Tensor) -> None:
        """Let the chunk of part ``number`` change its ``rows`` between two of its layers, and keep what it wants."""
        hook = self._batch.parts[number].chunk.hook
        if hook is not None and border < self._spans[number][1]:
            changed = hook(border, rows)
            if changed is not None:
                rows.copy_(changed)
        if border in self._borders[number]:
            self._kept[number][border] = rows.clone()

    def _keep_features(self) -> None:
        """Write hidden states to the feature lanes that chunks name."""
        for number, part in enumerate(self._batch.parts):
            name = part.chunk.feature
            if name is None:
                continue
            border = part.chunk.hidden[-1] if part.chunk.hidden else self._spans[number][1]
            slots = self._batch.slots[name][part.start : part.start + len(part.chunk)]
            lane = self._model.storage[name].keys
            lane[torch.tensor(slots, device=lane.device)] = self._kept[number][border].to(lane.dtype)


class TorchPass(Pass):
    """A pass whose ops are called one by one."""

    _model: Transformer

    def _stage(self, first: int, last: int, active: list[int]) -> None:
        model, batch = self._model, self._batch
        turns = model.turns(batch)
        parts: list[tuple[Part, int]] = []
        count = 0
        for number in active:
            parts.append((batch.parts[number], count))
            count += len(batch.parts[number].chunk)
        x, rows = self._hidden, None
        if count < len(batch):
            spans = [torch.arange(part.start, part.start + len(part.chunk)) for part, _ in parts]
            rows = torch.cat(spans).to(model.device)
            x = x.index_select(0, rows)
            turns = {
                rope: (cosine.index_select(0, rows), sine.index_select(0, rows))
                for rope, (cosine, sine) in turns.items()
            }
        watching = [
            (number, start, start + len(part.chunk))
            for number, (part, start) in zip(active, parts, strict=True)
            if self._borders[number] or part.chunk.hook is not None
        ]
        lanes: dict[str, _Lane] = {}
        for layer in range(first, last):
            name, place = model.places[layer]
            if name not in lanes:
                lanes[name] = _Lane(model, batch, name, parts)
            spec = model.spec.layers[layer].attention
            turn = None if spec.rope is None else turns[spec.rope]
            x = model.stack[layer](x, turn, lanes[name].attend(layer, place, spec))
            for number, start, stop in watching:
                self._cross(number, layer + 1, x[start:stop])
        self._hidden = x if rows is None else self._hidden.index_copy(0, rows, x)


def _wanted(part: Part, span: tuple[int, int]) -> set[int]:
    """Return the borders whose hidden states the part's chunk gets: those it names, and where its rows leave early."""
    chunk = part.chunk
    wanted = set(chunk.hidden)
    if not all(span[0] <= border <= span[1] for border in wanted):
        raise ValueError(
            f"chunk of request {chunk.request}: hidden is {chunk.hidden}, expected borders within its layers {span}"
        )
    if chunk.layers is not None or (chunk.feature is not None and not wanted):
        wanted.add(span[1])
    return wanted
