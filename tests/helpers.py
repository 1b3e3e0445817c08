"""Building engines and requests for tests."""

from __future__ import annotations

from itertools import count

from stretto.core.params import SamplingParams
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.decoding.plain import Plain
from stretto.engine.step import Engine

NUMBERS = count()


def request(engine: Engine, prompt: list[int], method: str = "plain", model: str = "target", **params) -> Request:
    """Return a request for an engine, as its intake would build it."""
    params = SamplingParams(**{"max_tokens": 32, "temperature": 0.0, "ignore_eos": True, **params})
    target = engine.models[model]
    limit = min(params.max_tokens, target.context - len(prompt))
    state = SamplerState.begin(
        params,
        prompt,
        sample=0,
        seed=params.seed or 0,
        vocab_size=target.vocab_size,
        eos_ids=frozenset({0}),
        limit=limit,
    )
    return Request(next(NUMBERS), prompt, params, state, params.seed or 0, method=method, model=model)


def run(engine: Engine, *requests: Request, limit: int = 100_000) -> list[list[int]]:
    """Submit, step until all have ended, return the generated tokens of each."""
    for each in requests:
        engine.submit(each)
    for _ in range(limit):
        if all(each.finish for each in requests):
            return [each.tokens[len(each.prompt) :] for each in requests]
        engine.step()
    raise AssertionError(f"not finished after {limit} steps: {[each.phase for each in requests]}")


def plain_text(model, prompt: list[int], **params) -> list[int]:
    """Return the plain decoding of one request, alone in an engine of its own."""
    engine = Engine({"target": model}, [Plain()], cache_tokens=model.context, max_rows=model.context)
    return run(engine, request(engine, prompt, **params))[0]


def assert_whole(engine: Engine) -> None:
    """Check that nothing leaked: no requests, no views, every block free or an unused prefix."""
    assert not engine.requests and not engine.scheduler.running and not engine.scheduler.waiting
    for cache in engine.caches.values():
        cache.check()
        assert cache.available() == cache.capacity
