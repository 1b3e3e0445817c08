"""The chunk: the one currency for all work (plain decoding, prompt slices, drafts, probes, diffusion blocks).

A request contributes one chunk of rows to a pass of a model. A row is a token at a position; what it sees follows
from its segment. Nothing in a chunk says *why* the rows are there: that is the business of the request's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from stretto.core.sight import Hook, Sight

CONTEXT = -1
"""Parent of a segment that follows the cached context rather than a row of its chunk."""

ALL_ROWS = -1
"""In ``Chunk.logits``: every row's logits are wanted."""


class Role(IntEnum):
    """What becomes of a row behind the pass."""

    COMMIT = 0
    """A known token: its keys and values stay, in the lane's blocks at its index."""
    CANDIDATE = 1
    """A drafted token: kept only if the verifier walks over it. Only candidates can be walked."""
    PROBE = 2
    """Computed for its outputs alone (lookahead windows, prompt tokens, masked positions)."""
    REFRESH = 3
    """A cached position computed anew: its keys and values are overwritten in place."""


@dataclass(slots=True)
class Segment:
    """A run of rows, causal inside or mutually visible.

    A row sees the rows of its own segment (those before it and itself, or all when ``mutual``), everything that the
    row ``parent`` sees, the whole segments ``also``, the scratch rows ``held`` and the cached positions ``sees``.
    """

    rows: int
    parent: int = CONTEXT
    """Number of the earlier row of this chunk that the segment follows, or ``CONTEXT``."""
    mutual: bool = False
    sees: tuple[tuple[int, int], ...] | None = None
    """Spans [start, stop) of cached positions, also after the rows; None: the parent's, at the root all filled."""
    also: tuple[int, ...] = ()
    """Numbers of earlier segments of this chunk that are seen whole beside the parent's path."""
    held: tuple[tuple[int, int], ...] = ()
    """(index, scratch row) of rows that an earlier pass of this step left in scratch."""


