"""Documents as one run of tokens, and batches of them as a function of the step's number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.weights.files import whole


@dataclass(frozen=True)
class Documents:
    """``tokens`` [T] of all documents one after another (uint16 or uint32); ``starts`` [N + 1] of each, and the end."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[Sequence[int] | np.ndarray]) -> Documents:
        """Return the documents with these token ids."""
        arrays = [np.asarray(ids, np.uint32) for ids in texts]
        tokens = np.concatenate(arrays)
        if tokens.max() < 1 << 16:
            tokens = tokens.astype(np.uint16)
        return cls(tokens, np.cumsum([0, *map(len, arrays)]))

    @classmethod
    def joined(cls, parts: Sequence[Documents]) -> Documents:
        """Return the documents of all ``parts``."""
        return cls.of([part[i] for part in parts for i in range(len(part))])

    @classmethod
    def load(cls, path: Path) -> Documents:
        """Read what ``save`` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["tokens"], arrays["starts"])

    def save(self, path: Path) -> None:
        """Write both arrays into one ``.npz`` file, whole or not at all."""
        with whole(path) as partial, partial.open("wb") as file:
            np.savez(file, tokens=self.tokens, starts=self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        return self.tokens[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: a step sees ``rows`` tokens; the rate is constant, then falls linearly to zero."""

    steps: int = 3200
    rows: int = 4096
    window: int = 512
    long_share: float = 0.2
    """Share of the steps, at the end, that train on windows of the whole context."""
    cooldown: float = 0.55
    matrix_rate: float = 0.02
    other_rate: float = 0.004
    warmup: int = 40

    def rate(self, step: int) -> float:
        """Return the factor on both learning rates at ``step``."""
        left = (self.steps - step) / (self.steps * self.cooldown)
        return min(1.0, (step + 1) / self.warmup, left)


class Batches:
    """Batches as a function of the step: documents in a new random order each epoch, cut into windows.

    ``context`` is the width of the long windows. Raises ``ValueError`` for too little text.
    """

    def __init__(self, documents: Documents, schedule: Schedule, context: int, seed: int) -> None:
        longest = max(schedule.window, context if schedule.long_share else 0)
        if len(documents.tokens) <= longest:
            raise ValueError(f"{len(documents.tokens)} tokens of text do not fill one window of {longest}: give more")
        self.documents, self.schedule, self.context, self.seed = documents, schedule, context, seed
        self.switch = int(schedule.steps * (1 - schedule.long_share))
        self._epoch: tuple[tuple[int, int], np.ndarray] | None = None

    def _windows(self, epoch: int, width: int) -> np.ndarray:
        key = (epoch, width)
        if self._epoch is None or self._epoch[0] != key:
            generator = np.random.default_rng([self.seed, epoch, width])
            order = generator.permutation(len(self.documents))
            stream = np.concatenate([self.documents[i] for i in order])
            count = (len(stream) - 1) // width
            index = np.arange(count)[:, None] * width + np.arange(width + 1)
            self._epoch = key, stream[index][generator.permutation(count)]
        return self._epoch[1]

    def place(self, step: int) -> tuple[int, range]:
        """Return the width and the numbers of the windows of ``step``."""
        width = self.schedule.window if step < self.switch else self.context
        base = 0 if step < self.switch else self.switch
        each = max(1, self.schedule.rows // width)
        return width, range((step - base) * each, (step - base + 1) * each)

    def window(self, number: int, width: int) -> Tensor:
        """Return window ``number`` of the run: int64 [width + 1]."""
        per_epoch = (len(self.documents.tokens) - 1) // width
        return torch.from_numpy(self._windows(number // per_epoch, width)[number % per_epoch].astype(np.int64))

    def __call__(self, step: int) -> Tensor:
        """Return the windows of ``step``: int64 [windows, width + 1]."""
        width, numbers = self.place(step)
        return torch.stack([self.window(number, width) for number in numbers])


class Mixture:
    """Batches whose windows come from several sources by their shares; the first source has what the others leave."""

    def __init__(self, first: Batches, others: Sequence[tuple[float, Callable[[int], Batches]]]) -> None:
        self.first, self.others = first, others

    def __call__(self, step: int) -> Tensor:
        """Return the windows of ``step``: int64 [windows, width + 1]; another source is asked for its text by step."""
        width, numbers = self.first.place(step)
        return torch.stack([self._source(number, step).window(number, width) for number in numbers])

    def _source(self, number: int, step: int) -> Batches:
        # Multiples of the golden ratio spread each source evenly over the windows.
        place = number * 0.6180339887498949 % 1.0
        for share, source in self.others:
            if place < share:
                return source(step)
            place -= share
        return self.first
