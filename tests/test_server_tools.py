"""Tools: calls are held to what was offered, whatever the schemas look like and whatever else the answer could be."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from jsonschema import Draft202012Validator
from server import client, served

from stretto import LLM
from stretto.core.masks import build_mask
from stretto.serving.fields import Tool
from stretto.serving.masks import calling
from stretto.serving.settings import Limits

MODEL = "stretto-tiny"
TALK: list[Any] = [{"role": "user", "content": "Go on."}]


@pytest.fixture(scope="module")
def ask() -> Iterator[openai.OpenAI]:
    with served() as address:
        yield client(address)


class Unit(enum.Enum):
    """A model of pydantic refers to it by ``#/$defs/Unit``."""

    C = "c"
    F = "f"


class Weather(pydantic.BaseModel):
    unit: Unit


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def taking(inner: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return tool("take", {"type": "object", "properties": inner, "required": list(inner), **rest})


WEATHER = dict(openai.pydantic_function_tool(Weather))
UNITS = {"$defs": {"Unit": {"enum": [1, 2]}}}
TREE = {"properties": {"left": {"$ref": "#"}, "leaf": {"const": 1}}, "additionalProperties": False, "type": "object"}
# Tools, a call that fits them, and one that does not.
SCHEMAS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "of pydantic": ([WEATHER], {"unit": "c"}, {"unit": "k"}),
    "equal names in two tools": (
        [WEATHER, taking({"unit": {"$ref": "#/$defs/Unit"}}, **UNITS)],
        {"unit": 2},
        {"unit": "c"},
    ),
    "definitions": (
        [taking({"a": {"items": {"$ref": "#/definitions/b"}}}, definitions={"b": {"type": "integer"}})],
        {"a": [1, 2]},
        {"a": ["1"]},
    ),
    "the root": ([tool("take", TREE)], {"left": {"left": {"leaf": 1}}}, {"left": {"left": {"leaf": 2}}}),
    "a place": (
        [taking({"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}})],
        {"a": 1, "b": 2},
        {"a": 1, "b": ""},
    ),
    "properties named like keywords": (
        [taking({"default": {"$ref": "#/$defs/Unit"}, "$ref": {"$ref": "#/$defs/Unit"}}, **UNITS)],
        {"default": 1, "$ref": 2},
        {"default": 3, "$ref": 2},
    ),
    "a value that looks like a reference": (
        [taking({"a": {"const": {"$ref": "#/b"}}})],
        {"a": {"$ref": "#/b"}},
        {"a": {"$ref": "#/properties/arguments/b"}},
    ),
    "an address of its own": (
        [taking({"unit": {"$ref": "#/$defs/Unit"}}, **UNITS, **{"$id": "https://example.com/take"})],
        {"unit": 1},
        {"unit": 3},
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_references_lead_where_they_led_in_the_tools_own_schema(tiny: LLM, name: str):
    told, fitting, other = SCHEMAS[name]
    (kind, arguments) = calling([Tool(**each) for each in told], None, Limits())
    validator = Draft202012Validator(arguments["schema"])
    called = told[-1]["function"]["name"]
    assert validator.is_valid({"name": called, "arguments": fitting})
    assert not validator.is_valid({"name": called, "arguments": other})
    words = tiny.intake.words
    assert words is not None
    build_mask(kind, arguments, words.size, words.eos_ids, words)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Weather"}}], ids=str)
def test_a_tool_made_of_a_model_of_pydantic_is_called(ask: openai.OpenAI, choice: Any):
    told = ask.chat.completions.create(
        model=MODEL, messages=TALK, tools=[WEATHER], tool_choice=choice, seed=1, max_tokens=60
    )
    (call,) = told.choices[0].message.tool_calls
    assert Weather.model_validate(json.loads(call.function.arguments)).unit in Unit


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_in_the_clients_own_form_calls_nothing(ask: openai.OpenAI, stream: bool):
    """Though it looks like a call, even of a tool that there is."""
    form = {"const": {"name": "take", "parameters": {}}}
    asked: dict[str, Any] = {"model": MODEL, "messages": TALK, "tools": [tool("take")], "max_tokens": 60}
    asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "form", "schema": form}}
    if stream:
        choices = [choice for piece in ask.chat.completions.create(stream=True, **asked) for choice in piece.choices]
        text, calls = "".join(each.delta.content or "" for each in choices), [each.delta.tool_calls for each in choices]
    else:
        choices = ask.chat.completions.create(**asked).choices
        text, calls = choices[0].message.content, [choices[0].message.tool_calls]
    assert json.loads(text) == form["const"] and not any(calls) and choices[-1].finish_reason == "stop"