@dataclass(slots=True)
class Chunk:
    """One request's rows in one pass of one model.

    Lists run over the rows. ``index`` is the logical position (causality, attention groups, noise), ``rope`` the
    position that rotates keys and queries (default: index). Defaults describe a run of known tokens.
    """

    request: int
    model: str
    tokens: list[int]
    """Token id, or -1-j for row j of ``embeddings``."""
    index: list[int]
    segments: list[Segment] = field(default_factory=list)
    """In the order of the rows; empty: one causal segment behind the context."""
    roles: list[Role] | None = None
    """None: all rows are ``COMMIT``."""
    rope: list[int] | None = None
    write: list[bool] | None = None
    """Whether keys and values are kept in the lane's blocks; None: for ``COMMIT`` and ``REFRESH`` rows."""
    scratch: Sequence[int | None] | None = None
    """Scratch rows to use again, for rows that re-enter with stored hidden states behind an earlier pass."""
    logits: Sequence[int] = (ALL_ROWS,)
    """Numbers of the rows whose logits are wanted, ascending, or ``(ALL_ROWS,)``, or empty."""
    top: int = 0
    """How many best tokens of each of those rows are wanted beside the logits."""
    hidden: tuple[int, ...] = ()
    """Layer borders whose hidden states are wanted for every row: 0 = embeddings, n = behind layer n-1."""
    layers: tuple[int, int] | None = None
    """[first, last) layers that the rows pass through; logits are read where they leave. None: all."""
    entering: Tensor | None = None
    """Stored hidden states [rows, width] with which rows enter at the first of ``layers``."""
    embeddings: Tensor | None = None
    """Input embeddings [count, width] that negative tokens name."""
    hook: Hook | None = None
    sight: Sight | None = None
    mass: bool = False
    feature: str | None = None
    """Name of the feature lane that the rows' last wanted hidden state is written to."""
    leg: str = ""
    """Which of the request's contexts the rows belong to: its own, or a further one that its method reserves."""
    legs: list[Chunk] = field(default_factory=list)
    """Chunks of the request's further contexts that travel in the same pass (guidance, auxiliary contexts)."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def wanted(self) -> Sequence[int]:
        """Numbers of the rows whose logits are wanted, written out."""
        return range(len(self.tokens)) if tuple(self.logits) == (ALL_ROWS,) else self.logits

    def role(self, row: int) -> Role:
        """Return the role of ``row``."""
        return Role.COMMIT if self.roles is None else self.roles[row]

    def kept(self) -> list[bool]:
        """Return of each row whether its keys and values go to the lane's blocks rather than to scratch."""
        if self.write is not None or self.roles is None:
            return self.write or [True] * len(self.tokens)
        return [role is Role.COMMIT or role is Role.REFRESH for role in self.roles]

    def validate(self, vocabulary: int) -> None:
        """Raise ``ValueError`` naming what is malformed, so that a bad chunk ends its own request only."""
        n = len(self.tokens)
        for values in (self.index, self.roles, self.rope, self.write, self.scratch):
            if values is not None and len(values) != n:
                raise ValueError(f"chunk of request {self.request}: a list of {len(values)} rows beside {n} tokens")
        if n == 0:
            raise ValueError(f"chunk of request {self.request} has no rows")
        lowest = -(0 if self.embeddings is None else len(self.embeddings))
        if min(self.tokens) < lowest or max(self.tokens) >= vocabulary:
            raise ValueError(
                f"chunk of request {self.request}: tokens lie between {min(self.tokens)} and {max(self.tokens)}, "
                f"expected {lowest} to {vocabulary - 1}"
            )
        wanted = self.logits
        ordered = len(wanted) < 2 or all(first < second for first, second in pairwise(wanted))
        if len(wanted) and (not ordered or wanted[-1] >= n or (wanted[0] < 0 and tuple(wanted) != (ALL_ROWS,))):
            raise ValueError(
                f"chunk of request {self.request}: logits names rows {wanted}, expected 0 to {n - 1}, ascending"
            )
        if min(self.index) < 0:
            raise ValueError(f"chunk of request {self.request}: index {min(self.index)} is negative")
        if not self.segments:
            return
        first = 0
        for number, segment in enumerate(self.segments):
            if segment.rows < 1 or not CONTEXT <= segment.parent < first:
                raise ValueError(
                    f"chunk of request {self.request}: segment {number} has {segment.rows} rows and parent row "
                    f"{segment.parent}; expected at least one row and a parent before row {first}"
                )
            if any(not 0 <= other < number for other in segment.also):
                raise ValueError(f"chunk of request {self.request}: segment {number} sees segments {segment.also}")
            first += segment.rows
        if first != n:
            raise ValueError(f"chunk of request {self.request}: segments hold {first} rows, tokens {n}")


@dataclass(slots=True)
class Output:
    """What a pass gave back for one chunk."""

    chunk: Chunk
    logits: Tensor
    """float32 [wanted rows of the *whole batch*, vocabulary]; this chunk's begin at ``first``."""
    first: int
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Wanted hidden states [rows, width] by layer border; where rows leave early also by that border."""
    top: tuple[Tensor, Tensor] | None = None
    """Values float32 and ids int64, [the chunk's wanted rows, top] each, best first, ties by the lower id."""
    legs: list[Output] = field(default_factory=list)
    """Outputs of the chunk's ``legs``, in order."""
    scratch: Sequence[int | None] = ()
    """Scratch row of each row that has one, usable as ``held`` or ``scratch`` until the step ends."""

    def row(self, row: int) -> int:
        """Return the place in ``logits`` of the chunk's row number ``row``; ``KeyError`` if it was not wanted."""
        if tuple(self.chunk.logits) == (ALL_ROWS,):
            return self.first + row
        try:
            return self.first + list(self.chunk.logits).index(row)
        except ValueError:
            raise KeyError(f"row {row} of request {self.chunk.request}'s chunk did not ask for logits") from None
