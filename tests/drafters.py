"""Drafters for tests: they know the true text, or nothing at all."""

from __future__ import annotations

import random

from stretto.core.tree import DraftTree
from stretto.decoding.speculative.drafter import Draft


class GarbageDrafter:
    """Random trees, true tokens among them where it knows the text: ``truth`` maps a prompt to its plain text."""

    name = "garbage"

    def __init__(self, vocab_size: int, truth: dict[tuple[int, ...], list[int]] | None = None, seed: int = 0) -> None:
        self.random, self.truth, self.vocab_size = random.Random(seed), truth or {}, vocab_size
        self.observed = 0

    def bind(self, services): ...
    def begin(self, request): ...
    def rewind(self, request): ...
    def end(self, request): ...

    def stores(self):
        return {}

    def observe(self, observations):
        self.observed += len(observations)

    def draft(self, requests, rows):
        return [Draft(self.tree(r, n)) for r, n in zip(requests, rows, strict=True)]

    def tree(self, request, rows):
        truth = self.truth.get(tuple(request.prompt), [])[len(request.tokens) - len(request.prompt) :]
        tokens, parents, true_depth = [], [], {-1: 0}
        for node in range(self.random.randint(0, rows)):
            parent = node - 1 if self.random.random() < 0.6 else self.random.randint(-1, node - 1)
            depth = true_depth.get(parent)
            if depth is not None and depth < len(truth) and self.random.random() < 0.8:
                tokens.append(truth[depth])
                true_depth.setdefault(node, depth + 1)
            else:
                tokens.append(self.random.randrange(self.vocab_size))
            parents.append(parent)
        return DraftTree(tokens, parents, [0.5] * len(tokens), [frozenset({self.name})] * len(tokens))
