"""What is wrong in a request is the client's mistake, also where only writing shows it; a broken checkpoint is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from server import Speller, post, served

from stretto.core.batch import Batch, Result

MODEL = "stretto-tiny"
TEXTS, CHATS = "/v1/completions", "/v1/chat/completions"
TALK: list[Any] = [{"role": "user", "content": "Go on."}]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as found:
        yield found


def told(address: str, path: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the status of an answer, and the error that it is or ends with."""
    asked = {"prompt": "Once"} if path == TEXTS else {"messages": TALK}
    found = post(address, path, {"model": MODEL, "max_tokens": 20, **asked, **given})
    return found.status_code, json.loads(found.text.rpartition("data: ")[2])["error"]


def choosing(*texts: str) -> dict[str, Any]:
    return {"structured_outputs": {"choice": list(texts)}}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a variable named like what renders": (CHATS, {"chat_template_kwargs": {"template": "x"}}, "may not hold template"),
    "a variable named like the tokenizer": (CHATS, {"chat_template_kwargs": {"self": "x"}}, "may not hold self"),
    "a bias beyond all floats": (TEXTS, {"logit_bias": {"5": 1e308}, "temperature": 1e-4}, "from -10000 to 10000"),
    "a penalty that divides by nothing": (TEXTS, {"repetition_penalty": 1e-300}, "from 0.01 to 100"),
    "a regex shorter than min_tokens": (TEXTS, {"regex": "ab", "min_tokens": 10}, "no token is allowed"),
    "choices shorter than min_tokens": (TEXTS, {**choosing("yes", "no"), "min_tokens": 10}, "no token is allowed"),
    "a regex beyond what a step may cost": (TEXTS, {"regex": "(a{1000}){1000}"}, "the mask cannot go on"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_told_so(address: str, name: str, stream: bool):
    path, given, said = WRONG[name]
    status, error = told(address, path, {**given, "stream": stream})
    assert status == 400 or (stream and status == 200)
    assert error["type"] == "invalid_request_error" and said in error["message"]


def formed(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


NO_SCHEMA = {"type": "json_schema"}
BAD: dict[str, Any] = {"type": "no type"}
MUST: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "a", "parameters": BAD}}],
    "tool_choice": "required",
}
# What is wrong, and how ``param``, the message and ``code`` say so.
NAMED: list[tuple[str, dict[str, Any], str, str, str | None]] = [
    (TEXTS, {"regex": "("}, "regex", "regex", None),
    (TEXTS, {"grammar": "start: ("}, "grammar", "grammar", None),
    (TEXTS, {"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex", None),
    (TEXTS, formed(BAD), "response_format", "no type", None),
    (CHATS, formed(BAD), "response_format", "no type", None),
    (CHATS, MUST, "tools", "no type", None),
    (TEXTS, {"response_format": NO_SCHEMA}, "response_format.json_schema", "missing", "missing_field"),
    (TEXTS, {"prompt": ["a", 1]}, "prompt", "expected str or list[str] or list[int] or list[list[int]]", None),
    (TEXTS, {"stop": 3}, "stop", "expected str or list[str]", None),
    (TEXTS, {"str": 3}, "str", "no such field", "unknown_field"),
    (CHATS, {"tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'", None),
    (
        CHATS,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type",
        "",
        None,
    ),
    (TEXTS, {"prompt": [5] * 3000}, "prompt", "3000 tokens", "context_length_exceeded"),
    (TEXTS, {"prompt": ["a", "fox " * 3000]}, "prompt", "context is 2048", "context_length_exceeded"),
    (
        CHATS,
        {"messages": [{"role": "user", "content": "fox " * 3000}]},
        "messages",
        "context is 2048",
        "context_length_exceeded",
    ),
]


@pytest.mark.parametrize(("path", "given", "param", "said", "code"), NAMED)
def test_an_error_names_the_field_that_the_client_gave(
    address: str, path: str, given: dict[str, Any], param: str, said: str, code: str | None
):
    status, error = told(address, path, given)
    assert (status, error["param"], error["code"]) == (400, param, code) and said in error["message"]


class Broken(Speller):
    """A checkpoint whose logits are no numbers."""

    def _overrule(self, batch: Batch, result: Result) -> Result:
        result.logits[:] = float("nan")
        return result


def test_a_broken_checkpoint_is_nobodys_mistake(monkeypatch: pytest.MonkeyPatch):
    Broken(monkeypatch)
    with served() as address:
        status, error = told(address, TEXTS, {"regex": "ab"})
    assert (status, error["type"], error["code"]) == (500, "server_error", "generation_failed")
