"""The masks of structured output by name: what each takes, and how large that may be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from llguidance import LLMatcher

from stretto.core.grammar import GrammarMask
from stretto.core.masks import Words, register_mask

MAX_SCHEMA_BYTES = 65_536
"""Of a JSON schema, written compactly."""
MAX_SCHEMA_DEPTH = 64
"""Levels of objects and lists in a JSON schema."""
MAX_REGEX_CHARACTERS = 4_096
MAX_GRAMMAR_BYTES = 65_536

COMPACT = {"whitespace_flexible": False}
"""JSON is written without blanks, of which a text could otherwise hold any number; a schema's own `x-guidance` wins."""


def json_schema(words: Words, schema: Mapping[str, Any] | str | bool) -> GrammarMask:
    """Return the mask of JSON that fits `schema`: an object, its JSON text, or `true`.

    Raises ValueError for what is no schema, is too large, uses a keyword that is not offered, or fits nothing.
    """
    if isinstance(schema, str):
        schema = _read(schema)
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        _refuse("schema", schema, "an object that is a JSON schema", "for any JSON use {}")
    _check_depth(schema)
    own = schema.get("x-guidance", {})
    schema = {**schema, "x-guidance": {**COMPACT, **own} if isinstance(own, Mapping) else own}
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise ValueError(f"schema: expected what JSON can say: {error}; correct it") from None
    if size > MAX_SCHEMA_BYTES:
        _refuse("schema", schema, f"at most {MAX_SCHEMA_BYTES} bytes, got {size}", "leave out what is not needed")
    return GrammarMask(words, f"start: %json {text}")


def json_object(words: Words) -> GrammarMask:
    """Return the mask of JSON objects of any kind."""
    return json_schema(words, {"type": "object"})


def regex(words: Words, pattern: str) -> GrammarMask:
    """Return the mask of texts that match `pattern` as a whole: Rust's syntax, without look-around and references."""
    if not isinstance(pattern, str):
        _refuse("pattern", pattern, "a regular expression", "give a string")
    if len(pattern) > MAX_REGEX_CHARACTERS:
        expected = f"at most {MAX_REGEX_CHARACTERS} characters, got {len(pattern)}"
        _refuse("pattern", pattern, expected, "write it shorter, or as a grammar")
    (written,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
    return GrammarMask(words, written["lark_grammar"])


def grammar(words: Words, lark: str) -> GrammarMask:
    """Return the mask of texts that the rule `start` of a grammar derives, in llguidance's variant of Lark's syntax."""
    if not isinstance(lark, str):
        _refuse("lark", lark, "a grammar in Lark's syntax", "give a string")
    size = len(lark.encode(errors="replace"))
    if size > MAX_GRAMMAR_BYTES:
        _refuse("lark", lark, f"at most {MAX_GRAMMAR_BYTES} bytes, got {size}", "leave out what is not needed")
    return GrammarMask(words, lark)


def _read(text: str) -> Any:
    """Return the schema that a JSON text holds."""
    if len(text) > MAX_SCHEMA_BYTES:
        expected = f"at most {MAX_SCHEMA_BYTES} bytes, got {len(text)}"
        _refuse("schema", text, expected, "leave out what is not needed")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"schema: expected at most {MAX_SCHEMA_DEPTH} levels; make it flatter") from None
    except ValueError as error:
        raise ValueError(f"schema: expected JSON: {error}; correct it") from None


def _check_depth(schema: Any) -> None:
    """Raise ValueError for a schema of more than the allowed levels, or of more values than its bytes could hold."""
    level, seen = [schema], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [each for value in level for each in _inside(value)]
        seen += len(level)
        if not level:
            return
        if seen > MAX_SCHEMA_BYTES:
            raise ValueError(f"schema: expected at most {MAX_SCHEMA_BYTES} bytes; leave out what is not needed")
    raise ValueError(f"schema: expected at most {MAX_SCHEMA_DEPTH} levels; make it flatter, or use $ref")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _refuse(name: str, value: object, expected: str, remedy: str) -> NoReturn:
    said = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    shown = said if len(said) <= 80 else f"{said[:77]}..."
    raise ValueError(f"{name}={shown}: expected {expected}; {remedy}")


for _make in (json_schema, json_object, regex, grammar):
    register_mask(_make.__name__, _make, reads=True, lasting=True)
