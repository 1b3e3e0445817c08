"""What a ``tokenizer.json`` may ask for: parts to hold in memory, and by how much it lengthens a text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import tokenizers

_MOST_PARTS = 2_000_000
"""Entries and items, of which each takes up to 300 bytes of memory. The largest real one has 1.4 million."""
_MOST_PIECES = 10_000
"""Of templates that put special tokens around a text; real ones have some ten."""
_MOST = 64
"""Real ones replace one for one, but for a few characters that they spell out."""
_MOST_BYTES = 4 << 20
"""Of one kind of step; the largest real ones are maps of characters, of half a megabyte."""


def check_parts(path: Path) -> None:
    """Raise ``ValueError`` where the file lists more than any tokenizer has; the library would take it in all the same,
    and end the process where the memory does not suffice."""
    parts = pieces = 0
    with path.open("rb") as file:
        while text := file.read(1 << 20):
            parts += text.count(b",")
            pieces += text.count(b'"type_id"')
    for what, count, most in (("parts", parts, _MOST_PARTS), ("pieces of a template", pieces, _MOST_PIECES)):
        if count > most:
            raise ValueError(
                f"{path} lists {count} {what}, expected at most {most}; no real tokenizer has more, get the model "
                "from where it was published"
            )


def check_growth(core: tokenizers.Tokenizer, path: Path) -> None:
    """Raise ``ValueError`` where the replacements or the template of a tokenizer multiply a text beyond measure."""
    for step in (core.normalizer, core.post_processor, core.decoder):
        state = b"{}" if step is None else step.__getstate__()
        if len(state) > _MOST_BYTES:
            raise ValueError(
                f"{path}: its {type(step).__name__} takes {len(state)} bytes, expected at most {_MOST_BYTES}; no real "
                "tokenizer does, get the model from where it was published"
            )
        growth = _growth(json.loads(state))
        if growth > _MOST:
            raise ValueError(
                f"{path}: its {type(step).__name__} makes a text {growth:.0e} times as long, expected at most {_MOST}; "
                "no real tokenizer does, get the model from where it was published"
            )


def _growth(step: dict[str, Any]) -> float:
    """Return the largest factor by which a step lengthens a text, as far as the step itself says."""
    for inner in ("normalizers", "processors", "decoders"):
        if inner in step:
            return math.prod(map(_growth, step[inner]), start=1.0)
    if step.get("type") == "Replace":
        return max(1, len(step["content"]))
    if step.get("type") == "TemplateProcessing":
        return max(1, sum("Sequence" in piece for piece in step["single"]))
    return 1
