"""Stretto as the benchmarks time it: whole steps of the engine, choice and logits included."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from stretto import LLM, SamplingParams
from stretto.core.request import Request
from stretto.core.tree import DraftTree
from stretto.decoding.method import Services
from stretto.decoding.speculative.drafter import Draft, Observation
from stretto.decoding.speculative.method import Speculative
from stretto.kernels import native

PROMPT = 512
"""Tokens of the prompt that is timed in one slice, and the row budget that allows it."""


class GarbageDrafter:
    """A run of random tokens for every row it may have; at 32,000 tokens of vocabulary it is as good as never right."""

    name = "garbage"

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size, self._random = vocab_size, random.Random(0)

    def bind(self, services: Services) -> None:
        """Garbage needs no services."""

    def begin(self, request: Request) -> None:
        """Nothing is prepared."""

    def draft(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Draft]:
        """Return a run of ``rows[i]`` random tokens for each request."""
        return [
            Draft(DraftTree.run([self._random.randrange(self._vocab_size) for _ in range(count)], 0.5, self.name))
            for count in rows
        ]

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing is learnt."""

    def rewind(self, request: Request) -> None:
        """Nothing is remembered."""

    def end(self, request: Request) -> None:
        """Nothing is remembered."""


class Stretto:
    """One checkpoint in one weights format, with an engine that computes a prompt of ``PROMPT`` in one slice."""

    def __init__(self, model: Path | str, weights: str, threads: int) -> None:
        begun = perf_counter()
        self.weights = weights
        self.llm = LLM(str(model), weights=weights, threads=threads, max_rows=PROMPT, cache_tokens=16384)
        self.load_seconds = perf_counter() - begun
        self._fresh = random.Random(1)

    def rows(self, rows: int, context: int, repeats: int = 1) -> float:
        """Return the median seconds of ``repeats`` steps of ``rows`` rows of one request behind ``context`` positions.

        Its prompt comes from the prefix cache but for its last rows, whose step warms up. What is drafted is
        rejected, so that the context grows by one position a step.
        """
        request = self._start(self._prompt(random.Random(context), context), repeats + rows, self._method(rows))
        times = [self._step(rows) for _ in range(repeats)]
        self.llm.engine.abort(request.id)
        return median(times)

    def prompt(self, tokens: int = PROMPT) -> float:
        """Return the seconds of the one step that computes a new prompt and chooses the first token behind it."""
        (request,) = self.llm.submit(self._prompt(self._fresh, tokens), SamplingParams(temperature=0.0, max_tokens=2))
        seconds = self._step(tokens)
        self.llm.engine.abort(request.id)
        return seconds

    def outside(self, context: int, steps: int) -> float:
        """Return the share of a one-row step that is spent outside native calls, the median over ``steps``."""
        request = self._start(self._prompt(random.Random(context), context), steps + 1, "plain")
        shares = []
        for _ in range(steps):
            before = native.seconds()
            whole = self._step(1)
            shares.append(1 - (native.seconds() - before) / whole)
        self.llm.engine.abort(request.id)
        return median(shares)

    def _start(self, prompt: list[int], tokens: int, method: str) -> Request:
        """Return a request whose prompt is computed and whose first token is chosen."""
        params = SamplingParams(temperature=0.0, max_tokens=tokens + 1, ignore_eos=True)
        (request,) = self.llm.submit(prompt, params, method)
        while len(request.tokens) == len(prompt) or request.pending > 1:
            self.llm.engine.step()
            if request.error is not None:
                raise RuntimeError(request.error)
        return request

    def _step(self, rows: int) -> float:
        """Return the seconds of one step, which must compute ``rows`` rows and nothing else."""
        engine = self.llm.engine
        before = engine.rows
        begun = perf_counter()
        engine.step()
        seconds = perf_counter() - begun
        if engine.rows - before != rows:
            raise RuntimeError(f"a step computed {engine.rows - before} rows, expected {rows}")
        return seconds

    def _method(self, rows: int) -> str:
        """Return the name of the method that fills ``rows`` rows a step, put aboard when first asked for."""
        if rows == 1:
            return "plain"
        name = f"verify-{rows}"
        if name not in self.llm.engine.methods:
            drafter = GarbageDrafter(self.llm.model.vocab_size)
            self.llm.engine.add_method(Speculative(name, [drafter], rows=rows - 1))
        return name

    def _prompt(self, source: random.Random, tokens: int) -> list[int]:
        return [source.randrange(2, self.llm.model.vocab_size) for _ in range(tokens)]
