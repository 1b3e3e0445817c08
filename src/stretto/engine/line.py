"""The line of requests before the engine: how many may wait, how long it will take, and who is sent when.

Requests are sent at once, in their order. Behind a death, those that were in the batch are on probation: one at a
time, the next when the one before has gained a token, so that a request which ends engines is alone when it does so
again, and is known by it. Each costs the others a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from stretto.engine.errors import Overloaded
from stretto.engine.stream import Stream

RECENT = 10.0
"""Seconds over which the pace of the line is taken."""
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0


class Line:
    """Streams on their way to the engine. ``send`` takes one to the engine at hand."""

    def __init__(self, most: int, send: Callable[[Stream], None]) -> None:
        self._most, self._send = most, send
        self._unsent: deque[Stream] = deque()
        self._probation: Stream | None = None
        self._began: deque[float] = deque()
        self.waiting = 0
        """Requests that have not been in a step yet."""
        self.open = False
        """Whether there is an engine to send to."""

    def check(self, now: float) -> None:
        """Raise ``Overloaded`` if nobody else may wait."""
        if self.waiting >= self._most:
            raise Overloaded(self.waiting, self._time(now))

    def add(self, stream: Stream) -> None:
        """Let a new request wait."""
        self.waiting += 1
        self._unsent.append(stream)
        self.move()

    def start(self, streams: Iterable[Stream]) -> None:
        """Send to a new engine whoever has not ended."""
        self._unsent, self._probation, self.open = deque(streams), None, True
        self.move()

    def move(self) -> None:
        """Send whom nothing holds back."""
        last = self._probation
        if last is not None and (not last.samples or last.strikes == 0):
            self._probation = None
        while self.open and self._unsent and self._probation is None:
            stream = self._unsent.popleft()
            if not stream.samples:
                continue
            self._send(stream)
            if stream.strikes:
                self._probation = stream

    def began(self, stream: Stream, now: float) -> None:
        """A request is in a step for the first time."""
        stream.began = now
        self.waiting -= 1
        self._began.append(now)
        while self._began[0] < now - RECENT:
            self._began.popleft()

    def left(self, stream: Stream) -> None:
        """A request is over."""
        if stream.began is None:
            self.waiting -= 1
        self.move()

    def _time(self, now: float) -> float:
        """Return the seconds in which those who wait will have begun, at the pace of late."""
        lately = [began for began in self._began if began >= now - RECENT]
        time = self.waiting * (now - lately[0]) / len(lately) if lately else LONGEST_WAIT
        return min(max(time, SHORTEST_WAIT), LONGEST_WAIT)
