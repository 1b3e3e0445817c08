"""The ways to a worker: a thread of this process, or a process of its own with a pipe for each direction.

A pipe, unlike a queue of ``multiprocessing``, has no lock that a killed process could take with it; each process gets
fresh ones. ``marshal`` is the format, because it knows plain data and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import marshal
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from stretto.engine import worker

Message = dict[str, Any]
CLOSING = 5.0
"""Seconds that a process may live on behind the end of its pipe."""
Post = Callable[["Transport", str, Any], None]
"""Takes what a worker says, in a thread: ``(transport, kind, payload)``, the last of them ``ended`` with the reason."""


class Transport(Protocol):
    """One worker, from start to end."""

    lasting: bool
    """Whether its end is the end: a thread's is, since nothing but a fault of the engine itself ends it."""
    pulse: Any
    """See ``engine.worker``."""

    def start(self) -> None:
        """Begin to load the model."""
        ...

    def send(self, message: Message) -> None:
        """Send a message of plain data, without waiting."""
        ...

    def kill(self, reason: str) -> None:
        """End it now, where that is possible; it is told as ``reason``."""
        ...

    def stop(self, patience: float) -> None:
        """End it between two steps, or after ``patience`` seconds by force; return when it is gone."""
        ...


def plain(message: Message) -> bytes:
    """Return the message as bytes. ``ValueError`` if it holds anything but plain data."""
    try:
        return marshal.dumps(message)
    except ValueError as error:
        raise ValueError(
            f"the request holds something that is no plain data ({error}): use numbers, strings, lists and dictionaries"
        ) from None


class ThreadTransport:
    """A worker in a thread of this process."""

    lasting = True

    def __init__(self, model: str, init: str | None, options: Message, post: Post) -> None:
        self.pulse = [worker.IDLE, 0.0, 0.0]
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._arguments, self._post = (model, options, init), post
        self._thread = threading.Thread(target=self._run, name="stretto-engine", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def send(self, message: Message) -> None:
        """Put a message into its inbox."""
        self._inbox.put(message)

    def kill(self, reason: str) -> None:
        """A thread cannot be ended by force: it is told to stop and left to itself."""
        self._inbox.put({"op": "stop"})

    def stop(self, patience: float) -> None:
        """Wait for its last step; there is no force for a thread."""
        self._inbox.put({"op": "stop"})
        self._thread.join()

    def _run(self) -> None:
        def emit(kind: str, payload: Any) -> None:
            self._post(self, kind, payload.copy() if kind == "events" else payload)  # that list goes on filling up

        reason = "the engine was stopped"
        try:
            worker.work(*self._arguments, self._inbox, emit, self.pulse)
        except Exception as error:
            reason = f"the engine failed: {type(error).__name__}: {error}"
        self._post(self, "ended", reason)


class ProcessTransport:
    """A worker in a process, started afresh (``spawn``, on every system)."""

    lasting = False

    def __init__(self, model: str, init: str | None, options: Message, post: Post) -> None:
        context = multiprocessing.get_context("spawn")
        self.pulse = context.RawArray("d", 3)
        theirs_in, self._outbound = context.Pipe(duplex=False)
        self._inbound, theirs_out = context.Pipe(duplex=False)
        self._theirs = theirs_in, theirs_out
        arguments = (model, options, init, theirs_in, theirs_out, self.pulse)
        self._process = context.Process(target=worker.main, args=arguments, name="stretto-engine", daemon=True)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._post, self._reason = post, ""
        self._gone = threading.Event()

    def start(self) -> None:
        """Begin to load the model. Takes as long as a process takes to start."""
        self._process.start()
        atexit.register(self._process.kill)  # or multiprocessing would wait at exit for what ignores its signal
        if self._reason:
            self._process.kill()
        for end in self._theirs:  # or its death would not be the end of the pipes
            end.close()
        for call in (self._read, self._write):
            threading.Thread(target=call, name=f"stretto-engine-{call.__name__}", daemon=True).start()

    def send(self, message: Message) -> None:
        """Queue a message for the thread that writes, since a pipe may be full."""
        self._outbox.put(plain(message))

    def kill(self, reason: str) -> None:
        """End the process, as ``kill -9`` does."""
        self._reason = self._reason or reason
        if self._process.pid is not None:
            self._process.kill()

    def stop(self, patience: float) -> None:
        """Let it end between two steps, or kill it."""
        self.send({"op": "stop"})
        if not self._gone.wait(patience):
            self.kill("the engine was stopped")
            self._gone.wait()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self._outbox.get()) is not None:
                self._outbound.send_bytes(frame)
        self._outbound.close()

    def _read(self) -> None:
        post = partial(self._post, self)
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, payload = marshal.loads(self._inbound.recv_bytes())
                post(kind, payload)
        self._inbound.close()
        self._outbox.put(None)
        self._process.join(CLOSING)
        self._process.kill()
        self._process.join()
        atexit.unregister(self._process.kill)
        self._gone.set()
        post("ended", self._reason or ending(self._process.exitcode))


def ending(code: int | None) -> str:
    """Return in words how a process ended."""
    if code is None or code == 0:
        return "the engine's process ended"
    if code > 0:
        return f"the engine's process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " (kill -9, or the system was out of memory)" if name == "SIGKILL" else ""
    return f"the engine's process was ended by {name}{hint}"
