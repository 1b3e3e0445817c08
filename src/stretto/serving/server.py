"""A server's life: it listens, loads, serves, restarts its engine, drains and ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from stretto.engine.aio import AsyncEngine
from stretto.serving.app import build
from stretto.serving.logs import tell
from stretto.serving.protocol import Protocol
from stretto.serving.service import Service
from stretto.serving.settings import Settings

GRACE = 5
"""Seconds that streams have to say that the server ends, when the time to drain in is over."""
KEEP_ALIVE = 75
"""Seconds that a connection may be idle. httpx keeps its own for 5, aiohttp for 15: whoever closes first must be the
client, or a request that is just being sent meets a closed connection."""


class Server(uvicorn.Server):
    """uvicorn's, whose signals are ours to handle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens where the settings say. Raises ``OSError`` that says what to do."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"{settings.host} port {settings.port} cannot be listened on: {error.strerror}; choose another --port"
        ) from None


def run(settings: Settings) -> None:
    """Serve in the fastest event loop that is installed. Raises what loading the model raises."""
    factory = uvicorn.Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(settings))


async def serve(
    settings: Settings,
    *,
    process: bool = True,
    init: str | None = None,
    started: Callable[[Server, int], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests end.

    ``process``: whether the engine has a process of its own, in which ``init`` is called first (see ``AsyncEngine``).
    ``started``: called with the server and its port once it listens. Raises what loading the model raises.
    """
    bound = listen(settings)
    engine = AsyncEngine(
        settings.model, process=process, init=init, max_waiting=settings.max_waiting, **settings.engine
    )
    service = Service(settings, engine)
    server = Server(
        uvicorn.Config(
            build(service),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=settings.drain_seconds + GRACE,
            http=Protocol,
        )
    )
    port = bound.getsockname()[1]
    tell("listening", host=settings.host, port=port, model=settings.name)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    with signals(server, engine, settings.drain_seconds):
        try:
            if started is not None:
                started(server, port)
            await engine.start()
            tell(
                "ready", **{name: engine.info()[name] for name in ("fingerprint", "method", "context", "cache_tokens")}
            )
            await serving
        finally:
            server.should_exit = True
            await serving
            await engine.stop()
            tell("stopped")


@contextmanager
def signals(server: Server, engine: AsyncEngine, drain_seconds: float) -> Iterator[None]:
    """SIGTERM and Ctrl-C drain (twice: end at once), SIGHUP restarts the engine, where the system has them.

    What has not ended by itself when the time to drain is over ends with an error. Does nothing outside the main
    thread, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()

    def begin(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def drain() -> None:
        if server.should_exit:
            server.force_exit = True
        server.should_exit = True
        loop.call_later(drain_seconds, lambda: begin(engine.stop()))

    def leave(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(drain)

    async def roll() -> None:
        tell("restarting")
        try:
            await engine.restart()
        except Exception as error:  # a checkpoint may fail to load in any way; the engine at hand goes on
            tell("restart failed", why=f"{error}; the engine goes on as it was")
        else:
            tell("restarted")

    def restart(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(lambda: begin(roll()))

    handlers = {signal.SIGINT: leave, signal.SIGTERM: leave}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = restart
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
