"""Same seed, same text: a cover of method x company x slices x threads x prefix hit x preemption x temperature.

Every text of 256 tokens is compared with plain decoding of the request alone, on the embedded model in each weights
format.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from cases import LENGTH, PARAMS, PROMPTS
from drafters import GarbageDrafter
from helpers import assert_whole, request, run

from stretto.core.verifiers import Coupled, Walked
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.method import Speculative
from stretto.engine.step import Engine
from stretto.kernels import native

CASES = [("math", "greedy"), ("story", "nucleus"), ("code", "all")]


class Cell(NamedTuple):
    """One combination of everything that must not change the text."""

    method: str
    max_rows: int
    threads: int
    together: bool
    hit: bool
    preempted: bool


CELLS = [
    Cell("plain", 256, 1, together=True, hit=False, preempted=False),
    Cell("plain", 2, 2, together=True, hit=False, preempted=True),
    Cell("plain", 7, 3, together=False, hit=True, preempted=False),
    Cell("drafted", 64, 2, together=True, hit=True, preempted=False),
    Cell("drafted", 9, 1, together=True, hit=False, preempted=True),
    Cell("drafted", 33, 3, together=False, hit=False, preempted=False),
    Cell("mixed", 40, 2, together=True, hit=False, preempted=True),
    Cell("mixed", 17, 1, together=True, hit=True, preempted=True),
]


def cases_of(cell: Cell) -> list[tuple[str, str]]:
    """Return all cases for company; the one with everything in its parameters for a request alone, on more threads than
    most machines of tests have cores, which takes long."""
    return CASES if cell.together else CASES[-1:]


def texts(cell: Cell, model, plain, verifier=None) -> tuple[list[list[int]], Engine, list]:
    """Run the cases as the cell says; return their texts."""
    cases = cases_of(cell)
    torch.set_num_threads(cell.threads)
    native.set_threads(cell.threads)
    truth = {tuple(plain(*case)[0]): plain(*case)[1] for case in cases}
    drafted = Speculative("drafted", [GarbageDrafter(model.vocab_size, truth)], rows=12, verifier=verifier)
    room = 1.4 if cell.preempted else 8
    engine = Engine(
        {"target": model}, [Plain(), drafted], cache_tokens=int(room * (LENGTH + 48)), max_rows=cell.max_rows
    )
    methods = ["drafted", "plain", "drafted"] if cell.method == "mixed" else [cell.method] * len(cases)
    if cell.hit:
        for case in cases:
            run(engine, request(engine, plain(*case)[0], max_tokens=4))
    requests = [
        request(engine, plain(*case)[0], method, max_tokens=LENGTH, **PARAMS[case[1]])
        for case, method in zip(cases, methods, strict=True)
    ]
    found = run(engine, *requests) if cell.together else [run(engine, each)[0] for each in requests]
    return found, engine, requests


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_the_text_depends_on_nothing_else(cell, stored):
    model, plain = stored
    found, engine, requests = texts(cell, model, plain)
    assert found == [plain(*case)[1] for case in cases_of(cell)]
    assert bool(sum(r.stats.preemptions for r in requests)) == cell.preempted
    assert [bool(r.stats.cached) for r in requests] == [cell.hit] * len(requests)
    if cell.method != "plain":
        # Drafts that are never made, or never accepted, would prove nothing.
        assert all(r.stats.accepted > LENGTH // 4 for r in requests if r.method == "drafted")
        assert all(r.stats.drafted > r.stats.accepted for r in requests if r.method == "drafted")
    assert_whole(engine)


class Credulous(Coupled):
    """Accepts whatever was drafted first: the control."""

    def walk(self, tree, state):
        walked = yield from super().walk(tree, state)
        first = tree.children(-1)
        return walked if not first else Walked([tree.tokens[first[0]]], [], walked.finish, None)


def test_a_verifier_that_believes_its_drafter_is_caught(tiny_model, plain):
    found, _, _ = texts(CELLS[3], tiny_model, plain, verifier=Credulous())
    assert found != [plain(*case)[1] for case in CASES]


def test_the_texts_are_worth_comparing(plain):
    for case in CASES:
        assert len(set(plain(*case)[1])) > 30, "a text that repeats itself hides errors"
    assert plain("story", "nucleus")[1] != plain("story", "greedy")[1]
    assert set(PROMPTS) == {case[0] for case in CASES}
