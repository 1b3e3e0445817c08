"""Chaos: at every step each request gets a random exact method, a random tree of garbage and true tokens, a random row
budget, random preemptions, aborts and prefix state. Every text must equal plain decoding.

Pass ``--chaos-seed`` to repeat a run; ``pytest -m long -n 0`` runs many more rounds.
"""

from __future__ import annotations

import random

import pytest
from cases import LENGTH, PARAMS, PROMPTS
from drafters import GarbageDrafter
from helpers import assert_whole, request

from stretto.cache.manager import ModelCache
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.method import Speculative
from stretto.engine.step import Engine

ROWS = 64
ENOUGH = 5
"""Accepted drafts without which a storm proves nothing."""


def storm(model, plain, seed: int, *, rounds: int, length: int) -> tuple[list[str], int, int]:
    """Run rounds of requests through a random engine; return what went wrong, drafts accepted, preemptions.

    More rounds where chance had too few drafts accepted.
    """
    chance = random.Random(seed)
    cases = [(prompt, params) for prompt in PROMPTS for params in PARAMS]
    truth = {tuple(plain(*case)[0]): plain(*case)[1] for case in cases}
    methods = [
        Plain(),
        Speculative("trees", [GarbageDrafter(model.vocab_size, truth, seed)], rows=12),
        Speculative("noise", [GarbageDrafter(model.vocab_size, {}, seed + 1)], rows=5),
        Speculative(
            "two", [GarbageDrafter(model.vocab_size, truth, seed + 2), GarbageDrafter(9, {}, seed + 3)], rows=9
        ),
    ]
    engine = Engine({"target": model}, methods, cache_tokens=int(3.3 * (LENGTH + 48)), max_rows=ROWS)
    wrong: list[str] = []
    accepted = preempted = 0
    for number in range(4 * rounds):
        if number >= rounds and accepted > ENOUGH:
            break
        chosen = [chance.choice(cases) for _ in range(chance.randint(2, 5))]
        requests = {request(engine, plain(*case)[0], max_tokens=length, **PARAMS[case[1]]): case for case in chosen}
        doomed = set(chance.sample(sorted(requests, key=lambda r: r.id), k=len(requests) // 3))
        left = sorted(requests, key=lambda r: r.id)
        while engine.busy or left:
            if left and chance.random() < 0.2:
                engine.submit(left.pop())
            for each in engine.requests.values():
                each.method = chance.choice(methods).name
            engine.scheduler.max_rows = chance.randint(1, ROWS)
            if engine.scheduler.running and chance.random() < 0.05:
                engine.scheduler.preempt(chance.choice(engine.scheduler.running))
            if chance.random() < 0.01:
                engine.caches["target"].forget()
            for each in doomed & set(engine.requests.values()):
                if chance.random() < 0.02:
                    engine.abort(each.id)
            engine.step()
        for each, case in requests.items():
            got = each.tokens[len(each.prompt) :]
            accepted += each.stats.accepted
            preempted += each.stats.preemptions
            if each.finish not in ("length", "abort") or got != plain(*case)[1][: len(got)]:
                wrong.append(f"seed {seed}, round {number}: {case} ended by {each.finish}: {each.error}")
            if each.finish == "length" and len(got) != length:
                wrong.append(f"seed {seed}, round {number}: {case} has {len(got)} tokens")
    assert_whole(engine)
    return wrong, accepted, preempted


def check(found: tuple[list[str], int, int]) -> None:
    wrong, accepted, preempted = found
    assert not wrong
    assert accepted > ENOUGH and preempted > 0, f"{accepted} accepted, {preempted} preempted: that proves nothing"


def test_storm(stored, request):
    seed = request.config.getoption("--chaos-seed")
    check(storm(*stored, seed, rounds=3, length=LENGTH))


@pytest.mark.long
def test_long_storms(stored):
    for seed in range(6):
        check(storm(*stored, seed, rounds=4, length=LENGTH))


def test_the_storm_notices_rows_kept_at_the_wrong_place(tiny_model, plain, monkeypatch):
    """The control: accepted rows are copied from the scratch row beside theirs."""
    keep = ModelCache.keep

    def beside(self, moves, lanes=None):
        return keep(self, [(view, max(0, row - 1), position) for view, row, position in moves], lanes)

    monkeypatch.setattr(ModelCache, "keep", beside)
    wrong, accepted, _ = storm(tiny_model, plain, 1, rounds=2, length=96)
    assert accepted and wrong
