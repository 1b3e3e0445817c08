"""What the death of an engine means: for its requests, for those who ask whether it is ready, and when a step is one.

No clock is read and nothing is started here: decisions alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from stretto.engine.stream import Stream
from stretto.engine.worker import HANDLING, IDLE, STEP


@dataclass(frozen=True, slots=True)
class Limits:
    """When an engine in a process of its own counts as dead, and when as unwell."""

    slow_factor: float = 50.0
    """How many times its predicted time a step may take,"""
    slow_seconds: float = 10.0
    """and how many seconds at least."""
    loading_seconds: float = 1800.0
    """How long a model may load, also one that a request brings aboard."""
    deaths: int = 3
    """So many deaths within ``window`` seconds, and it is not ready until as long has passed without one."""
    window: float = 60.0
    longest_pause: float = 30.0
    """Seconds between two attempts to load a model that does not load."""


class StepWatch:
    """Tells from the pulse of a worker whether what it does takes too long.

    Time passes as this side sees it: a look that comes late (the machine slept) counts as if it had come in time.
    """

    def __init__(self, limits: Limits, interval: float) -> None:
        self._limits, self._longest = limits, 2 * interval
        self._doing: tuple[float, float] = (IDLE, 0.0)
        self._taken = self._looked = 0.0

    def look(self, pulse: Sequence[float], now: float) -> str | None:
        """Return what takes too long, in words, or None."""
        doing = pulse[0], pulse[1]
        gap, self._looked = min(now - self._looked, self._longest), now
        if doing[0] == IDLE or doing != self._doing:
            self._doing, self._taken = doing, 0.0
            return None
        self._taken += gap
        limits = self._limits
        if doing[0] == STEP:
            most = max(limits.slow_seconds, limits.slow_factor * pulse[2] / 1e3)
            if self._taken > most:
                return f"a step took more than {self._taken:.1f} s, where {pulse[2] / 1e3:.2g} s were expected"
        elif doing[0] == HANDLING and self._taken > limits.loading_seconds:
            return f"taking up one request took more than {self._taken:.0f} s"
        return None


class Record:
    """The deaths so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._times: deque[float] = deque(maxlen=limits.deaths)
        self._unwell = False
        self.deaths = 0
        self.last = ""

    def died(self, now: float, reason: str) -> None:
        """Book a death."""
        self.deaths += 1
        self.last = reason
        self._unwell = self.unwell(now)
        self._times.append(now)
        full = len(self._times) == self._limits.deaths
        self._unwell = self._unwell or (full and now - self._times[0] <= self._limits.window)

    def unwell(self, now: float) -> bool:
        """Whether too many deaths lie too near to each other, and the last of them too near to now."""
        return self._unwell and now - self._times[-1] < self._limits.window

    def why(self, now: float) -> str | None:
        """Return why the engine should not be trusted with further requests, or None."""
        if not self.unwell(now):
            return None
        limits, ago = self._limits, now - self._times[-1]
        return (
            f"the engine died {limits.deaths} times within {limits.window:.0f} s, the last time {ago:.0f} s ago: "
            f"{self.last}; ready again when {limits.window:.0f} s have passed without a death"
        )


def suspects(pulse: Sequence[float], batch: Collection[int]) -> Collection[int]:
    """Return the requests that a death may be blamed on: the one being taken up, or those in the batch of the step."""
    return {int(pulse[1])} if pulse[0] == HANDLING else batch


def judge(streams: Iterable[Stream], blamed: Collection[int]) -> list[Stream]:
    """Count a death against the blamed; return those that were blamed twice running and gained nothing in between."""
    guilty: list[Stream] = []
    for stream in streams:
        stream.strikes = stream.strikes + 1 if stream.id in blamed else 0
        if stream.strikes > 1:
            guilty.append(stream)
    return guilty
