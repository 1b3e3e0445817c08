"""A draft model: a smaller model with a lane of its own (arXiv 2211.17192, 2302.01318), drafting runs or trees."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.cache.blocks import BLOCK
from stretto.core.chunk import Chunk
from stretto.core.request import Request
from stretto.core.verifiers import Draws
from stretto.decoding.speculative.drafter import Drafter, Observation
from stretto.decoding.speculative.drafters.grown import Grown
from stretto.decoding.speculative.drafters.rounds import Job
from stretto.decoding.speculative.growth import ROOT, Growth

CATCH_UP = 256
"""Known rows that all requests together may have computed in one step."""


class ModelDrafter(Grown):
    """Drafts with the model aboard under the name ``model``, whose tokens are the target's.

    The rows of known tokens stand in the request's lane of that model, those of drafted ones in scratch until the step
    ends; ``observe`` moves the accepted ones to the lane. What the lane lacks (behind a prompt, a preemption, tokens
    that others drafted) is caught up in slices, and a request that has not caught up is not drafted for. Where the
    model's cache is full, or its context or rope border reached, there is no draft.
    """

    def __init__(
        self,
        model: str = "draft",
        growth: Growth | None = None,
        draws: Draws = "coupled",
        *,
        name: str | None = None,
        stage: Drafter | None = None,
        catch_up: int = CATCH_UP,
    ) -> None:
        """``draws``: how the verifier wants tokens drawn (see ``Candidates``). ``name`` defaults to the model's."""
        super().__init__(name or model, growth, draws, stage)
        self.model, self.catch_up = model, catch_up
        self.caught_up = 0
        """Rows of known tokens computed late: all but the last token's."""

    def grow(self, jobs: list[Job]) -> None:
        """Grow the trees; then the known rows of the first pass stand."""
        super().grow(jobs)
        for job in jobs:
            job.request.memory[self.name] = job
            ((_, stop),) = job.sees or ()
            self._advance(job.request, stop)

    def jobs(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Job]:
        """Return the first passes of the requests for which there is room, those that lack least first."""
        model = self.services.models[self.model]
        longest = model.context if model.rope_border is None else model.rope_border
        lacking: list[tuple[int, int]] = []
        for place, request in enumerate(requests):
            request.memory.pop(self.name, None)
            if len(request.tokens) <= longest:
                filled = self.services.view(request, self.model).filled
                lacking.append((len(request.tokens) - filled, place))
        jobs, left = [], self.catch_up
        for missing, place in sorted(lacking):
            count = min(missing, left)
            if not left:
                self.waiting.append(place)
            elif count and (job := self._job(place, requests[place], rows[place], count)):
                jobs.append(job)
                left -= count
        return jobs

    def _job(self, place: int, request: Request, rows: int, count: int) -> Job | None:
        """Return the job that computes the next ``count`` known rows, None where the cache has no room for them."""
        view, known = self.services.view(request, self.model), len(request.tokens)
        first, stop = view.filled, view.filled + count
        if not view.reserve(stop):
            return None
        tokens = request.tokens[first:stop]
        chunk = Chunk(request.id, self.model, tokens, list(range(first, stop)), logits=(count - 1,))
        if stop < known:
            chunk.logits = ()
        late = count - (stop == known)
        self.caught_up += late
        request.stats.catch_up += late
        # Nodes see the known rows of the pass before them, which the watermark counts only when all has gone well.
        return Job(place, request, rows, chunk, sees=((0, stop),))

    def _advance(self, request: Request, upto: int, ahead: Sequence[int] = ()) -> None:
        """Raise the lane's watermark and publish full blocks; ``ahead`` are tokens that are about to be appended."""
        view = self.services.view(request, self.model)
        before = view.filled // BLOCK
        view.advance(upto)
        if upto // BLOCK > before:
            view.publish([*request.tokens, *ahead] if ahead else request.tokens)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Move the rows of accepted tokens, whoever drafted them, to the lane; forget the others."""
        super().observe(observations)
        for seen in observations:
            request = seen.request
            job: Job | None = request.memory.pop(self.name, None)
            if job is None:
                continue
            first, node = len(request.tokens), ROOT
            moves: list[tuple[int, int]] = []
            for accepted in seen.nodes:
                child = job.tree.child(node, seen.tree.tokens[accepted])
                row = None if child is None else job.scratch(child)
                if child is None or row is None:
                    break
                moves.append((row, first + len(moves)))
                node = child
            if moves and self.services.view(request, self.model).reserve(first + len(moves)):
                self.services.keep(request, self.model, moves)
                self._advance(request, first + len(moves), seen.committed.tokens)

    def rewind(self, request: Request) -> None:
        """The lane is gone with the request's other rows; it is opened and caught up again."""
        super().rewind(request)
        request.memory.pop(self.name, None)
