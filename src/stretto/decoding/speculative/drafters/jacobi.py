"""Jacobi decoding: the tokens to come are guessed at once, and every pass replaces each guess by what its row says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stretto.core.choose import choose
from stretto.decoding.speculative.drafters.base import ModelFree

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.core.sampler import SamplerState
    from stretto.decoding.speculative.drafter import Draft, Observation


@dataclass(slots=True)
class _Guesses:
    """Guesses for the positions from ``start`` on, and the number of passes that each is old (0: never computed)."""

    start: int
    tokens: list[int] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)


class Jacobi(ModelFree):
    """Jacobi decoding (Santilli et al., arXiv 2305.10427), over a window of ``length`` tokens that moves with the text.

    The guesses are one run of candidate rows. Behind a pass, what each row chose becomes the guess for the position
    behind it; the equations x_i = choose(x_1 ... x_{i-1}) hold at the fixed point, which is the text. Each row chooses
    with the state of its own path and the noise of its own position, so that this is true at every temperature. New
    places at the window's end begin as copies of the last guess.
    """

    def __init__(self, name: str = "jacobi", *, length: int = 8) -> None:
        super().__init__(name)
        self.length = length

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the guesses as a run. Survival rises with the number of passes that left a guess unchanged."""
        guesses = self._upto(request, len(request.tokens))
        tokens, ages = guesses.tokens[:room], guesses.ages[:room]
        return self.run(tokens, [(age + 0.2) / (age + 2) for age in ages])

    def observe(self, observations: Sequence[Observation]) -> None:
        """Replace the guesses whose rows were computed, whoever else drafted them."""
        asks: list[tuple[_Guesses, int, int, SamplerState]] = []  # guesses, place in them, row of the logits, state
        for seen in observations:
            if self.name not in seen.request.memory:
                continue
            guesses = self._upto(seen.request, len(seen.request.tokens))
            node, state = -1, seen.request.state
            for place, token in enumerate(guesses.tokens):
                child = seen.tree.child(node, token)
                if child is None:
                    break
                node, state = child, state.advance(token)
                asks.append((guesses, place + 1, seen.output.row(seen.base + 1 + node), state))
        if not asks:
            return
        chosen = choose(observations[0].output.logits, [ask[3] for ask in asks], rows=[ask[2] for ask in asks])
        before = {id(guesses): guesses.tokens.copy() for guesses, *_ in asks}
        for (guesses, place, _, _), token in zip(asks, chosen, strict=True):
            if token < 0:  # behind a wrong guess there may be no token that is allowed
                continue
            if place == len(guesses.tokens):
                guesses.tokens.append(token)
                guesses.ages.append(1)
            elif place < len(guesses.tokens):
                same = before[id(guesses)][place] == token
                guesses.ages[place] = guesses.ages[place] + 1 if same else 1
                guesses.tokens[place] = token

    def _upto(self, request: Request, start: int) -> _Guesses:
        """Return the guesses, moved to the position ``start`` and filled up."""
        guesses: _Guesses | None = request.memory.get(self.name)
        if guesses is None:
            guesses = request.memory[self.name] = _Guesses(start)
        if (passed := start - guesses.start) > 0:
            del guesses.tokens[:passed], guesses.ages[:passed]
            guesses.start = start
        if (missing := self.length - len(guesses.tokens)) > 0:
            guesses.tokens += [guesses.tokens[-1] if guesses.tokens else request.tokens[-1]] * missing
            guesses.ages += [0] * missing
        return guesses
