"""Drafts from the request's own n-grams: prompt lookup, and adaptive n-gram parallel decoding.

Both index prompt and output as they grow, when they are next asked: a few dictionary entries per token, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stretto.decoding.speculative.drafters.base import ModelFree, chance

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.decoding.speculative.drafter import Draft

LONGEST_MATCH = 32
"""How far back a match is measured, for its survival alone."""


@dataclass(slots=True)
class _Places:
    """Where each n-gram first ended, among those that something follows."""

    read: int = 0
    end: dict[tuple[int, ...], int] = field(default_factory=dict)


class PromptLookup(ModelFree):
    """Copies what followed the first earlier place of the text's last tokens (Saxena, 2023).

    The longest n-gram of at most ``longest`` tokens that stood in the text before decides; ``length`` bounds the copy.
    """

    def __init__(self, name: str = "prompt-lookup", *, longest: int = 3, length: int = 10) -> None:
        super().__init__(name)
        self.longest, self.length = longest, length

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the copy as a run. A node's survival is that of one continuation behind the whole match."""
        tokens = request.tokens
        places: _Places | None = request.memory.get(self.name)
        if places is None:
            places = request.memory[self.name] = _Places()
        first = places.end
        for end in range(places.read + 1, len(tokens)):
            for size in range(1, min(self.longest, end) + 1):
                first.setdefault(tuple(tokens[end - size : end]), end)
        places.read = len(tokens) - 1
        for size in range(min(self.longest, len(tokens)), 0, -1):
            found = first.get(tuple(tokens[-size:]))
            if found is not None:
                copied = tokens[found : found + min(room, self.length)]
                match = matched(tokens, found, len(tokens), size)
                return self.run(copied, [chance(1, 1, match + depth) for depth in range(len(copied))])
        return None


def matched(tokens: list[int], end: int, other: int, known: int = 0) -> int:
    """Return how many tokens before ``end`` equal those before ``other`` > ``end``, ``known`` of which are known to.

    Counts up to ``LONGEST_MATCH``.
    """
    most = min(end, LONGEST_MATCH)
    while known < most and tokens[end - known - 1] == tokens[other - known - 1]:
        known += 1
    return known


@dataclass(slots=True)
class _Levels:
    """Counts of all n-grams read; of each context how often anything followed, and what did so most often."""

    read: int = 0
    grams: dict[tuple[int, ...], int] = field(default_factory=dict)
    followed: dict[tuple[int, ...], int] = field(default_factory=dict)
    leader: dict[tuple[int, ...], int] = field(default_factory=dict)


class Anpd(ModelFree):
    """Adaptive n-gram parallel decoding (Ou et al., arXiv 2404.08698).

    Draws one token after the other from n-gram counts over the text so far: the most frequent continuation of the last
    n - 1 tokens, drafted ones included, from the most precise level (n = ``most``) down to bigrams; of equally frequent
    ones the latest. Stops where no level knows a continuation, at the latest behind ``length`` tokens.
    """

    def __init__(self, name: str = "anpd", *, most: int = 5, length: int = 6) -> None:
        super().__init__(name)
        self.context, self.length = most - 1, length

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return a run. A node's survival is its share of the counts at its level."""
        levels: _Levels | None = request.memory.get(self.name)
        if levels is None:
            levels = request.memory[self.name] = _Levels()
        self._read(levels, request.tokens)
        tail, survival = request.tokens[-self.context :], list[float]()
        known, leader = len(tail), levels.leader
        for _ in range(min(room, self.length)):
            for size in range(min(self.context, len(tail)), 0, -1):
                context = tuple(tail[-size:])
                token = leader.get(context)
                if token is not None:
                    survival.append(chance(levels.grams[*context, token], levels.followed[context], size))
                    tail.append(token)
                    break
            else:
                break
        return self.run(tail[known:], survival) if survival else None

    def _read(self, levels: _Levels, tokens: list[int]) -> None:
        grams, followed, leader = levels.grams, levels.followed, levels.leader
        for place in range(max(1, levels.read), len(tokens)):
            token = tokens[place]
            for size in range(1, min(self.context, place) + 1):
                gram = tuple(tokens[place - size : place + 1])
                context = gram[:-1]
                count = grams[gram] = grams.get(gram, 0) + 1
                total = followed[context] = followed.get(context, 0) + 1
                # The first continuation leads; later ones where no other was more frequent.
                if count == total or count >= grams[*context, leader[context]]:
                    leader[context] = token
        levels.read = len(tokens)
