"""Reading ``config.json`` so that nothing in it is overlooked: a key is read, known not to matter, or refused."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_REQUIRED: Any = object()
_LARGEST = sys.float_info.max


class Configuration:
    """The keys of one JSON object. Every accessor marks its key as read; ``finish`` refuses the keys nobody read.

    A null counts as absent where a default is given, and never as a refused key, because it says "not used".
    All errors are ``ValueError`` and name the key, its value, what was expected and what to do.
    """

    def __init__(self, values: Mapping[str, Any], place: str = "config.json") -> None:
        self.values = values
        self.place = place
        self._read: set[str] = set()

    def refuse(self, key: str, expected: str) -> ValueError:
        """Return the error that says why ``key`` cannot be honoured."""
        value = f"{self.values[key]!r:.200}" if key in self.values else "missing"
        return ValueError(f"{self.place}: {key} is {value}, expected {expected}")

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int = _REQUIRED, *, least: int = 1) -> int:
        """Return an integer of at least ``least``."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refuse(key, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float = _REQUIRED) -> float:
        """Return a positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self.refuse(key, "a positive number")
        return float(value)

    def number_or_off(self, key: str, default: float | None) -> float | None:
        """Return a positive number, or None where the key is null, which turns the feature off."""
        self._read.add(key)
        return default if key not in self.values else self.number(key) if self.has(key) else None

    def integer_or_off(self, key: str, default: int | None) -> int | None:
        """Return a positive integer, or None where the key is null, which turns the feature off."""
        self._read.add(key)
        return default if key not in self.values else self.integer(key) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def choice(self, key: str, table: Mapping[str, T], default: str = _REQUIRED) -> T:
        """Return what ``table`` holds under the value, one of its names."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in table:
            raise self.refuse(key, f"one of {', '.join(table)}; no other is implemented")
        return table[value]

    def names(self, key: str, table: Collection[str], count: int) -> list[str] | None:
        """Return a list of ``count`` names out of ``table``, or None where the key is absent."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or not set(value) <= set(table):
            raise self.refuse(key, f"a list of {count} names out of {', '.join(table)}")
        return list(value)

    def numbers(self, key: str) -> list[int]:
        """Return a list of integers of at least 0, empty where the key is absent."""
        value = self._get(key, [])
        if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in value):
            raise self.refuse(key, "a list of integers of at least 0")
        return list(value)

    def factors(self, key: str, count: int) -> list[float]:
        """Return a list of ``count`` positive numbers."""
        value = self._get(key, _REQUIRED)
        good = isinstance(value, list) and len(value) == count
        if not good or any(isinstance(n, bool) or not isinstance(n, int | float) or n <= 0 for n in value):
            raise self.refuse(key, f"a list of {count} positive numbers")
        return [float(number) for number in value]

    def flags(self, key: str, count: int) -> list[bool] | None:
        """Return a list of ``count`` flags, written as 0 and 1 or as false and true, None where the key is absent."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or any(one not in (0, 1) for one in value):
            raise self.refuse(key, f"a list of {count} flags, each 0 or 1")
        return [bool(one) for one in value]

    def free(self, *keys: str) -> None:
        """Take ``keys`` as read: their reader looks at ``values`` itself, or they cannot matter here."""
        self._read.update(keys)

    def ids(self, key: str) -> frozenset[int]:
        """Return token ids, written as one integer, a list, or nothing."""
        value = self._get(key, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
            raise self.refuse(key, "a token id or a list of token ids")
        return frozenset(ids)

    def inner(self, key: str) -> Configuration | None:
        """Return the object under ``key``, or None where it is absent, null or empty."""
        value = self._get(key, None)
        if not value:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return Configuration(value, f"{self.place}: {key}")

    def only(self, key: str, value: object) -> None:
        """Refuse ``key`` unless it is absent, null or ``value``, the one that is implemented."""
        if self._get(key, value) != value:
            raise self.refuse(key, f"{value!r}; no other value is implemented")

    def finish(self, ignored: Collection[str] = ()) -> None:
        """Refuse every key that nobody read and that is not in ``ignored``, the keys that cannot change the logits."""
        left = [key for key in self.values if self.has(key) and key not in self._read and key not in ignored]
        if left:
            found = ", ".join(f"{key} = {self.values[key]!r:.200}" for key in left[:20])
            raise ValueError(
                f"{self.place}: {found} not known for this model_type, expected no such key because it may change the "
                "result; delete it if the model does not use it, or use a checkpoint without it"
            )

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.refuse(key, "a value; the checkpoint is incomplete")
        return default
