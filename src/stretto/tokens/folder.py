"""What the files of a checkpoint folder say about its text: special tokens, end tokens, chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_MEGABYTES = 64
"""Largest file of a tokenizer that is read. The largest vocabularies in use, of 262,000 tokens, take about 35 MB."""
MAX_TEXT_MEGABYTES = 16
"""Largest file that is read into objects of Python, of which two bytes can make a hundred. Real ones: about 1 MB."""


def check_size(path: Path, most: int = MAX_MEGABYTES) -> Path:
    """Return ``path``; raises ValueError when the file has more than ``most`` megabytes, which no real one has."""
    size = path.stat().st_size
    if size > most * 1_000_000:
        raise ValueError(
            f"{path} has {size / 1e6:.0f} MB, expected at most {most} MB of such a file; no tokenizer needs "
            "more: get the model from where it was published"
        )
    return path


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises ValueError when it is too large or not UTF-8."""
    try:
        return check_size(path, MAX_TEXT_MEGABYTES).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is not there."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} nests deeper than can be read; expected a JSON object of a few levels") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}; expected a JSON object")
    return value


def special_tokens(folder: Path) -> dict[str, str]:
    """Spelling of the special tokens by role (``bos_token`` and so on); an entry is a string or a dict of it."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for role, value in read_json(folder / name).items():
            spelling = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(spelling, str):
                found[role] = spelling
    return found


def end_ids(folder: str | Path) -> frozenset[int]:
    """The ids that end a text according to ``config.json`` and ``generation_config.json``, both together.

    Raises ValueError when one of them is not a token id.
    """
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = Path(folder) / name
        value = read_json(path).get("eos_token_id")
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
                raise ValueError(f"eos_token_id in {path} is {value!r:.80}; expected a token id or a list of them")
            ids.add(entry)
    return frozenset(ids)


def chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates by name, the usual one as ``default``.

    They stand in files of their own (``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja``), else in
    ``chat_template.json``, else in ``tokenizer_config.json``, there as one string or as a list of named ones.
    Raises ValueError when they stand there in another form.
    """
    main = folder / "chat_template.jinja"
    paths = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if main.is_file():
        paths["default"] = main
    if paths:
        return {name: read_text(path) for name, path in paths.items()}
    for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        value = read_json(path).get("chat_template")
        if value is not None:
            return _named(path, value)
    return {}


def _named(path: Path, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, Mapping):
        named = dict(value)
    else:
        entries = value if isinstance(value, list) else [value]
        named = {
            entry["name"]: entry.get("template") for entry in entries if isinstance(entry, dict) and "name" in entry
        }
    if not named or not all(isinstance(name, str) and isinstance(text, str) for name, text in named.items()):
        raise ValueError(
            f"chat_template in {path} is {value!r:.80}; expected a text or a list of {{'name': ..., 'template': ...}}"
        )
    return named
