"""What walks ask for, as parts of a walk: a row's distribution, the token of plain decoding."""

from collections.abc import Generator

from torch import Tensor

from stretto.core.choose import ChoiceError, perturbed, probabilities
from stretto.core.sampler import SamplerState
from stretto.core.verifiers.contract import Answer, Ask, Walk, Walked


def distribution(node: int, state: SamplerState, *, soft: bool = False) -> Generator[Ask, Answer, Tensor | int]:
    """Return what the target draws from at the row of `node`, float64 [V], or the error code of a bad row.

    `soft`: where the request is greedy, the distribution at temperature 1 instead of the one choice.
    """
    logits = yield Ask(node, state, "logits")
    assert isinstance(logits, Tensor)
    try:
        p = probabilities(logits, state)
    except ChoiceError as error:
        return error.code
    if soft and not state.params.temperature:
        p = perturbed(logits[None], [state])[0].double().softmax(0)
    return p


def own_choice(tokens: list[int], nodes: list[int], state: SamplerState) -> Walk:
    """End a walk with the token that plain decoding would choose behind the kept `nodes`, which carry `tokens`."""
    token = yield Ask(nodes[-1] if nodes else -1, state, "token")
    assert isinstance(token, int)
    if token < 0:
        return Walked(tokens, nodes, None, token)
    return Walked([*tokens, token], nodes, state.ends(token), None)
