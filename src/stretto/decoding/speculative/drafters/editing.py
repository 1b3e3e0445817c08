"""Copying from the input through edits: where the output departs, drafting goes on behind what it may have replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.core.tree import DraftTree
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.base import chance
from stretto.decoding.speculative.drafters.copying import AggressiveDecoding, Alignment
from stretto.decoding.speculative.trees import only

if TYPE_CHECKING:
    from stretto.core.request import Request

STEADY = 4
"""Tokens in a row from which on a copy that departs is taken for an edit, and one that has joined again for settled."""
EDITS = ((1, 0.4), (2, 0.3), (3, 0.2), (0, 0.1))
"""Where the input may go on behind a departure, counted from the token that was not copied: behind it or further on,
where it was replaced; with it, where something was inserted. And how likely that is thought to be.
"""
LONGEST = 8
"""Tokens that an edit writes at most."""
TAIL = 8
"""Tokens of the input that are drafted for each such place: they are many, and most are wrong."""


@dataclass(slots=True)
class Editing(Alignment):
    """Where the output stands in the input, and where it left it."""

    left: int | None = None
    """Place of the token that was not copied; None where copying is steady, or was given up."""
    since: int = 0
    """Tokens of the text before the departure."""


class EditedCopy(AggressiveDecoding):
    """Aggressive decoding that expects the output to join the input again right behind an edit.

    Aggressive decoding waits for tokens that stand in the input only once. Edits are mostly short, so that what follows
    is known before that: this one drafts the places behind the departure as branches, until one of them holds.
    """

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the rest of the input as a run and, behind an edit, the places where the input may go on."""
        copied = super().propose(request, room)
        alignment: Editing = request.memory[self.name]
        if alignment.equal >= STEADY or len(request.tokens) - alignment.since > LONGEST:
            alignment.left = None
        left, prompt = alignment.left, request.prompt
        if left is None or alignment.equal > 1:
            return copied
        trees = [] if copied is None else [only(copied.tree, range(min(TAIL, len(copied.tree))))]
        for offset, said in EDITS:
            tokens = prompt[left + offset : left + offset + TAIL]
            trees.append(self.run(tokens, [said, *(chance(1, 1, depth) for depth in range(2, len(tokens) + 1))]).tree)
        tree = DraftTree.union(trees)
        return Draft(only(tree, range(min(room, len(tree))))) if len(tree) else None

    def _begin(self, request: Request) -> Editing:
        return Editing(self._ends(request.prompt), len(request.prompt))

    def _join(self, alignment: Alignment, request: Request, left: int | None, output: list[int]) -> int | None:
        assert isinstance(alignment, Editing)
        if alignment.equal >= STEADY:
            alignment.left, alignment.since = left, len(request.tokens)
        joined = super()._join(alignment, request, left, output)
        if alignment.left is not None and (joined is None or alignment.equal == 1):
            for offset, _ in EDITS:
                place = alignment.left + offset
                if place < len(request.prompt) and request.prompt[place] == output[-1]:
                    alignment.equal = 2
                    return place + 1
        return joined
