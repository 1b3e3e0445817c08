"""Methods by name. A published system is a row here: parts, what it promises and needs, and its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from stretto.decoding.method import DecodingMethod
from stretto.decoding.plain import Plain


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row: how to put the method together, and where it was published."""

    name: str
    build: Callable[[], DecodingMethod]
    source: str = ""


RECIPES = {recipe.name: recipe for recipe in (Recipe("plain", Plain),)}


def build_method(name: str) -> DecodingMethod:
    """Return a new method of that name. Raises ``ValueError`` with the nearest names for an unknown one."""
    if name not in RECIPES:
        near = get_close_matches(str(name), RECIPES, 3) or sorted(RECIPES)
        raise ValueError(f"method={name!r} is not known; did you mean {', '.join(near)}?")
    return RECIPES[name].build()


def methods_page() -> str:
    """Return ``docs/methods.md``: what every method promises, needs and refuses, from the data behind the errors."""
    lines = [
        "# Methods",
        "",
        "Generated from the recipes and the facts that methods declare (`methods_page` in `recipes/table.py`).",
        "",
        "| method | fidelity | relative to | needs | does not go with | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, recipe in sorted(RECIPES.items()):
        facts = recipe.build().facts
        refused = "; ".join(f"`{parameter}`: {reason}" for parameter, reason in sorted(facts.refuses.items()))
        cells = [f"`{name}`", facts.fidelity, facts.relative_to, ", ".join(sorted(facts.needs)), refused, recipe.source]
        lines.append("| " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines) + "\n"
