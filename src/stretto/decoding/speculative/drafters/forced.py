"""Tokens that the request's mask leaves no choice about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stretto.core.masks import advance, only_allowed
from stretto.decoding.speculative.drafters.base import ModelFree

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.decoding.speculative.drafter import Draft


class JumpForward(ModelFree):
    """Jump-forward decoding of constrained output (SGLang, Zheng et al., arXiv 2312.07104).

    Where the request's token mask allows exactly one token it is drafted with survival 1, and so on from the state
    behind it: braces, keys and closing quotes of a schema cost no pass each.
    """

    def __init__(self, name: str = "jump-forward") -> None:
        super().__init__(name)

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the run of forced tokens; None where there is a choice, and for requests without a mask."""
        mask, state = request.state.committed.mask, request.state.mask_state
        if mask is None:
            return None
        forced: list[int] = []
        while len(forced) < room and (token := only_allowed(mask, state)) is not None:
            forced.append(token)
            state = advance(mask, state, token)
        return self.run(forced, [1.0] * len(forced)) if forced else None
