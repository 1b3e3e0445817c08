"""The options that give a text a form: a JSON schema, a regular expression, a grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def structure(*, json_schema: str | None, regex: str | None, grammar: Path | None) -> dict[str, Any]:
    """Return ``mask`` for the sampling parameters, nothing where no form was asked for.

    Raises ``typer.BadParameter`` for several at once, and for a file that cannot be read.
    """
    given = {"--json-schema": json_schema, "--regex": regex, "--grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise typer.BadParameter(f"{' and '.join(names)}: a text has one form; give one of them")
    if json_schema is not None:
        text = json_schema if json_schema.lstrip().startswith("{") else _read(Path(json_schema), names[0])
        return {"mask": ("json_schema", {"schema": text})}
    if regex is not None:
        return {"mask": ("regex", {"pattern": regex})}
    return {} if grammar is None else {"mask": ("grammar", {"lark": _read(grammar, names[0])})}


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{option}: {path} cannot be read as text ({error}); give another file") from None
