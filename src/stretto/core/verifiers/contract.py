"""The contract of a verifier: a walk that asks for rows and says at its end which tokens are kept.

A walk is a generator: it asks for a row, the engine answers with that row's chosen token or its logits. So one step
advances the walks of all requests in lockstep and answers each round of questions with one batched `choose`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree

Draws = Literal["coupled", "independent", "without-replacement", "target-first"]
Fidelity = Literal["exact", "exact-distribution", "approximate"]


class Ask(NamedTuple):
    """What a walk wants to know of the row at `node` (-1: the row before the tree), whose path `state` has walked.

    `tree`: where it goes on to the child that carries the token, and asks for nothing else there.
    """

    node: int
    state: SamplerState
    want: Literal["token", "logits"]
    tree: DraftTree | None = None


Answer = int | Tensor  # the token (or error code) that `choose` gives, or the row's logits, float32 [V]


@dataclass(frozen=True, slots=True)
class Walked:
    """The end of a walk: the new tokens, the tree's nodes whose rows stay, in order, and why the text ends, if it does.

    There is one token more than kept nodes (the last token has no row yet), unless an error code of `choose` cut the
    walk: then the tokens before it stand, one for each kept node.
    """

    tokens: list[int]
    nodes: list[int]
    finish: str | None
    error: int | None


Walk = Generator[Ask, Answer, Walked]


class Verifier(Protocol):
    """Decides which of a tree's tokens are kept. One verifier serves many requests; it holds no state of theirs.

    Those that keep the distribution need draws that nothing peeked at: which tokens were drawn must not decide which
    of them are sent, and no two draws, of one step or of several, share noise.
    """

    draws: Draws  # how drafters must draw the tokens of their trees
    fidelity: Fidelity

    def check(self, tree: DraftTree) -> None:
        """Raise ValueError for a tree that was not drawn as `draws` says, where that shows; name a verifier for it."""

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        """Walk `tree` from the row before it, whose sampler state is `state`. Raises what `check` raises."""
