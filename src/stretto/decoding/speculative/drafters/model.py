"""A draft model: a smaller model with a lane of its own (arXiv 2211.17192, 2302.01318), drafting runs or trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stretto.cache.blocks import BLOCK
from stretto.core.chunk import Chunk
from stretto.core.request import Request
from stretto.core.verifiers import Draws
from stretto.decoding.method import Services
from stretto.decoding.speculative.drafter import Draft, Observation
from stretto.decoding.speculative.drafters.rounds import Job, Rounds
from stretto.decoding.speculative.growth import ROOT, Growth, Run

CATCH_UP = 256
"""Known rows that all requests together may have computed in one step."""


class ModelDrafter:
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
        catch_up: int = CATCH_UP,
    ) -> None:
        """``draws``: how the verifier wants tokens drawn (see ``Candidates``). ``name`` defaults to the model's."""
        self.model, self.name = model, name or model
        self.rounds = Rounds(self.name, growth or Run(), draws)
        self.catch_up = catch_up
        self.caught_up = 0
        """Rows of known tokens computed late: all but the last token's."""

    def bind(self, services: Services) -> None:
        """Take the engine's services for passes and views."""
        self.services = services

    def begin(self, request: Request) -> None:
        """The lane is opened at the first draft."""

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Draft | None]:
        """Catch up and grow a tree for every request that has caught up."""
        drafts: list[Draft | None] = [None] * len(requests)
        jobs = self._jobs(requests, rows)
        self.rounds.run(self.services, self.model, jobs)
        for job in jobs:
            self._advance(job.request, job.first.index[-1] + 1)
            if job.tree:
                drafts[job.place] = self.rounds.draft(job)
                job.request.memory[self.name] = job
        return drafts

    def _jobs(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Job]:
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
            if count and (job := self._job(place, requests[place], rows[place], count)):
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
        request.memory.pop(self.name, None)

    def end(self, request: Request) -> None:
        """The lane is the engine's to free."""

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Its rows lie in the engine's caches."""
        return {}
