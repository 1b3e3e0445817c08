"""The verifier that keeps the text: choose, and step to the child that carries the token."""

from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers.contract import Ask, Draws, Fidelity, Walk, Walked


class Coupled:
    """Choose at the root, step to the child that carries the token, stop when none does or the text ends.

    The text equals plain decoding token for token whatever the tree holds, so drafters may draw as they like; those
    that draw with the noise of choice are accepted most (arXiv 2408.07978).
    """

    draws: Draws = "coupled"
    fidelity: Fidelity = "exact"

    def check(self, tree: DraftTree) -> None:
        """Any tree will do."""

    def walk(self, tree: DraftTree, state: SamplerState) -> Walk:
        tokens: list[int] = []
        nodes: list[int] = []
        node = -1
        while True:
            token = yield Ask(node, state, "token", tree)
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
