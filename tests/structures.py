"""Schemas whose texts are short, and what a text is judged by: a validator, and a derivative of a regex, of others."""

from __future__ import annotations

import json
import random
from typing import Any

from jsonschema import Draft202012Validator

LONGEST = 700
"""Tokens that no text of the schemas below needs."""


def schemas(count: int = 50, seed: int = 0) -> list[dict[str, Any]]:
    """Return schemas of objects whose lengths and counts are bounded, each with something of every kind in reach."""
    chance = random.Random(seed)
    return [_object(chance, 0, number) for number in range(count)]


def _object(chance: random.Random, depth: int, number: int = 0) -> dict[str, Any]:
    names = chance.sample(["name", "kind", "tags", "age", "a b", "ö", "x/y", "place"], chance.randint(1, 3 - depth))
    kinds = [KINDS[(number + place) % len(KINDS)] for place in range(len(names))]
    properties = {name: kind(chance, depth + 1) for name, kind in zip(names, kinds, strict=True)}
    required = names if chance.random() < 0.7 else names[:1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randint(0, 1)
    return {"type": "array", "items": _leaf(chance, depth + 1), "minItems": least, "maxItems": least + 2}


def _leaf(chance: random.Random, depth: int) -> dict[str, Any]:
    return chance.choice([_text, _pattern, _whole, _number, _enum])(chance, depth)


def _nested(chance: random.Random, depth: int) -> dict[str, Any]:
    return _object(chance, depth, chance.randrange(100)) if depth < 3 else _leaf(chance, depth)


def _text(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "minLength": chance.randint(0, 2), "maxLength": chance.randint(2, 12)}


def _pattern(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": chance.choice(["^[a-z]{1,6}$", "^(ab|c)?[0-9]{2}-x{1,3}$", "^é[à-ü]{0,3}$"])}


def _whole(chance: random.Random, depth: int) -> dict[str, Any]:
    low = chance.randint(-120, 90)
    return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 500)}


def _number(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "multipleOf": 0.25, "minimum": chance.randint(0, 9), "maximum": chance.randint(10, 99)}


def _enum(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": chance.sample(["fox", "wolf", "日本", 1, 2.5, True, None, ["a", 1], "the quick brown fox"], 3)}


def _either(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, _leaf(chance, depth), {"type": "boolean"}]}


KINDS = (_text, _array, _whole, _nested, _enum, _pattern, _number, _either)


def fault(text: str, schema: dict[str, Any]) -> str | None:
    """Return what is wrong with a text that should be JSON of a schema, None for nothing."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{text!r}: {error}"
    return next((f"{text!r}: {error.message}" for error in Draft202012Validator(schema).iter_errors(value)), None)


# ---- regexes over bytes, by derivatives (Brzozowski 1964): what is not NOTHING matches something ----

Regex = tuple[Any, ...]
NOTHING: Regex = ("nothing",)
EMPTY: Regex = ("empty",)


def both(first: Regex, then: Regex) -> Regex:
    """Return the concatenation."""
    if NOTHING in (first, then):
        return NOTHING
    return then if first == EMPTY else first if then == EMPTY else ("both", first, then)


def either(*choices: Regex) -> Regex:
    """Return the alternation."""
    flat = frozenset(part for each in choices for part in (each[1] if each[0] == "either" else (each,)))
    flat -= {NOTHING}
    return NOTHING if not flat else next(iter(flat)) if len(flat) == 1 else ("either", flat)


def word(text: str) -> Regex:
    """Return the regex of one text."""
    regex = EMPTY
    for byte in reversed(text.encode()):
        regex = both(("byte", byte), regex)
    return regex


def nullable(regex: Regex) -> bool:
    """Whether the empty text matches."""
    kind = regex[0]
    if kind == "both":
        return nullable(regex[1]) and nullable(regex[2])
    return any(map(nullable, regex[1])) if kind == "either" else kind in ("empty", "star")


def behind(regex: Regex, text: bytes) -> Regex:
    """Return what may follow ``text``."""
    for byte in text:
        regex = _step(regex, byte)
    return regex


def _step(regex: Regex, byte: int) -> Regex:
    kind = regex[0]
    if kind == "byte":
        return EMPTY if regex[1] == byte else NOTHING
    if kind == "both":
        first = both(_step(regex[1], byte), regex[2])
        return either(first, _step(regex[2], byte)) if nullable(regex[1]) else first
    if kind == "either":
        return either(*(_step(each, byte) for each in regex[1]))
    return both(_step(regex[1], byte), regex) if kind == "star" else NOTHING


def only_byte(regex: Regex) -> int | None:
    """Return the byte that every match begins with, None where there are several or the empty text matches."""
    found = [byte for byte in range(256) if _step(regex, byte) != NOTHING]
    return found[0] if len(found) == 1 and not nullable(regex) else None


def random_regex(chance: random.Random, alphabet: str, depth: int = 3) -> tuple[str, Regex]:
    """Return a pattern that Python's ``re`` and Rust's regexes both read, and the same as a ``Regex``."""
    kind = chance.choice(["word", "class", "both", "both", "either", "star", "maybe", "times"]) if depth else "word"
    if kind == "word":
        text = "".join(chance.choices(alphabet, k=chance.randint(1, 3)))
        return text, word(text)
    if kind == "class":
        letters = sorted(chance.sample(alphabet, 2))
        return f"[{''.join(letters)}]", either(*map(word, letters))
    pattern, regex = random_regex(chance, alphabet, depth - 1)
    if kind == "star":
        return f"(?:{pattern})*", regex if regex[0] == "star" else ("star", regex)
    if kind == "maybe":
        return f"(?:{pattern})?", either(EMPTY, regex)
    if kind == "times":
        return f"(?:{pattern}){{1,2}}", both(regex, either(EMPTY, regex))
    other, regex2 = random_regex(chance, alphabet, depth - 1)
    if kind == "both":
        return f"(?:{pattern})(?:{other})", both(regex, regex2)
    return f"(?:{pattern}|{other})", either(regex, regex2)
