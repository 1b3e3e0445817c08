"""No two rows of the table draft the same trees, unless they say that their papers describe the same algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import pytest
from cases import PROMPTS
from helpers import request, run
from renumbered import renumbered

from stretto.decoding.plain import Plain
from stretto.engine.step import Engine
from stretto.models.loader import load_model
from stretto.recipes.recipe import Aboard, Recipe
from stretto.recipes.table import RECIPES
from stretto.tokens import Tokenizer
from stretto.weights.resolve import resolve

SYSTEMS = {name: recipe for name, recipe in RECIPES.items() if recipe.family not in ("plain", "auto")}
"""``plain`` drafts nothing, and what ``auto`` drafts depends on measured times."""
LENGTH = 24
CLEAR = "1, 2, 3, 4, 5, 6, 7, 8"
"""Goes on clearly, and copies nothing."""
TEXTS = [
    (f"{PROMPTS['story']} chop. {PROMPTS['story']}", {}),
    (CLEAR, {"temperature": 0.8, "seed": 1}),
    (PROMPTS["math"], {"temperature": 0.6, "top_p": 0.9, "seed": 2}),
]
"""Prompts and parameters. A last one has a mask, for what a mask forces."""
CHOICES = ("the cat sat on the mat and looked at the moon", "the cat ran away from the dog and over the hill")
Trees = list[tuple[tuple[str, ...], ...]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Return by name a model of which no pass is timed, so that no draft depends on this machine, and its tokenizer."""
    home, draft = resolve("stretto-tiny"), resolve("stretto-tiny-draft")
    other = renumbered(draft, tmp_path_factory.mktemp("other") / "renumbered")
    folders = {"target": home, "draft": draft, "foreign-draft": other, "int4": home}
    return {
        name: (
            load_model(folder, name=name.removeprefix("foreign-"), weights="int4" if name == "int4" else "auto"),
            Tokenizer.load(folder),
        )
        for name, folder in folders.items()
    }


def proposed(recipe: Recipe, models: dict[str, tuple]) -> Trees:
    """Return what a new method drafts for all texts, played together: step by step each tree as its nodes' paths."""
    names = {name.removeprefix("foreign-"): models[name] for name in ("target", *(recipe.needs & models.keys()))}
    foreign = frozenset(name.removeprefix("foreign-") for name in recipe.needs if name.startswith("foreign-"))
    aboard = Aboard({name: each[0] for name, each in names.items()}, {n: each[1] for n, each in names.items()}, foreign)
    method = recipe.build(aboard)
    method.patience = math.inf
    engine = Engine(dict(aboard.models), [Plain(), method], cache_tokens=1024, max_rows=256)
    (drafter,) = method.drafters
    trees: Trees = []
    observe = drafter.observe

    def watch(observations) -> None:
        for tree in (seen.tree for seen in observations):
            paths = [tree.path(node) for node in range(len(tree))]
            trees.append(tuple(".".join(str(tree.tokens[step]) for step in path) for path in paths))
        observe(observations)

    drafter.observe = watch
    tokenizer = models["target"][1]
    masked = {"mask": ("choice", {"choices": [tokenizer.encode_plain(text) for text in CHOICES]}), "ignore_eos": False}
    run(
        engine,
        *(
            request(engine, tokenizer.encode(text), method.name, max_tokens=LENGTH, **params)
            for text, params in [*TEXTS, (CLEAR, masked)]
        ),
    )
    assert method.drafters == [drafter], "the drafter was dropped"
    return trees


def alike(found: dict[str, Trees]) -> set[frozenset[str]]:
    """Return the pairs that drafted the same trees."""
    return {frozenset(pair) for pair in combinations(found, 2) if found[pair[0]] == found[pair[1]]}


def declared(recipes: Iterable[Recipe]) -> set[frozenset[str]]:
    """Return the pairs of which the table says that they do."""
    pairs = combinations(recipes, 2)
    return {frozenset({a.name, b.name}) for a, b in pairs if (a.same_as or a.name) == (b.same_as or b.name)}


def test_no_two_methods_draft_the_same_trees(models: dict[str, tuple]) -> None:
    found = {name: proposed(recipe, models) for name, recipe in SYSTEMS.items()}
    for name, trees in found.items():
        assert sum(map(bool, trees)) > 1, f"{name} drafted next to nothing: these texts tell nothing about it"
    assert alike(found) == declared(SYSTEMS.values())
    # The control: another name makes no other method.
    renamed = replace(SYSTEMS["svip"], name="renamed")
    found["renamed"] = proposed(renamed, models)
    assert alike(found) - declared([*SYSTEMS.values(), renamed]) == {frozenset({"svip", "renamed"})}


def test_the_table_names_methods_that_stand_for_themselves() -> None:
    for recipe in SYSTEMS.values():
        assert not recipe.same_as or not SYSTEMS[recipe.same_as].same_as, recipe.name
