"""What the engine asks of a decoding method, and how a request passes from one method to another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stretto.core.chunk import Chunk, Output
from stretto.core.request import Committed, Phase, Request
from stretto.decoding.method import DecodingMethod

if TYPE_CHECKING:
    from stretto.engine.step import Engine

log = logging.getLogger("stretto")


def proposals(method: DecodingMethod, requests: list[Request], rows: list[int]) -> list[tuple[Request, Chunk]]:
    """Return each request with the chunk that its method fills."""
    return list(zip(requests, method.propose(requests, rows), strict=True))


def commits(method: DecodingMethod, requests: list[Request], outputs: list[Output]) -> list[Committed]:
    """Return what each request gained by its output."""
    done = method.commit(requests, [output.chunk for output in outputs], outputs)
    for committed, output in zip(done, outputs, strict=True):
        committed.feature = output.chunk.feature
    return done


def check_rows(method: DecodingMethod, most: int) -> None:
    """Raise ``ValueError`` if the method needs more rows at once than the ``most`` that a step has."""
    if method.facts.rows > most:
        raise ValueError(
            f"method {method.name} needs {method.facts.rows} rows at once, the row budget of a step is {most}: "
            "raise max_rows"
        )


def forget(method: DecodingMethod, request: Request) -> None:
    """Let the method forget a request, and empty what was remembered about it."""
    try:
        method.end(request)
    except Exception as failure:
        log.warning("method %s failed to end request %d: %r", method.name, request.id, failure)
    request.memory.clear()


def switch(engine: Engine, request: Request, method: str) -> None:
    """Let another method aboard move the request from the next step on. Between steps; its text stands and goes on.

    What the new method refuses among the request's parameters is for the caller to look at. Raises ``ValueError`` if
    it needs more rows at once than a step has.
    """
    check_rows(engine.methods[method], engine.scheduler.max_rows)
    if request.method == method:
        return
    lineage = engine.scheduler.lineage(request)
    forget(engine.methods[request.method], request)
    request.method = method
    if request.phase is Phase.RUNNING and engine.scheduler.lineage(request) != lineage:
        engine.scheduler.preempt(request)  # rows made under another cache policy are not the new method's
