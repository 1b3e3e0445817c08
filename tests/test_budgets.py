"""Allocators of batch budgets against brute force, and against allocators that do not look."""

from __future__ import annotations

import math
from itertools import product
from random import Random
from types import SimpleNamespace

import pytest
from helpers import request
from scripted import Told

from stretto.core.request import Committed, Request
from stretto.core.tree import DraftTree
from stretto.decoding.method import Load
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.allocator import Allocator, Drafted, Everything
from stretto.decoding.speculative.budgets import Guess, SmartSpec, Tetris, best_lengths
from stretto.decoding.speculative.drafter import Draft, Observation
from stretto.decoding.speculative.method import Speculative
from stretto.engine.step import Engine


def anyone() -> Request:
    return Request(0, [1], None, None, 0)


def some_trees(random: Random) -> list[Drafted]:
    drafted = []
    for _ in range(3):
        size = random.randint(0, 4)
        parents = [random.randint(-1, node - 1) for node in range(size)]
        tree = DraftTree([1] * size, parents, [random.random() for _ in parents], [frozenset()] * size)
        drafted.append(Drafted(anyone(), tree=tree))
    return drafted


def whole(tree: DraftTree, nodes: tuple[int, ...]) -> bool:
    return all(tree.parents[node] in (-1, *nodes) for node in nodes)


def worth(tree: DraftTree, nodes: tuple[int, ...]) -> float:
    return sum(math.prod(tree.survival[step] for step in tree.path(node)) for node in nodes)


def fills_its_capacity_best(allocator: Allocator, capacity: int) -> None:
    """Check what is sent against all sets of nodes that may be sent."""
    random = Random(capacity)
    for _ in range(12):
        drafted, rows = some_trees(random), [random.randint(1, 4) for _ in range(3)]
        sets = []
        for each, limit in zip(drafted, rows, strict=True):
            size = len(each.tree)
            subsets = [tuple(n for n in range(size) if chosen >> n & 1) for chosen in range(1 << size)]
            sets.append([s for s in subsets if len(s) <= limit and whole(each.tree, s)])
        best = max(
            sum(worth(each.tree, nodes) for each, nodes in zip(drafted, choice, strict=True))
            for choice in product(*sets)
            if sum(map(len, choice)) <= capacity
        )
        sent = [tuple(nodes) for nodes in allocator.select(drafted, rows)]
        assert all(nodes in allowed for nodes, allowed in zip(sent, sets, strict=True))
        assert sum(map(len, sent)) <= capacity
        assert sum(worth(each.tree, nodes) for each, nodes in zip(drafted, sent, strict=True)) == pytest.approx(best)


