"""The allocator of ``auto`` on machines that do not exist."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from games import Game, Machine

from stretto.core.tree import DraftTree
from stretto.decoding.speculative.allocator import Drafted
from stretto.decoding.speculative.calibration import Calibration
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.ledger import Ledger
from stretto.decoding.speculative.paying import LONGEST_UNHEARD
from stretto.decoding.speculative.sending import PACE_BOUND, PROMISED, ROW_STEPS


def test_a_drafter_that_pays_is_used_and_one_that_does_not_is_asked_now_and_then():
    game = Game(Machine(), {"good": (0.8, 0.5), "useless": (0.02, 0.4)})
    assert game.play(100) > 2.0
    before = dict(game.calls)
    assert game.play(400) > 2.4
    assert game.calls["good"] - before["good"] > 360
    assert 0 < game.calls["useless"] - before["useless"] < 40


@pytest.mark.parametrize(("base", "plain"), [(1.0, 5), (20.0, 1)])
def test_a_life_begins_with_plain_steps_where_what_they_take_beyond_their_pass_matters(base: float, plain: int):
    game = Game(Machine(base=base), {"good": (0.8, 0.1)})
    game.play(20)
    assert game.plain == plain


def test_a_backend_whose_passes_have_no_price_drafts_too():
    assert Game(Machine(), {"good": (0.8, 0.5)}, priced=False).play(300) > 2.0


def test_what_does_not_pay_costs_next_to_nothing():
    assert Game(Machine(base=1.0, row=0.5, free=1), {"poor": (0.1, 0.8)}).play(1500) > 0.98


def test_looks_in_vain_cost_next_to_nothing_and_what_is_worth_it_is_found_again():
    game = Game(Machine(base=1.0, row=0.5, free=1), {"cheap": (0.02, 0.1)}, requests=4)
    assert game.play(1500) > 0.98
    game.machine.row, game.drafters["cheap"] = 0.01, (0.9, 0.1)
    game.play(1500)
    assert game.play(100) > 1.5


def test_one_text_after_another_is_looked_at_within_a_budget():
    """Each new text may be one to draft for; a hundred that are not cost next to nothing, and one that is is found."""
    game = Game(Machine(base=1.0, row=0.5, free=1), {"cheap": (0.0, 0.4)})
    began, looked = game.machine.now, 0
    for number in range(100):
        game.asked, before = [game.request(number)], game.calls.get("cheap", 0)
        game.play(100)
        looked += game.calls["cheap"] > before
    assert game.machine.now - began < 1.01 * 100 * 100 * 1.0
    assert looked > 10
    game.machine.row, game.drafters["cheap"], game.asked = 0.01, (0.9, 0.4), [game.request(100)]
    game.play(100)
    assert game.play(100) > 1.5


@pytest.mark.parametrize("steps", [10, 40])
def test_looks_that_seem_worth_it_and_send_nothing_have_a_budget(steps: int):
    """A look is cheap beside what it finds, but a row is too dear to send: every new text is looked at in vain."""
    game = Game(Machine(base=1.0, row=5.0, free=1), {"shy": (0.3, 0.1)})
    looks = []
    for number in range(4000 // steps):
        game.asked, before = [game.request(number)], game.calls.get("shy", 0)
        assert game.play(steps) <= 1.0
        looks.append(game.calls["shy"] - before)
    assert game.machine.now < 1.008 * 4000
    assert any(looks[len(looks) // 2 :])


@pytest.mark.parametrize("skill", [0.0, 0.9])
def test_a_new_text_is_looked_at_where_what_drafters_bring_promises_something(skill: float):
    """In a rest, while no look is owed for. What is known of earlier texts decides."""
    game = Game(Machine(base=1.0, row=0.01, free=1), {"cheap": (skill, 0.3)})
    game.play(600)
    game.paying._looks._debt = 0.0
    game.paying.ledger.pause(1000)
    game.resting, game.asked, before = game.paying.rests(), [game.request(1)], game.calls["cheap"]
    game.play(1)
    assert (game.calls["cheap"] > before) == (skill > 0.0)


@pytest.mark.parametrize("away", [0, 1000])
def test_a_text_that_begins_to_repeat_itself_ends_a_rest_within_eight_steps(away: int):
    """Looks in vain have used up what new texts may, or this one was sent away. Control: one without repetitions."""
    for repeats in (True, False):
        game = Game(Machine(base=1.0, row=0.01, free=1), {"copy": (0.9, 0.3)}, period=100 if repeats else 0)
        game.play(4)
        paying, step = game.paying, game.services.steps
        while paying._looks.allows(step, 1.0):
            paying.ledger.pause(paying._looks.vain(step, 1.0, 0.3, 0.3, 1))
        paying._heed = LONGEST_UNHEARD  # as in a rest that has lasted, which the new text begins anew
        game.resting, game.asked = paying.rests(), [game.request(1)]
        game.asked[0].tokens += game.written(game.asked[0], 110)
        paying._own(game.asked[0]).away = away
        game.play(9)
        assert (game.calls.get("copy", 0) > 0) == repeats


@pytest.mark.parametrize("steps", [1, 3, 8, 20, 100])
def test_every_step_of_rest_is_in_the_statistics_of_its_request(steps: int):
    game = Game(Machine(base=2.0), {"useless": (0.0, 1.0)})
    game.play(600)
    for number in range(20):
        (request,) = game.asked = [game.request(number)]
        began = game.machine.now
        game.play(steps)
        game.paying.end(request)
        assert request.stats.decoding_ms == pytest.approx(game.machine.now - began, rel=0.1, abs=1.0)
        assert request.stats.plain_ms == pytest.approx(2.0 * steps, rel=0.1, abs=1.0)


def test_what_was_lost_on_free_texts_keeps_no_text_of_a_form_waiting():
    """Control: a further free text does wait."""
    found = {}
    for mask in (("json_schema", {}), None):
        game = Game(Machine(base=1.0, row=0.1, free=1), {"dear": (0.8, 0.1)}, overhead=5.0)
        while not game.paying.ledger.lost:
            game.step()
        game.overhead, game.drafters["dear"], game.asked = 0.0, (0.99, 0.1), [game.request(1, mask)]
        found[mask is None] = game.play(60)
    assert found[False] > 1.5 > 1.01 > found[True]


def test_a_trial_that_is_won_makes_lost_ones_short_again():
    ledger, rests = Ledger(), []
    for won in (False, False, False, False, True, False):
        before = ledger.lost, ledger.won
        while (ledger.lost, ledger.won) == before:
            ledger._try(2.0, 2.1 if won else 0.5, 1.0)
        rests.append(ledger.resting)
    assert [each / rests[0] for each in rests[:4]] == pytest.approx([1, 1, 2, 4], rel=0.1) and rests[5] < rests[3]


def test_what_loses_time_after_time_is_tried_more_and_more_rarely():
    """Its chances look good on paper, and each trial fails, by a hidden overhead that drafting nearly makes up for."""
    game = Game(Machine(base=1.0, row=0.1, free=1), {"dear": (0.8, 0.1)}, overhead=2.9)
    ledger, rests = game.paying.ledger, list[int]()
    for _ in range(16_000):
        game.step()
        if ledger.lost > len(rests):
            rests.append(ledger.resting)
    assert len(rests) >= 4 and not ledger.won
    assert rests[2:] == sorted(rests[2:]) and rests[2] > max(rests[:2]), "longer each time from the third on"
    assert game.play(8000) > 0.99


def test_drafting_that_is_dearer_than_it_was_priced_is_given_up():
    """The control is the same game without the hidden overhead."""
    game, control = (Game(Machine(), {"good": (0.6, 0.1)}, overhead=overhead) for overhead in (40.0, 0.0))
    assert game.play(2000) > 0.95 and game.plain > 1950
    assert control.play(2000) > 1.7 and control.plain < 100


def test_a_slow_start_makes_no_slow_drafting_look_good():
    """The first steps of a life take twice their price; drafting loses, as must be seen by the pace of later ones."""
    game = Game(Machine(base=1.0, row=0.25, free=1), {"fair": (0.5, 0.2)}, overhead=0.2)
    for late in (1.5, 1.0, 0.8, 0.0):
        game.step()
        game.machine.now += late
    assert game.play(600) > 0.97


def test_where_nobody_has_anything_to_bid_for_drafting_rests():
    """In steps of rest nobody is asked at all; the control, a drafter that pays, is asked in nearly all."""
    game, control = (Game(Machine(), {"only": (skill, 1.0)}) for skill in (0.0, 0.8))
    for each in game, control:
        each.play(1000)
    assert sum(game.calls.values()) < 50 < 900 < sum(control.calls.values())
    assert game.paying.ledger.resting and not control.paying.ledger.resting


@pytest.mark.parametrize("mask", [("json_schema", {}), None])
def test_what_texts_of_a_form_gain_is_not_judged_by_free_ones(mask: object):
    """A drafter that is of no use for free text is tried at once where a form comes. Control: further free text."""
    game = Game(Machine(), {"forced": (0.0, 3.0)})
    assert game.play(600) > 0.97 and game.paying.rests()
    game.drafters["forced"], game.asked = (1.0, 3.0), [game.request(1, mask)]
    assert (game.play(40) > 2.0) == (mask is not None)


def test_a_drafter_that_becomes_good_is_found_out():
    game = Game(Machine(), {"late": (0.0, 2.0)})
    game.play(300)
    game.drafters["late"] = (0.9, 2.0)
    game.play(300)
    assert game.play(200) > 2.0


def tree_of(generator: random.Random, nodes: int) -> DraftTree:
    parents = [generator.randint(-1, node - 1) for node in range(nodes)]
    survival = [generator.choice([0.2, 0.5, 0.8]) / (1 + parents[:node].count(parents[node])) for node in range(nodes)]
    return DraftTree(list(range(nodes)), parents, survival, [frozenset({"x"})] * nodes)


@pytest.mark.parametrize("seed", range(30))
def test_the_nodes_sent_give_the_most_tokens_per_millisecond(seed: int):
    """Against every subset that is a tree, over two requests at once; none where that promises next to nothing."""
    generator = random.Random(seed)
    machine = Machine(base=generator.choice([2.0, 10.0]), row=generator.choice([0.3, 1.0, 3.0]), free=2)
    game = Game(machine, {}, requests=2)
    drafted = [Drafted(request, tree=tree_of(generator, 5)) for request in game.asked]
    sent = game.paying.select(drafted, [5, 4])
    paths = [game.paying.calibration.paths({}, found.tree) for found in drafted]
    game.paying.ledger.plain_overhead.value = game.paying.ledger.drafted_overhead.value = 0.0
    extra = game.paying.ledger.drafted_extra()

    def rate(chosen: list[tuple[int, ...]]) -> float:
        gained = 2 + sum(paths[i][node] for i, nodes in enumerate(chosen) for node in nodes)
        rows = sum(map(len, chosen))
        return gained / (machine.ms(2 + rows) + (extra if rows else 0.0))

    def within(chosen: list[tuple[int, ...]]) -> bool:
        slowest = min(1 + sum(paths[i][node] for node in nodes) for i, nodes in enumerate(chosen))
        return machine.ms(2 + sum(map(len, chosen))) + extra <= PACE_BOUND * slowest * machine.ms(2)

    def trees(tree: DraftTree, most: int) -> list[tuple[int, ...]]:
        subsets = [nodes for count in range(most + 1) for nodes in combinations(range(len(tree)), count)]
        return [nodes for nodes in subsets if all(tree.parents[node] in (-1, *nodes) for node in nodes)]

    found = [tuple(nodes) for nodes in sent]
    assert all(nodes in trees(each.tree, most) for nodes, each, most in zip(found, drafted, (5, 4), strict=True))
    options = [[first, second] for first in trees(drafted[0].tree, 5) for second in trees(drafted[1].tree, 4)]
    best = max(rate(option) for option in options)
    assert not any(map(len, found)) or within(found)
    if best < PROMISED * rate([(), ()]):
        assert not any(map(len, found)), "too little to be sure of"
    elif within(max(options, key=rate)):
        assert rate(found) == pytest.approx(best)
    assert ROW_STEPS[:10] == tuple(range(10)), "small numbers of rows are all looked at"


def test_chances_come_out_as_often_as_they_are_told_to():
    """Drafters with scales of their own, one too sure of itself and one too modest."""
    generator, calibration = random.Random(3), Calibration()
    skills = {"sure": (0.9, 0.4), "modest": (0.2, 0.7)}
    for _ in range(600):
        for name, (said, skill) in skills.items():
            calibration.learn({}, DraftTree.run([1], said, name), [1 if generator.random() < skill else 2])
    for name, (said, skill) in skills.items():
        assert calibration.chance({}, frozenset({name}), 1, said) == pytest.approx(skill, abs=0.07)
    both = DraftTree([1, 2], [-1, -1], [0.9, 0.9], [frozenset({"modest"}), frozenset({"sure"})])
    assert sum(calibration.paths({}, both)) <= 1.0


def test_nodes_that_were_not_sent_are_learnt_from_too():
    calibration = Calibration()
    tree = DraftTree([1, 2, 3], [-1, 0, 1], [0.5] * 3, [frozenset({"x"})] * 3)
    calibration.learn({}, tree, [1, 2, 9])
    assert calibration.chance({}, frozenset({"x"}), 3, 0.5) < 0.5 < calibration.chance({}, frozenset({"x"}), 1, 0.5)


def test_what_never_failed_is_not_taken_for_certain():
    """Nineteen kept of nineteen: a run of thirty more of them is doubted. Chances that are low are told as they are."""
    calibration = Calibration()
    calibration.learn({}, DraftTree.run([1] * 22, 1.0, "copy"), [1] * 22)
    assert sum(calibration.paths({}, DraftTree.run([1] * 30, 1.0, "copy"))) < 20.0
    for right in [1] * 5 + [2] * 45:
        calibration.learn({}, DraftTree.run([1], 0.1, "poor"), [right])
    assert calibration.chance({}, frozenset({"poor"}), 1, 0.1) == pytest.approx(0.1, rel=0.01)


def test_where_copies_of_one_text_break_off_early_little_is_thought_of_their_ends():
    """They are never reached, so that nobody has seen them fail. Control: those of other texts are as good as ever."""
    calibration, own, copy = Calibration(), {}, DraftTree.run([1] * 16, 0.9, "copy")
    for _ in range(50):
        calibration.learn({}, copy, [1] * 17)
    for _ in range(6):
        calibration.learn(own, copy, [1, 1, 2])
    assert sum(calibration.paths(own, copy)) < 4.0 < 12.0 < sum(calibration.paths({}, copy))


def test_nobody_is_held_up_beyond_the_bound_for_the_drafts_of_others():
    game = Game(Machine(base=10.0, row=2.0, free=2), {}, requests=2)
    sure = DraftTree.run([0] * 16, 1.0, "x")
    sent = game.paying.select([Drafted(game.asked[0], tree=sure)], [16])
    assert game.machine.ms(2 + len(sent[0])) <= PACE_BOUND * game.machine.ms(2)
    alone = Game(Machine(base=10.0, row=2.0, free=2), {}, requests=1)
    assert len(alone.paying.select([Drafted(alone.asked[0], tree=sure)], [16])[0]) > len(sent[0])


def test_little_is_hoped_of_a_drafter_behind_one_that_has_found_much():
    """It is left out there for a while, and asked in the very next step in which the other finds nothing."""
    game = Game(Machine(base=2.0, row=0.01), {"copy": (0.98, 0.05), "second": (0.0, 0.12)}, length=12)
    game.play(10)
    paying, (request,) = game.paying, game.asked
    paying.worth._gains.clear()
    paying._own(request).gains.clear()
    much, nothing = Drafted(request), Drafted(request)
    much.by_drafter["copy"] = Draft(DraftTree.run([0] * 12, 0.98, "copy"))
    asked = [paying.rooms("second", [found], [8]) for found in (much, nothing, much, nothing)]
    assert asked == [[0], [8], [0], [8]]
