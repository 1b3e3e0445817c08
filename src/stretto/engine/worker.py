"""The engine at work for ``AsyncEngine``, in a thread or in a process of its own: one message a step goes out.

What goes out is ``(kind, payload)``: ``ready`` with ``info`` or ``failed`` with the name and text of an error, then
``events`` (a list, see ``engine.host``), ``batch`` (whose doing the next death may be, when that changes: the ids that
hold places in the cache, and those whose masks are being built) and ``stats``. Beside it the pulse, three numbers of
shared memory: what is being done, of what number, and how many milliseconds it should take.
"""

from __future__ import annotations

import faulthandler
import importlib
import marshal
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from stretto.engine.builder import Builder
from stretto.engine.host import Host, Inbox, Message
from stretto.engine.llm import LLM
from stretto.engine.scheduler import Grant
from stretto.engine.snapshot import info, snapshot

IDLE, STEP, HANDLING = 0.0, 1.0, 2.0
STATS_EVERY = 0.5
"""Seconds between two snapshots at least."""
UNPRICED = 1000.0
"""Milliseconds that a step may be thought to take before anything is known of it."""

Emit = Callable[[str, Any], None]


class Worker(Host):
    """A ``Host`` that sends step by step, shows its pulse, and tells how it fares now and then."""

    def __init__(self, llm: LLM, emit: Emit, pulse: Any) -> None:
        """``pulse``: three floats that can be assigned to."""
        self.events: list[Message] = []
        super().__init__(llm, self.events.append)
        self.emit, self.pulse = emit, pulse
        self._batch: tuple[list[int], list[Any]] = [], []
        self._builder = Builder(llm.intake.masks)
        self._mean = UNPRICED if llm.model.price is None else 0.0
        self._told = self._changed = 0.0
        llm.engine.watch = self._watch

    def serve(self, inbox: Inbox) -> None:
        """Handle messages and step until told to stop."""
        engine = self.llm.engine
        while True:
            try:
                message = inbox.get(block=not engine.busy, timeout=self._until_stats())
            except queue.Empty:
                if engine.busy:
                    self.step()
                self._tell_stats()
                continue
            if message.get("op") == "stop":
                return
            passed = self._builder.pass_on(message, inbox)
            for each in passed:
                self.handle(each)
            if not passed:
                self._tell_batch()

    def handle(self, message: Message) -> None:
        """Take one message, and send what is to be said at once."""
        self._show(HANDLING, float(message.get("id", -1)), 0.0)
        super().handle(message)
        self._changed = time.monotonic()
        self._flush()

    def step(self) -> None:
        """Run one step and send what it added, as one message."""
        began = time.perf_counter()
        if self.llm.engine.requests:
            self._show(STEP, float(self.llm.engine.steps), self._mean)
        deltas = self.llm.engine.step()
        self.pulse[0] = IDLE  # telling is no part of what a step should take
        ms = (time.perf_counter() - began) * 1e3
        self._mean += 0.1 * (ms - self._mean)
        self.tell(deltas)
        self._changed = time.monotonic()
        self._flush()

    def _flush(self) -> None:
        self.pulse[0] = IDLE
        if self.events:
            self.emit("events", self.events)
            self.events.clear()

    def _show(self, doing: float, number: float, ms: float) -> None:
        self.pulse[1], self.pulse[2] = number, ms
        self.pulse[0] = doing

    def _watch(self, grants: Sequence[Grant]) -> None:
        """Say who is in the batch and what the step should take: its rows and their context by the models' prices."""
        self._tell_batch()
        engine = self.llm.engine
        drafted = sum(grant.rows for grant in grants) - sum(load.rows for load in engine.load.values())
        prices = ((engine.models[name].price, load) for name, load in engine.load.items())
        expected = sum(load.ms(price, drafted) for price, load in prices if price is not None)
        self.pulse[2] = max(expected, self._mean)

    def _tell_batch(self) -> None:
        """Say whose doing it may be if this process dies now: those in the batch, and those whose masks are built."""
        running = [request.id for request in self.llm.engine.scheduler.running]
        batch = running, list(self._builder.kept)
        if batch != self._batch:
            self._batch = batch
            names = [self._origin[number][0]["id"] for number in running if number in self._origin]
            self.emit("batch", list(dict.fromkeys(names + batch[1])))

    def _until_stats(self) -> float | None:
        """Return the seconds after which an idle engine has something new to tell; None: nothing."""
        return max(0.0, self._told + STATS_EVERY - time.monotonic()) if self._changed > self._told else None

    def _tell_stats(self) -> None:
        now = time.monotonic()
        if self._changed > self._told and now >= self._told + STATS_EVERY:
            self._told = now
            self.emit("stats", snapshot(self.llm))


def work(model: str, options: Message, init: str | None, inbox: Inbox, emit: Emit, pulse: Any) -> None:
    """Load the model, say so, and serve until told to stop."""
    try:
        if init is not None:
            initialize(init)
        llm = LLM(model, **options)
        worker = Worker(llm, emit, pulse)
        emit("ready", info(llm))
    except Exception as error:
        emit("failed", (type(error).__name__, str(error)))
        return
    worker.serve(inbox)


def initialize(init: str) -> None:
    """Call ``module:function``, by which plug-ins register what they add. Raises ``ValueError`` if it is not there."""
    module, _, function = init.partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"init={init!r}: expected 'module:function' that can be imported; {error}") from error
    call()


def main(model: str, options: Message, init: str | None, inbound: Connection, outbound: Connection, pulse: Any) -> None:
    """Be the process: messages come by one pipe and go by another. When the other side is gone, so is this one."""
    if sys.stderr is not None:
        faulthandler.enable()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # whoever started this process ends it, in its own time
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbound, inbox), name="stretto-inbox", daemon=True).start()
    work(model, options, init, inbox, lambda kind, payload: outbound.send_bytes(marshal.dumps((kind, payload))), pulse)


def _read(inbound: Connection, inbox: queue.SimpleQueue[Message]) -> None:
    try:
        while True:
            inbox.put(marshal.loads(inbound.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)
