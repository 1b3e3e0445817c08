"""``stretto methods``: the decoding methods by name, and which of them run with what is aboard."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stretto.core.batch import Model
from stretto.engine.llm import same_vocabulary
from stretto.models.base import Described
from stretto.models.families import family_of
from stretto.models.loader import open_source
from stretto.recipes.recipe import FAMILIES, Aboard, Recipe
from stretto.recipes.table import RECIPES, find_recipe, missing
from stretto.tokens.tokenizer import Tokenizer
from stretto.weights.resolve import resolve

COLUMNS = ("method", "family", "fidelity", "claim", "needs", "runnable", "source")


def aboard_of(model: str, draft: str | None) -> Aboard:
    """Return what an ``LLM`` of these models would have aboard, from their configurations alone.

    Raises what opening a checkpoint raises.
    """
    models: dict[str, Model] = {}
    tokenizers: dict[str, Tokenizer | None] = {}
    for name, path in (("target", model), ("draft", draft)):
        if path is not None:
            source = open_source(path, "auto")
            # A model without weights: what it is and stores can be asked, and nobody here makes a pass.
            models[name] = cast(Model, Described(source.spec, name, source.own(), "", None))
            tokenizers[name] = Tokenizer.load(resolve(path, accept=family_of))
    foreign = draft is not None and not same_vocabulary(models, tokenizers, draft)
    return Aboard(models, tokenizers, frozenset({"draft"} if foreign else ()))


def entry(recipe: Recipe, aboard: Aboard) -> dict[str, Any]:
    """Return a row as plain data."""
    lacking = sorted(missing(recipe, aboard))
    return {
        "name": recipe.name,
        "family": recipe.family,
        "what": FAMILIES[recipe.family],
        "fidelity": recipe.fidelity,
        "claim": recipe.claim,
        "needs": sorted(recipe.needs),
        "runnable": not lacking,
        "missing": lacking,
        "same_as": recipe.same_as,
        "source": recipe.source,
    }


def run(names: list[str], *, model: str, draft: str | None, as_json: bool) -> None:
    """Print the methods of these names (all where there are none), by family and name."""
    try:
        recipes = [find_recipe(name) for name in names] or list(RECIPES.values())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    aboard = aboard_of(model, draft)
    order = list(FAMILIES)
    entries = [entry(recipe, aboard) for recipe in sorted(recipes, key=lambda r: (order.index(r.family), r.name))]
    if as_json:
        print(json.dumps(entries, ensure_ascii=False, indent=2))
    elif sys.stdout.isatty():
        Console().print(_table(entries))
    else:
        print("\t".join(COLUMNS))
        for each in entries:
            print("\t".join(cell or "-" for cell in _cells(each)))


def _cells(entry: dict[str, Any]) -> list[str]:
    """Return the columns of a row, empty where there is nothing to say."""
    lacking = entry["missing"]
    runnable = f"no: {', '.join(lacking)} missing" if lacking else "yes"
    source = f"drafts as {entry['same_as']}; {entry['source']}" if entry["same_as"] else entry["source"]
    needs = ", ".join(entry["needs"])
    return [entry["name"], entry["family"], entry["fidelity"], entry["claim"], needs, runnable, source]


def _table(entries: list[dict[str, Any]]) -> Table:
    """Return the table for a terminal, without columns of which nothing is known; families stand apart."""
    rows = [_cells(each) for each in entries]
    shown = [n for n, name in enumerate(COLUMNS) if any(row[n] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for n in shown:
        name = COLUMNS[n]
        table.add_column(name, no_wrap=n < 3, overflow="fold", style="cyan" if n == 0 else None)
    before = None
    for row in rows:
        if before not in (None, row[1]):
            table.add_row()
        before = row[1]
        table.add_row(*(Text(row[n], style="dim" if n == 6 or row[5].startswith("no") else "") for n in shown))
    return table
