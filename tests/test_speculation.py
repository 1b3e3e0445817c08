"""Token equality: every exact recipe writes plain decoding's text, whatever it is asked for and whoever runs beside it.

The suite runs a pairwise cover of the matrix (``tests/matrix.py``), ``pytest -m long -n 0`` all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from matrix import FACTORS, Cell, Found, Matrix, covering, draft_name, exact_methods, load, play, whole
from pairwise import missing

from stretto.cache.manager import ModelCache
from stretto.core.verifiers import Coupled, Walked
from stretto.decoding.speculative.drafters.ngram import PromptLookup


def check(found: Found, methods: Sequence[str]) -> None:
    assert not found.wrong
    assert found.hits and found.preempted
    idle = [name for name in methods if name != "plain" and not found.methods[name].accepted]
    assert not idle, f"{idle}: no drafted token was accepted: their equality proves nothing"


def test_every_exact_recipe_writes_the_plain_text():
    found = play(covering)
    check(found, exact_methods())
    assert found.switches > 1000


@pytest.mark.long
def test_the_whole_matrix():
    check(play(whole), exact_methods())


def test_the_cover_is_complete():
    methods = [f"method {number}" for number in range(23)]
    factors = [methods, *FACTORS.values()]
    rows = covering(methods)
    assert not missing(factors, rows)
    assert missing(factors, rows[:-1]), "a cover that lacks a row was taken for whole"
    assert len(rows) < 1.1 * len(methods) * max(map(len, FACTORS.values()))


# ---- controls: programs that are wrong on purpose ----


@pytest.fixture(scope="module")
def corner() -> Callable[[], Found]:
    """Return what runs a corner of the matrix: prompt lookup, alone and in company, over half the length."""
    llm = load("fp32", draft_name())
    asked = [("greedy", "mixed", "hit"), ("greedy", "alone", "preempted")]
    cells = [Cell("prompt-lookup", params, company, "fp32", cache) for params, company, cache in asked]

    def go() -> Found:
        found = Found()
        Matrix(llm, ["plain", "prompt-lookup", "suffix-decoding"], found, length=128).go(cells)
        return found

    check(go(), ["prompt-lookup"])
    return go


def test_one_wrong_token_is_noticed(corner, monkeypatch):
    """A verifier that once keeps a drafted token that was not chosen."""
    honest, kept = Coupled.walk, []

    def careless(self, tree, state):
        walked = yield from honest(self, tree, state)
        if kept or walked.nodes or walked.finish or not len(tree):
            return walked
        kept.append(tree.tokens[0])
        return Walked([tree.tokens[0], *walked.tokens], [0], None, None)

    monkeypatch.setattr(Coupled, "walk", careless)
    assert corner().wrong and len(kept) == 1


def test_rows_kept_from_the_wrong_place_are_noticed(corner, monkeypatch):
    """Accepted rows are copied from the scratch row beside theirs."""
    keep = ModelCache.keep

    def beside(self, moves, lanes=None):
        return keep(self, [(view, max(0, row - 1), position) for view, row, position in moves], lanes)

    monkeypatch.setattr(ModelCache, "keep", beside)
    assert corner().wrong


def test_a_dropped_drafter_is_noticed(corner, monkeypatch):
    """The texts of a method without drafters are equal and prove nothing."""

    def broken(self, request, room):
        raise RuntimeError("nothing found")

    monkeypatch.setattr(PromptLookup, "propose", broken)
    assert any("dropped" in text for text in corner().wrong)
