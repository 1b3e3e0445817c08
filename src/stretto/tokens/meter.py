"""What a chat template may use: time, and room for what it builds; how much its operations would take.

A template comes with a checkpoint, from anyone, and may run for ever or fill the memory. Loops, calls, filters and
operators look at the clock, and whatever makes texts or lists larger is told in advance how large the result would be.
No signal, thread or trace function is needed, so it works the same in every thread and on every system.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError

MAX_NUMBER = 10_000
"""Largest width, precision or count that a template may give to what formats or fills."""
ITEM = 8
"""What an item of a list counts as, in characters."""
_SMALL = 64
"""Texts below this length are not worth an entry in the account; the clock limits how many there can be."""
_SIZED = (str, Mapping, list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
NUMBERS = re.compile(r"\d+")
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*")


class TemplateLimitError(TemplateError, ValueError):
    """A chat template went beyond a limit; the message names it."""


class Meter:
    """What one run of a template may still use."""

    def __init__(self, characters: int, seconds: float) -> None:
        self.limit, self.seconds = characters, seconds
        self._left = characters
        self._end = time.thread_time() + seconds
        self._known: dict[int, tuple[Any, int]] = {}

    def tick(self) -> None:
        """Look at the clock: the processor time of this thread, which a busy machine does not shorten."""
        if time.thread_time() > self._end:
            raise TemplateLimitError(f"the chat template ran for more than {self.seconds:g} seconds (max_seconds)")

    def need(self, size: int) -> None:
        """Refuse what would take more than is left."""
        if size > self._left:
            raise TemplateLimitError(
                f"the chat template builds texts and lists of more than {self.limit} characters (MAX_WORK)"
            )

    def spend(self, size: int) -> None:
        """Take from what is left."""
        self.need(size)
        self._left -= size

    def size(self, value: Any) -> int:
        """Characters that ``value`` takes when written out, each shared part as often as it appears.

        Each text and container is paid for when it is first met, and kept, so that its identity stays its own.
        """
        if isinstance(value, int):
            return value.bit_length()
        if not isinstance(value, _SIZED) or (isinstance(value, str) and len(value) < _SMALL):
            return len(value) if isinstance(value, str) else ITEM
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        self.tick()
        if isinstance(value, str):
            own, inner = _SMALL + len(value), 0
        else:
            parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
            own = ITEM * (2 * ITEM + len(parts))
            inner = sum(map(self.size, parts))
        self.spend(own)
        self.need(own + inner)
        self._known[id(value)] = value, own + inner
        return own + inner


METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered(characters: int, seconds: float) -> Iterator[None]:
    """Within it templates may be compiled and run; see :class:`Meter` for what is counted."""
    token = METER.set(Meter(characters, seconds))
    try:
        yield
    finally:
        METER.reset(token)


def check_numbers(numbers: Iterable[str | int]) -> None:
    for number in numbers:
        if len(str(number)) > len(str(MAX_NUMBER)) or abs(int(number)) > MAX_NUMBER:
            raise TemplateLimitError(f"the chat template gives a width or count of {number!s:.20}, above {MAX_NUMBER}")


def percent_size(form: str, values: Any) -> int:
    """Bound of the size of ``form % values``."""
    conversions = _CONVERSION.findall(form)
    if any("*" in conversion for conversion in conversions):
        raise TemplateLimitError("the chat template takes a width from an argument ('*'), which is not offered")
    numbers = [number for conversion in conversions for number in NUMBERS.findall(conversion.rpartition(")")[2])]
    check_numbers(numbers)
    return len(form) + sum(map(int, numbers)) + len(conversions) * METER.get().size(values)


def _replace_size(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _indent_size(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    text = str(text)
    return len(text) + (text.count("\n") + 1) * _width(width)


def _tabs_size(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * _width(tabsize)


def _split_size(text: str, separator: str | None = None, *_: Any, **__: Any) -> int:
    return ITEM * sum(map(text.count, [separator] if separator else " \n\r\t"))


def _width(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    check_numbers([value] if isinstance(value, int) else [])
    return int(value)


def _fill_size(value: Any, count: Any = 0, *_: Any, **__: Any) -> int:
    """Bound of what is filled up to ``count``: characters of a text, items of a row."""
    return METER.get().size(value) + ITEM * _width(count)


def _round_size(value: Any, precision: Any = 0, *_: Any, **__: Any) -> int:
    return _width(precision)


# By the name of a filter or of a method of texts: bound of the size of its result, from its arguments.
GROWTH: dict[str, Callable[..., int]] = {
    "replace": _replace_size,
    "indent": _indent_size,
    "expandtabs": _tabs_size,
    "format": lambda form, *args, **kwargs: percent_size(str(form), kwargs or args),
    "round": _round_size,
    "list": lambda value: ITEM * len(value) if isinstance(value, str) else 0,
    "split": _split_size,
    "rsplit": _split_size,
    "splitlines": lambda text, *_: ITEM * (text.count("\n") + text.count("\r")),
    "escape": lambda text: 6 * len(str(text)),
    "e": lambda text: 6 * len(str(text)),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice"), _fill_size),
}


def join_size(separator: str, parts: list[Any]) -> int:
    return sum(map(METER.get().size, parts)) + len(separator) * len(parts)


def product_size(meter: Meter, left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return number_size(left.bit_length() + right.bit_length())
    count, value = (left, right) if isinstance(left, int) else (right, left)
    return meter.size(value) * max(0, count) if isinstance(count, int) else 0


def number_size(bits: int) -> int:
    """What a whole number counts as: long ones take time rather than memory."""
    return 1000 * bits
