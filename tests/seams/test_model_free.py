"""Every drafter without a model, in company, preempted and short of rows: the text of plain decoding."""

from __future__ import annotations

import pytest
from company import text

from stretto.core.verifiers import Coupled, Walked
from stretto.decoding.speculative.method import Speculative
from stretto.recipes.jacobi import JACOBI
from stretto.recipes.recipe import Aboard
from stretto.recipes.retrieval import RETRIEVAL

MODEL_FREE = {recipe.name: recipe for recipe in (*RETRIEVAL, *JACOBI)}
PERIOD = [7, 3, 50, 21, 9]
PARAMS = [{"temperature": temperature, "seed": 4, "max_tokens": 48} for temperature in (0.0, 0.7)] * 2
PROMPTS = [PERIOD * 3, [5, *PERIOD, 8, *PERIOD], [1, 2, 3], [9, 9, 9, 9]]
MASK = ("choice", {"choices": [[*PERIOD, *PERIOD, 8], [*PERIOD, 4, *PERIOD]]})


class Credulous(Coupled):
    """The control: accepts whatever comes first in the tree."""

    def walk(self, tree, state):
        walked = yield from super().walk(tree, state)
        nodes = [0] if len(tree) and tree.parents[0] == -1 else []
        return Walked([tree.tokens[0], *walked.tokens[:1]], nodes, walked.finish, None) if nodes else walked


@pytest.fixture(scope="module")
def asked(company):
    """Return prompts and parameters with the plain texts; repetition makes the drafters draft."""
    params = [{**each, "logit_bias": {token: 6.0 for token in PERIOD}} for each in PARAMS[:2]] + PARAMS[2:]
    params[3] = {**params[3], "mask": MASK, "ignore_eos": False}
    return [(p, each, company.alone(p, **each)) for p, each in zip(PROMPTS, params, strict=True)]


@pytest.mark.parametrize("name", MODEL_FREE)
def test_the_text_is_that_of_plain_decoding(company, asked, name):
    most, budget = (24, 60) if name == "lookahead" else (12, 24)  # its window takes 14 rows
    for verifier in (Coupled(), Credulous()):
        method = Speculative(name, MODEL_FREE[name].build(Aboard()).drafters, verifier=verifier, rows=most)
        engine = company.engine(method, tokens=160, rows=budget)
        played = company.play(engine, [(prompt, name, params) for prompt, params, _ in asked])
        same = [text(each) == plain for each, (*_, plain) in zip(played, asked, strict=True)]
        assert all(same) == (type(verifier) is Coupled)
        assert sum(each.stats.drafted for each in played) > 0 and method.drafters


def test_all_of_them_united(company, asked):
    drafters = [drafter for recipe in MODEL_FREE.values() for drafter in recipe.build(Aboard()).drafters]
    method = Speculative("all", drafters, rows=12)
    engine = company.engine(method, tokens=160, rows=24)
    played = company.play(engine, [(prompt, "all", params) for prompt, params, _ in asked])
    assert [text(each) for each in played] == [plain for *_, plain in asked]
    assert method.drafters == drafters
    assert set(method.stores()) == {"suffix-decoding", "lookahead-alipay", "token-recycling"}
    drafted = {name for each in played for name in each.stats.drafts}
    assert drafted >= MODEL_FREE.keys() - {"lookahead"}
