"""Servers for tests: a real one on a local port, its engine in a thread; and a model that spells what it is told to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from stretto.core.batch import Batch, Result
from stretto.engine import llm
from stretto.serving.server import Server, serve
from stretto.serving.settings import Settings

ENGINE = {"dtype": "fp32", "weights": "fp32", "cache_tokens": 4000}


@contextmanager
def served(*, process: bool = False, **options: Any) -> Iterator[str]:
    """Yield the address of a server that is ready."""
    settings = Settings("stretto-tiny", **{"engine": ENGINE, "port": 0, "drain_seconds": 10, **options})
    begun: list[tuple[Server, int]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(serve(settings, process=process, started=lambda *found: begun.append(found)))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{_ready(begun, failed)}"
    finally:
        if begun:
            begun[0][0].should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"


def _ready(begun: list[tuple[Server, int]], failed: list[BaseException]) -> int:
    while not failed:
        try:
            if begun and httpx.get(f"http://127.0.0.1:{begun[0][1]}/ready").status_code == 200:
                return begun[0][1]
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise failed[0]


def client(address: str, key: str = "none") -> openai.OpenAI:
    """Return the official client, which shall report errors at once instead of trying again."""
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=300)


def post(address: str, path: str, body: Any, **headers: str) -> httpx.Response:
    """Send a body of JSON."""
    return httpx.post(address + path, json=body, headers=headers, timeout=300)


class Speller:
    """Overrules the logits of a model: behind the next prompt it says the tokens it was told, then ends the text."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._says: list[int] = []
        self._start: int | None = None
        load = llm.load_model

        def loaded(*args: Any, **options: Any) -> Any:
            model = load(*args, **options)
            forward: Callable[[Batch], Result] = model.forward
            self._end = min(model.spec.eos_ids)
            patch.setattr(model, "forward", lambda batch: self._overrule(batch, forward(batch)), raising=False)
            return model

        patch.setattr(llm, "load_model", loaded)

    def say(self, tokens: list[int]) -> None:
        """Choose what is said behind the next prompt."""
        self._says, self._start = [*tokens, self._end], None

    def _overrule(self, batch: Batch, result: Result) -> Result:
        index = [position for part in batch.parts for position in part.chunk.index]
        for place, row in enumerate(batch.wanted):
            if self._start is None:
                self._start = index[row]
            said = index[row] - self._start
            result.logits[place] = 0.0
            result.logits[place, self._says[min(said, len(self._says) - 1)]] = 100.0
        return result
