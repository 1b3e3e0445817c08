"""Chat templates: a list of messages becomes the text a model was trained to continue.

Templates are Jinja programs that come with a checkpoint and follow the conventions of Hugging Face transformers:
block tags eat the line break after them and the blanks before them, ``raise_exception`` and ``strftime_now`` exist,
``tojson`` escapes nothing for HTML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 16_000_000


class _GenerationTag(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 reads

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _plain(name: str, value: Any) -> Any:
    """A copy made of JSON's types alone: a template can then call no method of the caller's objects."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold only what JSON can say (text, numbers, lists, dicts): {error}") from None


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    form = "expected a list of dicts such as {'role': 'user', 'content': 'Hello'}"
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages is {messages!r:.80}; {form}")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"messages[{place}] is {message!r:.80}; {form}")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_characters: int = MAX_CHARACTERS,
    **kwargs: Any,
) -> str:
    """Render ``messages`` with a chat template; ``add_generation_prompt`` opens the assistant's turn at the end.

    ``tools`` are JSON schemas; further keywords reach the template as variables. The result already holds the special
    tokens as text, so encode it with :meth:`Tokenizer.encode_plain`. The template runs in Jinja's sandbox and sees
    plain data only; its output is cut off with an error beyond ``max_characters``, its time is not bounded.

    Raises ValueError when the messages are malformed, when the template is not valid, or when it refuses them.
    """
    _check(messages)
    variables = _plain("the chat template's keywords", kwargs)
    try:
        pieces = _compile(template).generate(
            messages=_plain("messages", messages),
            tools=_plain("tools", tools),
            documents=variables.pop("documents", None),
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        text: list[str] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > max_characters:
                raise ValueError(f"the chat template wrote more than {max_characters} characters; shorten the messages")
            text.append(piece)
    except TemplateSyntaxError as error:
        raise ValueError(f"the checkpoint's chat template is not valid Jinja (line {error.lineno}): {error}") from None
    except TemplateError as error:
        raise ValueError(f"the checkpoint's chat template refused the messages: {error}") from None
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"the checkpoint's chat template failed on these messages: {type(error).__name__}: {error}"
        ) from None
    return "".join(text)
