"""Copying from the input through edits: where the output departs, drafting goes on behind what it may have replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.copying import SAID, AggressiveDecoding, Alignment

if TYPE_CHECKING:
    from stretto.core.request import Request

STEADY = 4
"""Tokens in a row from which on a copy that departs is taken for an edit, and one that has joined again for settled."""
EDITS = ((1, 0.4), (2, 0.3), (3, 0.2), (0, 0.1))
"""Where the input may go on behind a departure, counted from the token that was not copied: behind it or further on,
where it was replaced; with it, where something was inserted. And how likely that is thought to be.
"""
JOINED = 0.5
"""The same of the place where one token of the edit stands in the input, which is mostly not where it goes on."""
LONGEST = 8
"""Tokens that an edit writes at most."""
TAIL = 8
"""Tokens of the input that are drafted for each such place: they are many, and most are wrong."""


@dataclass(slots=True)
class Editing(Alignment):
    """Where the output stands in the input, and where it left it."""

    left: int | None = None
    """Place of the token that was not copied when a steady copy departed last; None where that edit was given up."""
    since: int = 0
    """Number of the token of the text that was written instead."""


class EditedCopy(AggressiveDecoding):
    """Aggressive decoding that expects the output to join the input again right behind an edit.

    Aggressive decoding waits for tokens that stand in the input only once. Edits are mostly short, so that what follows
    is known before that: this one drafts the places behind the departure as branches, until one of them holds.
    """

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the rest of the input as a run and, behind an edit, the places where the input may go on."""
        copied = super().propose(request, room)
        alignment: Editing = request.memory[self.name]
        left, prompt = alignment.left, request.prompt
        if left is None or alignment.equal > 1:
            return copied
        runs = [(prompt[left + offset : left + offset + TAIL], said) for offset, said in EDITS]
        return self._branches(runs if copied is None else [(copied.tree.tokens[:TAIL], JOINED), *runs], room)

    def _branches(self, runs: Sequence[tuple[list[int], float]], room: int) -> Draft | None:
        """Return runs as branches of one tree, of those that begin alike the first, cut to ``room`` nodes.

        With each comes how likely its first token is thought to be.
        """
        tokens: list[int] = []
        parents: list[int] = []
        survival: list[float] = []
        begun = set[int]()
        for run, said in runs:
            if run and run[0] not in begun:
                begun.add(run[0])
                parents += [-1, *range(len(tokens), len(tokens) + len(run) - 1)]
                survival += [said, *SAID[2 : len(run) + 1]]
                tokens += run
        return Draft(self.tree(tokens[:room], parents[:room], survival[:room])) if tokens else None

    def _begin(self, request: Request) -> Editing:
        return Editing(self._ends(request.prompt), len(request.prompt))

    def _join(self, alignment: Alignment, request: Request, left: int | None, place: int) -> int | None:
        assert isinstance(alignment, Editing)
        if alignment.equal >= STEADY:  # an edit, unless the input was used up
            alignment.left, alignment.since = left if left != len(request.prompt) else None, place
        elif place - alignment.since >= LONGEST:
            alignment.left = None
        alignment.equal = 0
        joined = super()._join(alignment, request, left, place)
        if alignment.left is None or alignment.equal > 1:
            return joined
        for offset, _ in EDITS:
            at = alignment.left + offset
            if at < len(request.prompt) and request.prompt[at] == request.tokens[place]:
                alignment.equal = 2  # one, but a better sign than one that stands anywhere in the input
                return at + 1
        return joined
