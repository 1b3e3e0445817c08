"""Progress of what takes long, for people."""

from __future__ import annotations

import sys
import time


class EverySecond:
    """Progress on standard error, a line a second, if that is a terminal."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()
        self._screen = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._screen and now - self._said >= 1 and done < total:
            self._said = now
            left = (now - self._began) * (total - done) / done
            print(f"{done / 1e9:.2f} of {total / 1e9:.2f} G weights, {left:.0f} s left", file=sys.stderr, flush=True)
