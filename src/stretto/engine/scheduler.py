"""Who runs in the next step, and with how many rows.

Every running request is guaranteed one row; every further row of the budget is bid for. Prompt slices bid by
priority, TTFT goal and arrival, drafts share a part of their own, so that neither starves (stall-free chunked
prefill: Sarathi-Serve, arXiv 2403.02310). A budget smaller than the number of running requests serves them in turn.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stretto.cache.manager import ModelCache, View
from stretto.core.request import Phase, Request
from stretto.decoding.method import DecodingMethod

DRAFT_SHARE = 4
"""While prompts wait, drafts may take one in this many of the rows that are bid for."""
SLICE = 8
"""Rows of prompts that no goal for the time of others' tokens denies."""
HOLD_UP = 0.6
"""Share of a pass by which a prompt may hold up those who write and named no goal; n prompts by n * n times as much."""


class Grant(NamedTuple):
    """A request and the rows it may fill in this step."""

    request: Request
    rows: int


def seniority(request: Request) -> tuple[int, int]:
    """Order of service: higher priority first, then earlier arrival."""
    return -request.params.priority, request.order


class Scheduler:
    """Queues, admission, row budget and preemption. Requests are moved between its two lists and nowhere else."""

    def __init__(
        self,
        caches: Mapping[str, ModelCache],
        max_rows: int,
        lineage: Callable[[Request], str],
        method: Callable[[Request], DecodingMethod],
    ) -> None:
        self.caches, self.max_rows, self.lineage, self.method = caches, max_rows, lineage, method
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.failed: list[tuple[Request, Exception]] = []
        """Requests whose own admission or reservation raised; the engine ends them."""
        self.preemptions = 0
        self._clock = 0
        self._changed = True

    def add(self, request: Request) -> None:
        """Queue a request behind those of its priority that came before it."""
        request.phase = Phase.WAITING
        insort(self.waiting, request, key=seniority)
        self._changed = True

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        (self.waiting if request.phase is Phase.WAITING else self.running).remove(request)
        request.phase = Phase.DONE
        self._release(request)

    def preempt(self, request: Request) -> None:
        """Free a running request's blocks and queue it again; by its arrival it stands at the front."""
        self.running.remove(request)
        self._release(request)
        request.stats.preemptions += 1
        self.preemptions += 1
        self.add(request)
        try:
            self.method(request).preempted(request)
        except Exception as error:
            self.failed.append((request, error))

    def plan(self) -> list[Grant]:
        """Return this step's requests with their rows, their blocks reserved."""
        if self.waiting and self._changed:
            self._admit()
        served, least = self._in_turn()
        wanted = self._share(served, least)
        # The guaranteed rows of everyone first: no draft and no prompt slice may cost another request its own.
        sure = [self._guarantee(request, rows) for request, rows in zip(served, least, strict=True)]
        grants: list[Grant] = []
        for request, few, rows, mine in zip(served, least, wanted, sure, strict=True):
            if mine and request.phase is Phase.RUNNING:
                grants.append(Grant(request, rows if rows == few or self._extend(request, rows) else few))
        return grants

    def _in_turn(self) -> tuple[list[Request], list[int]]:
        """Return the running requests and the rows guaranteed to each: one, or a whole block where it cannot be cut.

        When the budget does not hold them all, those longest without a row come first.
        """
        least = [self.method(request).facts.rows for request in self.running]
        if sum(least) <= self.max_rows:
            return self.running.copy(), least
        self._clock += 1
        served: list[Request] = []
        rows: list[int] = []
        left = self.max_rows
        for request, few in sorted(zip(self.running, least, strict=True), key=lambda pair: pair[0].served):
            if few > left:
                break
            served.append(request)
            rows.append(few)
            left -= few
            request.served = self._clock
        return served, rows

    def _share(self, served: list[Request], least: list[int]) -> list[int]:
        """Return the rows of each served request: those guaranteed, and what it won of the rest."""
        rows = least.copy()
        left = self.max_rows - sum(least)
        prompts: list[int] = []
        drafts: list[int] = []
        wants = [0] * len(served)
        for i, request in enumerate(served):
            pending = request.pending
            if pending > 1:
                wants[i] = max(0, pending - least[i])
                prompts.append(i)
            else:
                wants[i] = self._bid(request)
                if wants[i]:
                    drafts.append(i)
        if left == 0 or not (prompts or drafts):
            return rows
        # There are as many scratch rows as the budget has rows: a draft that takes several of them pays for each.
        prices = {i: self.method(served[i]).facts.scratch for i in drafts}
        for_drafts = min(sum(wants[i] * prices[i] for i in drafts), left)
        for_prompts = min(sum(wants[i] for i in prompts), left, self._within_goals(served, sum(least), prompts))
        if for_drafts + for_prompts > left:
            for_drafts = max(left - for_prompts, min(for_drafts, left // DRAFT_SHARE))
            for_prompts = left - for_drafts
        prompts.sort(key=lambda i: (-served[i].params.priority, served[i].deadline, served[i].order))
        for i in prompts:
            won = min(wants[i], for_prompts)
            rows[i] += won
            for_prompts -= won
        drafts.sort(key=lambda i: (wants[i], served[i].order))
        for rank, i in enumerate(drafts):
            won = min(wants[i], for_drafts // (len(drafts) - rank) // prices[i])
            rows[i] += won
            for_drafts -= won * prices[i]
        return rows

    def _within_goals(self, served: list[Request], sure: int, prompts: list[int]) -> int:
        """Return the rows of prompts beside ``sure`` guaranteed ones with which a pass keeps the goals of who writes.

        At least ``SLICE``: a goal that nothing keeps must not hold up the prompts of others for ever.
        """
        price = self.caches[served[0].model].model.price
        writing = [request.params.tpot_ms for request in served if prompts and request.pending == 1]
        if not writing or price is None:
            return self.max_rows
        context, deepest = sum(request.filled for request in served), max(served[i].filled for i in prompts)

        def ms(rows: int) -> float:
            return price.ms(sure + rows, context, context + rows * deepest)

        unnamed = ms(0) * (1 + HOLD_UP * len(prompts) ** 2)
        goal = min(unnamed if named is None else named for named in writing)
        return max(SLICE, bisect_right(range(self.max_rows), goal, key=ms) - 1)

    def _bid(self, request: Request) -> int:
        """Return the rows its method would draft; one whose bid raises drafts nothing and is ended by the engine.

        No draft leads over the model's rope border, behind which all rows of the text are other ones.
        """
        border, length = self.caches[request.model].model.rope_border, len(request.tokens)
        try:
            bid = self.method(request).extra(request)
            return bid if border is None or length > border else min(bid, border - length)
        except Exception as error:
            self.failed.append((request, error))
            return 0

    def _guarantee(self, request: Request, rows: int) -> bool:
        """Make room for its rows, preempting the newest of the lowest priority if it must; False if that is itself."""
        if request.phase is not Phase.RUNNING:
            return False  # preempted for an earlier one
        try:
            view: View = request.views[request.model]
            while not view.reserve(view.filled + rows, start=request.shared):
                victim = max((r for r in self.running if r.model == request.model), key=seniority)
                self.preempt(victim)
                if victim is request:
                    return False
        except Exception as error:
            self.failed.append((request, error))
            return False
        return True

    def _extend(self, request: Request, rows: int) -> bool:
        """Make room for all rows it won; extra rows stop nobody."""
        try:
            view: View = request.views[request.model]
            return view.reserve(view.filled + rows, start=request.shared)
        except Exception as error:
            self.failed.append((request, error))
            return False

    def _admit(self) -> None:
        """Start waiting requests, in order, while their known tokens find room beside the running ones."""
        self._changed = False
        full: set[str] = set()
        position = 0
        while position < len(self.waiting):
            request = self.waiting[position]
            if request.model in full:
                position += 1
                continue
            leader = request.leader
            if (
                self._shares(request)
                and leader is not None
                and leader.phase is not Phase.DONE
                and (leader.filled < len(leader.prompt))
            ):
                position += 1
                self._changed = True
                continue
            try:
                view = self._open(request)
            except Exception as error:
                self.failed.append((request, error))
                position += 1
                continue
            if view is None:
                if not self._outranked(request):
                    full.add(request.model)
                continue
            self.waiting.pop(position)
            request.views[request.model] = view
            request.phase, request.served = Phase.RUNNING, self._clock
            insort(self.running, request, key=seniority)
            if request.stats.preemptions == 0:
                request.stats.cached = view.filled

    def _open(self, request: Request) -> View | None:
        """Return a view with room for the request's known tokens, or None while there is none."""
        cache = self.caches[request.model]
        leader = request.leader
        fresh = len(request.tokens) == len(request.prompt)
        if leader is not None and leader.phase is Phase.RUNNING and fresh and self._shares(request):
            computed: View = leader.views[leader.model]
            view = computed.fork(request.id)
            view.truncate(len(request.prompt) - 1)
        else:
            needs = self.method(request).facts.needs & cache.lanes.keys()
            view = cache.open(request.id, request.tokens, self.lineage(request), reuse=request.reuse, needs=needs)
        fits = False
        try:
            # One token of headroom per running request, so that admission does not cause the next preemption.
            fits = view.reserve(len(request.tokens)) and (not self.running or cache.available() >= len(self.running))
        finally:
            if not fits:
                view.close()
        return view if fits else None

    def _shares(self, request: Request) -> bool:
        """Whether a sample may take its prompt's rows over from the first sample's."""
        leader = request.leader
        whole = leader is not None and (leader.shared is None or leader.shared >= len(leader.prompt))
        return whole and self.method(request).facts.reuse

    def _outranked(self, request: Request) -> bool:
        """Preempt the newest of a lower priority for a waiting request; False if there is none."""
        lower = [r for r in self.running if r.model == request.model and r.params.priority < request.params.priority]
        if lower:
            self.preempt(max(lower, key=seniority))
        return bool(lower)

    def _release(self, request: Request) -> None:
        for view in request.views.values():
            view.close()
        request.views.clear()
        self._changed = True
