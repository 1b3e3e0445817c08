"""Block verification: a drafted run is judged as a whole, so that a later token can make up for an earlier one."""

from torch import Tensor

from stretto.core.choose import sample
from stretto.core.noise import Stream, uniform
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers.asking import distribution
from stretto.core.verifiers.contract import Draws, Fidelity, Walk, Walked
from stretto.core.verifiers.node_by_node import certain, normalised


class Block:
    """Block verification of runs (Sun et al., arXiv 2403.10444).

    The chance that the first i tokens are kept is w(i) = min(1, w(i - 1) p(x) / q(x)), which is never less than the
    product of the single chances. Where the run stops inside, the next token is drawn from max(w(i) p - q, 0). Of the
    places at which it might stop, the last one that says so counts. Without q, tokens count as certain.

    All of a run's draws decide how much of it is kept, so no draw may use the noise of an earlier step, not even at
    the same place of the text.
    """

    draws: Draws = "independent"
    fidelity: Fidelity = "exact-distribution"

    def check(self, tree: DraftTree) -> None:
        """Raise ValueError for a tree that is not a run."""
        if tree.parents != list(range(-1, len(tree) - 1)):
            raise ValueError(f"tree: parents {tree.parents}: expected a run; use MultiRound or WithoutReplacement")

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        self.check(tree)
        bits = state.key().bits(Stream.ACCEPT)  # of the step, not of a place: the next step judges later places anew
        depth, weight = 0, 1.0
        stop: tuple[int, SamplerState, Tensor] | None = None
        finish: str | None = None
        p = yield from distribution(-1, state)
        while depth < len(tree) and weight and isinstance(p, Tensor):
            token = tree.tokens[depth]
            drawn = None if tree.q is None else tree.q.get(depth - 1)
            q = certain(p, token) if drawn is None else drawn.to(p.device)
            left, chance = inside(weight, p, q)
            if stop is None or uniform(bits, depth) < chance:
                stop = depth, state, left
            weight = carried(weight, p[token].item(), q[token].item())
            depth += 1
            if finish := state.ends(token):
                break
            state = state.advance(token)
            p = yield from distribution(depth - 1, state)
        if stop is None or uniform(bits, depth) < weight:
            if finish:
                return Walked(tree.tokens[:depth], list(range(depth - 1)), finish, None)
            if not isinstance(p, Tensor):
                return Walked(tree.tokens[:depth], list(range(depth)), None, p)
            token = sample(p, state.key().bits(Stream.CHOICE))
        else:
            depth, state, left = stop
            token = sample(left, state.key().bits(Stream.RESIDUAL))
        return Walked([*tree.tokens[:depth], token], list(range(depth)), state.ends(token), None)


def carried(weight: float, p: float, q: float) -> float:
    """Return the weight of a run behind its next token, which has these chances."""
    return min(1.0, weight * p / q)


def inside(weight: float, p: Tensor, q: Tensor) -> tuple[Tensor, float]:
    """Return what is drawn from if a run of that weight stops before a draw from `q`, and the chance that it may."""
    left = (weight * p - q).clamp_(min=0.0)
    mass = left.sum().item()
    return normalised(left, p), mass / (mass + 1.0 - weight) if mass else 0.0
