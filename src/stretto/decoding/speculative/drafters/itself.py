"""The target drafts for itself, made cheaper: it sees less of its cache, or skips layers. Its rows are discarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stretto.core.chunk import Chunk, Output, Role, Segment
from stretto.core.request import Request
from stretto.core.verifiers import Draws
from stretto.decoding.speculative.drafter import Drafter
from stretto.decoding.speculative.drafters.grown import Grown
from stretto.decoding.speculative.drafters.rounds import Job, Spans
from stretto.decoding.speculative.growth import Growth


@dataclass(frozen=True, slots=True)
class Window:
    """The first positions and the last ones (StreamingLLM, arXiv 2309.17453)."""

    sink: int = 4
    recent: int = 252

    def spans(self, filled: int) -> Spans:
        """Return what is seen of ``filled`` cached positions."""
        last = max(self.sink, filled - self.recent)
        return ((0, min(self.sink, filled)), (last, filled)) if last < filled else ((0, filled),)


class SelfDrafter(Grown):
    """Drafts with the request's own model and cache.

    With a ``window`` rows see that much of the cache (MagicDec, arXiv 2408.11049). With ``spans`` of layers they pass
    through these alone (Draft & Verify, arXiv 2309.08168): keys and values of the layers between are not missed, since
    no drafted row reads them. The last known token's row is computed for the draft too, because both make it another.
    A draft takes two scratch rows per node: one for the draft, one for the pass that verifies it.
    """

    def __init__(
        self,
        name: str,
        growth: Growth | None = None,
        draws: Draws = "coupled",
        *,
        window: Window | None = None,
        spans: Spans | None = None,
        stage: Drafter | None = None,
    ) -> None:
        super().__init__(name, growth, draws, stage)
        self.window, self.spans = window, spans

    def jobs(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Job]:
        """Return the last tokens' rows as first passes. They take one of the nodes' scratch rows."""
        jobs = []
        for place, (request, room) in enumerate(zip(requests, rows, strict=True)):
            filled = request.filled
            sees = ((0, filled),) if self.window is None else self.window.spans(filled)
            chunk = Chunk(
                request.id, request.model, request.tokens[filled:], [filled], [Segment(1, sees=sees)], [Role.CANDIDATE]
            )
            jobs.append(Job(place, request, room, chunk, sees=sees, most=room - 1))
        return jobs

    def grow(self, jobs: list[Job]) -> None:
        """Grow the trees by passes through the chosen layers."""
        self.rounds.run(self.services, jobs[0].first.model, jobs, self._forward if self.spans else None)

    def _forward(self, requests: Sequence[Request], chunks: Sequence[Chunk]) -> list[Output]:
        """Take the rows through one span of layers after the other."""
        outputs: list[Output] = []
        border = 0
        for span in self.spans or ():
            last = span == (self.spans or ())[-1]
            parts = [replace(chunk, layers=span, logits=chunk.logits if last else ()) for chunk in chunks]
            for part, output in zip(parts, outputs, strict=bool(outputs)):
                part.entering, part.scratch = output.hidden[border], output.scratch
            outputs, border = self.services.forward(requests, parts), span[1]
        return outputs
