"""What a caller of ``AsyncEngine`` may have to handle, beside ``ValueError`` for what he asked wrongly."""

from __future__ import annotations

import builtins


class EngineDied(RuntimeError):
    """The engine ended underneath a request, and the request cannot go on in another one."""


class Overloaded(RuntimeError):
    """More requests wait than may. ``retry_after``: seconds until the queue will have moved on."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting, and no more may: try again in {retry_after:.0f} s")
        self.retry_after = retry_after


LOADING = ("ValueError", "FileNotFoundError", "MemoryError", "PermissionError", "ConnectionError", "OSError")
"""What ``LLM`` raises for a caller to read."""


def loading_error(kind: str, text: str) -> Exception:
    """Return what ``LLM`` raised in another process, from the name of its class and its message."""
    if kind in LOADING:
        error: Exception = getattr(builtins, kind)(text)
        return error
    return EngineDied(f"the engine could not be loaded: {kind}: {text}")
