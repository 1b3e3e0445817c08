"""Methods by name. A published system is a row in one of the modules beside this one, and a row is parts."""

from __future__ import annotations

from difflib import SequenceMatcher
from heapq import nlargest

from stretto.decoding.method import DecodingMethod
from stretto.decoding.plain import Plain
from stretto.recipes.auto import AUTO
from stretto.recipes.drafting import DRAFTING
from stretto.recipes.jacobi import JACOBI
from stretto.recipes.recipe import Aboard, Recipe
from stretto.recipes.retrieval import RETRIEVAL
from stretto.recipes.rules import RULES

PLAIN = Recipe("plain", lambda aboard: Plain(), "plain", "exact")

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PLAIN, AUTO, *DRAFTING, *RULES, *RETRIEVAL, *JACOBI)}


NEARLY = 0.85
"""Share of the likest name's likeness from which on another is worth being named beside it."""


def find_recipe(name: str) -> Recipe:
    """Return the row of that name. Raises ``ValueError`` with the nearest names for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"method={name!r} is not known; did you mean {', '.join(_nearest(str(name)))}?")
    return RECIPES[name]


def _nearest(name: str) -> list[str]:
    """Return at most three names like this one, by the whole or by one of the words in them: the likest, and others
    that are nearly as like.
    """

    def likeness(known: str) -> tuple[float, float]:
        whole, *words = (SequenceMatcher(None, name.lower(), each).ratio() for each in (known, *known.split("-")))
        return max(whole, *words), whole

    likest = nlargest(3, RECIPES, key=likeness)
    return [known for known in likest if likeness(known)[0] >= NEARLY * likeness(likest[0])[0]]


def build_method(name: str, aboard: Aboard | None = None) -> DecodingMethod:
    """Return a new method of that name. Raises ``ValueError`` for an unknown name and for what is not aboard."""
    recipe, aboard = find_recipe(name), aboard or Aboard()
    if lacking := missing(recipe, aboard):
        told = f"method={name!r} needs {', '.join(sorted(lacking))}, which is not aboard"
        raise ValueError(f"{told}{_remedy(lacking, aboard.things())}")
    return recipe.build(aboard)


def missing(recipe: Recipe, aboard: Aboard) -> frozenset[str]:
    """Return what the method needs that is neither aboard nor comes with it."""
    return recipe.needs - aboard.things() - recipe.brings.keys()


def _remedy(lacking: frozenset[str], things: frozenset[str]) -> str:
    if "draft" in lacking and "foreign-draft" in things:
        return ": the draft that is aboard has another vocabulary than the target; use method='slem'"
    if "foreign-draft" in lacking and "draft" in things:
        return ": the draft that is aboard has the target's own vocabulary; use method='draft-model'"
    if "foreign-draft" in lacking:
        return ": name a draft model with a vocabulary of its own, draft=PATH (--draft PATH)"
    return ": name a draft model with draft=PATH (--draft PATH)" if "draft" in lacking else ""


def methods_page() -> str:
    """Return ``docs/methods.md``: what every method promises and needs, from the rows."""
    lines = [
        "# Methods",
        "",
        "Generated from the recipes (`methods_page` in `recipes/table.py`). *Fidelity* is what Stretto promises,",
        "relative to plain decoding of the same weights on the same backend; *claim* is what the paper says.",
        "No two draft the same trees, except where a row says whose it drafts: those papers describe one algorithm.",
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
            f"drafts as `{recipe.same_as}`; {recipe.source}" if recipe.same_as else recipe.source,
        ]
        lines.append("| " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines) + "\n"
