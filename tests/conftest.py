"""What tests share: the embedded model in full precision, and the plain texts that everything is compared with."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import LENGTH, PARAMS, PROMPTS
from helpers import plain_text

from stretto.engine.llm import LLM
from stretto.kernels import native
from stretto.models.backend import AnyTransformer

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers have a core each: threads that wait for each other would wait for the other workers' turns too.
    os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a storm be repeated."""
    parser.addoption(
        "--chaos-seed", type=int, default=None, help="seed of test_chaos (default: a new one, in the header)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Draw the storm's seed before anything is printed."""
    if config.getoption("--chaos-seed") is None:
        config.option.chaos_seed = random.SystemRandom().randrange(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    """Name the seed of this run's storm."""
    return f"chaos seed: {config.getoption('--chaos-seed')}"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave PyTorch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    native.set_threads(before)


@pytest.fixture(scope="session")
def tiny() -> LLM:
    """The embedded model in fp32."""
    return LLM("stretto-tiny", dtype="fp32", weights="fp32", cache_tokens=2000)


@pytest.fixture(scope="session")
def tiny_model(tiny: LLM) -> AnyTransformer:
    """A second transformer of the same weights, free to be bound to engines of tests."""
    return LLM("stretto-tiny", dtype="fp32", weights="fp32", cache_tokens=256).model


def _texts(model: AnyTransformer, encode: Callable[[str], list[int]]) -> Plain:
    known: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def of(prompt: str, params: str) -> tuple[list[int], list[int]]:
        if (prompt, params) not in known:
            ids = encode(PROMPTS[prompt])
            known[prompt, params] = ids, plain_text(model, ids, max_tokens=LENGTH, **PARAMS[params])
        return known[prompt, params]

    return of


Plain = Callable[[str, str], tuple[list[int], list[int]]]


@pytest.fixture(scope="session")
def plain(tiny: LLM, tiny_model: AnyTransformer) -> Plain:
    """Return (prompt ids, plain text of 256 tokens) for a name of PROMPTS and one of PARAMS, computed once, alone."""
    return _texts(tiny_model, tiny.tokenizer.encode)


NUMERICS = ["fp32"] if native.load() is None else ["fp32", "bf16", "int8", "int8x2", "int4"]
"""Weights formats in which the text must be the same whatever the company; the reference is too slow for all."""


@pytest.fixture(scope="session", params=NUMERICS)
def stored(request: pytest.FixtureRequest, tiny: LLM) -> tuple[AnyTransformer, Plain]:
    """Return the embedded model in each weights format, and its plain texts."""
    dtype = "bf16" if request.param == "bf16" else "fp32"
    model = LLM("stretto-tiny", dtype=dtype, weights=request.param, cache_tokens=256).model
    return model, _texts(model, tiny.tokenizer.encode)
