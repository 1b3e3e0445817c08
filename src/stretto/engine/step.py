"""The step loop: schedule, let methods fill the rows, pack, pass, commit, emit.

The loop knows chunks, not methods. Whatever raises, in a method, a model or the bookkeeping of one request, ends the
requests it touches and no other: a call for many requests that raises is repeated for each alone.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from typing import Any

import torch

from stretto.cache.manager import ModelCache, View
from stretto.core.batch import Model
from stretto.core.choose import logprobs
from stretto.core.chunk import Chunk, Output
from stretto.core.masks import MaskError
from stretto.core.request import Committed, Delta, Phase, Request, Stats
from stretto.decoding.method import DecodingMethod, Load
from stretto.engine.asking import check_rows, commits, forget, proposals
from stretto.engine.pack import pack
from stretto.engine.scheduler import Grant, Scheduler
from stretto.kernels import native

log = logging.getLogger("stretto")
SCRATCH_TAKEN = attrgetter("scratch_taken")


class Engine:
    """Models, their caches, methods and requests. One thread calls ``submit``, ``abort`` and ``step``."""

    def __init__(
        self,
        models: Mapping[str, Model],
        methods: Iterable[DecodingMethod],
        *,
        cache_tokens: Mapping[str, int] | int,
        max_rows: int,
        device: torch.device | None = None,
    ) -> None:
        self._device, self._max_rows = device or torch.device("cpu"), max_rows
        self.models: dict[str, Model] = {}
        self.caches: dict[str, ModelCache] = {}
        for name, model in models.items():
            self.add_model(name, model, cache_tokens if isinstance(cache_tokens, int) else cache_tokens[name])
        self.methods: dict[str, DecodingMethod] = {}
        for method in methods:
            self.add_method(method)
        self.requests: dict[int, Request] = {}
        self.load = Load.by_model(())
        self.seconds = dict.fromkeys(("schedule", "draft", "pass", "commit", "emit"), 0.0)
        """Wall time since the start, by part of the step."""
        self.scheduler = Scheduler(self.caches, max_rows, self._lineage, self._method)
        self.rows = 0
        """Rows computed since the start, all models together."""
        self.kinds = dict.fromkeys(("prompt", "decode", "drafted", "draft_model"), 0)
        """The same by kind: known tokens, the last token of a text, what was drafted behind it, other models' rows."""
        self.totals = Stats()
        """What all requests together drafted, since the start."""
        self.watch: Callable[[Sequence[Grant]], None] | None = None
        """Told what each step runs, before any method or model is asked."""
        self.steps = 0
        self._arrivals = 0
        self._ended: list[Delta] = []

    def add_model(self, name: str, model: Model, tokens: int) -> None:
        """Take a model aboard, with a cache of ``tokens`` positions, as many scratch rows as a step has, and its own
        prefix tree.
        """
        self.models[name] = model
        self.caches[name] = ModelCache(model, tokens=tokens, scratch=self._max_rows, device=self._device)
        self._own_threads = all(each.own_threads for each in self.models.values())

    def add_method(self, method: DecodingMethod) -> None:
        """Put a method aboard, under its name."""
        method.bind(self)
        self.methods[method.name] = method

    @property
    def busy(self) -> bool:
        """Whether a step would find anything to do."""
        return bool(self.requests) or bool(self._ended)

    def submit(self, request: Request) -> None:
        """Queue a request. Its id must not be in use; its tokens begin as its prompt.

        Raises ``ValueError`` if its method needs more rows at once than a step has.
        """
        check_rows(self.methods[request.method], self.scheduler.max_rows)
        request.order = self._arrivals
        self._arrivals += 1
        if not request.tokens:
            request.tokens = list(request.prompt)
        if request.params.ttft_ms is not None:
            request.deadline = request.stats.arrived + request.params.ttft_ms / 1e3
        self.requests[request.id] = request
        self.scheduler.add(request)

    def abort(self, number: int, finish: str = "abort") -> bool:
        """End a request; False if it is not here (any more). Its last delta says ``finish``."""
        request = self.requests.get(number)
        if request is None:
            return False
        self._end(request, finish)
        return True

    def step(self) -> list[Delta]:
        """Run one step; return what it added, and what ended, request by request."""
        with native.one_torch_thread() if self._own_threads else nullcontext():
            return self._step()

    def _step(self) -> list[Delta]:
        deltas: list[Delta] = []
        self.steps += 1
        try:
            began = time.perf_counter()
            grants = self.scheduler.plan()
            for request, error in self.scheduler.failed:
                self._fail(request, error)
            self.scheduler.failed.clear()
            grants = [grant for grant in grants if grant.request.phase is not Phase.DONE]
            self._spend("schedule", began)
            done = self._run(grants)
            began = time.perf_counter()
            for committed in done:
                delta = self._apply_safely(committed)
                if delta is not None:
                    deltas.append(delta)
            self._spend("emit", began)
        finally:
            for cache in self.caches.values():
                cache.reset_scratch()
        deltas += self._ended
        self._ended.clear()
        return deltas

    def forward(self, requests: Sequence[Request], chunks: Sequence[Chunk]) -> list[Output]:
        """Run one pass per model for the chunks, outputs in their order (see ``Services``).

        Raises what a model raises; scratch rows stay until the step ends.
        """
        outputs: list[Output | None] = [None] * len(chunks)
        for name in dict.fromkeys(chunk.model for chunk in chunks):
            picked = [i for i, chunk in enumerate(chunks) if chunk.model == name]
            cache = self.caches[name]
            taken = cache.scratch_taken
            try:
                found = self._pass_of(name, [requests[i] for i in picked], [chunks[i] for i in picked])
            except Exception:
                cache.reset_scratch(taken)
                raise
            for i, output in zip(picked, found, strict=True):
                outputs[i] = output
        return [output for output in outputs if output is not None]

    def _pass_of(self, name: str, requests: list[Request], chunks: list[Chunk]) -> list[Output]:
        """Run one pass of one model, the chunks' legs behind them."""
        model = self.models[name]
        owners, rows = requests.copy(), chunks.copy()
        for request, chunk in zip(requests, chunks, strict=True):
            for leg in chunk.legs:
                owners.append(request)
                rows.append(leg)
        for chunk in rows:
            chunk.validate(model.vocab_size)
        views = [self.view(request, name, chunk.leg) for request, chunk in zip(owners, rows, strict=True)]
        variants = None if model.rope_border is None else [int(self._long(owner, name)) for owner in owners]
        batch, firsts, scratch = pack(rows, views, self.caches[name], variants)
        result = model.forward(batch)
        self.rows += len(batch)
        outputs: list[Output] = []
        for place, (request, chunk) in enumerate(zip(owners, rows, strict=True)):
            self._count_rows(request, chunk)
            hidden = result.hidden[place] if result.hidden else {}
            outputs.append(Output(chunk, result.logits, firsts[place], hidden, scratch=scratch[place]))
            if chunk.top:
                rows_of = result.logits[firsts[place] : firsts[place] + len(chunk.wanted)]
                values, ids = rows_of.sort(dim=-1, descending=True, stable=True)
                outputs[-1].top = values[:, : chunk.top], ids[:, : chunk.top]
        further = iter(outputs[len(chunks) :])
        for output in outputs[: len(chunks)]:
            if output.chunk.legs:
                output.legs = [next(further) for _ in output.chunk.legs]
        return outputs[: len(chunks)]

    def _count_rows(self, request: Request, chunk: Chunk) -> None:
        rows, kinds = len(chunk.tokens), self.kinds
        request.stats.rows += rows
        if chunk.model != request.model:
            kinds["draft_model"] += rows
        elif chunk.roles is None and rows == 1 and request.pending == 1:
            kinds["decode"] += 1
        elif chunk.roles is None:
            kinds["prompt"] += rows
            request.stats.prompt_rows += rows
        else:
            kinds["decode"] += 1
            kinds["drafted"] += rows - 1

    def scratch_left(self, model: str) -> int:
        """Return how many scratch rows of ``model`` are left in this step."""
        return self.caches[model].scratch_left

    def view(self, request: Request, model: str, leg: str = "") -> View:
        """Return the place of one of the request's contexts in the cache of ``model``, opened when it has none yet.

        Its own context begins with a prefix hit, a leg empty.
        """
        key = f"{model}/{leg}" if leg else model
        view = request.views.get(key)
        if view is None:
            tokens = [] if leg else request.tokens
            view = self.caches[model].open(request.id, tokens, self._lineage(request, model), reuse=not leg)
            request.views[key] = view
        return view

    def keep(self, request: Request, model: str, moves: Sequence[tuple[int, int]]) -> None:
        """Move (scratch row, position) into the request's blocks."""
        view = self.view(request, model)
        self.caches[model].keep([(view, row, position) for row, position in moves])

    def _lineage(self, request: Request, model: str | None = None) -> str:
        method = self.methods[request.method]
        policy = method.facts.lineage if model in (None, request.model) else ""
        name = model or request.model
        long = "long" if self._long(request, name) else ""
        parts = (self.models[name].fingerprint, policy, long, request.params.tenant)
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()

    def _long(self, request: Request, model: str) -> bool:
        """Whether the request's text lies beyond the model's rope border."""
        border = self.models[model].rope_border
        return border is not None and len(request.tokens) > border

    def _method(self, request: Request) -> DecodingMethod:
        return self.methods[request.method]

    def _spend(self, part: str, began: float) -> float:
        """Book the time since ``began`` to a part of the step; return now."""
        now = time.perf_counter()
        self.seconds[part] += now - began
        return now

    def _run(self, grants: Sequence[Grant]) -> list[Committed]:
        """Let the methods propose, make the passes, let them commit."""
        if not grants:
            return []
        clock = time.perf_counter()
        self.load = Load.by_model(grants)
        if self.watch is not None:
            self.watch(grants)
        groups: dict[tuple[str, str], list[Grant]] = {}
        for grant in grants:
            groups.setdefault((grant.request.method, grant.request.model), []).append(grant)
        requests: list[Request] = []
        chunks: list[Chunk] = []
        for (name, _), group in groups.items():
            propose = partial(proposals, self.methods[name])
            for request, chunk in self._each([g.request for g in group], [g.rows for g in group], propose):
                requests.append(request)
                chunks.append(chunk)
        clock = self._spend("draft", clock)
        outputs: list[tuple[Request, Output]] = []
        for model in dict.fromkeys(chunk.model for chunk in chunks):
            mine = [i for i, chunk in enumerate(chunks) if chunk.model == model]
            outputs += self._each([requests[i] for i in mine], [chunks[i] for i in mine], self._pass)
        clock = self._spend("pass", clock)
        # Outputs of one call to commit share their logits: chunks that had to be run alone are committed alone.
        by_method: dict[tuple[str, int], list[tuple[Request, Output]]] = {}
        for request, output in outputs:
            by_method.setdefault((request.method, id(output.logits)), []).append((request, output))
        done: list[Committed] = []
        for (name, _), pairs in by_method.items():
            commit = partial(commits, self.methods[name])
            done += self._each([request for request, _ in pairs], [output for _, output in pairs], commit)
        self._spend("commit", clock)
        return done

    def _pass(self, requests: list[Request], chunks: list[Chunk]) -> list[tuple[Request, Output]]:
        return list(zip(requests, self.forward(requests, chunks), strict=True))

    def _each(
        self, requests: list[Request], values: list[Any], call: Callable[[list[Request], list[Any]], list[Any]]
    ) -> list[Any]:
        """Call once for all; if that raises, for each alone, ending those whose own call raises."""
        if not requests:
            return []
        taken = list(map(SCRATCH_TAKEN, self.caches.values()))
        try:
            return call(requests, values)
        except Exception as error:
            for cache, before in zip(self.caches.values(), taken, strict=True):
                cache.reset_scratch(before)
            if len(requests) == 1:
                self._fail(requests[0], error)
                return []
            log.debug("a call for %d requests raised %r; calling for each alone", len(requests), error)
        results: list[Any] = []
        for request, value in zip(requests, values, strict=True):
            results += self._each([request], [value], call)
        return results

    def _apply_safely(self, committed: Committed) -> Delta | None:
        try:
            return self._apply(committed)
        except Exception as error:
            self._fail(committed.request, error)
            return None

    def _apply(self, committed: Committed) -> Delta | None:
        """Make a commit true: rows kept, watermark, tokens, text, finish."""
        request = committed.request
        if committed.error is not None:
            self._end(request, "error", committed.error, committed.wrong)
            return None
        view: View = request.views[request.model]
        if committed.keep:
            self.caches[request.model].keep([(view, row, position) for row, position in committed.keep])
        if committed.filled is not None:
            view.advance(committed.filled)
            if committed.feature is not None:
                view.advance(committed.filled, (committed.feature,))
        stats = request.stats
        stats.steps += 1
        request.prompt_logprobs.update(committed.prompt_logprobs)
        if committed.scores is not None:
            request.scores[committed.scores[0]] = committed.scores[1]
        tokens, finish, text = list(committed.tokens), committed.finish, ""
        if not tokens and finish is None:
            view.publish(request.tokens, request.shared)
            return None
        if tokens and stats.first_token is None:
            stats.first_token = time.monotonic()
        long = self._long(request, request.model)
        for count, token in enumerate(tokens, 1):
            request.state.commit(token)
            request.tokens.append(token)
            if request.text is not None:
                delta, stopped = request.text.push(token)
                text += delta
                if stopped:
                    tokens, finish = tokens[:count], "stop"
                    break
        stats.writing += bool(tokens)
        stats.written += len(tokens)
        accepted = min(committed.accepted, len(tokens))  # a stop string may have cut them
        for each in (stats, self.totals) if committed.drafted or accepted else ():
            each.drafted += committed.drafted
            each.accepted += accepted
            each.count_drafts(committed.drafts)
        if committed.origins:  # behind those of the tokens that nobody drafted
            stats.origins += [""] * (len(request.tokens) - len(request.prompt) - len(tokens) - len(stats.origins))
            stats.origins += committed.origins[: len(tokens)]
        if committed.logits is not None:
            request.logprobs += logprobs(committed.logits[: len(tokens)], tokens, request.params.logprobs or 0)
        # Only rows of known tokens are published: behind a stop string the watermark may lie past the text.
        view.publish(request.tokens, request.shared)
        if finish is None:
            if self._long(request, request.model) and not long:
                self.scheduler.preempt(request)  # from here on all its rows turn by other frequencies
            return Delta(request.id, tuple(tokens), text)
        if request.text is not None:
            text += request.text.flush()
            if request.text.stopped:
                finish = "stop"
        self._end(request, finish)
        self._ended.pop()
        return Delta(request.id, tuple(tokens), text, finish)

    def _fail(self, request: Request, error: Exception) -> None:
        log.debug("request %d failed", request.id, exc_info=error)
        if request.phase is not Phase.DONE:
            self._end(request, "error", f"{type(error).__name__}: {error}", isinstance(error, MaskError))

    def _end(self, request: Request, finish: str, error: str | None = None, wrong: bool = False) -> None:
        """Free everything of the request and leave its last delta."""
        request.finish, request.error, request.wrong = finish, error, wrong
        request.stats.finished = time.monotonic()
        self.scheduler.remove(request)
        forget(self.methods[request.method], request)
        self.requests.pop(request.id, None)
        self._ended.append(Delta(request.id, finish=finish, error=error))
