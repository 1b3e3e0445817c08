"""What tests share: the embedded model in full precision, and the plain texts that everything is compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import LENGTH, PARAMS, PROMPTS
from helpers import plain_text

from stretto.engine.llm import LLM
from stretto.kernels import native
from stretto.models.backend import AnyTransformer


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


@pytest.fixture(scope="session")
def plain(tiny: LLM, tiny_model: AnyTransformer) -> Callable[[str, str], tuple[list[int], list[int]]]:
    """Return (prompt ids, plain text of 256 tokens) for a name of PROMPTS and one of PARAMS, computed once, alone."""
    known: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def of(prompt: str, params: str) -> tuple[list[int], list[int]]:
        if (prompt, params) not in known:
            ids = tiny.tokenizer.encode(PROMPTS[prompt])
            known[prompt, params] = ids, plain_text(tiny_model, ids, max_tokens=LENGTH, **PARAMS[params])
        return known[prompt, params]

    return of
