"""Stores of text that outlive a request: one per model and tenant, bounded together, the least recently used go first.

What one tenant wrote is never drafted for another, not even in part: their drafts would tell, by their speed alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from stretto.core.request import Request


class Bounded(Protocol):
    """A store that knows its size and keeps it under the limit that it was made with."""

    def __len__(self) -> int:
        """Return how much it holds, in the unit of its limit."""
        ...


Store = TypeVar("Store", bound=Bounded)


class TenantStores(Generic[Store]):
    """The stores of all tenants. Together they hold at most ``limit``, of at most ``tenants`` tenants."""

    def __init__(self, make: Callable[[int], Store], *, limit: int, tenants: int = 64) -> None:
        """``make`` returns an empty store that keeps its own length under the limit that it is given."""
        self.make, self.limit, self.tenants = make, limit, tenants
        self._stores: OrderedDict[tuple[str, str], Store] = OrderedDict()

    def key(self, request: Request) -> tuple[str, str]:
        """Return whose store serves a request: token ids mean nothing to another model, texts are the tenant's own."""
        return request.model, request.params.tenant

    def find(self, request: Request) -> Store | None:
        """Return the store of the request's tenant, None where nothing was written yet."""
        key = self.key(request)
        store = self._stores.get(key)
        if store is not None:
            self._stores.move_to_end(key)
        return store

    def open(self, request: Request) -> Store:
        """Return the store of the request's tenant, to write to. ``trim`` when it is written."""
        store = self.find(request)
        if store is None:
            store = self._stores[self.key(request)] = self.make(self.limit)
        return store

    def trim(self) -> None:
        """Drop whole stores of the tenants that were not served for longest until the limits hold."""
        used = len(self)
        while len(self._stores) > 1 and (used > self.limit or len(self._stores) > self.tenants):
            _, dropped = self._stores.popitem(last=False)
            used -= len(dropped)

    def __len__(self) -> int:
        return sum(len(store) for store in self._stores.values())

    def describe(self, unit: str) -> dict[str, int]:
        """Return the sizes as plain data: how much is held of ``unit``, the limit, the number of tenants."""
        return {unit: len(self), "limit": self.limit, "tenants": len(self._stores)}
