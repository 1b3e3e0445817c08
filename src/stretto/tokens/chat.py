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

from stretto.tokens.meter import TemplateLimitError, metered
from stretto.tokens.sandbox import Sandbox

MAX_SOURCE = 100_000
"""Longest template, in characters; the longest in use have about 30,000."""
MAX_CHARACTERS = 8_000_000
"""Longest conversation that a template may write, in characters."""
MAX_WORK = 4 * MAX_CHARACTERS
"""What a template may build in all while it runs: characters of texts, and 8 for each item of a list."""
MAX_SECONDS = 5.0
"""Processor time that a template may take; those in use take milliseconds."""
_LOOK_SECONDS = 0.5
"""Processor time for a look at a template while its checkpoint is loaded."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


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


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    if len(template) > MAX_SOURCE:
        raise TemplateLimitError(f"the chat template has {len(template)} characters, more than {MAX_SOURCE}")
    sandbox = Sandbox(extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = _strftime_now
    return sandbox.compiled(template)


def _plain(name: str, value: Any) -> Any:
    """A copy made of JSON's types alone: a template can then call no method of the caller's objects."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must hold only what JSON can say (text, numbers, lists, dicts): {error}") from None


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    form = "expected a list of dicts such as {'role': 'user', 'content': 'Hello'}"
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages is {messages!r:.80}; {form}")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"messages[{place}] is {message!r:.80}; {form}")


def _as_templates_read(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its empty fields, and with its reasoning under every name that templates look for."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[key] for key in _REASONING if key in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_characters: int = MAX_CHARACTERS,
    max_seconds: float = MAX_SECONDS,
    **kwargs: Any,
) -> str:
    """Render ``messages`` with a chat template; ``add_generation_prompt`` opens the assistant's turn at the end.

    ``tools`` are JSON schemas; further keywords reach the template as variables. The result already holds the special
    tokens as text, so encode it with :meth:`Tokenizer.encode_plain`. The template runs in Jinja's sandbox, sees plain
    data only, and ends with an error beyond ``max_characters`` of output or ``max_seconds`` of processor time.

    Raises ValueError when the messages are malformed, when the template is not valid, or when it refuses them;
    TemplateLimitError, which is one, when it goes beyond a limit.
    """
    _check(messages)
    variables = _plain("the chat template's keywords", kwargs)
    variables |= {
        "messages": [_as_templates_read(message) for message in _plain("messages", messages)],
        "tools": _plain("tools", tools),
        "documents": variables.get("documents"),
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        with metered(MAX_WORK, max_seconds):
            return _write(_compile(template), variables, max_characters)
    except TemplateLimitError:
        raise
    except TemplateSyntaxError as error:
        raise ValueError(f"the checkpoint's chat template is not valid Jinja (line {error.lineno}): {error}") from None
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"the checkpoint's chat template cannot be run, it nests too deep: {type(error).__name__}: {error}"
        ) from None
    except TemplateError as error:
        raise ValueError(f"the checkpoint's chat template refused the messages: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"the checkpoint's chat template failed on these messages: {type(error).__name__}: {error}"
        ) from None


def _write(template: Template, variables: Mapping[str, Any], max_characters: int) -> str:
    text: list[str] = []
    size = 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > max_characters:
            raise TemplateLimitError(
                f"the chat template wrote more than {max_characters} characters (max_characters); shorten the messages"
            )
        if piece:
            text.append(piece)
    return "".join(text)


def turn_end(template: str, **special: str) -> list[str]:
    """What a template writes behind an assistant's words, in the middle of a conversation and at its end.

    Empty when the template refuses such a conversation. Raises TemplateLimitError for one that would never end.
    """
    words = "wordsoftheassistant"
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": words},
        {"role": "user", "content": "b"},
    ]
    variables: dict[str, Any] = {"bos_token": "", "eos_token": "", **special}
    found = []
    for conversation in (turns, turns[:2]):
        try:
            text = render(template, conversation, add_generation_prompt=False, max_seconds=_LOOK_SECONDS, **variables)
        except TemplateLimitError:
            raise
        except ValueError:
            return []
        found.append(text.rpartition(words)[2] if words in text else "")
    return found
