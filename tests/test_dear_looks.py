"""Where a draft takes longer than a pass: only a text that repeats itself is drafted for."""

from __future__ import annotations

import pytest
from games import Game, Machine

from stretto.decoding.speculative.looking import REPEATED
from stretto.decoding.speculative.paying import HEED, HOPELESS, LONGEST_UNHEARD

COPY = {"copy": (0.9, 0.05)}


def quick(period: int = 0) -> Game:
    """Return a game on a machine whose pass takes a fifth of a millisecond."""
    return Game(Machine(base=0.2, row=0.005, free=1), dict(COPY), period=period, by_token=0.02)


def texts(game: Game, count: int, steps: int, first: int = 1) -> list[int]:
    """Play new texts one after the other; return how often each was looked at."""
    looks = []
    for number in range(first, first + count):
        game.asked, before = [game.request(number)], game.calls.get("copy", 0)
        game.play(steps)
        looks.append(game.calls.get("copy", 0) - before)
    return looks


def test_hope_alone_is_no_reason_for_a_look():
    """Control: where a pass takes longer than a draft, it is."""
    game = quick()
    assert not any(texts(game, 10, 128)) and game.plain == 10 * 128
    game.play(3 * HOPELESS)
    assert not game.calls, "the time has passed, but nothing has changed"
    game.machine.base = 2.0
    game.play(3 * HOPELESS)
    assert game.calls["copy"]


def test_a_prompt_that_takes_long_to_read_makes_no_pass_of_the_text_a_long_one():
    game = quick()
    game.read(2000)
    game.play(128)
    assert not game.calls and game.plain == 128


def test_a_text_that_repeats_itself_is_drafted_for_once_it_is_heard():
    game, period = quick(period=60), 60
    while "copy" not in game.calls:
        length = len(game.asked[0].tokens)
        game.step()
    assert period + REPEATED <= length <= period + REPEATED + LONGEST_UNHEARD
    assert game.play(400) > 2.0


@pytest.mark.parametrize("kept", [True, False])
def test_a_copy_goes_on_soon_behind_an_edit(kept: bool):
    """Control: a text of which no drafts were kept waits until it is heard for the third time."""
    game = quick(period=60)
    game.play(200)
    (request,) = game.asked
    request.stats.accepted *= kept
    game.drafters["copy"], game.period = (0.0, 0.05), 0
    game.play(24)
    game.drafters["copy"], game.period = COPY["copy"], 60
    before = game.calls["copy"]
    waited = 0
    while game.calls["copy"] == before:
        game.step()
        waited += 1
    assert (waited <= REPEATED + HEED) == kept


@pytest.mark.parametrize("period", [20, 0])
def test_a_text_without_hope_is_heard_while_others_are_drafted_for(period: int):
    """Control: one that does not repeat itself."""
    game = quick()
    game.play(40)
    game.period, request, bids = period, game.request(1), []
    for _ in range(64):
        game.services.steps += 1
        request.tokens += game.written(request, 1)
        bids.append(game.paying.bid(request, 16))
    assert any(bids) == bool(period)


def test_what_paid_for_some_texts_is_tried_on_a_few_that_follow():
    game = quick(period=40)
    game.play(300)
    game.drafters["copy"], game.period = (0.0, 0.05), 0
    looks = texts(game, 150, 128)
    assert looks[0] and max(looks) < 8 and not any(looks[-20:])
