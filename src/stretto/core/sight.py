"""What may act inside a pass, for chunks that ask: a cache policy's view of the entries, a hook between layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Sight(Protocol):
    """Decides what rows see of their entries once the query is known: selection, eviction, merging weights.

    One protocol carries every cache policy; chunks without one pay nothing.
    """

    def bias(self, layer: int, query: Tensor, rows: Sequence[int], index: Tensor) -> Tensor | None:
        """Return what is added to the scores: float [rows, 1 or kv_heads, entries], -inf hides; None leaves them.

        ``query`` is [rows, heads, head_size] behind rope, ``rows`` the logical indices of the rows and ``index``
        int64 [entries] those of the entries. It may change only at logical boundaries (epochs), never with company.
        """
        ...

    def mass(self, layer: int, rows: Sequence[int], index: Tensor, mass: Tensor) -> None:
        """Receive the attention mass float32 [rows, kv_heads, entries] (summed over the heads of a group).

        Called only when the chunk's ``mass`` is set.
        """
        ...


Hook = Callable[[int, "Tensor"], "Tensor | None"]
"""Called between layers as ``hook(layer, hidden [rows, width])``; a returned tensor replaces the hidden states."""
