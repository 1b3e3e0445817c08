"""A native pass that is cut at splice points: where chunks leave, enter, change rows, or decide what a row sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stretto.core.batch import Part
from stretto.core.chunk import Chunk
from stretto.models.passes import Pass
from stretto.models.script import Script, view_script
from stretto.models.views import View, views

if TYPE_CHECKING:
    from stretto.models.compiled import CompiledTransformer


@dataclass(slots=True)
class _Policy:
    """A view whose chunk has a policy or wants attention mass, apart from the others."""

    chunk: Chunk
    view: View
    script: Script
    index: Tensor
    """int64: logical indices of the entries."""


class NativePass(Pass):
    """A ``Pass`` whose stages run as ranges of ops."""

    _model: CompiledTransformer

    def _stage(self, first: int, last: int, active: list[int]) -> None:
        model, batch, program = self._model, self._batch, self._model.program
        parts: list[tuple[Part, int]] = []
        rows: list[int] = []
        for number in active:
            part = batch.parts[number]
            parts.append((part, len(rows)))
            rows += range(part.start, part.start + len(part.chunk))
        names = [lane.name for lane in model.kv_lanes]
        model.take(
            [0] * len(rows),
            [batch.rope[row] for row in rows],
            [index for part, _ in parts for index in part.chunk.index],
            [[batch.slots[name][row] for row in rows] for name in names],
            model.scripts(batch, [(part, start) for part, start in parts if part.chunk.sight is None]),
        )
        picked = torch.tensor(rows)
        model.write_rows(self._hidden.index_select(0, picked), 0)
        policies = {name: self._policies(name, parts) for name in names}
        watching = [
            (number, start, start + len(part.chunk))
            for number, (part, start) in zip(active, parts, strict=True)
            if self._borders[number] or part.chunk.hook is not None
        ]
        begin = model.stack[first].start
        for layer in range(first, last):
            ops = model.stack[layer]
            if asked := policies[model.places[layer][0]]:
                program.run(begin, ops.attend + 1)
                begin = ops.attend + 1
                for policy in asked:
                    self._ask(policy, layer, ops.attend, len(rows))
            if watching:
                program.run(begin, ops.stop)
                begin = ops.stop
                for number, start, stop in watching:
                    held = model.read_rows(0, 0, model.width, start, stop - start)
                    self._cross(number, layer + 1, held)
                    model.write_rows(held, start)
        program.run(begin, model.stack[last - 1].stop)
        self._hidden = self._hidden.index_copy(0, picked, model.read_rows(0, 0, model.width, 0, len(rows)))

    def _policies(self, name: str, parts: list[tuple[Part, int]]) -> list[_Policy]:
        scratch, found = self._model.storage[name].scratch, []
        for part, first in parts:
            if part.chunk.sight is None:
                continue
            own = self._batch.slots[name][part.start : part.start + len(part.chunk)]
            for view in views(part.chunk, first, part.tables[name], own, scratch):
                found.append(_Policy(part.chunk, view, view_script(view), torch.from_numpy(view.index)))
        return found

    def _ask(self, policy: _Policy, layer: int, op: int, count: int) -> None:
        """Let the rows of one view read under its policy, which learns the attention mass if it wants to."""
        sight, spec, at = policy.chunk.sight, self._model.spec.layers[layer].attention, policy.view.at.tolist()
        assert sight is not None
        query = self._model.queries(layer, torch.from_numpy(policy.view.rows), count)
        bias = sight.bias(layer, query, at, policy.index)
        mass = None
        if bias is not None:
            bias = bias.float().contiguous()
        if policy.chunk.mass:
            mass = torch.zeros(len(at), spec.kv_heads, len(policy.index))
        self._model.program.ask(
            op,
            policy.script,
            0 if bias is None else bias.data_ptr(),
            1 if bias is None else bias.shape[1],
            0 if mass is None else mass.data_ptr(),
        )
        if mass is not None:
            sight.mass(layer, at, policy.index, mass)
