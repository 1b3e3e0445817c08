"""The contract of a drafter: begin, draft, observe, rewind, end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from stretto.core.chunk import Output, Segment
    from stretto.core.request import Committed, Request
    from stretto.core.tree import DraftTree
    from stretto.decoding.method import Services


@dataclass(slots=True)
class Probes:
    """Rows that a drafter adds for their outputs alone: lookahead windows, n-gram pools, learned prompt tokens.

    ``depth`` is each row's distance from the last known token. A segment's parent is a row of the chunk (0: the last
    known token, 1 + j: node j of the tree, behind them the probe rows) or ``CONTEXT``; its ``also`` counts the probes'
    own segments.
    """

    tokens: list[int]
    depth: list[int]
    segments: list[Segment]
    embeddings: Tensor | None = None
    rope: list[int] | None = None
    """Positions that rotate the probe rows; None: those that follow from ``depth``."""


@dataclass(slots=True)
class Entered:
    """Rows of a draft's chunk that have come through the target's first layers already: the root, then the nodes."""

    layers: tuple[int, int]
    """The layers that are left."""
    hidden: Tensor
    """Hidden states [1 + nodes, width] with which the rows enter them."""
    scratch: list[int | None]
    """Where the rows lie; None for the root, which lies in its block."""

    def only(self, nodes: Sequence[int]) -> Entered:
        """Return the root and these nodes."""
        rows = [0, *(node + 1 for node in nodes)]
        return Entered(self.layers, self.hidden[rows], [self.scratch[row] for row in rows])


@dataclass(slots=True)
class Draft:
    """What a drafter proposes for one request in one step."""

    tree: DraftTree
    probes: Probes | None = None
    entered: Entered | None = None
    """Where its rows stand already, if they do. Used where no other drafter has part in the tree."""


class Ticket(Protocol):
    """A draft that arrives late: made beside the target's pass, asked for at the steps that follow."""

    at: int
    """How many tokens the request had when the draft was begun; what was committed since prunes the tree."""

    def poll(self) -> Draft | None:
        """Return the draft once it is there."""
        ...


@dataclass(slots=True)
class Observation:
    """What a step taught about one request: outputs of every row, rejected and probe rows included."""

    request: Request
    output: Output
    committed: Committed
    tree: DraftTree
    nodes: list[int] = field(default_factory=list)
    """The tree's nodes that were accepted, whoever drafted them, in order."""
    base: int = 0
    """Number of the chunk's row at which the tree hangs: node j is row base + 1 + j, probes follow."""


class Drafter(Protocol):
    """Proposes continuations, batched over requests. A draft may be wrong, late or missing: the text never changes."""

    name: str

    def bind(self, services: Services) -> None:
        """Take the engine's services (passes of a draft model, its views), once."""
        ...

    def begin(self, request: Request) -> None:
        """Meet a request, before the first draft for it."""
        ...

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> Sequence[Draft | Ticket | None]:
        """Return for each request a draft of at most ``rows[i]`` nodes and probe rows, a ticket, or nothing.

        An empty draft says that the drafter is getting ready (a lane that catches up), nothing that it has no guess.
        A ticket or draft takes the place of a ticket that has not arrived: return nothing to go on waiting for it.
        """
        ...

    def observe(self, observations: Sequence[Observation]) -> None:
        """Learn from a step. Called before the tokens are appended to the requests."""
        ...

    def rewind(self, request: Request) -> None:
        """The request was preempted: rows kept for it in other caches are gone, its tokens stand."""
        ...

    def end(self, request: Request) -> None:
        """Forget the request."""
        ...

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Return the sizes of what outlives requests, by store: held, ``limit``, ``tenants``; ``{}`` without one."""
        ...
