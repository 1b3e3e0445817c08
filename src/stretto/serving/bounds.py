"""Limits on what a body asks for, checked before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stretto.serving.errors import wrong
from stretto.serving.settings import Limits


def nesting(value: Any, most: int) -> bool:
    """Whether arrays and objects lie in each other no deeper than ``most``; looks without recursion."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False


def check_schema(name: str, schema: Mapping[str, Any], limits: Limits) -> None:
    """Raise ``ApiError`` for a JSON schema that is too deep or too large."""
    if not nesting(schema, limits.schema_nesting):
        raise wrong(f"{name}: nested deeper than {limits.schema_nesting} levels, which no grammar is made of", name)
    size = len(json.dumps(schema))
    if size > limits.schema:
        raise wrong(f"{name}: a schema of {size} characters, expected at most {limits.schema}", name)


def check_length(name: str, text: str, most: int) -> None:
    """Raise ``ApiError`` for a text that is too long."""
    if len(text) > most:
        raise wrong(f"{name}: {len(text)} characters, expected at most {most}", name)


def check_count(name: str, count: int, most: int, what: str) -> None:
    """Raise ``ApiError`` where there are too many of something."""
    if count > most:
        raise wrong(f"{name}: {count} {what}, expected at most {most}", name)
