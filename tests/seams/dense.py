"""The oracle of the seam tests: a transformer in float64 over explicit rows and an explicit mask, without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from small import small_parameters, small_spec
from torch import Tensor


class Dense:
    """The weights of ``small(layers=layers, seed=seed)``."""

    def __init__(self, layers: int, seed: int = 0) -> None:
        self.spec = small_spec(layers)
        self.weights = {name: each.double() for name, each in small_parameters(self.spec, seed).items()}

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the input embeddings, float64 [rows, width]."""
        return self.weights["embed"][list(tokens)]

    def logits(self, x: Tensor, positions: Sequence[int], mask: Tensor) -> Tensor:
        """Return float64 [rows, vocab]; row i of ``x`` [rows, width] sees row j where ``mask`` [rows, rows] says so."""
        turn = torch.tensor(positions, dtype=torch.float64)[:, None, None]
        for number, layer in enumerate(self.spec.layers):
            attention = layer.attention
            names = ("query", "key", "value", "output", "gate", "up", "down")
            weight = {name: self.weights[f"layers.{number}.{name}.weight"].T for name in names}
            h = self._norm(x, f"layers.{number}.attention_norm")
            query, key, value = ((h @ weight[name]).view(len(x), -1, attention.head_size) for name in names[:3])
            angle = turn * torch.tensor(attention.rope.inverse, dtype=torch.float64)
            query, key = self._rotate(query, angle), self._rotate(key, angle)
            group = attention.heads // attention.kv_heads
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", query, key) * attention.scale
            shares = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            x = x + torch.einsum("hqk,khd->qhd", shares, value).reshape(len(x), -1) @ weight["output"]
            h = self._norm(x, f"layers.{number}.mlp_norm")
            x = x + (F.silu(h @ weight["gate"]) * (h @ weight["up"])) @ weight["down"]
        return self._norm(x, "norm") @ self.weights["head"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.spec.norm.eps).rsqrt() * self.weights[f"{name}.weight"]

    @staticmethod
    def _rotate(x: Tensor, angle: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1)


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether fp32 logits are the oracle's, within 1e-4 of the largest."""
    return float((found.double() - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


class History:
    """Every row that was ever computed for a request, what it saw, and which row its cache holds at each position.

    Rows are nodes of one dense forward. A position that was computed several times has several nodes; those who saw
    the position then go on seeing the node that was cached then.
    """

    def __init__(self, dense: Dense, prompt: Sequence[int]) -> None:
        self.dense, self.prompt = dense, len(prompt)
        self.inputs = dense.embed(prompt)
        self.positions = list(range(len(prompt)))
        self.sees = [set(range(node + 1)) for node in range(len(prompt))]
        self.cached = {position: position for position in self.positions}
        self.found: list[tuple[list[int], Tensor]] = []

    def add(
        self, inputs: Tensor, positions: Sequence[int], spans: Sequence[tuple[int, int]], found: Tensor, keep: bool
    ) -> None:
        """Note rows that see each other and the cached positions in ``spans``, and their logits ``found``."""
        nodes = range(len(self.sees), len(self.sees) + len(positions))
        seen = {self.cached[position] for start, stop in spans for position in range(start, stop)}
        self.inputs = torch.cat((self.inputs, inputs))
        self.positions += positions
        self.sees += [seen | set(nodes) for _ in nodes]
        self.found.append((list(nodes), found.clone()))
        if keep:
            self.cached.update(zip(positions, nodes, strict=True))

    def restart(self) -> None:
        """Note that the rows of the prompt are computed anew, as at first."""
        self.cached.update((position, position) for position in range(self.prompt))

    def mask(self) -> Tensor:
        """Return bool [nodes, nodes]."""
        mask = torch.zeros(len(self.sees), len(self.sees), dtype=torch.bool)
        for node, seen in enumerate(self.sees):
            mask[node, list(seen)] = True
        return mask

    def holds(self, mask: Tensor) -> list[bool]:
        """Return for each ``add`` whether what was found is what a dense forward under ``mask`` gives."""
        logits = self.dense.logits(self.inputs, self.positions, mask)
        return [same(found, logits[nodes]) for nodes, found in self.found]
