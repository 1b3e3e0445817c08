"""The contract of a decoding method, and the services the engine offers it.

A method moves requests: it fills their rows before a pass and says behind it which tokens they gained. It is asked
for all its requests at once, so that drafters run batched. What it needs and promises is data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from stretto.core.batch import Model, PassPrice
    from stretto.core.chunk import Chunk, Output
    from stretto.core.request import Committed, Request

Fidelity = Literal["exact", "exact-distribution", "approximate"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a method promises and needs; the compatibility table is generated from this."""

    fidelity: Fidelity = "exact"
    relative_to: str = "plain decoding of the same weights"
    needs: frozenset[str] = field(default_factory=frozenset)
    """Things that must be aboard: ``draft`` (a draft model), ``tokenizer``, names of feature lanes, ..."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Request features (names of parameters) that it cannot serve, each with the reason."""
    rows: int = 1
    """Rows it must have at once: a block that cannot be cut is served whole or not in this step."""
    scratch: int = 1
    """Scratch rows that each of its rows takes: more when a step passes them through the model several times."""
    reuse: bool = True
    """Whether cached prefixes may serve it (a policy that needs statistics of every row says no)."""
    lineage: str = ""
    """What sets its cached rows apart from exact ones (a cache policy): such rows serve nobody else."""
    legs: tuple[str, ...] = ()
    """Names of the further contexts it reserves per request, whose logits it combines before ``choose`` (guidance)."""


@dataclass(slots=True)
class Load:
    """What a model's pass of this step holds for certain, before drafts: known tokens and prompt slices."""

    requests: int = 0
    rows: int = 0
    context: int = 0
    """Cached positions of all its requests."""

    @classmethod
    def by_model(cls, grants: Iterable[tuple[Request, int]]) -> dict[str, Load]:
        """Return what the passes of these requests, each with the rows that it won, hold; nothing for other models."""
        found = defaultdict[str, Load](cls)
        for request, rows in grants:
            load = found[request.model]
            load.requests += 1
            load.rows += min(rows, request.pending)
            load.context += request.filled
        return found

    @property
    def settled(self) -> Load:
        """The same once no prompt is left to read: one row for each request."""
        return self if self.rows == self.requests else Load(self.requests, self.requests, self.context)

    def ms(self, price: PassPrice, drafted: int = 0) -> float:
        """Return what this pass should take in milliseconds, with so many drafted rows beside what is certain.

        Each row sees the context of its own request: the average one's.
        """
        rows = self.rows + drafted
        return price.ms(rows, self.context, rows * self.context // max(1, self.requests))


class Services(Protocol):
    """What the engine does for methods and drafters within a step."""

    models: dict[str, Model]
    load: dict[str, Load]
    """By model, of the step at hand."""
    steps: int
    """Number of the step at hand."""
    rows: int
    """Rows computed since the start, all models together."""

    def forward(self, requests: Sequence[Request], chunks: Sequence[Chunk]) -> list[Output]:
        """Run passes of the chunks' models at once (a drafter's), outputs in the order of the chunks.

        Rows that are not kept lie in scratch until the step ends.
        """
        ...

    def scratch_left(self, model: str) -> int:
        """Return how many scratch rows of ``model`` are left in this step."""
        ...

    def view(self, request: Request, model: str, leg: str = "") -> View:
        """Return the place of one of the request's contexts in the cache of ``model``, opening it if need be.

        Its own context begins with a prefix hit, a leg empty.
        """
        ...

    def keep(self, request: Request, model: str, moves: Sequence[tuple[int, int]]) -> None:
        """Move (scratch row, position) of this step from scratch to the request's blocks in ``model``'s cache."""
        ...


class View(Protocol):
    """A request's place in one model's cache."""

    @property
    def filled(self) -> int:
        """Positions below this one hold their rows."""
        ...

    def reserve(self, upto: int, lanes: Sequence[str] | None = None) -> bool:
        """Make room for the positions below ``upto``; False when the pool cannot."""
        ...

    def advance(self, upto: int, lanes: Sequence[str] | None = None) -> None:
        """Raise the watermark: the rows below ``upto`` are written."""
        ...

    def truncate(self, to: int, lanes: Sequence[str] | None = None) -> None:
        """Lower the watermark (a rejected draft's rows)."""
        ...

    def publish(self, tokens: Sequence[int]) -> None:
        """Offer the full blocks below the watermark to later requests that begin with the same ``tokens``."""
        ...


class DecodingMethod(Protocol):
    """Moves requests. ``propose`` and ``commit`` may be called again for one request alone after an exception."""

    name: str
    facts: Facts

    def bind(self, services: Services) -> None:
        """Take the engine's services, once."""
        ...

    def extra(self, request: Request) -> int:
        """Return how many rows beyond its guaranteed ones the request bids for, known tokens not counted."""
        ...

    def propose(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Chunk]:
        """Return one chunk per request, in order, of at least one and at most ``rows[i]`` rows."""
        ...

    def commit(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]
    ) -> list[Committed]:
        """Return what each request gained. It changes nothing that a second call would not change alike."""
        ...

    def preempted(self, request: Request) -> None:
        """The request lost its cached rows, in every model's cache, and waits; its tokens and its memory stand."""
        ...

    def end(self, request: Request) -> None:
        """Forget the request: it finished, failed or was aborted."""
        ...

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Return what it keeps beyond requests: by store its sizes and limits, as plain data."""
        ...
