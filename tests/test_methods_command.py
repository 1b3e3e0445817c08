"""``stretto methods``: every row is listed, and what is said to run here can be built here."""

from __future__ import annotations

import json
import sys
from io import StringIO

import pytest
from rich.console import Console

from stretto.cli import methods
from stretto.cli.main import main
from stretto.decoding.plain import Plain
from stretto.recipes.recipe import FAMILIES, Recipe
from stretto.recipes.table import RECIPES, build_method

DRAFTED = Recipe(
    "drafted",
    lambda aboard: Plain(),
    family="draft-model",
    fidelity="exact",
    claim="exact-distribution",
    needs=frozenset({"draft"}),
    source="arXiv 2211.17192",
)


@pytest.fixture
def table(monkeypatch):
    """One row that needs a draft model beside whatever rows there are."""
    monkeypatch.setitem(RECIPES, "drafted", DRAFTED)


def stretto(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["stretto", "methods", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, *capsys.readouterr()


def test_every_method_is_listed(table, monkeypatch, capsys):
    code, said, _ = stretto(monkeypatch, capsys)
    heads, *lines = [line.split("\t") for line in said.splitlines()]
    assert code == 0 and tuple(heads) == methods.COLUMNS
    assert sorted(line[0] for line in lines) == sorted(RECIPES)
    assert ["drafted", "draft-model", "exact", "exact-distribution", "draft", "-", "arXiv 2211.17192"] in lines
    order = [list(FAMILIES).index(line[1]) for line in lines]
    assert order == sorted(order)


@pytest.mark.parametrize("draft", [None, "stretto-tiny"])
def test_what_runs_is_what_can_be_built(table, monkeypatch, capsys, draft):
    options = ["--model", "stretto-tiny", *(["--draft", draft] if draft else []), "--json"]
    code, said, _ = stretto(monkeypatch, capsys, *options)
    entries = {entry["name"]: entry for entry in json.loads(said)}
    assert code == 0 and entries.keys() == RECIPES.keys()
    assert entries["plain"]["runnable"] and entries["drafted"]["runnable"] == (draft is not None)
    assert entries["drafted"]["missing"] == ([] if draft else ["draft"])
    aboard = methods.aboard_of("stretto-tiny", draft)
    for name, entry in entries.items():
        if not entry["runnable"]:
            with pytest.raises(ValueError, match=entry["missing"][0]):
                build_method(name, aboard)


def test_a_terminal_gets_a_table(table):
    screen = Console(file=StringIO(), width=100)
    aboard = methods.aboard_of("stretto-tiny", None)
    screen.print(methods._table([methods.entry(DRAFTED, aboard)], asked=True))
    written = screen.file.getvalue()
    assert "no: draft missing" in written and "arXiv 2211.17192" in written
    assert max(map(len, written.splitlines())) <= 100


def test_an_unknown_name_gets_the_nearest(table, monkeypatch, capsys):
    code, _, errors = stretto(monkeypatch, capsys, "draftd")
    assert code == 2 and "drafted" in errors
    code, said, _ = stretto(monkeypatch, capsys, "drafted")
    assert code == 0 and len(said.splitlines()) == 2
