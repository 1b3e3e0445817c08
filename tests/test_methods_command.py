"""``stretto methods``: every row is listed, and what is said to run here can be built here."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from renumbered import renumbered
from rich.console import Console

from stretto import LLM
from stretto.cli import methods, race
from stretto.cli.main import main
from stretto.decoding.plain import Plain
from stretto.recipes.recipe import FAMILIES, Recipe
from stretto.recipes.table import RECIPES, build_method, find_recipe
from stretto.weights.resolve import resolve

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
    assert [
        "drafted",
        "draft-model",
        "exact",
        "exact-distribution",
        "draft",
        "no: draft missing",
        "arXiv 2211.17192",
    ] in lines
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


def test_a_draft_of_another_vocabulary_is_told_apart(tmp_path):
    draft = str(renumbered(Path(resolve("stretto-tiny-draft")), tmp_path / "draft"))
    llm = LLM("stretto-tiny", draft=draft, cache_tokens=64)
    things = methods.aboard_of("stretto-tiny", draft).things()
    assert things == llm.aboard.things() and "foreign-draft" in things
    lineup = race._lineup(llm, ["all"], None)
    assert "slem" in lineup and "draft-model" not in lineup


def test_a_terminal_gets_a_table(table):
    screen = Console(file=StringIO(), width=100)
    aboard = methods.aboard_of("stretto-tiny", None)
    screen.print(methods._table([methods.entry(DRAFTED, aboard)]))
    written = screen.file.getvalue()
    assert "no: draft missing" in written and "arXiv 2211.17192" in written
    assert max(map(len, written.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("draftd", "drafted"),
        ("sufix", "suffix-decoding"),
        ("draf", "draft-tree, draft-model, "),
        ("Suffix-Decoding", "suffix-decoding[?]$"),
        ("PLAIN", "plain[?]$"),
        ("zzz", ""),
    ],
)
def test_an_unknown_name_gets_the_nearest(table, name, near):
    with pytest.raises(ValueError, match=f"did you mean {near}") as refused:
        find_recipe(name)
    assert str(refused.value).count(", ") <= 2


def test_known_names_are_told_alone_and_others_are_wrong_usage(table, monkeypatch, capsys):
    code, _, errors = stretto(monkeypatch, capsys, "draftd")
    assert code == 2 and "drafted" in errors
    code, said, _ = stretto(monkeypatch, capsys, "drafted")
    assert code == 0 and len(said.splitlines()) == 2
