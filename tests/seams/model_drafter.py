"""A draft model as a drafter: rows in a lane of its own, caught up before drafting and rewound behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from stretto.core.choose import choose, probabilities, sample
from stretto.core.chunk import Chunk, Role
from stretto.core.noise import Stream
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.decoding.method import View
from stretto.decoding.speculative.drafter import Draft


@dataclass
class Run:
    """The run that is being drafted for one request."""

    place: int
    request: Request
    view: View
    length: int
    state: SamplerState
    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)


class ModelDrafter:
    """Drafts runs of ``length`` tokens with the model ``other``, with the noise of choice."""

    name = "model"

    def __init__(self, length: int = 4) -> None:
        self.length = length

    def bind(self, services):
        self.services = services

    def begin(self, request): ...
    def rewind(self, request): ...
    def end(self, request): ...

    def stores(self):
        return {}

    def draft(self, requests, rows):
        drafts: list[Draft | None] = [None] * len(requests)
        runs = []
        for place, (request, limit) in enumerate(zip(requests, rows, strict=True)):
            length = min(self.length, limit)
            view = self.services.view(request, "other")
            if self.ready(request) and view.reserve(len(request.tokens) + length):
                runs.append(Run(place, request, view, length, request.state))
        going = runs
        while going:
            for run, logits in zip(going, self._pass(going), strict=True):
                token = self.pick(run, logits)
                run.tokens.append(token)
                run.state = run.state.advance(token)
            going = [run for run in going if len(run.tokens) < run.length]
        for run in runs:
            drafts[run.place] = Draft(DraftTree.run(run.tokens, owner=self.name, q=run.q or None))
        return drafts

    def _pass(self, runs: list[Run]) -> list[Tensor]:
        """Compute the rows that the lane lacks, at first all known tokens behind its watermark; return last logits."""
        chunks = [self.missing(run) for run in runs]
        outputs = self.services.forward([run.request for run in runs], chunks)
        for run, chunk in zip(runs, chunks, strict=True):
            run.view.advance(chunk.index[-1] + 1)
        return [output.logits[output.row(len(output.chunk) - 1)] for output in outputs]

    def missing(self, run: Run) -> Chunk:
        """Return the rows of the path (known tokens, then drafted ones) behind the watermark."""
        stop = len(run.request.tokens) + len(run.tokens)
        first = min(run.view.filled, stop - 1)
        tokens = (run.request.tokens + run.tokens)[first:stop]
        chunk = Chunk(run.request.id, "other", tokens, list(range(first, stop)), logits=(stop - first - 1,))
        if run.tokens:
            chunk.roles, chunk.write = [Role.CANDIDATE] * len(tokens), [True] * len(tokens)
        return chunk

    def ready(self, request: Request) -> bool:
        return True

    def pick(self, run: Run, logits: Tensor) -> int:
        return choose(logits[None], [run.state])[0]

    def observe(self, observations):
        for seen in observations:
            view = seen.request.views.get("other")
            if view is not None:
                self.cut(view, len(seen.request.tokens) + len(seen.nodes))

    def cut(self, view: View, rows: int) -> None:
        """Drop the rows of rejected tokens."""
        view.truncate(rows)


class Sampling(ModelDrafter):
    """Draws with a noise stream of its own and says from which distributions."""

    def pick(self, run: Run, logits: Tensor) -> int:
        run.q.append(probabilities(logits, run.state))
        return sample(run.q[-1], run.state.key().bits(Stream.DRAFT))
