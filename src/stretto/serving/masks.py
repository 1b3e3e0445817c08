"""What holds the shape of an answer: ``response_format``, ``regex``, ``grammar``, tools that must be called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stretto.serving.bounds import check_count, check_length, check_schema
from stretto.serving.errors import wrong
from stretto.serving.fields import Sampling, Tool
from stretto.serving.settings import Limits

Mask = tuple[str, dict[str, Any]]
NAMING = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords of a schema that hold schemas by name."""
VALUES = ("const", "enum", "default", "examples")
"""Those that hold values, which are no schemas."""


def mask_of(body: Sampling, limits: Limits, encode: Callable[[str], list[int]]) -> tuple[str, Mask] | None:
    """Return the field that asks for a token mask, and the mask. Raises ``ApiError``, also where two ask for one."""
    found = {name: mask for name, mask in _asked(body, limits, encode).items() if mask is not None}
    if len(found) > 1:
        names = " and ".join(found)
        raise wrong(f"{names} both say what shape the answer has: give one of them", next(iter(found)))
    for name, (kind, told) in found.items():
        if kind == "json_schema":
            check_schema(name, told["schema"], limits)
        elif kind == "regex":
            check_length(name, told["pattern"], limits.regex)
        elif kind == "grammar":
            check_length(name, told["lark"], limits.grammar)
    return next(iter(found.items()), None)


def _asked(body: Sampling, limits: Limits, encode: Callable[[str], list[int]]) -> dict[str, Mask | None]:
    asked: dict[str, Mask | None] = {
        "regex": None if body.regex is None else ("regex", {"pattern": body.regex}),
        "grammar": None if body.grammar is None else ("grammar", {"lark": body.grammar}),
    }
    form = body.response_format
    if form is not None and form.type == "json_object":
        asked["response_format"] = ("json_object", {})
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            field = "response_format.json_schema"
            raise wrong(f"{field}: missing; expected {{'name': ..., 'schema': {{...}}}}", field, "missing_field")
        asked["response_format"] = ("json_schema", {"schema": form.json_schema.schema_})
    if (told := body.structured_outputs) is not None:
        choices = told.choice or []
        check_count("structured_outputs.choice", len(choices), limits.choices, "choices")
        check_count("structured_outputs.choice", sum(map(len, choices)), limits.grammar, "characters in all")
        several: dict[str, Mask | None] = {
            "json": None if told.json_ is None else ("json_schema", {"schema": told.json_}),
            "regex": None if told.regex is None else ("regex", {"pattern": told.regex}),
            "grammar": None if told.grammar is None else ("grammar", {"lark": told.grammar}),
            "choice": None if told.choice is None else ("choice", {"choices": [encode(text) for text in choices]}),
            "json_object": ("json_object", {}) if told.json_object else None,
        }
        asked |= {f"structured_outputs.{name}": mask for name, mask in several.items()}
    return asked


def calling(tools: Sequence[Tool], name: str | None, limits: Limits) -> Mask:
    """Return the mask of an answer that calls a tool: the one called ``name``, or any.

    The call is one JSON object, name first, as replies are read. Raises ``ApiError`` for an unknown name.
    """
    meant = [tool.function for tool in tools if name in (None, tool.function.name)]
    if not meant:
        names = ", ".join(tool.function.name for tool in tools) or "none at all"
        raise wrong(f"tool_choice names {name!r:.80}, the tools are: {names}", "tool_choice")
    forms = []
    for place, function in enumerate(meant):
        path = f"#/anyOf/{place}" if len(meant) > 1 else "#"
        taken = function.parameters or {"type": "object", "properties": {}}
        form = {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": _moved(taken, f"{path}/properties/arguments"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        check_schema("tools", form, limits)
        forms.append(form)
    return "json_schema", {"schema": forms[0] if len(forms) == 1 else {"anyOf": forms}}


def _moved(schema: Any, path: str, names: bool = False) -> Any:
    """Return a schema whose root comes to lie at ``path`` of a larger one, which its references then lead through.

    ``names``: the keys are not keywords, but names that a schema gives. One with an address of its own stands as it is:
    its references are within that.
    """
    if isinstance(schema, list):
        return [_moved(each, path) for each in schema]
    if not isinstance(schema, dict) or (not names and isinstance(schema.get("$id"), str)):
        return schema
    if names:
        return {name: _moved(each, path) for name, each in schema.items()}
    moved = {key: each if key in VALUES else _moved(each, path, key in NAMING) for key, each in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = path + reference[1:]
    return moved
