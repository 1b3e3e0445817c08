"""Token masks: which tokens may come next, as a function of the row's own path."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Protocol, cast

import torch
from torch import Tensor


class TokenMask(Protocol):
    """An automaton over token ids. States are values: `advance` returns a new one and changes none."""

    def start(self) -> Any:
        """Return the state before the first generated token."""

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after `token`; after a forbidden token, a state that allows nothing."""

    def allowed(self, state: Any) -> Tensor:
        """Return bool [V]: the tokens that may come next."""


class ForcingMask(TokenMask, Protocol):
    """A mask that knows without looking at the whole vocabulary where it leaves no choice."""

    def forced(self, state: Any) -> int | None:
        """Return the only token that may come next, None where several or none may."""


def only_allowed(mask: TokenMask, state: Any) -> int | None:
    """Return the only token that `mask` allows in `state`, None where it allows several or none."""
    if hasattr(mask, "forced"):
        return cast(ForcingMask, mask).forced(state)
    tokens = mask.allowed(state).nonzero()
    return int(tokens) if len(tokens) == 1 else None


MaskFactory = Callable[..., TokenMask]
_factories: dict[str, MaskFactory] = {}


def register_mask(name: str, factory: MaskFactory) -> None:
    """Make `SamplingParams(mask=(name, arguments))` call `factory(vocab_size, eos_ids, **arguments)`."""
    _factories[name] = factory


def build_mask(name: str, args: dict[str, Any], vocab_size: int, eos_ids: Iterable[int]) -> TokenMask:
    """Build the mask registered as `name`; raise ValueError for unknown names and for arguments it does not take."""
    factory = _factories.get(name)
    if factory is None:
        close = get_close_matches(name, _factories, 1)
        hint = f"did you mean {close[0]!r}?" if close else "register it with register_mask first"
        raise ValueError(f"mask={name!r}: expected one of {sorted(_factories)}; {hint}")
    try:
        return factory(vocab_size, frozenset(eos_ids), **args)
    except Exception as error:  # a registered factory is anybody's code
        raise ValueError(f"mask={name!r}: expected arguments that it takes, got {args!r}; {error}") from error


_DEAD = -1


class ChoiceMask:
    """The output must be one of the given token-id sequences, then an end token. A state is a node of their trie."""

    def __init__(self, vocab_size: int, eos_ids: frozenset[int], choices: Sequence[Sequence[int]]) -> None:
        if not choices or not all(choices):
            raise ValueError(f"choices={choices!r}: expected sequences of at least one token id; give one or more")
        if not eos_ids:
            raise ValueError("mask='choice': expected a model with an end token; give stop strings instead")
        self._trie: list[dict[int, int]] = [{}]  # node -> token -> node
        self._vocab_size = vocab_size
        for tokens in choices:
            node = 0
            for token in tokens:
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                    raise ValueError(f"choices: {token!r} is no token id; expected 0 to {vocab_size - 1}")
                node = self._child(node, token)
            for token in eos_ids:
                self._child(node, token)

    def _child(self, node: int, token: int) -> int:
        if token not in self._trie[node]:
            self._trie.append({})
            self._trie[node][token] = len(self._trie) - 1
        return self._trie[node][token]

    def start(self) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return self._trie[state].get(token, _DEAD) if state != _DEAD else _DEAD

    def allowed(self, state: int) -> Tensor:
        allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
        if state != _DEAD:
            allowed[list(self._trie[state])] = True
        return allowed

    def forced(self, state: int) -> int | None:
        following = self._trie[state] if state != _DEAD else {}
        return next(iter(following)) if len(following) == 1 else None


register_mask("choice", ChoiceMask)
