"""Runs that end where the draft model has reason to doubt itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from stretto.decoding.speculative.growth import Estimator, Expansion, Growing


@dataclass(frozen=True)
class Stopping(ABC):
    """A run that ends behind the first token of which ``stops`` says so. The token itself is still proposed."""

    threshold: float
    length: int = 20
    width: int = 1
    estimator: Estimator = "probability"

    @abstractmethod
    def stops(self, last: Expansion, path: float) -> bool:
        """Whether the run ends with the best candidate of ``last``; ``path``: the chance that all of it is kept."""

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Prolong the run by its best candidate."""
        (last,) = expansions
        if not last.tokens:
            return []
        node = tree.add(last.node, last.tokens[0], last.chances[0])
        ended = tree.depth[node] >= min(self.length, rows) or self.stops(last, tree.path[node])
        return [] if ended else [node]

    def finish(self, tree: Growing, rows: int) -> Sequence[int]:
        """Return the whole run."""
        return range(min(len(tree), rows))


@dataclass(frozen=True)
class Svip(Stopping):
    """SVIP (arXiv 2411.18462): the chance of acceptance is at least 1 - sqrt(scale H), H the draft's entropy in nats.

    The run ends where that square root exceeds ``threshold``. ``scale`` stands for how much larger the target's
    surprise is than the draft's own entropy; both values are the authors'.
    """

    threshold: float = 0.3
    length: int = 40
    scale: float = 0.15

    def stops(self, last: Expansion, path: float) -> bool:
        """Whether the bound is too low."""
        return math.sqrt(self.scale * last.entropy) > self.threshold


@dataclass(frozen=True)
class Confidence(Stopping):
    """The assistant's confidence threshold of Hugging Face transformers: the probability of the drafted token."""

    threshold: float = 0.4

    def stops(self, last: Expansion, path: float) -> bool:
        """Whether the token's probability is too low."""
        return last.chances[0] < self.threshold


@dataclass(frozen=True)
class AnyRejection(Stopping):
    """The rule of SpecDec++ (arXiv 2405.19715): the chance of at least one rejection in the run, without its head.

    The chances are the draft's own; the authors train a head to predict them.
    """

    threshold: float = 0.7

    def stops(self, last: Expansion, path: float) -> bool:
        """Whether a rejection has become too likely."""
        return 1.0 - path > self.threshold


@dataclass(frozen=True)
class Fallback(Stopping):
    """The fallback policy of BiLD (arXiv 2302.07863): where the small model is not confident, the large one speaks.

    The doubtful token is not proposed at all.
    """

    threshold: float = 0.6

    def stops(self, last: Expansion, path: float) -> bool:
        """Never behind a token: the doubtful one is held back instead."""
        return False

    def grow(self, tree: Growing, expansions: Sequence[Expansion], rows: int) -> Sequence[int]:
        """Prolong the run by its best candidate if that is likely enough."""
        (last,) = expansions
        confident = last.tokens and last.chances[0] >= self.threshold
        return super().grow(tree, expansions, rows) if confident else []
