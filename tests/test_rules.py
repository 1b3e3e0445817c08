"""The rows that are rules: each one's tree by hand, a text on which it is accepted, and no two of them alike."""

from __future__ import annotations

import math

import pytest
import torch
from chi_square import FALSE_ALARM
from helpers import request, run
from tables import Markov, Table
from test_sampling_verifiers import LENGTH, likelihood
from walks import DRAFTER, PROMPT, SAMPLING, TARGET

from stretto import LLM, SamplingParams
from stretto.core.batch import Model
from stretto.core.request import Request
from stretto.decoding.plain import Plain
from stretto.engine.step import Engine
from stretto.recipes.drafting import DRAFTING
from stretto.recipes.recipe import Aboard
from stretto.recipes.rules import RULES
from stretto.recipes.table import build_method

NAMES = [recipe.name for recipe in RULES]
SAMPLERS = [recipe.name for recipe in RULES if recipe.fidelity == "exact-distribution"]


def sent(
    name: str, models: dict[str, Model], asked: list[tuple[list[int], dict]]
) -> tuple[list[list[str]], list[Request]]:
    """Play requests together; return each tree that was sent, its nodes as the tokens of their paths, and them."""
    method = build_method(name, Aboard(models))
    engine = Engine(models, [Plain(), method], cache_tokens=1024, max_rows=128)
    (drafter,) = method.drafters
    trees, observe = [], drafter.observe

    def watch(observations):
        for tree in (seen.tree for seen in observations if len(seen.tree)):
            paths = [tree.path(node) for node in range(len(tree))]
            trees.append([".".join(str(tree.tokens[step]) for step in path) for path in paths])
        observe(observations)

    drafter.observe = watch
    requests = [request(engine, prompt, name, **params) for prompt, params in asked]
    run(engine, *requests)
    assert method.drafters == [drafter], "the drafter was dropped"
    return trees, requests


# ---- by hand ----


def follows(*chances: float) -> dict[int, float]:
    """Return logits of a draft that has these chances for one, twenty and forty more than the token before."""
    return {step: math.log(chance) for step, chance in zip((1, 20, 40), chances, strict=False)}


def draft(of_token) -> Table:
    return Table({token: {(token + s) % 64: v for s, v in of_token(token).items()} for token in range(64)}, "draft")


def tree(*ranks: str) -> list[str]:
    """Return paths of tokens behind 2 for paths of ranks: 1 is the draft's best, 2 its second, 3 its third."""
    paths = []
    for path in ranks:
        token, tokens = 2, []
        for rank in path:
            token = (token + {"1": 1, "2": 20, "3": 40}[rank]) % 64
            tokens.append(str(token))
        paths.append(".".join(tokens))
    return paths


def run_of(length: int) -> list[str]:
    return tree(*("1" * depth for depth in range(1, length + 1)))


def wavering(token: int) -> dict[int, float]:
    """Chances .6, .3, .1 along the best path, .7, .18, .12 off it."""
    return follows(0.6, 0.3, 0.1) if token < 20 else follows(0.7, 0.18, 0.12)


def doubting(*chances: float):
    """A draft that is that sure of the tokens behind 2, 3, ...; two others share what is left."""

    def says(token: int) -> dict[int, float]:
        sure = chances[token - 2] if 2 <= token < 2 + len(chances) else 0.5
        return follows(sure, (1 - sure) * 0.6 + 1e-30, (1 - sure) * 0.4 + 1e-30)

    return says


