"""A draft model with another vocabulary: what it writes is read as text (SLEM, arXiv 2502.05202).

Text is what the two models share. The draft reads the request's text in tokens of its own, at positions of its own, and
goes on from there; what it writes is then spelled in the target's tokens. A wrong spelling costs acceptance, not text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from stretto.core.chunk import Chunk, Role
from stretto.core.picking import GREEDY, log_sum, rankings
from stretto.core.request import Request
from stretto.core.tree import DraftTree
from stretto.decoding.method import Services, View
from stretto.decoding.speculative.drafter import Draft, Observation
from stretto.decoding.speculative.trees import EMPTY
from stretto.tokens.tokenizer import Tokenizer

CATCH_UP = 256
"""Known rows that one request may have computed in one step."""

TAIL = 64
"""Tokens of the target that are translated anew in each step, and at most twice as many: what comes may change them."""

BEFORE = 4
"""Tokens before a piece of text that are spelled with it, because spelling depends on what stands before."""

LOST = "\ufffd"
"""What decoding writes for half a character."""


@dataclass(slots=True)
class Reading:
    """One request's text in the draft's tokens."""

    settled: list[int] = field(default_factory=list)
    """Draft tokens of the text before the target's token number ``start``."""
    start: int = 0
    lane: list[int] = field(default_factory=list)
    """Draft tokens whose rows stand in the draft's lane."""


@dataclass(slots=True)
class Writing:
    """What the draft writes for one request in one step."""

    place: int
    request: Request
    reading: Reading
    view: View
    known: list[int]
    """Draft tokens of the text so far."""
    length: int
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)


class TranslatedDrafter:
    """Drafts runs of at most ``length`` draft tokens, its best one each time: two vocabularies share no noise."""

    def __init__(
        self, target: Tokenizer, draft: Tokenizer, model: str = "draft", name: str = "slem", length: int = 5
    ) -> None:
        self.target, self.tokenizer, self.model, self.name, self.length = target, draft, model, name, length

    def bind(self, services: Services) -> None:
        """Take the engine's services for passes and views."""
        self.services = services

    def begin(self, request: Request) -> None:
        """Nothing has been read."""
        request.memory[self.name] = Reading()

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Draft | None]:
        """Read what is new, write on, and spell it in the target's tokens."""
        drafts: list[Draft | None] = [None] * len(requests)
        begun = [self._begin(place, request) for place, request in enumerate(requests)]
        going = [writing for writing in begun if writing is not None]
        while going:
            chunks = [self._chunk(writing) for writing in going]
            outputs = self.services.forward([writing.request for writing in going], chunks)
            for writing, output in zip(going, outputs, strict=True):
                chunk = output.chunk
                writing.view.advance(chunk.index[-1] + 1)
                writing.reading.lane += chunk.tokens
                if len(chunk.logits):
                    row = output.row(len(chunk) - 1)
                    (((token,), (score,)),) = rankings(output.logits, (row,), (GREEDY,), (0,), 1)
                    writing.tokens.append(token)
                    writing.chances.append(math.exp(min(0.0, score - log_sum(output.logits[row]))))
            ends = self.tokenizer.eos_ids
            going = [each for each in going if 0 < len(each.tokens) < each.length and each.tokens[-1] not in ends]
        for each in begun:
            if each is not None:
                drafts[each.place] = self._spelled(each, rows[each.place]) if each.tokens else Draft(EMPTY)
        return drafts

    def _begin(self, place: int, request: Request) -> Writing | None:
        """Drop the lane's rows that are not the text's; None where the draft's cache or context has no room."""
        reading: Reading = request.memory[self.name]
        known = self._read(reading, request.tokens)
        view = self.services.view(request, self.model, self.name)
        same = common(reading.lane, known[:-1])
        view.truncate(same)
        del reading.lane[same:]
        model = self.services.models[self.model]
        context = model.context if model.rope_border is None else model.rope_border
        length = min(self.length, context - len(known) + 1)
        if length < 1 or not view.reserve(len(known) + length):
            return None
        return Writing(place, request, reading, view, known, length)

    def _chunk(self, writing: Writing) -> Chunk:
        """Return the next known rows, or the row of the token written last."""
        ids, first = [*writing.known, *writing.tokens], writing.view.filled
        stop = min(len(ids), first + CATCH_UP)
        late = min(stop, len(writing.known) - 1) - first
        if late > 0:
            writing.request.stats.catch_up += late
        chunk = Chunk(writing.request.id, self.model, ids[first:stop], list(range(first, stop)), leg=self.name)
        chunk.logits = (stop - first - 1,) if stop == len(ids) else ()
        if writing.tokens:
            # Rows of written tokens go to the lane too; the next step's text says which of them stay.
            chunk.roles, chunk.write = [Role.CANDIDATE] * len(chunk), [True] * len(chunk)
        return chunk

    def _read(self, reading: Reading, tokens: Sequence[int]) -> list[int]:
        """Return the text so far in draft tokens. All but its tail was settled earlier."""
        if len(tokens) - reading.start > 2 * TAIL:
            cut = len(tokens) - TAIL
            head = text_behind(self.target, tokens[:cut], reading.start)
            if not head.endswith(LOST):
                reading.settled += self._encode(reading, head)
                reading.start = cut
        return [*reading.settled, *self._encode(reading, text_behind(self.target, tokens, reading.start))]

    def _encode(self, reading: Reading, text: str) -> list[int]:
        if not reading.settled:
            return self.tokenizer.encode(text)
        return ids_behind(self.tokenizer, reading.settled, text)

    def _spelled(self, writing: Writing, room: int) -> Draft | None:
        """Return what was written as a run of the target's tokens."""
        text = text_behind(self.tokenizer, [*writing.known, *writing.tokens], len(writing.known)).rstrip(LOST)
        tokens = ids_behind(self.target, writing.request.tokens, text)[:room]
        vocabulary = self.services.models[writing.request.model].vocab_size
        tokens = list(takewhile(lambda token: token < vocabulary, tokens))
        if not tokens:
            return None
        chances = [writing.chances[min(place, len(writing.chances) - 1)] for place in range(len(tokens))]
        return Draft(DraftTree.run(tokens, chances, self.name))

    def observe(self, observations: Sequence[Observation]) -> None:
        """The next step's text says what was accepted."""

    def rewind(self, request: Request) -> None:
        """The lane is gone; the text stands."""
        request.memory[self.name].lane.clear()

    def end(self, request: Request) -> None:
        """The lane is the engine's to free."""

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Nothing outlives a request."""
        return {}


def common(first: list[int], second: list[int]) -> int:
    """Return how many tokens two lists begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # slices are compared at once: a text of thousands of tokens takes a dozen comparisons
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def text_behind(tokenizer: Tokenizer, tokens: Sequence[int], start: int) -> str:
    """Return the text of ``tokens`` from number ``start`` on, decoded with what stands before it."""
    before = tokens[max(0, start - BEFORE) : start]
    lead, whole = tokenizer.decode(before), tokenizer.decode(tokens[max(0, start - BEFORE) :])
    return whole[len(lead) :] if whole.startswith(lead) else tokenizer.decode(tokens[start:])


def ids_behind(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> list[int]:
    """Return ``text`` in tokens behind ``tokens``, spelled with what stands before it where that is spelled alike."""
    before = list(tokens[-BEFORE:])
    whole = tokenizer.encode_plain(tokenizer.decode(before) + text)
    return whole[len(before) :] if whole[: len(before)] == before else tokenizer.encode_plain(text)
