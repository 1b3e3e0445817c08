"""The company that every seam is tested in: plain requests on two models, a long prompt in slices, little cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from helpers import assert_whole, plain_text, request
from small import small

from stretto.core.batch import Model
from stretto.core.request import Request
from stretto.decoding.method import DecodingMethod
from stretto.decoding.plain import Plain
from stretto.engine.step import Engine

Asked = tuple[list[int], str, dict[str, Any]]
"""Prompt, name of the method, parameters."""


def target() -> Model:
    return small(layers=2)


def other() -> Model:
    return small(name="other", layers=1, seed=1)


def prompts(count: int, *, vocab: int = 64, lengths: tuple[int, int] = (4, 30), seed: int = 7) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(1, vocab) for _ in range(source.randint(*lengths))] for _ in range(count)]


class Company:
    """Plain requests that run beside the tested ones and must not notice them.

    Engines get models of their own from ``models``: a model belongs to the engine that bound it last.
    """

    def __init__(self, models: Sequence[Callable[[], Model]] = (target, other)) -> None:
        self.models = dict(zip(("target", "other"), models, strict=True))
        vocab = self.models["target"]().vocab_size
        short, (long,) = prompts(5, vocab=vocab), prompts(1, vocab=vocab, lengths=(80, 80))
        mixed = zip(["target", "other"] * 3, short, [0.0, 0.8] * 3, strict=False)
        self.parts = [("target", long, 0.0), *mixed]
        self.texts = [self.alone(prompt, model, **self._params(t)) for model, prompt, t in self.parts]

    def _params(self, temperature: float) -> dict[str, Any]:
        return {"temperature": temperature, "seed": 5, "max_tokens": 16}

    def alone(self, prompt: list[int], model: str = "target", **params: Any) -> list[int]:
        """Return the text of plain decoding, alone in an engine."""
        return plain_text(self.models[model](), prompt, **params)

    def engine(self, *methods: DecodingMethod, tokens: int | dict[str, int] = 112, rows: int = 9) -> Engine:
        models = {name: make() for name, make in self.models.items()}
        return Engine(models, [Plain(), *methods], cache_tokens=tokens, max_rows=rows)

    def play(self, engine: Engine, asked: Sequence[Asked], *, reuse: bool = True) -> list[Request]:
        """Run the asked requests behind the company's; return them finished.

        ``reuse``: whether cached prefixes may serve the asked. Some of them are preempted, by the cache and on purpose.
        Checks the company's texts and that nothing leaked.
        """
        mine = [request(engine, prompt, model=model, **self._params(t)) for model, prompt, t in self.parts]
        tested = [request(engine, prompt, method, **params) for prompt, method, params in asked]
        for each in tested:
            each.reuse = reuse
        for each in (*mine, *tested):
            engine.submit(each)
        while engine.busy:
            engine.step()
            running = [each for each in tested if each in engine.scheduler.running and each.state.generated]
            if engine.steps % 4 == 0 and running and not running[-1].stats.preemptions:
                engine.scheduler.preempt(running[-1])
        assert [text(each) for each in mine] == self.texts
        assert sum(each.stats.preemptions for each in tested) > 0
        assert engine.rows == sum(each.stats.rows for each in (*mine, *tested))
        assert_whole(engine)
        return tested


def text(each: Request) -> list[int]:
    """Return what the request generated."""
    return each.tokens[len(each.prompt) :]
