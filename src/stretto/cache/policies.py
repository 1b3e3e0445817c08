"""Cache policies that hide entries: what a row sees is fewer than all committed rows.

A policy changes what rows see only at *epoch* borders: the row with index i is shown what follows from committed rows
below ``epoch * (i // epoch)``. Rows of one epoch therefore see the same selection however prompts are sliced and
drafts are cut, as long as no chunk crosses a border (``next_boundary``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from stretto.core.sight import Sight

_ONE = 1 << 32
"""Attention mass is added up in units of 1 / _ONE: integer sums do not depend on their order."""


class CachePolicy(Sight, Protocol):
    """A ``Sight`` with the facts that decide where its rows may be used. One instance serves one request."""

    fidelity: str
    preemption: str
    """How the policy survives preemption: ``recompute`` runs the request's tokens again from the start."""
    reuse: bool
    """Whether rows may come from the prefix tree, under a lineage that ends in ``lineage``."""

    @property
    def lineage(self) -> str:
        """What the lineage of the policy's rows must contain, so that no other request takes them for its own."""
        ...

    def boundary(self, index: int) -> int:
        """Return the border of the epoch that the row ``index`` lies in: what it sees follows from rows below it."""
        ...

    def next_boundary(self, index: int) -> int:
        """Return the first index that must not be in one chunk with ``index``."""
        ...

    def commit(self, rows: Sequence[int] | None = None) -> None:
        """Count the rows of the last pass that were committed: their numbers in the chunk; None: all."""
        ...

    def reset(self) -> None:
        """Forget all rows, before the request is computed again from its start."""
        ...


class _Epochs:
    fidelity = "approximate"
    preemption = "recompute"

    def __init__(self, epoch: int, **sizes: int) -> None:
        for name, value, least in [("epoch", epoch, 1), *((name, value, 0) for name, value in sizes.items())]:
            if value < least:
                raise ValueError(f"{type(self).__name__}: {name} = {value}, expected at least {least}")
        self.epoch = epoch

    def boundary(self, index: int) -> int:
        """Return the border of the epoch that the row ``index`` lies in."""
        return index // self.epoch * self.epoch

    def next_boundary(self, index: int) -> int:
        """Return the first index that must not be in one chunk with ``index``."""
        return self.boundary(index) + self.epoch


class WindowWithSinks(_Epochs):
    """The first ``sinks`` positions and the latest ``window`` (StreamingLLM, arXiv 2309.17453).

    The window's start moves at epoch borders, so a row sees up to ``epoch - 1`` positions more than ``window``. Keys
    keep the rope positions of the text, where the paper renumbers them within the cache.
    """

    reuse = True

    def __init__(self, sinks: int = 4, window: int = 1020, epoch: int = 64) -> None:
        super().__init__(epoch, sinks=sinks, window=window)
        self.sinks = sinks
        self.window = window

    @property
    def lineage(self) -> str:
        """Name and sizes."""
        return f"window-with-sinks:{self.sinks}:{self.window}:{self.epoch}"

    def bias(self, layer: int, query: Tensor, rows: Sequence[int], index: Tensor) -> Tensor | None:
        """Return float32 [rows, 1, entries]: 0, and -inf between sinks and window; None if nothing lies there."""
        starts = [self.boundary(row) - self.window + 1 for row in rows]
        if max(starts) <= self.sinks:
            return None
        first = torch.tensor(starts, device=index.device)
        hidden = (index >= self.sinks) & (index < first[:, None])
        return _bias(hidden)[:, None]

    def mass(self, layer: int, rows: Sequence[int], index: Tensor, mass: Tensor) -> None:
        """Ignore attention mass: the window follows from positions alone."""

    def commit(self, rows: Sequence[int] | None = None) -> None:
        """Ignore commits."""

    def reset(self) -> None:
        """Do nothing: there is no state."""


