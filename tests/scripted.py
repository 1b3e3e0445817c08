"""Drafters without an engine: tokens and outputs are fed by hand, and their trees are read as text.

``Told`` is a model whose text is told beforehand, for engines: what it says depends on the position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from toy import NullModel

from stretto.core.batch import Batch, Result
from stretto.core.chunk import Output
from stretto.core.params import SamplingParams
from stretto.core.request import Committed, Request
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Coupled
from stretto.decoding.speculative.drafter import Draft, Drafter, Observation
from stretto.decoding.speculative.trees import draft_chunk
from stretto.decoding.speculative.walking import settle, walk_all

VOCAB = 64
NUMBERS = count()


def paths(draft: Draft | DraftTree | None) -> list[str]:
    """Return each node as the tokens of its path, in order: ``["5", "5.6", "7"]`` says tokens, parents and order."""
    tree = draft.tree if isinstance(draft, Draft) else draft
    if tree is None:
        return []
    tree.validate(VOCAB)
    return [".".join(str(tree.tokens[step]) for step in tree.path(node)) for node in range(len(tree))]


Says = Callable[[list[int]], "int | Sequence[int]"]
"""What the model says behind these tokens: its first choice, or several, best first."""


class Scripted:
    """One request of one drafter, moved by hand."""

    def __init__(
        self, drafter: Drafter, prompt: Sequence[int], *, model: str = "target", eos: int = 0, **params: Any
    ) -> None:
        self.drafter = drafter
        asked = SamplingParams(**{"max_tokens": 1000, "temperature": 0.0, "ignore_eos": True, **params})
        state = SamplerState.begin(
            asked, list(prompt), sample=0, seed=0, vocab_size=VOCAB, eos_ids=frozenset({eos}), limit=1000
        )
        self.request = Request(next(NUMBERS), list(prompt), asked, state, 0, model=model, tokens=list(prompt))
        self.last: Observation | None = None
        drafter.begin(self.request)

    def say(self, *tokens: int) -> Scripted:
        """Append generated tokens that no draft of this drafter had a part in."""
        for token in tokens:
            self.request.state.commit(token)
            self.request.tokens.append(token)
        return self

    def draft(self, room: int = 8) -> Draft | None:
        """Return what is drafted now."""
        (draft,) = self.drafter.draft([self.request], [room])
        assert draft is None or isinstance(draft, Draft)
        size = 0 if draft is None else len(draft.tree) + len(draft.probes.tokens if draft.probes else ())
        assert size <= room, f"{size} rows where {room} were given"
        return draft

    def paths(self, room: int = 8) -> list[str]:
        """Return what is drafted now, as text."""
        return paths(self.draft(room))

    def step(self, says: Says, room: int = 8) -> list[str]:
        """Draft, let the model say what follows each row, walk, observe, append; return the draft as text."""
        draft = self.draft(room) or Draft(DraftTree.run([]))
        self.request.views["target"] = _View(len(self.request.tokens) - 1)
        chunk = draft_chunk(self.request, draft)
        chunk.validate(VOCAB)
        logits = torch.stack([_logits(says(path)) for path in rows_paths(chunk, self.request.tokens[:-1])])
        output = Output(chunk, logits, 0, scratch=[None] * len(chunk))
        committed = Committed(self.request, filled=len(self.request.tokens))
        self.last = Observation(self.request, output, committed, draft.tree)
        settle(self.last, *walk_all([Coupled().walk(draft.tree, self.request.state)], [self.last]))
        self.drafter.observe([self.last])
        self.say(*committed.tokens)
        return paths(draft)

    def end(self) -> None:
        """End the request as an engine does."""
        self.drafter.end(self.request)
        self.request.memory.clear()


class _View:
    def __init__(self, filled: int) -> None:
        self.filled = filled


def rows_paths(chunk: Any, before: Sequence[int]) -> list[list[int]]:
    """Return for each row of a chunk the tokens on its path, itself last: ``before``, then parents' rows, then its own.

    ``also`` is not followed.
    """
    seen: list[list[int]] = []
    for segment in chunk.segments:
        path = list(before) if segment.parent < 0 else seen[segment.parent]
        for _ in range(segment.rows):
            path = [*path, chunk.tokens[len(seen)]]
            seen.append(path)
    return seen


def _logits(said: int | Sequence[int]) -> torch.Tensor:
    """Return float32 [VOCAB] in which the said tokens lead in their order, clearly."""
    logits = torch.zeros(VOCAB)
    for rank, token in enumerate([said] if isinstance(said, int) else said):
        logits[token] = 50.0 - rank
    return logits


class Told(NullModel):
    """Says ``text[i + 1]`` at position i, whatever stands before, so clearly that the temperature hardly matters."""

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__(VOCAB, len(text))
        self.text = list(text)

    def says(self, token: int, position: int) -> int:
        return self.text[min(position + 1, len(self.text) - 1)]

    def forward(self, batch: Batch) -> Result:
        index = [position for part in batch.parts for position in part.chunk.index]
        said = [self.says(batch.tokens[row], index[row]) for row in batch.wanted]
        return Result(torch.stack([_logits(token) for token in said]) if said else torch.empty(0, VOCAB))


class Chain(Told):
    """Says what follows a token in the text, wherever it stands: each of its tokens has one follower."""

    def says(self, token: int, position: int) -> int:
        return self.text[self.text.index(token) + 1] if token in self.text[:-1] else 0
