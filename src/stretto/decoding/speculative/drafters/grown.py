"""What drafters share whose trees grow by passes of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stretto.core.request import Request
from stretto.core.verifiers import Draws
from stretto.decoding.method import Services
from stretto.decoding.speculative.drafter import Draft, Drafter, Observation
from stretto.decoding.speculative.drafters.rounds import Job, Rounds
from stretto.decoding.speculative.growth import Growth, Run
from stretto.decoding.speculative.trees import EMPTY


class Grown:
    """A drafter whose model may have a drafter of its own: ``stage`` (staged speculation, arXiv 2308.04623).

    A stage proposes once per step, behind the last known token. The model's first pass computes the proposal beside
    the root, so that whatever of it the model drafts itself costs no further pass.
    """

    def __init__(self, name: str, growth: Growth | None, draws: Draws, stage: Drafter | None, guesses: int = 8) -> None:
        """``guesses`` bounds what a stage may propose."""
        self.name, self.stage, self.guesses = name, stage, guesses
        self.rounds = Rounds(name, growth or Run(), draws)
        self.waiting: list[int] = []
        """Numbers of the requests whose first pass has to wait for a later step."""

    def bind(self, services: Services) -> None:
        """Take the engine's services for passes and views."""
        self.services = services
        if self.stage is not None:
            self.stage.bind(services)

    def begin(self, request: Request) -> None:
        """Lanes are opened at the first draft."""
        if self.stage is not None:
            self.stage.begin(request)

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Draft | None]:
        """Grow a tree for every request that ``jobs`` has a first pass for."""
        drafts: list[Draft | None] = [None] * len(requests)
        self.waiting = []
        jobs = self.jobs(requests, rows)
        if self.stage is not None:
            self._guess(self.stage, [job for job in jobs if len(job.first.logits)])
        if jobs:
            self.grow(jobs)
        for job in jobs:
            if job.tree:
                drafts[job.place] = self.finish(job)
            elif not job.first.logits:
                drafts[job.place] = Draft(EMPTY)
        for place in self.waiting:
            drafts[place] = Draft(EMPTY)
        return drafts

    def jobs(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Job]:
        """Return the first passes of the requests that can be drafted for."""
        raise NotImplementedError  # every drafter writes its own

    def grow(self, jobs: list[Job]) -> None:
        """Grow the jobs' trees."""
        self.rounds.run(self.services, jobs[0].first.model, jobs)

    def finish(self, job: Job) -> Draft | None:
        """Return what is proposed of a grown tree."""
        return self.rounds.draft(job)

    def _guess(self, stage: Drafter, jobs: list[Job]) -> None:
        if not jobs:
            return
        model = jobs[0].first.model
        context, left = self.services.models[model].context, self.services.scratch_left(model)
        most = min(self.guesses, left // len(jobs) - 1)
        rooms = [min(most, job.rows, context - len(job.request.tokens)) for job in jobs]
        asked = [(job, room) for job, room in zip(jobs, rooms, strict=True) if room > 0]
        proposed = stage.draft([job.request for job, _ in asked], [room for _, room in asked])
        for (job, _), draft in zip(asked, proposed, strict=True):
            if isinstance(draft, Draft) and len(draft.tree):
                job.expect(draft.tree)

    def observe(self, observations: Sequence[Observation]) -> None:
        """The stage learns from what came of the step."""
        if self.stage is not None:
            self.stage.observe(observations)

    def rewind(self, request: Request) -> None:
        """Rows in lanes are gone; they are computed again when they are needed."""
        if self.stage is not None:
            self.stage.rewind(request)

    def end(self, request: Request) -> None:
        """Lanes are the engine's to free."""
        if self.stage is not None:
            self.stage.end(request)

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Return what the stage keeps beyond requests."""
        return {} if self.stage is None else self.stage.stores()
