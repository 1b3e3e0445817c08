"""Growing the trees of many requests in rounds, one pass of a model a round.

Nodes that a round computes lie in scratch rows. A node sees its ancestors' rows and no sibling's, so that its logits
are those of its path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stretto.core.chunk import Chunk, Output, Role, Segment
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Draws
from stretto.decoding.method import Services
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.candidates import Candidates
from stretto.decoding.speculative.growth import ROOT, Growing, Growth
from stretto.decoding.speculative.trees import depths, tree_segments

Held = tuple[tuple[int, int], ...]
Spans = tuple[tuple[int, int], ...]
Forward = Callable[[Sequence[Request], Sequence[Chunk]], list[Output]]


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
    sees: Spans | None = None
    """Spans of cached positions that nodes see; None: all that are filled when they are computed."""
    most: int | None = None
    """Nodes that may be computed; None: as many as the scratch holds."""
    layers: tuple[int, int] | None = None
    """Span of layers that the nodes pass through; None: all."""
    tree: Growing = field(default_factory=Growing)
    frontier: list[int] = field(default_factory=lambda: [ROOT])
    """The nodes that the next pass computes."""
    states: list[SamplerState] = field(default_factory=list)
    """By node: the sampler state behind it."""
    seen: dict[int, Held] = field(default_factory=dict)
    """By computed node: the (index, scratch row) that its children hold, its own last."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """By computed node, the root included: the hidden state [1, width] with which it left ``layers``."""
    q: dict[int, Tensor] = field(default_factory=dict)
    guess: DraftTree | None = None
    """Somebody else's guess, whose rows the first pass computes behind the root."""
    met: dict[int, int] = field(default_factory=lambda: {ROOT: -1})
    """By node: its number in the guess."""

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

    def expect(self, guess: DraftTree) -> None:
        """Let the first pass compute a guess behind the root; what of it is drafted need not be computed again."""
        chunk, known = self.first, len(self.first)
        before = chunk.segments or [Segment(known)]
        behind = [Segment(each.rows, max(0, each.parent) + known - 1) for each in tree_segments(guess)]
        behind[0].rows -= 1  # the root's own row leads in the first segment
        self.guess = guess
        chunk.roles = [*(chunk.roles or [Role.COMMIT] * known), *[Role.CANDIDATE] * len(guess)]
        chunk.tokens = [*chunk.tokens, *guess.tokens]
        chunk.index = [*chunk.index, *(self.root + depth for depth in depths(guess))]
        chunk.segments = [*before, *(each for each in behind if each.rows)]
        chunk.logits = range(known - 1, known + len(guess))

    def chunk(self, model: str) -> Chunk:
        """Return the chunk that computes the frontier."""
        if self.frontier == [ROOT]:
            return self.first
        tree, nodes = self.tree, self.frontier
        tokens = [tree.tokens[node] for node in nodes]
        index = [self.root + tree.depth[node] for node in nodes]
        segments = [Segment(1, sees=self.sees, held=self.seen[tree.parents[node]]) for node in nodes]
        return Chunk(self.request.id, model, tokens, index, segments, [Role.CANDIDATE] * len(nodes), layers=self.layers)

    def take(self, output: Output) -> None:
        """Note where the frontier's rows lie, and what they left with."""
        for node, row in zip(self.frontier, self._places(len(output.chunk)), strict=True):
            self._lies(node, output.scratch[row] if output.scratch else None)
            if self.layers is not None:
                self.hidden[node] = output.hidden[self.layers[1]][row : row + 1]

    def places(self, output: Output) -> list[int]:
        """Return where the frontier's logits lie."""
        return [output.row(row) for row in self._places(len(output.chunk))]

    def guessed(self, output: Output) -> bool:
        """Whether the first pass has computed the whole frontier as guesses; then it counts as computed."""
        if self.guess is None:
            return False
        tree, met = self.tree, self.met
        for node in self.frontier:
            above = met.get(tree.parents[node])
            found = None if above is None else self.guess.child(above, tree.tokens[node])
            if found is None:
                self.guess = None
                return False
            met[node] = found
        self.take(output)
        return True

    def advance(self) -> None:
        """Give the tree's new nodes their states."""
        tree = self.tree
        for node in range(len(self.states), len(tree)):
            self.states.append(self.state(tree.parents[node]).advance(tree.tokens[node]))

    def cut(self, context: int) -> None:
        """Leave out of the frontier what ends the text or a model's ``context``, and what would be too many."""
        tree = self.tree
        alive = [
            node
            for node in self.frontier
            if self.root + tree.depth[node] < context and self.state(tree.parents[node]).ends(tree.tokens[node]) is None
        ]
        room = len(alive) if self.most is None else max(0, self.most + 1 - len(self.seen))
        self.frontier = alive[:room]

    def _places(self, rows: int) -> list[int]:
        """Return the numbers of the frontier's rows in a chunk of ``rows``."""
        if self.frontier == [ROOT] or self.guess is not None:
            root = rows - 1 - (0 if self.guess is None else len(self.guess))
            return [root + 1 + self.met[node] for node in self.frontier]
        return list(range(rows))

    def _lies(self, node: int, row: int | None) -> None:
        above = () if node == ROOT else self.seen[self.tree.parents[node]]
        index = self.root + (0 if node == ROOT else self.tree.depth[node])
        self.seen[node] = above if row is None else (*above, (index, row))


