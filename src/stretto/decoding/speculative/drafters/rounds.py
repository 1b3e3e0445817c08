"""Growing the trees of many requests in rounds, one pass of a model a round.

Nodes that a round computes lie in scratch rows. A node sees its ancestors' rows and no sibling's, so that its logits
are those of its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stretto.core.chunk import Chunk, Output, Role, Segment
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.core.verifiers import Draws
from stretto.decoding.method import Services
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.candidates import Candidates
from stretto.decoding.speculative.growth import ROOT, Growing, Growth

Held = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Job:
    """One request's tree while it grows."""

    place: int
    """Number of the request among those that are drafted for."""
    request: Request
    rows: int
    """Nodes that the finished tree may have."""
    first: Chunk
    """The first pass's chunk. Its last row is the root, or, where it wants no logits, it only catches up."""
    held: Held = ()
    """(index, scratch row) of rows that every node sees beside the cache: a root that is not kept."""
    sees: tuple[tuple[int, int], ...] | None = None
    """Spans of cached positions that nodes see; None: all that are filled when they are computed."""
    most: int | None = None
    """Nodes that may be computed, None for as many as the scratch holds."""
    layers: tuple[int, int] | None = None
    """Span of layers that the nodes pass through; None: all."""
    tree: Growing = field(default_factory=Growing)
    states: list[SamplerState] = field(default_factory=list)
    """By node: the sampler state behind it."""
    seen: dict[int, Held] = field(default_factory=dict)
    """By computed node: what its children hold, its own scratch row last."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """By computed node, the root included: the hidden state [1, width] with which it left ``layers``."""
    q: dict[int, Tensor] = field(default_factory=dict)
    frontier: list[int] = field(default_factory=lambda: [ROOT])

    @property
    def root(self) -> int:
        """Logical index of the root's row."""
        return len(self.request.tokens) - 1

    def scratch(self, node: int) -> int | None:
        """Return the scratch row of a node, None if it was not computed."""
        found = self.seen.get(node)
        return found[-1][1] if found else None

    def state(self, node: int) -> SamplerState:
        """Return the sampler state behind a node."""
        return self.request.state if node == ROOT else self.states[node]

    def chunk(self, model: str) -> Chunk:
        """Return the chunk that computes the frontier."""
        if self.frontier == [ROOT]:
            return self.first
        tree, nodes = self.tree, self.frontier
        tokens = [tree.tokens[node] for node in nodes]
        index = [self.root + tree.depth[node] for node in nodes]
        segments = [Segment(1, sees=self.sees, held=self.seen[tree.parents[node]]) for node in nodes]
        roles = [Role.CANDIDATE] * len(nodes)
        leg = self.first.leg
        return Chunk(self.request.id, model, tokens, index, segments, roles, layers=self.layers, leg=leg)

    def take(self, output: Output) -> None:
        """Note where the frontier's rows lie."""
        border = None if self.layers is None else output.hidden[self.layers[1]]
        if self.frontier == [ROOT]:
            row = output.scratch[-1] if output.scratch else None
            self.seen[ROOT] = self.held if row is None else (*self.held, (self.root, row))
        for place, node in enumerate(self.frontier):
            if border is not None:
                self.hidden[node] = border[-1:] if node == ROOT else border[place : place + 1]
            if node == ROOT:
                continue
            row = output.scratch[place]
            assert row is not None
            self.seen[node] = (*self.seen[self.tree.parents[node]], (self.root + self.tree.depth[node], row))

    def advance(self) -> None:
        """Give the tree's new nodes their states."""
        tree = self.tree
        for node in range(len(self.states), len(tree)):
            self.states.append(self.state(tree.parents[node]).advance(tree.tokens[node]))

    def alive(self, nodes: Sequence[int], context: int) -> list[int]:
        """Return those of ``nodes`` behind which the text goes on, within a model's ``context``."""
        tree = self.tree
        return [
            node
            for node in nodes
            if self.root + tree.depth[node] < context and self.state(tree.parents[node]).ends(tree.tokens[node]) is None
        ]


class Rounds:
    """Grows trees by one rule with one model's passes."""

    def __init__(self, owner: str, growth: Growth, draws: Draws) -> None:
        self.owner, self.growth = owner, growth
        self.candidates = Candidates(growth, draws)

    def run(self, services: Services, model: str, jobs: Sequence[Job]) -> None:
        """Grow the jobs' trees until their rule, the text's end or the scratch rows stop them.

        Jobs whose first chunk wants no logits are computed once and left as they are.
        """
        going, context = list(jobs), services.models[model].context
        while going:
            chunks = [job.chunk(model) for job in going]
            outputs = services.forward([job.request for job in going], chunks)
            for job, output in zip(going, outputs, strict=True):
                job.take(output)
            drafting = [(job, output) for job, output in zip(going, outputs, strict=True) if len(output.chunk.logits)]
            going = []
            self._grow(services.models[drafting[0][0].request.model].vocab_size if drafting else 0, drafting)
            for job, _ in drafting:
                job.frontier = job.alive(job.frontier, context)
                if job.most is not None:
                    job.frontier = job.frontier[: max(0, job.most - len(job.seen) + 1)]
                if job.frontier:
                    going.append(job)
            going = _within(services.scratch_left(model), going)

    def _grow(self, vocabulary: int, drafting: Sequence[tuple[Job, Output]]) -> None:
        """Read the frontiers' logits and let the rule grow every tree; its answer is the next frontier."""
        if not drafting:
            return
        nodes = [node for job, _ in drafting for node in job.frontier]
        rows = [
            output.row(len(output.chunk) - len(job.frontier) + place)
            for job, output in drafting
            for place in range(len(job.frontier))
        ]
        states = [job.state(node) for job, _ in drafting for node in job.frontier]
        logits = fitted(drafting[0][1].logits, vocabulary)
        expansions, q = self.candidates.expand(logits, rows, nodes, states)
        first = 0
        for job, _ in drafting:
            stop = first + len(job.frontier)
            job.q.update(zip(job.frontier, q[first:stop], strict=False))
            job.frontier = list(self.growth.grow(job.tree, expansions[first:stop], job.rows))
            job.advance()
            first = stop

    def draft(self, job: Job) -> Draft | None:
        """Return what is proposed of a job's tree, None where nothing was drafted."""
        nodes = self.growth.finish(job.tree, job.rows)
        return Draft(job.tree.tree(nodes, self.owner, job.q or None)) if len(nodes) else None


def fitted(logits: Tensor, vocabulary: int) -> Tensor:
    """Return ``logits`` [R, V] over the target's vocabulary: padding tokens, which models differ in, dropped or added."""
    own = logits.shape[-1]
    if own < vocabulary:
        return torch.nn.functional.pad(logits, (0, vocabulary - own), value=-torch.inf)
    return logits[:, :vocabulary] if own > vocabulary else logits


def _within(left: int, jobs: list[Job]) -> list[Job]:
    """Return the jobs whose frontiers fit into ``left`` scratch rows, each cut to its share."""
    for number, job in enumerate(jobs):
        job.frontier = job.frontier[: left // (len(jobs) - number)]
        left -= len(job.frontier)
    return [job for job in jobs if job.frontier]
