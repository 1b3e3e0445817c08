"""The price of a pass: fitted from a few passes, refined by those that run."""

from __future__ import annotations

from itertools import cycle

import pytest

from stretto.decoding.method import Load
from stretto.engine.llm import LLM
from stretto.kernels import native
from stretto.models.price import KNOTS, Price


def true_cost(rows: int, context: int) -> float:
    """A machine with tiles, a cache that is read once for all rows, and products of rows and context."""
    return 5 + 0.25 * rows + 0.004 * context + 0.001 * rows * context


def test_a_few_passes_tell_rows_and_context_apart():
    passes = []

    def timer(rows: int, context: int) -> float:
        passes.append((rows, context))
        return true_cost(rows, context)

    price = Price(timer)
    assert len(passes) == len(KNOTS) + 2
    for rows in (1, 3, 8, 20, 32, 100):
        for context in (0, 100, 2000):
            assert price.ms(rows, context) == pytest.approx(true_cost(rows, context), rel=1e-6)
    assert price.ms(1000) > 5 * price.ms(128)


def test_passes_that_run_refine_it_and_one_that_is_held_up_does_not_spoil_it():
    price = Price(true_cost)
    for _ in range(200):
        for rows, context in ((1, 300), (8, 300), (30, 0)):
            price.observe(rows, context, rows * context, 2 * true_cost(rows, context))
    assert price.ms(8, 300) == pytest.approx(2 * true_cost(8, 300), rel=0.15)
    before = price.ms(8, 300)
    price.observe(8, 300, 2400, 1e6)
    assert before < price.ms(8, 300) < 1.1 * before


def test_more_rows_never_cost_less_whatever_the_clock_says():
    noisy = cycle([9.0, 3.0, 4.0, 2.0, 5.0, 1.0, 8.0, 3.0])
    price = Price(lambda rows, context: next(noisy))
    costs = [price.ms(rows) for rows in (*KNOTS, 300)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("late", KNOTS[:-1])
def test_a_pass_that_was_held_up_at_load_makes_no_others_dearer(late: int):
    price = Price(lambda rows, context: true_cost(rows, context) * (1.5 if (rows, context) == (late, 0) else 1.0))
    for rows in KNOTS:
        if rows != late:
            assert price.ms(rows) == pytest.approx(true_cost(rows, 0))
    assert price.ms(late) <= true_cost(KNOTS[KNOTS.index(late) + 1], 0)


def test_rows_of_a_crowd_see_their_own_contexts():
    """Ten texts behind 300 positions each: ten rows see 3,000 positions together, twenty see 6,000, not 60,000."""
    price, load = Price(true_cost), Load(requests=10, rows=10, context=3000)
    assert load.ms(price) == pytest.approx(5 + 0.25 * 10 + 0.004 * 3000 + 0.001 * 3000)
    assert load.ms(price, drafted=10) == pytest.approx(5 + 0.25 * 20 + 0.004 * 3000 + 0.001 * 6000)


@pytest.mark.skipif(native.load() is None, reason="the native library is not built")
def test_a_model_is_measured_at_load(tiny: LLM):
    assert tiny.model.price is not None and tiny.model.price.ms(1) > 0
