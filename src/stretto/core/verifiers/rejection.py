"""Rejection sampling: one draw at a place, or several in rounds, each against what the rejections so far left."""

from collections.abc import Sequence

from torch import Tensor

from stretto.core.choose import sample
from stretto.core.noise import NoiseKey, Stream, uniform
from stretto.core.tree import DraftTree
from stretto.core.verifiers.contract import Draws
from stretto.core.verifiers.node_by_node import NodeByNode, certain, normalised, siblings


class MultiRound(NodeByNode):
    """Multi-round speculative sampling over trees (SpecInfer, arXiv 2305.09781): siblings drawn with replacement.

    The first child is kept with chance min(1, p(x) / q(x)). If it is not, the target becomes the residual, which
    is max(p - q, 0) scaled to a sum of 1. The next child is tried against that, and behind the last stands a draw
    from it. A token that was drawn twice is two children: leaving one out would leave out its round.
    """

    draws: Draws = "independent"

    def check(self, tree: DraftTree) -> None:
        """Any tree will do."""

    def select(self, p: Tensor, tokens: Sequence[int], q: Tensor | None, key: NoiseKey) -> tuple[int, int | None]:
        bits = key.bits(Stream.ACCEPT)
        for number, token in enumerate(tokens):
            drawn = certain(p, token) if q is None else q
            if uniform(bits, number) * drawn[token].item() < p[token].item():
                return token, number
            p = normalised((p - drawn).clamp_(min=0.0), p)
            q = self._after(token, q)
        return sample(p, key.bits(Stream.RESIDUAL)), None

    def _after(self, token: int, q: Tensor | None) -> Tensor | None:
        """Return the distribution of the draw behind that of `token`."""
        return q


class Rejection(MultiRound):
    """Speculative sampling of runs (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

    A drafted token x is kept with chance min(1, p(x) / q(x)), else replaced by a draw from max(p - q, 0); behind a run
    kept whole stands a draw from p. Keeps the distribution, not the text. Drafters must have drawn x from `tree.q` with
    noise of their own (stream DRAFT); where the tree has no q, x counts as certain, which is right for drafters that
    draw nothing.
    """

    def check(self, tree: DraftTree) -> None:
        """Raise ValueError for a node with two children: rejection of one draw per place knows runs only."""
        for tokens in siblings(tree):
            if len(tokens) > 1:
                use = "use MultiRound for independent draws, WithoutReplacement for distinct ones, Coupled for any tree"
                raise ValueError(f"tree: a node with {len(tokens)} children: expected a run; {use}")


class WithoutReplacement(MultiRound):
    """Recursive rejection sampling (RSD, arXiv 2402.14160), which is the verification of Sequoia (arXiv 2402.12374).

    As in several rounds, but siblings are distinct: what was drawn before has no chance in `q`, scaled anew for each.
    No draw is wasted on a token that was rejected already.
    """

    draws: Draws = "without-replacement"

    def check(self, tree: DraftTree) -> None:
        """Raise ValueError for siblings that carry the same token."""
        for tokens in siblings(tree):
            if len(set(tokens)) < len(tokens):
                use = "expected draws without replacement; use MultiRound or KSequential for independent draws"
                raise ValueError(f"tree: siblings with the tokens {tokens}: {use}")

    def _after(self, token: int, q: Tensor | None) -> Tensor | None:
        if q is None:
            return None
        rest = q.clone()
        rest[token] = 0.0
        return normalised(rest, rest)
