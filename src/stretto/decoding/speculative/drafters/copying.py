"""Copying from the input: input-guided aggressive decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stretto.decoding.speculative.drafters.base import ModelFree, chance

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.decoding.speculative.drafter import Draft

AMBIGUOUS = -1
LONGEST_MATCH = 255
"""Equal tokens from which on more of them promise no more."""
SAID = [chance(1, 1, equal) for equal in range(LONGEST_MATCH + 1)]
"""The chance that is said of a token behind so many equal ones."""


@dataclass(slots=True)
class Alignment:
    """Where the output stands in the input."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Where the input's n-grams end, ``AMBIGUOUS`` for those that stand in it more than once."""
    read: int = 0
    """Tokens that were looked at, the input's included."""
    at: int | None = 0
    """Place in the input that should come next; None while the output has left it."""
    equal: int = 0
    """How many tokens before ``at`` the output is known to share."""


class AggressiveDecoding(ModelFree):
    """Input-guided aggressive decoding (Sun et al., 2021, arXiv 2106.04970; Ge et al., arXiv 2205.10350).

    The output is taken for a copy of the input with edits: the rest of the input is drafted, from its begin at first.
    Where the output departs, nothing is drafted until its last tokens (1, else 2, up to ``longest``) stand in the input
    exactly once; from there copying goes on. The input is the prompt; only a row budget cuts the copy.
    """

    def __init__(self, name: str = "aggressive", *, longest: int = 3) -> None:
        super().__init__(name)
        self.longest = longest

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the rest of the input as a run. Survival rises with the number of tokens that were equal."""
        alignment: Alignment | None = request.memory.get(self.name)
        if alignment is None:
            alignment = request.memory[self.name] = self._begin(request)
        self._follow(alignment, request)
        if alignment.at is None or alignment.at == len(request.prompt):
            return None
        copied = request.prompt[alignment.at : alignment.at + room]
        known = min(alignment.equal, LONGEST_MATCH)
        return self.run(copied, [*SAID[known : known + len(copied)], *[SAID[-1]] * (known + len(copied) - len(SAID))])

    def _begin(self, request: Request) -> Alignment:
        return Alignment(self._ends(request.prompt), len(request.prompt))

    def _follow(self, alignment: Alignment, request: Request) -> None:
        """Move along with the output's new tokens; after a departure look for the place where it joins again."""
        prompt, tokens, at = request.prompt, request.tokens, alignment.at
        for place in range(alignment.read, len(tokens)):
            if at is not None and at < len(prompt) and prompt[at] == tokens[place]:
                at += 1
                alignment.equal += 1
            else:
                at = self._join(alignment, request, at, place)
        alignment.at, alignment.read = at, len(tokens)

    def _join(self, alignment: Alignment, request: Request, left: int | None, place: int) -> int | None:
        """Return where copying goes on behind token ``place`` of the text, with which it left the input at ``left``."""
        output = request.tokens[max(len(request.prompt), place + 1 - self.longest) : place + 1]
        for size in range(1, len(output) + 1):
            end = alignment.ends.get(tuple(output[-size:]))
            if end is None:
                break
            if end != AMBIGUOUS:
                alignment.equal = size
                return end
        return None

    def _ends(self, prompt: list[int]) -> dict[tuple[int, ...], int]:
        ends: dict[tuple[int, ...], int] = {}
        for size in range(1, self.longest + 1):
            for end in range(size, len(prompt) + 1):
                gram = tuple(prompt[end - size : end])
                ends[gram] = AMBIGUOUS if gram in ends else end
        return ends
