"""Write the pages of ``docs/`` that are made from the code: families, methods, commands, sampling parameters.

Usage: python tools/pages.py

The tests compare each page with what this makes of the code.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from stretto.cli import chat
from stretto.cli.main import app
from stretto.core import params
from stretto.models.families import families_page
from stretto.recipes.table import methods_page

DOCS = Path(__file__).parent.parent / "docs"
KINDS = {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}


# ---- commands ----

COMMANDS_HEAD = """\
# Commands

Generated from the command line itself (`tools/pages.py`); `stretto COMMAND --help` says the same in the terminal.

A command ends with 0 when all went well, 1 when something failed, 2 when it was called wrongly and 130 on Ctrl-C.
Results go to standard output; notices, progress and errors to standard error, so `stretto generate ... > story.txt`
holds the story alone. Into a pipe nothing is coloured.

## Shell completion

```sh
stretto --install-completion
```

sets it up for the shell in use (bash, zsh, fish or PowerShell); open a new one, and the Tab key completes commands and
options. `stretto --show-completion` prints what would be set up, for those who keep such files themselves.
"""

CHAT_COMMANDS = """\
In a conversation a line that begins with a slash is a command:

| command | does |
| --- | --- |
"""

FILES = """\
**Files of prompts.** `--file` takes JSON Lines: on each line `{"prompt": "..."}`, or a list of token ids in its place,
and perhaps `"params"`, an object of [sampling parameters](sampling.md), which win over the options. `--out` gets a line
for each prompt as it is done: `number` (of the prompt, from 0), `prompt` and `completions`, each with its statistics
under `stats`. A run that was cut off goes on where it stopped when it is started again.
"""

BEHIND = {
    "chat": lambda: CHAT_COMMANDS + _rows((f"`{name}`", text) for name, (_, text) in chat.COMMANDS.items()),
    "generate": lambda: FILES,
}
"""What is said behind the options of a command."""


def commands_page() -> str:
    """Return ``docs/commands.md``: every command with its arguments and options."""
    return "\n".join([COMMANDS_HEAD, *(_command(name, function) for name, function in _commands(app))])


def _commands(group: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield prefix + (command.name or command.callback.__name__), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{prefix}{inner.name} ")


def _command(name: str, function: Callable[..., Any]) -> str:
    hints = get_type_hints(function, include_extras=True)
    arguments, options = [], []
    for parameter in inspect.signature(function).parameters.values():
        kind, info = get_args(hints[parameter.name])
        assert info.help, f"{parameter.name} of {name} has no help text"
        default = "" if parameter.default in (None, False, inspect.Parameter.empty) else f"`{parameter.default}`"
        if isinstance(info, typer.models.ArgumentInfo):
            arguments.append((_spelling(parameter), info.help, default))
        else:
            # typer keeps the first spelling of an annotated option where a default would stand.
            flags = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
            spelled = ", ".join(f"`{flag}`" for flag in flags or [f"--{parameter.name.replace('_', '-')}"])
            required = "required" if parameter.default is inspect.Parameter.empty else default
            options.append((spelled, _kind(kind), info.help, required))
    said = inspect.cleandoc(function.__doc__ or "")
    usage = " ".join(
        ["stretto", name, *(spelling.strip("`") for spelling, _, _ in arguments), "[OPTIONS]" * bool(options)]
    )
    parts = [f"## stretto {name}", said, f"```text\n{usage.strip()}\n```"]
    if arguments:
        parts.append("| argument | meaning | default |\n| --- | --- | --- |\n" + _rows(arguments))
    if options:
        parts.append("| option | takes | meaning | default |\n| --- | --- | --- | --- |\n" + _rows(options))
    if name in BEHIND:
        parts.append(BEHIND[name]())
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _spelling(parameter: inspect.Parameter) -> str:
    several = "..." if "list" in str(parameter.annotation) else ""
    name = parameter.name.upper() + several
    return f"`{name}`" if parameter.default is inspect.Parameter.empty else f"`[{name}]`"


def _kind(kind: Any) -> str:
    return " ".join(KINDS[each] for each in (get_args(kind) or (kind,)) if each in KINDS)


# ---- sampling parameters ----

SAMPLING_HEAD = """\
# Sampling parameters

Generated from `SamplingParams` and its limits (`tools/pages.py`). In Python they are keyword arguments of
`SamplingParams`; in a file of prompts, keys of `"params"`. A value outside its limits, or a name that is not known, is
refused with the limits and what to do instead.

The order in which they act: the three penalties, `logit_bias`, `banned` and `min_tokens`, `mask`; then `temperature`,
`top_k`, `top_p`, `min_p`; then the [noise](determinism.md), and the largest wins.

`mask` gives a text a form, such as JSON of a schema: [structured output](structured.md).
"""


def sampling_page() -> str:
    """Return ``docs/sampling.md``: every sampling parameter, its default and limits."""
    meanings = _meanings()
    table = []
    for each in fields(params.SamplingParams):
        default = each.default if each.default is not MISSING else each.default_factory()  # type: ignore[misc]  # has one
        table.append((f"`{each.name}`", f"`{default!r}`", _limits(each.name), meanings[each.name]))
    head = "| parameter | default | allowed | meaning |\n| --- | --- | --- | --- |\n"
    return f"{SAMPLING_HEAD}\n{head}{_rows(table)}"


def _meanings() -> dict[str, str]:
    """Return the string below each field of ``SamplingParams``, by name."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(params)).body
        if isinstance(node, ast.ClassDef) and node.name == "SamplingParams"
    )
    return {
        field.target.id: said.value.value
        for field, said in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
    }


def _limits(name: str) -> str:
    if name == "temperature":
        return f"0, or {params.MIN_TEMPERATURE:g} to {params.MAX_TEMPERATURE:g}"
    if name == "logit_bias":
        return f"-{params.MAX_BIAS:g} to {params.MAX_BIAS:g} each"
    if name in params.NUMBERS:
        low, inclusive, high, optional, _ = params.NUMBERS[name]
        span = f"{'' if inclusive else 'above '}{low:g} to {high:g}"
    elif name in params.INTEGERS:
        least, most, optional, _ = params.INTEGERS[name]
        span = (
            "any whole number"
            if least is None
            else f"{least} or more"
            if most is None
            else f"{least} to {_power(most)}"
        )
    else:
        return "-"
    return span + " or `None`" * optional


def _power(number: int) -> str:
    return f"2^{number.bit_length()} - 1" if number > 10**9 else str(number)


def _rows(rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    return "".join(
        "| " + " | ".join((cell or "-").replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |\n"
        for row in rows
    )


COUNTED = "## What was compared"
"""From here on a page is ``tools/parity_count.py``'s."""

PAGES: dict[str, Callable[[], str]] = {
    "families": families_page,
    "methods": methods_page,
    "commands": commands_page,
    "sampling": sampling_page,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        path = DOCS / f"{page}.md"
        _, counted, rest = path.read_text(encoding="utf-8").partition(COUNTED)
        path.write_text(make() + ("\n" if counted else "") + counted + rest, encoding="utf-8", newline="\n")
