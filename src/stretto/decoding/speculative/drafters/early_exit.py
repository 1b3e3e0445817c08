"""Early exit: the target's first layers draft, the others verify, and no layer runs twice for a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stretto.core.chunk import Chunk
from stretto.core.request import Request
from stretto.core.verifiers import Draws
from stretto.decoding.speculative.drafter import Draft, Drafter, Entered
from stretto.decoding.speculative.drafters.grown import Grown
from stretto.decoding.speculative.drafters.rounds import Job
from stretto.decoding.speculative.growth import ROOT, Growth


class EarlyExit(Grown):
    """Drafts with the target's layers below ``exit``, read by its own norm and head (LayerSkip, arXiv 2404.16710).

    Keys and values of those layers and the hidden states behind them are kept for the pass that verifies, in which the
    same rows go on from there: the last known token's in its block, drafted ones in scratch.
    """

    def __init__(
        self,
        exit: int,
        name: str = "early-exit",
        growth: Growth | None = None,
        draws: Draws = "coupled",
        *,
        stage: Drafter | None = None,
    ) -> None:
        super().__init__(name, growth, draws, stage)
        self.exit = exit

    def jobs(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Job]:
        """Return the last tokens' rows as first passes."""
        jobs = []
        for place, (request, room) in enumerate(zip(requests, rows, strict=True)):
            filled, layers = request.filled, (0, self.exit)
            chunk = Chunk(request.id, request.model, request.tokens[filled:], [filled], layers=layers)
            # Nodes see the root's row in its block, which the watermark does not count yet.
            jobs.append(Job(place, request, room, chunk, sees=((0, filled + 1),), most=room, layers=layers))
        return jobs

    def grow(self, jobs: list[Job]) -> None:
        """Grow the trees; then let the proposed nodes that were not computed catch up with the others."""
        super().grow(jobs)
        left = []
        for job in jobs:
            proposed = self.rounds.growth.finish(job.tree, job.rows)
            job.frontier = [node for node in proposed if node not in job.seen]
            if job.frontier:
                left.append(job)
        if left:
            model = left[0].first.model
            chunks = [job.chunk(model) for job in left]
            for chunk in chunks:
                chunk.logits = ()
            for job, output in zip(left, self.services.forward([job.request for job in left], chunks), strict=True):
                job.guess = None
                job.take(output)

    def finish(self, job: Job) -> Draft | None:
        """Return the draft with its rows where they stand."""
        draft = super().finish(job)
        if draft is not None:
            nodes = self.rounds.growth.finish(job.tree, job.rows)
            hidden = torch.cat([job.hidden[node] for node in (ROOT, *nodes)])
            layers = (self.exit, self.services.models[job.first.model].layers)
            draft.entered = Entered(layers, hidden, [None, *(job.scratch(node) for node in nodes)])
        return draft
