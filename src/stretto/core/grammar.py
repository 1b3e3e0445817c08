"""Grammars as token masks, matched by llguidance: states are places on paths, and one matcher follows them lazily."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from stretto.core.masks import Words

T = TypeVar("T")

LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What a grammar may cost, in units of llguidance's work: some 100 ms to build, some 20 ms a step."""

UNFORCED = '\n%llguidance {"no_forcing": true}\n'
"""Behind a grammar: masks hold every token that fits. What llguidance makes of forced text goes wrong in the middle of
characters, and takes the longer the longer that text is; `Matching.forced` does it instead."""

RECENT = 128
"""Places whose masks are kept per text: those of a step's drafts, so that checking does not compute them again."""


class Path:
    """A place in a text: the token that leads to it, and the place before. What is found out about it is kept."""

    __slots__ = ("bits", "choice", "depth", "ended", "matching", "parent", "token", "trouble")

    def __init__(self, matching: Matching, parent: Path | None, token: int) -> None:
        self.matching, self.parent, self.token = matching, parent, token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.ended: bool = parent is not None and (parent.ended or token in matching.words.eos_ids)
        self.bits: bytes | None = None
        """The mask, a bit for each token; None: not computed, or not kept."""
        self.choice: int | None = None
        """The only token that may follow, -1 where that is not so; None: not computed."""
        self.trouble = ""


class Matching:
    """One text's matcher. It stands at one place and is rolled back and forth from there to any other."""

    def __init__(self, fresh: LLMatcher, words: Words) -> None:
        self.fresh, self.words = fresh, words
        self.matcher = fresh.deep_copy()
        self.root = self.at = Path(self, None, -1)
        self._recent: dict[tuple[Path, int], Path] = {}

    def after(self, path: Path, token: int) -> Path:
        """Return the place behind `token`: the same for the same path, as long as it is recent."""
        key = path, token
        child = self._recent.get(key)
        if child is None:
            child = self._recent[key] = Path(self, path, token)
            if len(self._recent) > RECENT:
                self._recent.pop(next(iter(self._recent))).bits = None
        return child

    def reach(self, path: Path) -> bool:
        """Move to `path`; False where a token on the way breaks the grammar or the grammar goes beyond its limits."""
        behind: list[Path] = []
        back, node, at = 0, path, self.at
        while node is not at:
            if node.depth >= at.depth:
                assert node.parent is not None
                behind.append(node)
                node = node.parent
            else:
                assert at.parent is not None
                back, at = back + 1, at.parent
        if back:
            self.matcher.rollback(back)
        taken = self.matcher.try_consume_tokens([each.token for each in reversed(behind)]) if behind else 0
        self.at = behind[-taken] if taken else node
        return self.sound(path) and taken == len(behind)

    def sound(self, path: Path) -> bool:
        """Whether the matcher has come through its last work; if not, note why and begin with a new one."""
        if not self.matcher.is_error():
            return True
        path.trouble = self.matcher.get_error().partition("\n")[0]
        self.matcher, self.at = self.fresh.deep_copy(), self.root
        return False

    def asked(self, path: Path, question: Callable[[LLMatcher], T], otherwise: T) -> T:
        """Return what the matcher says at `path`, `otherwise` where it cannot get there.

        What it met on other paths must not decide: one that goes beyond its limits is replaced, and asked once more.
        """
        for _ in range(2):
            matcher = self.matcher
            if self.reach(path):
                answer = question(matcher)
                if self.sound(path):
                    return answer
            if self.matcher is matcher:
                break
        return otherwise

    def bits(self, path: Path) -> bytes:
        """Return the tokens that the grammar can go on with at `path`, a bit each; `b""` where nothing may follow."""
        if path.bits is None:
            path.bits = self.asked(path, _mask, b"")
        return path.bits

    def forced(self, path: Path) -> int | None:
        """Return the only token that may come next, None where several or none may.

        Of text that the grammar forces, that is the first token of the tokenizer's own spelling. An end token is none:
        where a text ends, a row for its last token says so.
        """
        if path.choice is None:
            path.choice = -1 if path.ended else self._forced(path)
        return path.choice if path.choice >= 0 else None

    def _forced(self, path: Path) -> int:
        text = self.asked(path, LLMatcher.compute_ff_bytes, b"")
        token = self.words.first(text) if text else None
        return token if token is not None else _only(self.bits(path)) if text else -1


def _mask(matcher: LLMatcher) -> bytes:
    """Return the mask, a bit for each token; `b""` at a dead end, for which llguidance has an end token."""
    bits = matcher.compute_bitmask()
    return b"" if matcher.is_stopped() and not matcher.is_accepting() else bits


def _only(bits: bytes) -> int:
    """Return the number of the only bit that is set, -1 where there are several or none."""
    value = int.from_bytes(bits, "little")
    return value.bit_length() - 1 if value.bit_count() == 1 else -1


class GrammarMask:
    """The text must match a grammar, then an end token. A state is a `Path`.

    Of a text that the grammar forces, only the tokenizer's own spelling is allowed: the model is used to it, and it is
    known beforehand. Whoever writes on behind an end token (`ignore_eos`) may write further end tokens.
    """

    def __init__(self, words: Words, grammar: str) -> None:
        """`grammar` is in Lark's syntax. Raises ValueError for one that cannot be read or that no text can match."""
        self.words = words
        self._fresh = LLMatcher(words.trie, grammar + UNFORCED, log_level=0, limits=LIMITS)
        if not self._fresh.is_error() and not any(_mask(self._fresh)) and not self._fresh.is_error():
            raise ValueError("expected a grammar that some text matches; this one allows no first token")
        if self._fresh.is_error():
            said = self._fresh.get_error().removesuffix("<non-verbose/>").strip().splitlines()
            raise ValueError("\n".join(line for line in said if UNFORCED.strip() not in line))
        self._ends = torch.zeros(words.size, dtype=torch.bool)
        self._ends[list(words.eos_ids)] = True

    def start(self) -> Path:
        """Return the place before the first token, with a matcher of its own."""
        return Matching(self._fresh, self.words).root

    def advance(self, state: Path, token: int) -> Path:
        """Return the place behind `token`. Nothing is matched before somebody asks what may follow there."""
        return state.matching.after(state, token)

    def allowed(self, state: Path) -> Tensor:
        """Return bool [V]: the tokens that may come next."""
        if state.ended:
            return self._ends if self.lawful(state) else torch.zeros_like(self._ends)
        forced = state.matching.forced(state)
        if forced is not None:
            return torch.zeros_like(self._ends).index_fill_(0, torch.tensor(forced), True)
        bits = state.matching.bits(state)
        if not bits:
            return torch.zeros_like(self._ends)
        each = np.unpackbits(np.frombuffer(bits, np.uint8), count=self.words.size, bitorder="little")
        return torch.from_numpy(each.view(np.bool_))

    def forced(self, state: Path) -> int | None:
        """Return the only token that may come next, None where several or none may, or only the mask could tell."""
        return state.matching.forced(state)

    def lawful(self, state: Path) -> bool:
        """Return whether the last token was allowed, given that those before it were."""
        parent, matching = state.parent, state.matching
        if parent is None:
            return True
        if state.ended:
            return parent.ended or matching.asked(parent, LLMatcher.is_accepting, False)
        return matching.forced(parent) in (None, state.token) and matching.asked(state, lambda _: True, False)

    def trouble(self, state: Path) -> str:
        """Return why nothing may come next, where it is not that the grammar has no more to say."""
        return state.trouble
