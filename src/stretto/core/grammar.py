"""Grammars as token masks, matched by llguidance: states are places on paths, and one matcher follows them lazily."""

from __future__ import annotations

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from stretto.core.masks import Words

LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What a grammar may cost, in units of llguidance's work: some 100 ms to build, some 20 ms a step."""

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

    def complete(self, path: Path) -> bool:
        """Whether the text may end at `path`."""
        return path.ended or (self.reach(path) and self.matcher.is_accepting())

    def bits(self, path: Path) -> bytes:
        """Return the mask at `path`, a bit for each token; `b""` where nothing may follow."""
        if path.bits is None:
            path.bits = self._computed(path)
        return path.bits

    def _computed(self, path: Path) -> bytes:
        for _ in range(2):  # what this matcher met on other paths must not decide: the second time it is a new one
            path.trouble = ""
            if self.reach(path):
                bits = self.matcher.compute_bitmask()
                if self.sound(path):
                    return b"" if self.matcher.is_stopped() and not self.matcher.is_accepting() else bits
            if not path.trouble:
                break
        return b""

    def forced(self, path: Path) -> int | None:
        """Return the only token that may come next as far as that shows without a mask."""
        if path.choice is None:
            tokens = self.matcher.compute_ff_tokens() if not path.ended and self.reach(path) else []
            path.choice = tokens[0] if tokens and self.sound(path) else -1
        return path.choice if path.choice >= 0 else None


class GrammarMask:
    """The text must match a grammar, then an end token. A state is a `Path`.

    Where the grammar forces some text, the only token allowed is the first of the tokenizer's own spelling of it: as
    good as what the model would have chosen, and known beforehand. Whoever writes on behind an end token
    (`ignore_eos`) may write further end tokens.
    """

    def __init__(self, words: Words, grammar: str) -> None:
        """`grammar` is in llguidance's own form. Raises ValueError for one that it cannot read or no text can match."""
        self.words = words
        self._fresh = LLMatcher(words.trie, grammar, log_level=0, limits=LIMITS)
        if not self._fresh.is_error():
            bits = self._fresh.compute_bitmask()
            stuck = self._fresh.is_stopped() and not self._fresh.is_accepting()
            if not self._fresh.is_error() and (stuck or not any(bits)):
                raise ValueError("expected a grammar that some text matches; this one allows no first token")
        if self._fresh.is_error():
            raise ValueError(self._fresh.get_error().removesuffix("<non-verbose/>").strip())
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
        bits = state.matching.bits(state)
        if not bits:
            return torch.zeros_like(self._ends)
        each = np.unpackbits(np.frombuffer(bits, np.uint8), count=self.words.size, bitorder="little")
        return torch.from_numpy(each.view(np.bool_))

    def forced(self, state: Path) -> int | None:
        """Return the only token that may come next, None where several may or where only the whole mask could tell."""
        return state.matching.forced(state)

    def lawful(self, state: Path) -> bool:
        """Return whether the last token was allowed, given that those before it were."""
        parent, matching = state.parent, state.matching
        if parent is None:
            return True
        if state.ended:
            return matching.complete(parent)
        return matching.forced(parent) in (None, state.token) and matching.reach(state)

    def trouble(self, state: Path) -> str:
        """Return why nothing may come next, where it is not that the grammar has no more to say."""
        return state.trouble
