"""What is aboard and unused costs a plain step nothing: Python opcodes executed and native calls made, counted."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import request
from small import small

from stretto.core.request import Request
from stretto.decoding.plain import Plain
from stretto.engine.step import Engine
from stretto.kernels import native
from stretto.recipes.recipe import Aboard
from stretto.recipes.table import RECIPES, build_method

STEPS, WARM = 32, 8
ALLOWED = 0.01
"""Share of further opcodes that a step may execute."""


def bare() -> Engine:
    return Engine({"target": small(layers=3)}, [Plain()], cache_tokens=512, max_rows=64)


def laden(kind: type[Engine] = Engine) -> Engine:
    """Return an engine with a draft model and every method that can be built of these two models."""
    models = {"target": small(layers=3), "draft": small(name="draft", layers=1, seed=1)}
    aboard = Aboard(models)
    here = [name for name, recipe in RECIPES.items() if name != "plain" and recipe.needs <= aboard.things()]
    methods = [build_method(name, aboard) for name in here]
    return kind(models, [Plain(), *methods], cache_tokens=512, max_rows=64)


class Polling(Engine):
    """Control: its step asks every method aboard about every request."""

    def step(self) -> list[Any]:
        for method in self.methods.values():
            for each in self.requests.values():
                method.extra(each)
        return super().step()


def plain_steps(engine: Engine, watch: Callable[[Callable[[], None]], Any]) -> Any:
    """Return what ``watch`` makes of ``STEPS`` steps of plain decoding."""

    def steps() -> None:
        for _ in range(STEPS):
            engine.step()

    asked: Request = request(engine, [3, 4, 5, 6], max_tokens=WARM + STEPS + 8)
    engine.submit(asked)
    for _ in range(WARM):
        engine.step()
    before = len(asked.tokens)
    seen = watch(steps)
    assert len(asked.tokens) == before + STEPS and not asked.stats.drafted
    return seen


def opcodes(call: Callable[[], None]) -> int:
    """Return how many opcodes of Python a call executes."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # other people's callbacks of the collector would be counted whenever one falls into the call
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


class Counting:
    """A native object whose calls are written down."""

    def __init__(self, inner: Any, calls: list[str]) -> None:
        self._inner, self._calls = inner, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self._calls.append(name)
            return found(*arguments, **named)

        return counted

    def __len__(self) -> int:
        return len(self._inner)


@contextmanager
def native_calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Write down every call into the native library, and into the op lists of the engine's models."""
    calls: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(native, "_library", Counting(native.required(), calls))
        for model in engine.models.values():
            patch.setattr(model, "program", Counting(model.program, calls))
        yield calls


def test_unused_methods_and_models_add_less_than_a_percent_of_opcodes():
    alone = plain_steps(bare(), opcodes)
    assert alone == plain_steps(bare(), opcodes) > 1000 * STEPS, "the count is exact, or means nothing"
    assert plain_steps(laden(), opcodes) < (1 + ALLOWED) * alone
    assert plain_steps(laden(Polling), opcodes) > (1 + ALLOWED) * alone, "needless work of every step went unseen"


@pytest.mark.skipif(native.load() is None, reason=native.reason)
def test_unused_methods_and_models_make_no_native_calls(monkeypatch):
    made = []
    for engine in (bare(), laden()):
        with native_calls(engine, monkeypatch) as calls:
            plain_steps(engine, lambda call: call())
        made.append(calls)
    assert made[0] == made[1] and made[0].count("forward") == WARM + STEPS
