"""Methods by name. A published system is a row in one of the modules beside this one, and a row is parts."""

from __future__ import annotations

from difflib import get_close_matches

from stretto.decoding.method import DecodingMethod
from stretto.decoding.plain import Plain
from stretto.recipes.recipe import Aboard, Recipe

PLAIN = Recipe("plain", lambda aboard: Plain(), "plain", "exact")

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PLAIN,)}


def find_recipe(name: str) -> Recipe:
    """Return the row of that name. Raises ``ValueError`` with the nearest names for an unknown one."""
    if name not in RECIPES:
        near = get_close_matches(str(name), RECIPES, 3) or sorted(RECIPES)
        raise ValueError(f"method={name!r} is not known; did you mean {', '.join(near)}?")
    return RECIPES[name]


def build_method(name: str, aboard: Aboard | None = None) -> DecodingMethod:
    """Return a new method of that name. Raises ``ValueError`` for an unknown name and for what is not aboard."""
    recipe, aboard = find_recipe(name), aboard or Aboard()
    if lacking := missing(recipe, aboard):
        raise ValueError(f"method={name!r} needs {', '.join(sorted(lacking))}, which is not aboard{_remedy(lacking)}")
    return recipe.build(aboard)


def missing(recipe: Recipe, aboard: Aboard) -> frozenset[str]:
    """Return what the method needs that is neither aboard nor comes with it."""
    return recipe.needs - aboard.things() - recipe.brings.keys()


def _remedy(lacking: frozenset[str]) -> str:
    return ": name a draft model with draft=PATH (--draft PATH)" if "draft" in lacking else ""


def methods_page() -> str:
    """Return ``docs/methods.md``: what every method promises and needs, from the rows."""
    lines = [
        "# Methods",
        "",
        "Generated from the recipes (`methods_page` in `recipes/table.py`). *Fidelity* is what Stretto promises, relative",
        "to plain decoding of the same weights on the same backend; *claim* is what the paper says of itself.",
        "",
        "| method | family | fidelity | claim | needs | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, recipe in sorted(RECIPES.items()):
        cells = [
            f"`{name}`",
            recipe.family,
            recipe.fidelity,
            recipe.claim,
            ", ".join(sorted(recipe.needs)),
            recipe.source,
        ]
        lines.append("| " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines) + "\n"