class FirstComeFirstServed(Everything):
    """Control: fills the capacity in the order of the requests."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def select(self, drafted, rows):
        left, sent = self.capacity, []
        for each, limit in zip(drafted, rows, strict=True):
            sent.append(range(min(left, limit, len(each.tree))))
            left -= len(sent[-1])
        return sent


class EachForItself(Tetris):
    """Control: takes tokens by their own chances, whatever stands before them."""

    def select(self, drafted, rows):
        nodes = sorted(
            (-chance, place, node)
            for place, each in enumerate(drafted)
            for node, chance in enumerate(each.tree.survival)
        )
        taken = nodes[: self.capacity]
        return [sorted(node for _, at, node in taken if at == place) for place in range(len(drafted))]


@pytest.mark.parametrize("capacity", [1, 3, 5, 20])
def test_tetris_sends_the_tokens_most_likely_to_be_accepted(capacity: int) -> None:
    fills_its_capacity_best(Tetris(capacity), capacity)


@pytest.mark.parametrize("control", [FirstComeFirstServed(3), EachForItself(3), Everything()])
def test_control_an_allocator_that_does_not_look_sends_worse(control: Allocator) -> None:
    with pytest.raises(AssertionError):
        fills_its_capacity_best(control, 3)


def goodput(lengths, acceptance, load, price, draft) -> float:
    tokens = sum(a**depth for a, length in zip(acceptance, lengths, strict=True) for depth in range(1, length + 1))
    time = price.ms(load.rows + sum(lengths), load.context) + draft * max(lengths)
    return (max(load.requests, len(lengths)) + tokens) / time


class Tiles:
    """A price with steps, as kernels have: eight rows cost what one does."""

    def ms(self, rows: int, context: int = 0, pairs: int | None = None) -> float:
        return 10.0 + 4.0 * math.ceil(rows / 8) + 0.001 * context


@pytest.mark.parametrize("price", [Guess(), Guess(0.3), Tiles()])
def test_smartspec_finds_the_lengths_of_the_largest_goodput(price) -> None:
    random = Random(1)
    for _ in range(25):
        acceptance = [random.choice([0.2, 0.6, 0.9, random.random()]) for _ in range(3)]
        limits = [random.randint(0, 4) for _ in range(3)]
        load = Load(3, random.choice([3, 8, 40]), random.randint(0, 2000))
        draft = random.choice([0.0, 0.05, 1.0])
        every = product(*(range(limit + 1) for limit in limits))
        best = max(goodput(lengths, acceptance, load, price, draft) for lengths in every)
        found = best_lengths(acceptance, limits, load, price, draft)
        assert all(length <= limit for length, limit in zip(found, limits, strict=True))
        assert goodput(found, acceptance, load, price, draft) == pytest.approx(best)


def aboard(allocator: Allocator, load: Load, price: object = None) -> Allocator:
    model = SimpleNamespace(price=price)
    allocator.bind(SimpleNamespace(models={"target": model}, load={"target": load}))
    return allocator


def follows_the_load(allocator: Allocator) -> None:
    """Idle, drafts are long; when the pass is full, there are none; in between they grow shorter."""
    lengths = []
    for requests in (1, 8, 32, 512):
        drafted = [Drafted(anyone()) for _ in range(requests)]
        aboard(allocator, Load(requests, requests), Tiles())
        rooms = allocator.rooms("any", drafted, [8] * requests)
        lengths.append(sum(rooms) / requests)
        assert (allocator.bid(anyone(), 8) > 0) == (lengths[-1] > 0)
    assert lengths[0] >= 4 and lengths[-1] == 0 and lengths == sorted(lengths, reverse=True)


def test_smartspec_drafts_long_when_idle_and_nothing_at_overload() -> None:
    follows_the_load(SmartSpec())


def test_control_an_allocator_that_ignores_the_load_drafts_at_overload() -> None:
    with pytest.raises(AssertionError):
        follows_the_load(Everything())


def observed(of: Request, tree: DraftTree, nodes: list[int]) -> Observation:
    return Observation(of, None, Committed(of), tree, nodes)


def test_smartspec_gives_rows_to_requests_whose_drafts_are_accepted() -> None:
    allocator, good, bad = SmartSpec(), anyone(), anyone()
    aboard(allocator, Load(2, 2), Tiles())
    tree = DraftTree.run([1, 2, 3, 4])
    for _ in range(30):
        drafted = [Drafted(each, tree=tree) for each in (good, bad)]
        allocator.learn(drafted, [observed(good, tree, [0, 1, 2, 3]), observed(bad, tree, [])], {"any": 1.0})
    long, short = allocator.rooms("any", [Drafted(good), Drafted(bad)], [8, 8])
    assert long > 4 and short == 0
    assert 0.4 < allocator.average < 0.6 and allocator.round == pytest.approx(0.25)
    # One that is not drafted for gets another chance in time.
    for _ in range(200):
        allocator.learn([], [observed(bad, DraftTree.run([]), [])], {})
    assert allocator.rooms("any", [Drafted(bad)], [8])[0] > 0


class Sure:
    """Drafts the told text for the first requests, and nonsense, with little hope, for the others."""

    name = "sure"

    def __init__(self, text: list[int]) -> None:
        self.text = text

    def bind(self, services): ...
    def begin(self, request): ...
    def observe(self, observations): ...
    def rewind(self, request): ...
    def end(self, request): ...
    def stores(self):
        return {}

    def draft(self, requests, rows):
        drafts = []
        for each, room in zip(requests, rows, strict=True):
            true = self.text[len(each.tokens) :][:room]
            sure = each.prompt[0] == 1
            drafts.append(Draft(DraftTree.run(true if sure else [63] * room, 0.9 if sure else 0.1, "sure")))
        return drafts


def wasted(allocator: Allocator) -> int:
    """Play two requests whose drafts are right beside two whose drafts are wrong; return the rows of the latter.

    As many as they took while the others were there.
    """
    text = [number % 60 + 1 for number in range(60)]
    method = Speculative("budget", [Sure(text)], allocator=allocator)
    engine = Engine({"target": Told(text)}, [Plain(), method], cache_tokens=512, max_rows=64)
    asked = [request(engine, [first, *text[1:4]], "budget", max_tokens=40) for first in (1, 2, 1, 2)]
    sure, unsure = asked[::2], asked[1::2]
    for each in asked:
        engine.submit(each)
    while not all(each.finish for each in sure):
        engine.step()
    drafted = sum(each.stats.drafted for each in unsure)
    while engine.busy:
        engine.step()
    assert [each.tokens[4:] for each in asked] == [text[4:44]] * 4
    assert sum(each.stats.accepted for each in sure) == sum(each.stats.drafted for each in sure) > 50
    return drafted


@pytest.mark.parametrize("allocator", [Tetris(6), SmartSpec()])
def test_in_an_engine_rows_go_where_tokens_are_accepted(allocator: Allocator) -> None:
    assert wasted(allocator) < wasted(Everything()) / 2