class Rounds:
    """Grows trees by one rule."""

    def __init__(self, owner: str, growth: Growth, draws: Draws) -> None:
        self.owner, self.growth = owner, growth
        self.candidates = Candidates(growth, draws)

    def run(self, services: Services, model: str, jobs: Sequence[Job], forward: Forward | None = None) -> None:
        """Grow the jobs' trees until their rule, the text's end or the scratch rows stop them.

        Jobs whose first chunk wants no logits are computed once and left as they are. ``forward`` makes the passes
        (default: those of ``services``).
        """
        going, forward = list(jobs), forward or services.forward
        context = services.models[model].context
        while going:
            outputs = forward([job.request for job in going], [job.chunk(model) for job in going])
            for job, output in zip(going, outputs, strict=True):
                job.take(output)
            reading = [(job, output) for job, output in zip(going, outputs, strict=True) if len(output.chunk.logits)]
            going = []
            while reading:
                self._grow(services, reading)
                for job, _ in reading:
                    job.cut(context)
                alive = [(job, output) for job, output in reading if job.frontier]
                reading = [(job, output) for job, output in alive if job.guessed(output)]
                going += [job for job, _ in alive if job.guess is None]
            going = _within(services.scratch_left(model), going)

    def draft(self, job: Job) -> Draft | None:
        """Return what is proposed of a job's tree, None where nothing was drafted."""
        nodes = self.growth.finish(job.tree, job.rows)
        return Draft(job.tree.tree(nodes, self.owner, job.q or None)) if len(nodes) else None

    def _grow(self, services: Services, reading: Sequence[tuple[Job, Output]]) -> None:
        """Read the frontiers' logits and let the rule grow every tree; its answer is the next frontier."""
        nodes = [node for job, _ in reading for node in job.frontier]
        rows = [row for job, output in reading for row in job.places(output)]
        states = [job.state(node) for job, _ in reading for node in job.frontier]
        target = services.models[reading[0][0].request.model]
        logits = fitted(reading[0][1].logits, target.vocab_size)
        expansions, q = self.candidates.expand(logits, rows, nodes, states)
        first = 0
        for job, _ in reading:
            stop = first + len(job.frontier)
            drawn = zip(job.frontier, q[first:stop], strict=True)
            job.q.update((node, each) for node, each in drawn if each is not None)
            job.frontier = list(self.growth.grow(job.tree, expansions[first:stop], job.rows))
            job.advance()
            first = stop


def fitted(logits: Tensor, vocabulary: int) -> Tensor:
    """Return ``logits`` [R, V] over the target's vocabulary: models of one tokenizer differ in their padding tokens."""
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