# With the chances of `wavering` the paths of ranks survive so: 1 .6, 2 .3, 3 .1; 11 .36, 12 .18, 13 .06, 21 .21,
# 22 .054, 31 .07; 111 .216, 112 .108, 121 .126, 211 .147; 1111 .13, 1112 .065, 1121 .076, 1211 .088, 2111 .103;
# 11111 .078, 21111 .072, 12111 .062.
DEEP = tree(
    "1", "2", "3", "11", "12", "21", "111", "112", "121", "211", "1111", "1121", "1211", "2111", "11111", "21111"
)
BY_HAND = {
    "speculative-decoding": (wavering, run_of(5)),
    "speculative-sampling": (wavering, run_of(5)),
    # One, one, three, and one behind each of them five times.
    "specinfer": (
        wavering,
        tree("1", "11", *("11" + rank + "1" * more for more in range(6) for rank in "123")),
    ),
    "spectr": (wavering, tree(*(rank + "1" * more for more in range(5) for rank in "123"))),
    "rsd-c": (
        wavering,
        tree("1", "2", "11", "12", "21", "22", "111", "112", "121", "122", "211", "212", "221", "222"),
    ),
    "block-verification": (wavering, run_of(8)),
    # By rank, with .62, .14, .06, .03: 1 .62, 11 .38, 111 .24, 1111 .15, 2 .14, 11111 .092, 12 and 21 .087, 3 .06,
    # 111111 .057, 112, 121 and 211 .054, 13 and 31 .037, 1111111 .035; what follows is worth .033 and less.
    "sequoia": (
        wavering,
        tree(
            "1",
            "2",
            "3",
            "11",
            "12",
            "13",
            "21",
            "31",
            "111",
            "112",
            "121",
            "211",
            "1111",
            "11111",
            "111111",
            "1111111",
        ),
    ),
    # Layers bring 1, 1, .66, .22 and .015 tokens, of which the last is less than a pass is worth.
    "opt-tree": (wavering, DEEP),
    # What draws are worth: 1 1, 11 .6, 2 .4, 111 .36, 21 .3, 12 .24, 1111 .216, 211 .21, 121 .18, 2111 .147, 112 .144,
    # 11111 .13, 1211 .126, 1121 .108, 21111 .103, 3 .1; then 31 .1, which comes behind 3, and 22 .09.
    "dyspec": (wavering, DEEP),
    # Entropies 0, 0 and .898: the square root of .15 times that is .367.
    "svip": (doubting(1.0, 1.0, 0.5), run_of(3)),
    "confidence": (doubting(0.9, 0.42, 0.45, 0.39), run_of(4)),
    # .9, .54, .32 and .26 of the runs are without a rejection: more than .7 have one.
    "any-rejection": (doubting(0.9, 0.6, 0.6, 0.8), run_of(4)),
    # Alone, a request may have twelve of the sixteen rows.
    "tetris": (wavering, run_of(12)),
    # With .7 accepted, passes of 1 + rows / 32 and rounds of .103, three tokens give 1.7664 a pass, four 1.7677, five
    # 1.727.
    "smartspec": (wavering, run_of(4)),
    # Three a level are gone on from: 1 2 3, 11 12 21, 111 121 211; of all that hangs there the likeliest sixteen.
    "typical-acceptance": (
        wavering,
        tree("1", "2", "3", "11", "12", "13", "21", "31", "111", "112", "121", "211", "1111", "1112", "1211", "2111"),
    ),
    # The third token is held back.
    "bild": (doubting(0.9, 0.7, 0.55), run_of(2)),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_tree_is_the_one_worked_out_by_hand(name: str) -> None:
    says, expected = BY_HAND[name]
    counts = Table({token: {(token + 1) % 64: 9.0} for token in range(64)})
    trees, _ = sent(name, {"target": counts, "draft": draft(says)}, [([2], {"max_tokens": 40})])
    assert trees[0] == expected


def test_tetris_shares_its_rows_by_what_is_likely() -> None:
    """Sixteen rows: the chances of the surer draft, .9 and .81 and so on, against .667, .444, .296 of the other."""
    counts = Table({token: {(token + 1) % 64: 9.0} for token in range(64)})
    says = draft(lambda token: follows(0.9, 0.1) if token < 20 else follows(0.6, 0.3, 0.1))
    params = {"max_tokens": 40}
    trees, _ = sent("tetris", {"target": counts, "draft": says}, [([2], params), ([30], params)])
    # .9^11 = .31 and .9^12 = .28; (2/3)^3 = .296 is the twelfth and last of the surer draft's before it.
    assert [len(each) for each in trees[:2]] == [12, 4]


# ---- accepted ----


@pytest.fixture(scope="module")
def twins() -> LLM:
    """stretto-tiny with itself as its draft."""
    return LLM("stretto-tiny", draft="stretto-tiny", cache_tokens=1024, threads=1)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"smartspec"}))
def test_a_clear_text_has_half_of_its_drafts_accepted(twins: LLM, name: str) -> None:
    clear = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"
    sampling = SamplingParams(temperature=0.3, top_p=0.5, seed=1, max_tokens=40, ignore_eos=True)
    [plain], [done] = twins.generate(clear, sampling, method="plain"), twins.generate(clear, sampling, method=name)
    (recipe,) = [each for each in RULES if each.name == name]
    assert done.error is None and done.fidelity == recipe.fidelity
    assert done.text == plain.text or recipe.fidelity != "exact"
    assert done.stats["drafted"] >= 20 and 2 * done.stats["accepted"] >= done.stats["drafted"]
    assert list(done.stats["drafts"]) == [name]


def test_smartspec_is_accepted_where_drafting_is_worth_its_time() -> None:
    counts = Table({token: {(token + 1) % 64: 9.0} for token in range(64)})
    _, (asked,) = sent("smartspec", {"target": counts, "draft": draft(wavering)}, [([2], {"max_tokens": 17})])
    assert asked.stats.accepted == asked.stats.drafted >= 12


def test_smartspec_leaves_a_draft_alone_that_is_as_slow_as_its_target(twins: LLM) -> None:
    [done] = twins.generate("1, 2, 3, 4", SamplingParams(temperature=0.0, max_tokens=40), method="smartspec")
    assert done.stats["drafted"] < 20


# ---- no two alike ----


def test_no_two_draft_the_same_trees() -> None:
    """Three requests at once, greedy and not, on a pair of models that are often sure and often not."""
    source = torch.Generator().manual_seed(4)
    shared = torch.randn(64, 64, generator=source) * 3
    models = {
        "target": Markov(shared + torch.randn(64, 64, generator=source)),
        "draft": Markov(shared + torch.randn(64, 64, generator=source), "draft"),
    }
    asked = [
        ([1, 2], {"max_tokens": 24}),
        ([9], {"max_tokens": 24, "temperature": 0.8, "seed": 1}),
        ([33], {"max_tokens": 24, "temperature": 0.6, "top_p": 0.9, "seed": 2}),
    ]
    rows = [*RULES, *(row for row in DRAFTING if row.needs == {"draft"} and row.family == "draft-model")]
    found = {row.name: sent(row.name, models, asked)[0] for row in rows}
    for row in rows:
        alike = {other for other in found if other != row.name and found[other] == found[row.name]}
        assert alike == {each.name for each in rows if row.name in (each.same_as,)} | ({row.same_as} - {""}), row.name


# ---- the distribution, engine and all ----


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"speculative-sampling"}))
def test_in_an_engine_texts_have_the_targets_distribution(name: str) -> None:
    models = {"target": Markov(TARGET), "draft": Markov(DRAFTER, "draft")}
    params = {"temperature": SAMPLING.temperature, "max_tokens": LENGTH}
    _, requests = sent(name, models, [(PROMPT, {**params, "seed": seed}) for seed in range(240)])
    assert likelihood(torch.tensor([each.tokens[len(PROMPT) :] for each in requests])) > FALSE_ALARM
    assert sum(each.stats.accepted for each in requests) > 240
