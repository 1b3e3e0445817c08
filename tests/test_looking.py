"""What looks in vain may take of the time, and which texts are worth one."""

from __future__ import annotations

import random

import pytest

from stretto.decoding.speculative.looking import CREDIT, OVERDRAFT, REPEATED, Echo, Looks


def test_a_debt_of_looks_is_paid_by_time_and_by_what_they_find():
    """Steps of 1 ms; looks of 0.6 ms, of which one in 400 steps is allowed, and two ahead, of new texts three."""
    looks = Looks()

    def vain(step: int, beyond: float = 0.6) -> int:
        return looks.vain(step, 1.0, 0.3, beyond, 1)

    assert [vain(0) for _ in range(5)] == pytest.approx([0, 0, 400, 800, 1200], abs=1)
    assert not looks.allows(0, 1.0) and looks.allows(801, 1.0)
    assert looks.allows(0, 1.0, repeats=True)
    assert vain(1200) == pytest.approx(400, abs=1)
    looks.paid(-1.0)  # a loss is no new debt
    assert vain(1200) == pytest.approx(800, abs=1)
    assert vain(1200, 50.0) < 800 + 900  # what is beyond all measure was something else
    assert looks.away(1.0, 2) == pytest.approx(2 * looks.away(1.0, 1), abs=1)


def test_what_drafting_saved_pays_for_a_few_looks_ahead_and_time_does_not():
    looks = Looks()
    looks.vain(0, 1.0, 0.3, 0.6, 1)
    for saved, free in ((0.0, 2), (1000.0, CREDIT + OVERDRAFT)):
        looks.paid(saved)
        found = [looks.vain(100_000, 1.0, 0.3, 0.6, 1) > 0 for _ in range(20)]
        assert found.index(True) == free


@pytest.mark.parametrize("seed", range(20))
def test_a_text_that_repeats_itself_is_heard(seed: int):
    """Asked at odd times, of tokens whose bytes recur at other places too. Against the plain search."""
    generator, echo, text = random.Random(seed), Echo(), [0, 1 << 8, 1 << 16, 1, 257, 1]
    heard = 0
    for _ in range(60):
        start = generator.randrange(len(text))
        piece = text[start : start + generator.randrange(1, 14)]
        text += (
            piece if generator.random() < 0.6 else [generator.choice([0, 1, 256, 257, 1 << 16, 1 << 21]) for _ in piece]
        )
        end = text[-REPEATED:]
        found = any(text[place : place + REPEATED] == end for place in range(len(text) - REPEATED))
        assert echo.heard(text) == found
        heard += found
    assert 5 < heard < 55
