"""JSON that came with a checkpoint, written by whoever made it: read within a size, and in one meaning only."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


def read_document(path: Path, most: int) -> dict[str, Any]:
    """Return the JSON object in ``path``, a file of at most ``most`` bytes.

    Raises ``FileNotFoundError`` when there is no such file, ``ValueError`` when it is larger or not such an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a folder with a checkpoint in Hugging Face's layout")
    size = path.stat().st_size
    if size > most:
        raise ValueError(
            f"{path} has {size / 1e6:.1f} MB, expected at most {most / 1e6:g} MB of such a file; no checkpoint needs "
            "more: get the model from where it was published"
        )
    try:
        return parse_document(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def parse_document(content: bytes) -> dict[str, Any]:
    """Return the JSON object that ``content`` spells in UTF-8.

    Raises ``ValueError`` where it is damaged, gives a key twice, of which one reader would take the first and another
    the last, or is nested deeper than any configuration.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected an object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.100} stands there twice")
    return made
