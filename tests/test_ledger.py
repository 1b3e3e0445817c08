"""What steps take beyond their passes, and whose cost it is: the drafts', the tokens' or the drafters'."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from drafters import GarbageDrafter
from games import Game, Machine
from helpers import request
from small import small

from stretto.core.tree import DraftTree
from stretto.decoding.speculative import method as speculative
from stretto.decoding.speculative.allocator import Drafted, Everything
from stretto.decoding.speculative.method import Speculative
from stretto.engine.step import Engine


@pytest.mark.parametrize("by_token", [0.0, 0.2])
def test_what_each_token_takes_is_told_from_what_a_drafted_step_takes(by_token: float):
    game = Game(Machine(base=1.0, row=0.05, free=1), {"good": (0.9, 0.05)}, length=12, overhead=0.3, by_token=by_token)
    game.play(300)
    fixed, found = game.paying.ledger.drafted_line(game.services.load["target"])
    assert found == pytest.approx(by_token, abs=0.01)
    assert fixed == pytest.approx(0.3, abs=0.05)


def test_as_many_rows_are_sent_whatever_each_token_takes():
    """A plain step's take it as well. Control: what drafted steps take beyond their passes is all the drafts'."""
    sent = {}
    for by_token in (0.0, 0.1, "control"):
        game = Game(Machine(base=1.0, row=0.1, free=1), {"good": (0.9, 0.02)}, length=16)
        game.by_token = 0.1 if by_token == "control" else by_token
        if by_token == "control":
            game.paying.ledger.drafted_line = lambda load, ledger=game.paying.ledger: (ledger.drafted_extra(), 0.0)
        game.play(300)
        before = game.services.rows
        game.play(200)
        sent[by_token] = (game.services.rows - before) / 200
    assert sent[0.1] == pytest.approx(sent[0.0], rel=0.03)
    assert sent["control"] > 1.06 * sent[0.0]


@pytest.mark.parametrize("cost", [0.1, 8.0])
def test_what_the_drafts_took_is_part_of_what_their_tokens_take(cost: float):
    """Whatever is sent, it is gone: the dearer the drafts, the more of them are sent. Against all numbers of rows.

    Control: the number that would be best for the other cost is not as good.
    """
    machine, skill = Machine(base=10.0, row=0.8, free=1), 0.8
    game = Game(machine, {"good": (skill, cost)}, length=16)
    game.play(400)
    before = game.services.rows
    game.play(100)
    sent = round((game.services.rows - before) / 100 - 1)

    def rates(cost: float) -> list[float]:
        return [sum(skill**k for k in range(rows + 1)) / (machine.ms(1 + rows) + cost) for rows in range(14)]

    mine, others = rates(cost), rates(8.1 - cost)
    assert mine[sent] > 0.99 * max(mine) > mine[others.index(max(others))]


@pytest.mark.parametrize(("sent", "looks"), [(8.0, 4), (25.0, 9), (0.0, 4)])
def test_a_text_is_looked_at_the_longer_the_more_was_sent_of_late(sent: float, looks: int):
    """Looks that send nothing before it goes without one: four, also of a text for which one node a step is sent."""
    game = Game(Machine(), {})
    (asked,) = game.asked
    own = game.paying._own(asked)
    own.sent, own.away = sent, 0
    game.paying._looks.vain(0, 10.0, 0.3, 0.3, 1)
    found = []
    while not own.away:
        found.append(game.paying.select([Drafted(asked, tree=DraftTree.run([]))], [8]))
    assert len(found) == looks


class Listener(GarbageDrafter):
    """Takes a millisecond for a draft, and ten to observe, on a clock of its own."""

    name, now = "listener", 0.0

    def draft(self, requests, rows):
        self.now += 0.001
        return super().draft(requests, rows)

    def observe(self, observations):
        self.now += 0.010


class Booked(Everything):
    def __init__(self) -> None:
        self.spent: list[dict[str, float]] = []

    def learn(self, drafted, observations, spent):
        self.spent.append(dict(spent))


def test_what_a_drafter_takes_to_listen_is_part_of_what_its_next_draft_takes(monkeypatch):
    model = small(layers=1)
    drafter, booked = Listener(model.vocab_size), Booked()
    monkeypatch.setattr(speculative, "time", SimpleNamespace(perf_counter=lambda: drafter.now))
    engine = Engine(
        {"target": model}, [Speculative("tested", [drafter], allocator=booked)], cache_tokens=64, max_rows=16
    )
    engine.submit(request(engine, [3, 4, 5], method="tested", max_tokens=12))
    while engine.busy:
        engine.step()
    assert [each.get("listener") for each in booked.spent[:2]] == [None, pytest.approx(11.0)]
    assert all(each["listener"] == pytest.approx(11.0) for each in booked.spent[1:-1])


@pytest.mark.parametrize(("base", "row", "now"), [(20.0, 1.0, 0.5), (20.0, 0.4, 0.9), (1.0, 0.4, 0.2)])
def test_how_steeply_a_pass_rises_is_seen_in_its_steps(base: float, row: float, now: float):
    """Memory changed its speed since prices were measured. Control: a pass so short that its price is believed."""
    game = Game(Machine(base=base, row=now, free=1), {"good": (0.8, 0.05)}, length=16)
    game.services.models["target"].price = price = Machine(base=0.6 * base, row=row, free=1)
    game.play(400)
    ledger, load = game.paying.ledger, game.services.load["target"]
    rise = (ledger.pass_ms(price, load, 8) - ledger.pass_ms(price, load, 0)) / 8
    assert rise == pytest.approx(now if base > 6 else row, rel=0.25)
