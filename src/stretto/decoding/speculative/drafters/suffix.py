"""SuffixDecoding: the text's end is looked up in the request and in past outputs; counts of what followed draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.automaton import SuffixAutomaton
from stretto.decoding.speculative.drafters.base import ModelFree, chance
from stretto.decoding.speculative.stores import TenantStores

if TYPE_CHECKING:
    from stretto.core.request import Request

WIDEST = 64
"""A context that more different tokens followed says little and takes long to read: it is passed over."""

LONGEST = 64
"""How far back a request is followed in an automaton that it meets late."""


@dataclass(slots=True)
class _Candidate:
    """A draft tree with its paths' probabilities; ``score`` is their sum, the expected number of accepted tokens."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    survival: list[float] = field(default_factory=list)
    score: float = 0.0


class PastOutputs:
    """Outputs in two automata: when the young one is half full, it takes the place of the old one, which is dropped."""

    def __init__(self, limit: int) -> None:
        self.half = limit // 2
        self.old, self.young = SuffixAutomaton(), SuffixAutomaton()

    def __len__(self) -> int:
        return len(self.old) + len(self.young)

    def add(self, output: list[int]) -> None:
        """Add a whole output, or of one that is too long its end."""
        output = output[-self.half :]
        if len(self.young) + len(output) > self.half:
            self.old, self.young = self.young, SuffixAutomaton()
        end = 0
        for token in output:
            end = self.young.extend(end, token)


@dataclass(slots=True)
class _Reading:
    """What is known of one request: the automaton of its own text, and its place in others (state and length)."""

    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    end: int = 0
    read: int = 0
    places: list[tuple[SuffixAutomaton, int, int]] = field(default_factory=list)


class SuffixDecoding(ModelFree):
    """SuffixDecoding (Oliaro et al., arXiv 2411.04975).

    Every suffix of the text that stood before gives a tree: best first by the product of count ratios, down to
    ``least``, of at most ``factor`` times the suffix's length nodes. The tree that promises most accepted tokens is
    drafted: from the request's own text, or from the past outputs of its tenant where these promise more.
    At most ``limit`` tokens of past outputs are kept.
    """

    def __init__(
        self, name: str = "suffix-decoding", *, factor: float = 1.0, least: float = 0.1, limit: int = 1 << 15
    ) -> None:
        super().__init__(name)
        self.factor, self.least = factor, least
        self.past: TenantStores[PastOutputs] = TenantStores(PastOutputs, limit=limit)

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the best tree; the request's own text wins ties."""
        reading: _Reading | None = request.memory.get(self.name)
        if reading is None:
            reading = request.memory[self.name] = _Reading()
        self._read(reading, request)
        best = self._best(reading.own, reading.end, reading.own.longest[reading.end], room, _Candidate())
        for automaton, state, length in reading.places:
            best = self._best(automaton, automaton.narrow(state, length), length, room, best)
        return Draft(self.tree(best.tokens, best.parents, best.survival)) if best.tokens else None

    def end(self, request: Request) -> None:
        """Keep the output for later requests of the tenant."""
        output = request.tokens[len(request.prompt) :]
        if output:
            self.past.open(request).add(output)
            self.past.trim()

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many tokens of past outputs are held."""
        return {self.name: self.past.describe("tokens")}

    def _read(self, reading: _Reading, request: Request) -> None:
        """Append the new tokens to the own automaton and follow them in the others."""
        tokens, own, end = request.tokens, reading.own, reading.end
        for token in tokens[reading.read :]:
            end = own.extend(end, token)
        past = self.past.find(request)
        if past is not None:
            places = {automaton: (state, length) for automaton, state, length in reading.places}
            reading.places = []
            for automaton in (past.young, past.old):
                state, length = places.get(automaton, (0, 0))
                first = reading.read if automaton in places else max(0, len(tokens) - LONGEST)
                for token in tokens[first:]:
                    state, length = automaton.follow(state, length, token)
                reading.places.append((automaton, state, length))
        reading.end, reading.read = end, len(tokens)

    def _best(self, automaton: SuffixAutomaton, state: int, length: int, room: int, best: _Candidate) -> _Candidate:
        """Return ``best``, or a tree behind the match (or one of its suffixes) that promises more.

        A tree promises at most as many tokens as it may have nodes, so the search ends where shorter suffixes may
        draft no more than the best one promises. Of equals the longer match wins.
        """
        while state > 0:
            most = min(room, int(self.factor * length + 1e-6))
            if most <= best.score:
                break
            if 0 < len(automaton.next[state]) <= WIDEST:
                found = self._expand(automaton, state, length, most)
                if found.score > best.score:
                    best = found
            state = automaton.link[state]
            length = automaton.longest[state]
        return best

    def _expand(self, automaton: SuffixAutomaton, state: int, length: int, most: int) -> _Candidate:
        """Return the ``most`` most probable nodes behind a context of ``length`` tokens, best first."""
        tree, count, following = _Candidate(), automaton.count, automaton.next
        # Of a node that may be drafted: its path's probability, a number that breaks ties, token, state, parent, depth,
        # how often anything followed the parent's context (once less than it stood there, where it ends a text).
        heap: list[tuple[float, int, int, int, int, int, int]] = []
        behind, parent, depth, probability, order = state, -1, 0, 1.0, 0
        while True:
            if len(following[behind]) <= WIDEST:
                counts = [count[target] for target in following[behind].values()]
                share, followed = probability / max(count[behind], *counts, 1), sum(counts)
                for (token, target), seen in zip(following[behind].items(), counts, strict=True):
                    if share * seen >= self.least:
                        heappush(heap, (-share * seen, order, token, target, parent, depth, followed))
                        order += 1
            if not heap or len(tree.tokens) == most:
                return tree
            chosen, _, token, behind, above, depth, followed = heappop(heap)
            parent, probability = len(tree.tokens), -chosen
            tree.tokens.append(token)
            tree.parents.append(above)
            tree.survival.append(chance(count[behind], followed, length + depth))
            tree.score += probability
            depth += 1
