"""Models whose every word can be worked out by hand, and what a drafter of an engine proposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from toy import NullModel, ToyModel

from stretto.core.batch import Batch, Result
from stretto.decoding.speculative.drafter import Drafter

VOCAB = 64


class Table(NullModel):
    """Its logits depend on a row's token alone: those given, and -50 for all others."""

    def __init__(self, table: Mapping[int, Mapping[int, float]], name: str = "target", vocab: int = VOCAB) -> None:
        super().__init__(vocab, 512)
        self.name, self.table, self.passes = name, table, 0

    def forward(self, batch: Batch) -> Result:
        self.passes += 1
        logits = torch.full((len(batch.wanted), self.vocab_size), -50.0)
        for place, row in enumerate(batch.wanted):
            for token, value in self.table.get(batch.tokens[row], {0: 0.0}).items():
                logits[place, token] = value
        return Result(logits)


class Markov(NullModel):
    """Its logits depend on a row's token alone: row ``token`` of ``table``, float32 [vocab, vocab]."""

    def __init__(self, table: torch.Tensor, name: str = "target") -> None:
        super().__init__(len(table), 512)
        self.name, self.table = name, table

    def forward(self, batch: Batch) -> Result:
        return Result(self.table[[batch.tokens[row] for row in batch.wanted]])


class Sums(ToyModel):
    """Says the sum of all tokens that a row sees, modulo the vocabulary."""

    def __init__(self) -> None:
        super().__init__(VOCAB)

    def _hash(self, pairs) -> int:
        return int(pairs[:, 0].sum())

    def forward(self, batch: Batch) -> Result:
        self.calls += 1
        keys = self.storage["main"].keys[0, :, 0]
        slots = torch.tensor(batch.slots["main"])
        index = [position for part in batch.parts for position in part.chunk.index]
        keys[slots] = torch.tensor([batch.tokens, index], dtype=torch.float32).T
        sums = [value for part in batch.parts for value in self._seen(part, slots, keys)]
        return Result(said([sums[row] for row in batch.wanted]))


class Steps(NullModel):
    """Layer i adds ``steps[i]`` to the token; what it says is where a row leaves, modulo the vocabulary."""

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__(VOCAB, 512)
        self.steps, self.layers = steps, len(steps)
        self.ran: list[tuple[int, int, int]] = []
        """(layer, index, token) of every row in every layer that it went through."""

    def forward(self, batch: Batch) -> Result:
        values, kept = torch.zeros(len(batch), 1), []
        for part in batch.parts:
            chunk = part.chunk
            first, last = chunk.layers or (0, self.layers)
            x = torch.tensor(chunk.tokens)[:, None].float() if chunk.entering is None else chunk.entering.clone()
            for layer in range(first, last):
                x += self.steps[layer]
                self.ran += [(layer, *row) for row in zip(chunk.index, chunk.tokens, strict=True)]
            values[part.start : part.start + len(chunk)] = x
            kept.append({last: x})
        return Result(said([int(values[row]) for row in batch.wanted]), kept)


def said(tokens: Sequence[int]) -> torch.Tensor:
    """Return float32 [rows, VOCAB] in which each row's token, modulo the vocabulary, leads clearly."""
    logits = torch.zeros(len(tokens), VOCAB)
    for place, token in enumerate(tokens):
        logits[place, token % VOCAB] = 50.0
    return logits


class Watched:
    """A drafter whose trees are written down: each node as the tokens of its path, ``["5", "5.6", "7"]``."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter, self.trees = drafter, []

    def __getattr__(self, name):
        return getattr(self.drafter, name)

    def draft(self, requests, rows):
        drafts = self.drafter.draft(requests, rows)
        for tree in (draft.tree for draft in drafts if draft is not None):
            steps = [tree.path(node) for node in range(len(tree))]
            self.trees.append([".".join(str(tree.tokens[step]) for step in path) for path in steps])
        return drafts
