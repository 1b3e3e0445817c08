"""Token masks: which tokens may come next, as a function of the row's own path."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llguidance import LLTokenizer


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
        """Return the only token that may come next, None where several or none may, or only the mask could tell."""


Answer = TypeVar("Answer")


class MaskError(RuntimeError):
    """A mask raised: its request cannot go on, and nobody else is to blame."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the request's mask raised {type(error).__name__}: {error}")


def _ask(call: Callable[..., Answer], *arguments: Any) -> Answer:
    try:
        return call(*arguments)
    except Exception as error:  # a registered mask is anybody's code
        raise MaskError(error) from error


def advance(mask: TokenMask, state: Any, token: int) -> Any:
    """Return the state behind `token`. Raises MaskError, as all functions here that ask a mask do."""
    return _ask(mask.advance, state, token)


def allowed(mask: TokenMask, state: Any) -> Tensor:
    """Return bool [V]: the tokens that may come next."""
    return _ask(mask.allowed, state)


def only_allowed(mask: TokenMask, state: Any) -> int | None:
    """Return the only token that `mask` allows in `state`, None where it allows several or none."""
    if hasattr(mask, "forced"):
        return _ask(cast(ForcingMask, mask).forced, state)
    tokens = allowed(mask, state).nonzero()
    return int(tokens) if len(tokens) == 1 else None


class CheckingMask(TokenMask, Protocol):
    """A mask that checks one token without looking at the whole vocabulary."""

    def lawful(self, state: Any) -> bool:
        """Return whether the last token before `state` was allowed, given that those before it were."""


def lawful(mask: TokenMask, state: Any, token: int) -> Any | None:
    """Return the state behind `token`, None where `mask` does not allow it in `state`."""
    if hasattr(mask, "lawful"):
        after = advance(mask, state, token)
        return after if _ask(cast(CheckingMask, mask).lawful, after) else None
    return advance(mask, state, token) if allowed(mask, state)[token] else None


class TroubledMask(TokenMask, Protocol):
    """A mask that may find out while a text is written that it cannot go on."""

    def trouble(self, state: Any) -> str:
        """Return what is in the way of the next token, the empty string where nothing is."""


def trouble(mask: TokenMask | None, state: Any) -> str:
    """Return what `mask` has met in `state`, the empty string where there is nothing to say."""
    return cast(TroubledMask, mask).trouble(state) if hasattr(mask, "trouble") else ""


class Words(Protocol):
    """What a mask that reads text knows of a model's vocabulary."""

    @property
    def size(self) -> int:
        """Number of tokens."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text."""

    @property
    def trie(self) -> "LLTokenizer":
        """The bytes of all tokens, as llguidance walks them. Raises ValueError where no token ends a text."""

    def first(self, text: bytes) -> int | None:
        """Return the first token of `text` as the tokenizer spells it, None where what follows might change it."""


MaskFactory = Callable[..., TokenMask]


class _Entry(NamedTuple):
    factory: MaskFactory
    reads: bool
    lasting: bool


_factories: dict[str, _Entry] = {}
_brief = Repr()
_brief.maxstring = _brief.maxother = 120


def register_mask(name: str, factory: MaskFactory, *, reads: bool = False, lasting: bool = False) -> None:
    """Make `SamplingParams(mask=(name, arguments))` call `factory(vocab_size, eos_ids, **arguments)`.

    One that `reads` text is called as `factory(words, **arguments)`. `lasting`: what it returns changes no more and may
    serve any number of texts at once; it may be called in any thread, and what it returns is kept.
    """
    _factories[name] = _Entry(factory, reads, lasting)


def lasting(name: str) -> bool:
    """Return whether masks of this name may serve several texts."""
    return name in _factories and _factories[name].lasting


def build_mask(
    name: str, args: dict[str, Any], vocab_size: int, eos_ids: Iterable[int], words: Words | None = None
) -> TokenMask:
    """Build the mask registered as `name`; raise ValueError for unknown names and for arguments it does not take.

    `words` is None where the checkpoint has no tokenizer.
    """
    entry = _factories.get(name)
    if entry is None:
        close = get_close_matches(name, _factories, 1)
        hint = f"did you mean {close[0]!r}?" if close else "register it with register_mask first"
        raise ValueError(f"mask={name!r}: expected one of {sorted(_factories)}; {hint}")
    if entry.reads and words is None:
        raise ValueError(f"mask={name!r} needs a tokenizer and this checkpoint has none: use mask='choice'")
    try:
        return entry.factory(words, **args) if entry.reads else entry.factory(vocab_size, frozenset(eos_ids), **args)
    except Exception as error:  # a registered factory is anybody's code
        shown = _brief.repr(args)
        raise ValueError(f"mask={name!r}: expected arguments that it takes, got {shown}; {error}") from error


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
