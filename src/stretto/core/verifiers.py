"""Verifiers: which drafted tokens a request keeps, as a lazy walk through its tree.

A walk is a generator: it asks for a row, the engine answers with that row's chosen token or its logits. So one step
advances the walks of all requests in lockstep and answers each round of questions with one batched `choose`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from stretto.core.choose import ChoiceError, probabilities, sample
from stretto.core.noise import NoiseKey, Stream, uniform
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree

Draws = Literal["coupled", "independent", "without-replacement", "target-first"]
Fidelity = Literal["exact", "exact-distribution", "approximate"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a walk wants to know of the row at `node` (-1: the row before the tree), whose path `state` has walked."""

    node: int
    state: SamplerState
    want: Literal["token", "logits"]


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
    """Decides which of a tree's tokens are kept. One verifier serves many requests; it holds no state of theirs."""

    draws: Draws  # how drafters must draw the tokens of their trees
    fidelity: Fidelity

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        """Walk `tree` from the row before it, whose sampler state is `state`."""


class Coupled:
    """Choose at the root, step to the child that carries the token, stop when none does or the text ends.

    The text equals plain decoding token for token whatever the tree holds, so drafters may draw as they like; those
    that draw with the noise of choice are accepted most (arXiv 2408.07978).
    """

    draws: Draws = "coupled"
    fidelity: Fidelity = "exact"

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        tokens: list[int] = []
        nodes: list[int] = []
        node = -1
        while True:
            token = yield Ask(node, state, "token")
            assert isinstance(token, int)
            if token < 0:
                return Walked(tokens, nodes, None, token)
            tokens.append(token)
            finish = state.ends(token)
            child = None if finish else tree.child(node, token)
            if child is None:
                return Walked(tokens, nodes, finish, None)
            nodes.append(child)
            node, state = child, state.advance(token)


class Rejection:
    """Speculative sampling of runs (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

    A drafted token x is kept with chance min(1, p(x) / q(x)), else replaced by a draw from max(p - q, 0); behind a run
    kept whole stands a draw from p. Keeps the distribution, not the text. Drafters must have drawn x from `tree.q` with
    noise of their own (stream DRAFT); where the tree has no q, x counts as certain, which is right for drafters that
    draw nothing.
    """

    draws: Draws = "independent"
    fidelity: Fidelity = "exact-distribution"

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        """Raises ValueError for a node with two children: rejection of one draw per place knows runs only."""
        tokens: list[int] = []
        nodes: list[int] = []
        node = -1
        while True:
            logits = yield Ask(node, state, "logits")
            assert isinstance(logits, Tensor)
            try:
                p = probabilities(logits, state)
            except ChoiceError as error:
                return Walked(tokens, nodes, None, error.code)
            token, child = self._step(tree, node, p, state.key())
            tokens.append(token)
            finish = state.ends(token)
            if finish or child is None:
                return Walked(tokens, nodes, finish, None)
            nodes.append(child)
            node, state = child, state.advance(token)

    def _step(self, tree: DraftTree, node: int, p: Tensor, key: NoiseKey) -> tuple[int, int | None]:
        """Return the token that follows `node` and the child that carries it, None where no draft was kept."""
        children = tree.children(node)
        if not children:
            return sample(p, key.bits(Stream.CHOICE)), None
        if len(children) > 1:
            raise ValueError(f"tree: {len(children)} children of node {node}: expected a run; use the coupled verifier")
        (child,) = children
        token = tree.tokens[child]
        q = None if tree.q is None else tree.q.get(node)
        if q is None:
            q = torch.zeros_like(p)
            q[token] = 1.0
        q = q.to(p.device)
        if uniform(key.bits(Stream.ACCEPT), 0) * q[token].item() < p[token].item():
            return token, child
        return sample((p - q).clamp_(min=0.0), key.bits(Stream.RESIDUAL)), None