class HeavyHitter(_Epochs):
    """The latest ``recent`` positions and the ``budget`` earlier ones with most attention (H2O, arXiv 2306.14048).

    Chosen per layer and head of keys and values at each epoch border, by the attention mass that committed rows below
    the border gave; of equal ones the earlier position stays. A hidden position gets no more mass while those seen
    only gain, so what is hidden once stays hidden, as in the paper. Chunks must ask for ``mass`` and end at epoch
    borders; rows cannot come from the prefix tree, because their mass is not in it.
    """

    reuse = False

    def __init__(self, budget: int = 512, recent: int = 512, epoch: int = 64) -> None:
        super().__init__(epoch, budget=budget, recent=recent)
        self.budget = budget
        self.recent = recent
        self.reset()

    @property
    def lineage(self) -> str:
        """Name and sizes."""
        return f"heavy-hitter:{self.budget}:{self.recent}:{self.epoch}"

    def reset(self) -> None:
        """Forget all rows, before the request is computed again from its start."""
        self._counted = 0
        self._sums: dict[int, Tensor] = {}
        self._shown: dict[int, Tensor] = {}
        self._latest: dict[int, tuple[list[int], Tensor, Tensor]] = {}

    def bias(self, layer: int, query: Tensor, rows: Sequence[int], index: Tensor) -> Tensor | None:
        """Return float32 [rows, kv_heads, entries]: 0, and -inf at entries that are hidden; None if all are seen.

        ``ValueError`` if rows lie in another epoch than the next row to be committed.
        """
        border = self.boundary(self._counted)
        if min(rows) < border or max(rows) >= border + self.epoch:
            raise ValueError(
                f"heavy-hitter policy: rows {min(rows)} to {max(rows)} in a pass, but {self._counted} rows are "
                f"committed; expected rows from {border} to {border + self.epoch - 1}: cut chunks at next_boundary"
            )
        if border - self.recent <= self.budget:
            return None
        if layer not in self._shown:
            self._shown[layer] = self._select(layer, border)
        shown = self._shown[layer]
        hidden = ~shown[:, index.clamp(max=border)]
        return _bias(hidden).expand(len(rows), *hidden.shape)

    def mass(self, layer: int, rows: Sequence[int], index: Tensor, mass: Tensor) -> None:
        """Take the attention mass float32 [rows, kv_heads, entries] of a pass; ``commit`` says which rows count."""
        self._latest[layer] = list(rows), index, mass

    def commit(self, rows: Sequence[int] | None = None) -> None:
        """Count the mass of the last pass's rows with these numbers in the chunk (None: all).

        ``ValueError`` if they are not the next ones of the text.
        """
        kept: list[int] = []
        for layer, (indices, index, mass) in self._latest.items():
            numbers = list(range(len(indices))) if rows is None else list(rows)
            kept = [indices[number] for number in numbers]
            if kept != list(range(self._counted, self._counted + len(kept))):
                raise ValueError(f"heavy-hitter policy: rows {kept} committed, expected rows from {self._counted} on")
            self._add(layer, index, mass[numbers], self._counted + len(kept))
        self._latest.clear()
        before, self._counted = self._counted, self._counted + len(kept)
        if self.boundary(before) != self.boundary(self._counted):
            self._shown.clear()

    def _add(self, layer: int, index: Tensor, mass: Tensor, length: int) -> None:
        units = (mass.double() * _ONE).round().to(torch.int64).sum(0)
        old = self._sums.get(layer)
        if old is None or old.shape[1] < length:
            grown = torch.zeros(mass.shape[1], 2 * length, dtype=torch.int64, device=mass.device)
            if old is not None:
                grown[:, : old.shape[1]] = old
            old = self._sums[layer] = grown
        seen = index < length
        old.index_add_(1, index[seen], units[:, seen])

    def _select(self, layer: int, border: int) -> Tensor:
        """Return bool [kv_heads, border + 1]: which positions are shown; the last stands for all from ``border`` on."""
        sums = self._sums.get(layer)
        if sums is None:
            raise ValueError(f"heavy-hitter policy: layer {layer} gave no attention mass; set mass in the chunks")
        old = border - self.recent
        shown = torch.ones(len(sums), border + 1, dtype=torch.bool, device=sums.device)
        order = sums[:, :old].sort(dim=1, descending=True, stable=True).indices
        shown.scatter_(1, order[:, self.budget :], False)
        return shown


def _bias(hidden: Tensor) -> Tensor:
    """Return float32 of ``hidden``'s shape: -inf where it is true."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
