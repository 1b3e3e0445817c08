"""Speculative decoding: drafters fill rows with trees, one pass scores them, a verifier walks what stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from stretto.core.choose import choose
from stretto.core.chunk import Chunk, Output
from stretto.core.request import Committed, Request
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Answer, Ask, Coupled, Verifier, Walk, Walked
from stretto.decoding.known import choice_error, known_chunk, prompt_logprobs
from stretto.decoding.method import Facts, Services
from stretto.decoding.speculative.drafter import Draft, Drafter, Observation, Ticket
from stretto.decoding.speculative.trees import descend, draft_chunk, prune

log = logging.getLogger("stretto")


class Speculative:
    """One or several drafters (their trees are united), one verifier.

    A drafter that raises or returns a malformed tree is dropped with one warning; the text goes on unchanged.
    """

    def __init__(
        self,
        name: str,
        drafters: Sequence[Drafter],
        *,
        verifier: Verifier | None = None,
        rows: int = 8,
        hidden: tuple[int, ...] = (),
        feature: str | None = None,
    ) -> None:
        """``rows`` bounds a draft. ``hidden`` and ``feature`` are what the drafters read of every row: hidden states at
        these layer borders in ``observe``, and the feature lane that stores the last of them.
        """
        self.name, self.drafters, self.rows, self.hidden, self.feature = name, list(drafters), rows, hidden, feature
        self.verifier: Verifier = verifier or Coupled()
        self.facts = Facts(
            fidelity=self.verifier.fidelity, needs=frozenset() if feature is None else frozenset({feature})
        )
        self.services: Services | None = None
        # Drafters keep what they remember under their own names.
        self._tree, self._met = f"{name}.tree", f"{name}.met"

    def bind(self, services: Services) -> None:
        """Take the engine's services for the drafters."""
        self.services = services
        for drafter in self.drafters:
            drafter.bind(services)

    def extra(self, request: Request) -> int:
        """Bid for the rows of a whole tree, no deeper than the text may still grow."""
        return max(0, min(self.rows, request.state.left - 1)) if self.drafters else 0

    def propose(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Chunk]:
        """Return known tokens while a prompt is being computed, else the last token and what was drafted behind it."""
        drafting = [i for i, request in enumerate(requests) if request.pending == 1 and rows[i] > 1]
        drafts = self._drafts([requests[i] for i in drafting], [rows[i] - 1 for i in drafting])
        chunks: list[Chunk] = []
        by_request = dict(zip(drafting, drafts, strict=True))
        for i, request in enumerate(requests):
            draft = by_request.get(i)
            request.memory[self._tree] = draft.tree if draft else DraftTree.run([])
            chunks.append(known_chunk(request, rows[i]) if draft is None else draft_chunk(request, draft))
            chunks[-1].hidden, chunks[-1].feature = self.hidden, self.feature
        return chunks

    def commit(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]
    ) -> list[Committed]:
        """Walk every request's tree, all in lockstep, and tell the drafters what came of it."""
        done: list[Committed] = []
        walking: list[Observation] = []
        for request, chunk, output in zip(requests, chunks, outputs, strict=True):
            tree: DraftTree = request.memory[self._tree]
            known = len(chunk) if chunk.roles is None else 1
            committed = Committed(request, filled=chunk.index[known - 1] + 1)
            committed.prompt_logprobs = prompt_logprobs(request, chunk, output)
            done.append(committed)
            if committed.filled == len(request.tokens):
                walking.append(Observation(request, output, committed, tree, base=known - 1))
        walks = [self.verifier.walk(seen.tree, seen.request.state) for seen in walking]
        for seen, walked in zip(walking, self._walk(walks, walking), strict=True):
            self._settle(seen, walked)
        self._guard(lambda drafter: drafter.observe(walking), None)
        return done

    def preempted(self, request: Request) -> None:
        """Let every drafter know that its rows are gone."""
        met: set[str] = request.memory.get(self._met, set())
        self._guard(lambda drafter: drafter.rewind(request) if drafter.name in met else None, None)

    def end(self, request: Request) -> None:
        """Let every drafter that met the request forget it."""
        met: set[str] = request.memory.get(self._met, set())
        self._guard(lambda drafter: drafter.end(request) if drafter.name in met else None, None)

    def _drafts(self, requests: list[Request], rows: list[int]) -> list[Draft | None]:
        """Ask all drafters; unite what they return, at most ``rows[i]`` nodes and probe rows each."""
        found: list[list[Draft]] = [[] for _ in requests]
        self._guard(lambda drafter: self._meet(drafter, requests), None)
        if requests:
            results = self._guard(lambda drafter: self._checked(drafter, requests, rows), [None] * len(requests))
            for result in results:
                for drafts, draft in zip(found, result, strict=True):
                    if draft is not None:
                        drafts.append(draft)
        united: list[Draft | None] = []
        for drafts, limit in zip(found, rows, strict=True):
            if not drafts:
                united.append(None)
                continue
            tree = drafts[0].tree if len(drafts) == 1 else DraftTree.union(d.tree for d in drafts)
            tree = prune(tree, limit)
            probes = drafts[0].probes if len(drafts) == 1 else None
            if probes is not None and len(tree) + len(probes.tokens) > limit:
                probes = None
            united.append(Draft(tree, probes) if len(tree) or probes else None)
        return united

    def _meet(self, drafter: Drafter, requests: list[Request]) -> None:
        for request in requests:
            met: set[str] = request.memory.setdefault(self._met, set())
            if drafter.name not in met:
                drafter.begin(request)
                met.add(drafter.name)

    def _checked(self, drafter: Drafter, requests: list[Request], rows: list[int]) -> list[Draft | None]:
        """Return a drafter's drafts, late ones that have arrived included, each a well-formed tree."""
        drafts: list[Draft | None] = []
        for request, draft in zip(requests, drafter.draft(requests, rows), strict=True):
            key = f"{drafter.name}.ticket"
            ticket: Ticket | None = request.memory.pop(key, None)
            if draft is not None and not isinstance(draft, Draft):
                ticket, draft = draft, None
            if draft is None and ticket is not None:
                late = ticket.poll()
                if late is None:
                    request.memory[key] = ticket
                else:
                    self._validate(request, late)
                    rest = descend(late.tree, request.tokens[ticket.at :])
                    draft = None if rest is None else Draft(rest)
            elif draft is not None:
                self._validate(request, draft)
            drafts.append(draft)
        return drafts

    def _validate(self, request: Request, draft: Draft) -> None:
        """Raise ``ValueError`` for a tree, or for probe rows, that would end the request if they reached a pass."""
        assert self.services is not None
        vocabulary = self.services.models[request.model].vocab_size
        draft.tree.validate(vocabulary)
        if draft.probes is not None:
            draft_chunk(request, draft).validate(vocabulary)

    def _guard(self, call: Callable[[Drafter], Any], default: Any) -> list[Any]:
        """Call for every drafter; one that raises is dropped for good."""
        results: list[Any] = []
        for drafter in list(self.drafters):
            try:
                results.append(call(drafter))
            except Exception as error:
                log.warning("drafter %s is dropped: %s: %s", drafter.name, type(error).__name__, error)
                self.drafters.remove(drafter)
                results.append(default)
        return results

    def _walk(self, walks: list[Walk], walking: list[Observation]) -> list[Walked]:
        """Advance all walks in lockstep, so that each round's choices are one call."""
        ends: list[Walked | None] = [None] * len(walks)
        asks: list[tuple[int, Ask]] = []

        def advance(number: int, answer: Answer | None) -> None:
            try:
                ask = next(walks[number]) if answer is None else walks[number].send(answer)
                asks.append((number, ask))
            except StopIteration as stop:
                ends[number] = stop.value

        for number in range(len(walks)):
            advance(number, None)
        while asks:
            round_, asks = asks, []
            places = [walking[n].output.row(walking[n].base + 1 + ask.node) for n, ask in round_]
            logits = walking[0].output.logits
            picked = [i for i, (_, ask) in enumerate(round_) if ask.want == "token"]
            tokens: dict[int, int] = {}
            if picked:
                chosen = choose(logits, [round_[i][1].state for i in picked], rows=[places[i] for i in picked])
                tokens = dict(zip(picked, chosen, strict=True))
            for i, (number, _) in enumerate(round_):
                advance(number, tokens[i] if i in tokens else logits[places[i]])
        return [end for end in ends if end is not None]

    def _settle(self, seen: Observation, walked: Walked) -> None:
        """Write a walk's end into the commit: tokens, rows to keep, watermark."""
        committed, output, base = seen.committed, seen.output, seen.base
        if walked.error is not None and not walked.tokens:
            committed.error = choice_error(walked.error)
            return
        seen.nodes = walked.nodes
        position = committed.filled
        assert position is not None
        # A walk cut by an error keeps its last token's row for the next step, where the error is met at the root.
        nodes = walked.nodes[: len(walked.tokens) - 1]
        rows = [output.scratch[base + 1 + node] for node in nodes]
        committed.keep = [(row, position + depth) for depth, row in enumerate(rows) if row is not None]
        committed.filled = position + len(nodes)
        committed.tokens, committed.finish = tuple(walked.tokens), walked.finish
        committed.drafted, committed.accepted = len(seen.tree), len(walked.nodes)
        if seen.request.params.logprobs is not None:
            places = [output.row(base), *(output.row(base + 1 + node) for node in nodes)]
            committed.logits = output.logits[places]
