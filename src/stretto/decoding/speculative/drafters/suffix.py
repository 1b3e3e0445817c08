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
"""Longest suffix that is looked up."""
TRIED = 8
"""How many suffixes of different continuations are tried at most, the longest first: bounds the work of a draft."""


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
class _Place:
    """The longest suffix of a request's text that stands in an automaton, of at most ``LONGEST`` tokens."""

    automaton: SuffixAutomaton
    state: int = 0
    length: int = 0

    def follow(self, token: int) -> None:
        """Move on by one token."""
        self.state, length = self.automaton.follow(self.state, self.length, token)
        self.length = min(length, LONGEST)


@dataclass(slots=True)
class _Reading:
    """What is known of one request: the automaton of its own text, and its places in that and in others."""

    own: _Place = field(default_factory=lambda: _Place(SuffixAutomaton()))
    end: int = 0
    """State of the own text's end."""
    read: int = 0
    others: list[_Place] = field(default_factory=list)


class SuffixDecoding(ModelFree):
    """SuffixDecoding (Oliaro et al., arXiv 2411.04975).

    Every suffix of the text, up to ``LONGEST`` tokens, that stood before gives a tree: best first by the product of
    count ratios, down to ``least``, of at most ``factor`` times the suffix's length nodes. The tree that promises most
    accepted tokens is drafted: from the request's own text, or from the past outputs of its tenant where these promise
    more. At most ``limit`` tokens of past outputs are kept.
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
        best = _Candidate()
        for place in (reading.own, *reading.others):
            if place.length:
                best = self._best(place, room, best)
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
        """Follow the new tokens in the automata, then append them to the own one."""
        tokens, own = request.tokens, reading.own
        for token in tokens[reading.read :]:
            own.follow(token)
            reading.end = own.automaton.extend(reading.end, token)
        past = self.past.find(request)
        if past is not None:
            known = {place.automaton: place for place in reading.others}
            reading.others = [known.get(each) or _Place(each) for each in (past.young, past.old)]
            for place in reading.others:
                first = reading.read if place.automaton in known else max(0, len(tokens) - LONGEST)
                for token in tokens[first:]:
                    place.follow(token)
        reading.read = len(tokens)

    def _best(self, place: _Place, room: int, best: _Candidate) -> _Candidate:
        """Return ``best``, or a tree behind the match (or one of its suffixes) that promises more.

        A tree promises at most as many tokens as it may have nodes, so the search ends where shorter suffixes may
        draft no more than the best one promises. Of equals the longer match wins.
        """
        automaton, length = place.automaton, place.length
        state = automaton.narrow(place.state, length)
        for _ in range(TRIED):
            most = min(room, int(self.factor * length + 1e-6))
            if state <= 0 or most <= best.score:
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
