"""Speculative decoding: drafters fill rows with trees, one pass scores them, a verifier walks what stands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from stretto.core.chunk import Chunk, Output
from stretto.core.masks import MaskError
from stretto.core.request import Committed, Request
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Coupled, Verifier
from stretto.decoding.known import commit_known, known_chunk, prompt_logprobs
from stretto.decoding.method import Facts, Services
from stretto.decoding.speculative.allocator import Allocator, Drafted, Everything
from stretto.decoding.speculative.drafter import Draft, Drafter, Observation, Ticket
from stretto.decoding.speculative.trees import EMPTY, descend, draft_chunk, obeying, only, rehung
from stretto.decoding.speculative.walking import settle, walk_all

log = logging.getLogger("stretto")

PATIENCE = 2.0
"""Seconds that a drafter may take for one step's drafts, unless the method says otherwise,"""
READING = 2e-4
"""and for each token of a request that it meets in this step: indexes of a prompt are built at the first draft."""


class Late(Exception):
    """A drafter took longer than its budget."""


class Speculative:
    """One or several drafters (their trees are united), an allocator, one verifier.

    A drafter that raises, takes longer than ``patience`` seconds for a step, or returns a malformed tree is dropped
    with one warning; the text goes on unchanged.
    """

    def __init__(
        self,
        name: str,
        drafters: Sequence[Drafter],
        *,
        verifier: Verifier | None = None,
        allocator: Allocator | None = None,
        rows: int = 8,
        scratch: int = 1,
        hidden: tuple[int, ...] = (),
        feature: str | None = None,
        needs: frozenset[str] = frozenset(),
        patience: float = PATIENCE,
    ) -> None:
        """``rows`` bounds a draft; each takes ``scratch`` of the target's scratch rows.

        ``hidden`` and ``feature`` are what the drafters read of every row: hidden states at these layer borders in
        ``observe``, and the feature lane that stores the last of them. ``needs``: what must be aboard beside it
        (``Facts.needs``).
        """
        self.name, self.drafters, self.rows, self.hidden, self.feature = name, list(drafters), rows, hidden, feature
        self.verifier: Verifier = verifier or Coupled()
        self.allocator: Allocator = allocator or Everything()
        self.patience = patience
        self.facts = Facts(
            fidelity=self.verifier.fidelity,
            needs=needs | (frozenset() if feature is None else frozenset({feature})),
            scratch=scratch,
        )
        self.services: Services
        self._spent: dict[str, float] = {}
        """Milliseconds that each drafter took in this step: for its drafts, and for what it learnt of the last one."""
        self._learning: dict[str, float] = {}
        """Milliseconds that each took to observe the last step that it observed."""
        self._rest = self._resting = 0
        """Steps of the rest at hand, and those of them that are still to come."""
        self._plain = False
        """Whether the step at hand is one."""
        self._counted = 0
        """The engine's step that was the last to be counted as one."""
        # What is remembered about a request lies under the method's and the drafters' own names.
        self._drafted, self._met = f"{name}.drafted", f"{name}.met"
        self._tree, self._seen = f"{name}.tree", f"{name}.seen"

    def bind(self, services: Services) -> None:
        """Take the engine's services for the allocator and the drafters."""
        self.services = services
        self.allocator.bind(services)
        for drafter in self.drafters:
            drafter.bind(services)

    def extra(self, request: Request) -> int:
        """Bid for the rows of a whole tree, no deeper than the text may still grow."""
        if self._seen not in request.memory:
            request.memory[self._seen] = True
            if self._resting:
                self._meet(request)
        if self._resting or not self.drafters:
            return 0
        most = max(0, min(self.rows, request.state.left - 1))
        return self.allocator.bid(request, most) if most else 0

    def _meet(self, request: Request) -> None:
        """Let the allocator meet a new request in a rest, which may end for it."""
        self.allocator.meets(request)
        self.allocator.rest((), self._rest - self._resting)
        self._rest = self._resting = self.allocator.rests()

    def propose(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Chunk]:
        """Return known tokens while a prompt is being computed, else the last token and what was drafted behind it."""
        self._plain = self._resting > 0
        if self._plain:
            return self._features([known_chunk(request, count) for request, count in zip(requests, rows, strict=True)])
        drafting = [i for i, request in enumerate(requests) if request.pending == 1 and rows[i] > 1]
        drafts = self._drafts([requests[i] for i in drafting], [rows[i] - 1 for i in drafting])
        chunks: list[Chunk] = []
        by_request = dict(zip(drafting, drafts, strict=True))
        for i, request in enumerate(requests):
            draft = by_request.get(i)
            request.memory[self._tree] = draft.tree if draft else EMPTY
            if i not in by_request:
                request.memory.pop(self._drafted, None)
            chunks.append(known_chunk(request, rows[i]) if draft is None else draft_chunk(request, draft))
        return self._features(chunks)

    def _features(self, chunks: list[Chunk]) -> list[Chunk]:
        """Ask for what the drafters read of every row."""
        if self.hidden or self.feature is not None:
            for chunk in chunks:
                chunk.hidden, chunk.feature = self.hidden, self.feature
        return chunks

    def commit(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]
    ) -> list[Committed]:
        """Walk every request's tree, all in lockstep, and tell allocator and drafters what came of it."""
        if self._plain:
            done = commit_known(requests, chunks, outputs)
            if self._counted != self.services.steps:  # a step whose pass raised is committed request by request
                self._counted = self.services.steps
                self._resting -= 1
                if self._resting <= 0:
                    self.allocator.rest(done, self._rest - self._resting)
                    self._rest = self._resting = self.allocator.rests()
            return done
        if any(chunk.roles is not None for chunk in chunks):
            done, walking = self._commit_drafts(requests, chunks, outputs)
        else:
            done = commit_known(requests, chunks, outputs)
            walking = [
                Observation(each.request, output, each, EMPTY, base=len(output.chunk) - 1)
                for each, output in zip(done, outputs, strict=True)
                if each.filled == len(each.request.tokens)
            ]
        drafted = [found for seen in walking if (found := seen.request.memory.get(self._drafted)) is not None]
        spent, self._spent = self._spent, {}
        self.allocator.learn(drafted, walking, spent)
        self._rest = self._resting = self.allocator.rests()
        listening = [each for each in self.drafters if each.name in spent or self.allocator.hears(each.name)]
        if listening:
            self._guard(lambda drafter: self._tell(drafter, walking), listening)
        return done

    def _tell(self, drafter: Drafter, walking: Sequence[Observation]) -> None:
        began = time.perf_counter()
        try:
            drafter.observe(walking)
        except MaskError as error:  # of one request: the others' observations are worth having
            log.debug("drafter %s: %s", drafter.name, error)
            for seen in walking if len(walking) > 1 else ():
                self._tell(drafter, [seen])
        self._learning[drafter.name] = (time.perf_counter() - began) * 1e3

    def _commit_drafts(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]
    ) -> tuple[list[Committed], list[Observation]]:
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
        for seen, walked in zip(walking, walk_all(walks, walking), strict=True):
            settle(seen, walked)
        return done, walking

    def preempted(self, request: Request) -> None:
        """Let every drafter know that its rows are gone."""
        met: set[str] = request.memory.get(self._met, set())
        self._guard(lambda drafter: drafter.rewind(request), [each for each in self.drafters if each.name in met])

    def end(self, request: Request) -> None:
        """Let every drafter that met the request forget it."""
        if met := request.memory.get(self._met):
            self._guard(lambda drafter: drafter.end(request), [each for each in self.drafters if each.name in met])
        self.allocator.end(request)

    def stores(self) -> dict[str, Mapping[str, int]]:
        """Return the sizes of what the drafters keep beyond requests, by store."""
        found: dict[str, Mapping[str, int]] = {}
        self._guard(lambda drafter: found.update(drafter.stores()))
        return found

    def _drafts(self, requests: list[Request], rows: list[int]) -> list[Draft | None]:
        """Ask the drafters that the allocator lets draft; unite what they return and send what it selects."""
        self._spent = {}
        if not requests:
            return []
        drafted = [Drafted(request) for request in requests]
        for request, found in zip(requests, drafted, strict=True):
            request.memory[self._drafted] = found
        self._guard(lambda drafter: self._ask(drafter, drafted, rows))
        for found in drafted:
            trees = [draft.tree for draft in found.by_drafter.values()]
            found.tree = trees[0] if len(trees) == 1 else DraftTree.union(trees)
        began = time.perf_counter()
        sent = self.allocator.select(drafted, rows)
        share = (time.perf_counter() - began) * 1e3 / max(1, len(self._spent))
        self._spent = {name: ms + share for name, ms in self._spent.items()}  # choosing is part of what drafts cost
        united: list[Draft | None] = []
        for found, nodes, limit in zip(drafted, sent, rows, strict=True):
            tree = only(found.tree, nodes)
            alone = next(iter(found.by_drafter.values())) if len(found.by_drafter) == 1 else Draft(tree)
            probes, entered = rehung(alone.probes, nodes, len(found.tree)), None
            if probes is not None and len(tree) + len(probes.tokens) > limit:
                probes = None
            if alone.entered is not None and probes is None:
                entered = alone.entered.only(nodes)
            united.append(Draft(tree, probes, entered) if len(tree) or probes else None)
        return united

    def _ask(self, drafter: Drafter, drafted: list[Drafted], rows: list[int]) -> None:
        """Let a drafter propose for the requests that it has room for; keep its drafts and the time it took."""
        began = time.perf_counter()
        rooms = self.allocator.rooms(drafter.name, drafted, rows)
        asked = [(found, room) for found, room in zip(drafted, rooms, strict=True) if room > 0]
        if not asked:
            return
        patience = self.patience
        for found, _ in asked:
            met: set[str] = found.request.memory.setdefault(self._met, set())
            if drafter.name not in met:
                drafter.begin(found.request)
                met.add(drafter.name)
                patience += READING * len(found.request.tokens)
        drafts = self._checked(drafter, [found.request for found, _ in asked], [room for _, room in asked])
        spent = time.perf_counter() - began
        self._spent[drafter.name] = spent * 1e3 + self._learning.pop(drafter.name, 0.0)
        if spent > patience:
            raise Late(f"its drafts took {spent:.2f} s, its budget is {patience:.2f} s")
        for (found, _), draft in zip(asked, drafts, strict=True):
            found.asked.append(drafter.name)
            if draft is not None and (len(draft.tree) or draft.probes):
                found.by_drafter[drafter.name] = draft
            elif draft is not None:
                found.later.add(drafter.name)

    def _checked(self, drafter: Drafter, requests: list[Request], rows: list[int]) -> list[Draft | None]:
        """Return a drafter's drafts, late ones that have arrived included: well-formed trees that obey their masks."""
        drafts: list[Draft | None] = []
        for request, draft in zip(requests, self._asked(drafter, requests, rows), strict=True):
            key = f"{drafter.name}.ticket"
            ticket: Ticket | None = request.memory.pop(key, None)
            if draft is not None and not isinstance(draft, Draft):
                ticket, draft = draft, None
            if draft is None and ticket is not None:
                late = ticket.poll()
                if late is None:
                    request.memory[key], draft = ticket, Draft(EMPTY)
                else:
                    self._validate(request, late)
                    rest = descend(late.tree, request.tokens[ticket.at :])
                    draft = None if rest is None else Draft(rest)
            elif draft is not None:
                self._validate(request, draft)
            drafts.append(draft if draft is None or not len(draft.tree) else self._obeying(draft, request))
        return drafts

    def _asked(
        self, drafter: Drafter, requests: Sequence[Request], rows: Sequence[int]
    ) -> Sequence[Draft | Ticket | None]:
        """Return a drafter's answers; a mask that raises costs its own request the draft, and no other."""
        try:
            return _answers(drafter.draft(requests, rows), len(requests))
        except MaskError as error:
            log.debug("drafter %s: %s", drafter.name, error)
            if len(requests) == 1:
                return [None]
            return [self._asked(drafter, [each], [room])[0] for each, room in zip(requests, rows, strict=True)]

    def _obeying(self, draft: Draft, request: Request) -> Draft | None:
        """Return what the request's mask leaves of a draft, None where that is nothing or the mask raises."""
        try:
            left = obeying(draft, request.state)
        except MaskError as error:
            log.debug("the mask of request %d: %s", request.id, error)
            return None
        return left if len(left.tree) or left.probes else None

    def _validate(self, request: Request, draft: Draft) -> None:
        """Raise ``ValueError`` for a tree, or for probe rows, that would end the request if they reached a pass."""
        vocabulary = self.services.models[request.model].vocab_size
        draft.tree.validate(vocabulary)
        self.verifier.check(draft.tree)
        if draft.probes is not None:
            draft_chunk(request, draft).validate(vocabulary)

    def _guard(self, call: Callable[[Drafter], object], drafters: Sequence[Drafter] | None = None) -> None:
        """Call for every drafter, or for some; one that raises is dropped for good."""
        for drafter in list(self.drafters) if drafters is None else drafters:
            try:
                call(drafter)
            except Exception as error:
                log.warning("drafter %s is dropped: %s: %s", drafter.name, type(error).__name__, error)
                self.drafters.remove(drafter)
                self._spent.pop(drafter.name, None)
                self._learning.pop(drafter.name, None)
                self.allocator.dropped(drafter.name)


def _answers(found: object, wanted: int) -> Sequence[Draft | Ticket | None]:
    """Return what a drafter answered to so many requests. Raises ``TypeError`` for what are no answers."""
    if not isinstance(found, Sequence) or len(found) != wanted:
        raise TypeError(f"draft returned {found!r:.80}; expected a list with one answer for each of {wanted} requests")
    for answer in found:
        if answer is not None and not isinstance(answer, Draft) and not hasattr(answer, "poll"):
            raise TypeError(f"draft returned {answer!r:.80} for a request; expected a Draft, a Ticket or None")
    return found
