"""The cache: every view reads what its own tokens imply, whatever is shared, copied, rewound, evicted or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from stretto.cache import view as view_module
from stretto.cache.blocks import BLOCK, BlockPool
from stretto.cache.lane import Lane
from stretto.cache.manager import ModelCache
from stretto.cache.prefix import PrefixTree
from stretto.cache.table import Table
from stretto.cache.view import View
from stretto.core.batch import Batch, LaneSpec, LaneStorage, Result

MAIN = LaneSpec("main", layers=(0, 1), kv_heads=1, head_size=2)
EARLY = LaneSpec("early", layers=(2,), kv_heads=2, head_size=1, dtype="fp32")
HIDDEN = LaneSpec("hidden", kind="feature", width=3)
STATE = LaneSpec("state", kind="state", width=4)


class FakeModel:
    """Lanes and their storage; its rows are written by the tests."""

    name, vocab_size, context, width, layers, fingerprint = "fake", 4, 4096, 3, 3, "none"
    own_threads, rope_border = False, None

    def __init__(self, *lanes: LaneSpec) -> None:
        self.lanes = lanes
        self.storage: dict[str, LaneStorage] = {}

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        self.storage = storage

    def forward(self, batch: Batch) -> Result:
        raise NotImplementedError  # the cache never runs a pass

    def write(self, lane: str, slots: list[int], values: list[float]) -> None:
        row = torch.tensor(values)
        for rows in self.rows(lane):
            rows[slots] = row.view(-1, *[1] * (rows.dim() - 1))

    def read(self, lane: str, slots: list[int]) -> set[tuple[float, ...]]:
        """What lies in the slots, once for each entry of a row: one element if all entries agree."""
        return {tuple(entry) for rows in self.rows(lane) for entry in rows[slots].flatten(1).T.tolist()}

    def rows(self, lane: str) -> list[torch.Tensor]:
        """The lane's tensors, slots first."""
        store = self.storage[lane]
        return [store.keys] if store.values is None else [part.movedim(1, 0) for part in (store.keys, store.values)]


def make(*lanes: LaneSpec, blocks: int = 10, scratch: int = 8, **more: int) -> tuple[FakeModel, ModelCache]:
    model = FakeModel(*lanes)
    return model, ModelCache(model, tokens=blocks * BLOCK, scratch=scratch, device=torch.device("cpu"), **more)


def layout(cache: ModelCache) -> object:
    tables = [(view.filled, [(list(t.blocks), t.filled) for t in view.tables.values()]) for view in cache.views]
    return tables, cache.stats(), {name: lane.pool.free for name, lane in cache.lanes.items()}


class Requests(RuleBasedStateMachine):
    """Requests come, compute, rewind, fork and go. The oracle is one value per (lineage, lane, tokens up to a row)."""

    blocks = 10
    prompts: ClassVar = st.tuples(st.lists(st.integers(0, 1), max_size=3), st.integers(1, BLOCK))
    """Full blocks of equal tokens, so that prefixes meet, and a tail."""
    choice: ClassVar = st.integers(0, 99)

    def __init__(self) -> None:
        super().__init__()
        self.model, self.cache = make(MAIN, EARLY, HIDDEN, blocks=self.blocks)
        self.open_views: list[tuple[View, list[int]]] = []
        self.values: dict[tuple[object, int], float] = {}
        """By (value of the position before, token)."""
        self.hits = 0

    def expected(self, view: View, lane: str, tokens: list[int], start: int, stop: int) -> list[float]:
        """Values of the positions from ``start`` to ``stop``."""
        path = [(view.lineage, lane)]
        for token in tokens[:stop]:
            path.append(self.values.setdefault((path[-1], token), len(self.values) + 1.0))
        return path[1 + start :]

    def pick(self, choice: int) -> tuple[View, list[int]]:
        return self.open_views[choice % len(self.open_views)]

    def reserve(self, view: View, upto: int, lanes: list[str] | None, start: int | None = None) -> bool:
        """Reserving works if the blocks that other views leave suffice, and changes nothing if it does not."""
        before = layout(self.cache)
        fits = all(need <= self.left(lane) for lane, need in view.missing(upto, lanes, start).items())
        done = view.reserve(upto, lanes, start)
        assert done == fits and (done or layout(self.cache) == before)
        return done

    def left(self, lane: str) -> int:
        return self.blocks - len({block for view in self.cache.views for block in view.tables[lane].blocks})

    def compute(self, view: View, tokens: list[int], start: int | None, upto: int, lanes: list[str]) -> None:
        for lane in lanes:
            table = view.tables[lane]
            first = table.filled if start is None else min(start, table.filled)
            slots = [table.slot(position) for position in range(first, upto)]
            self.model.write(lane, slots, self.expected(view, lane, tokens, first, upto))

    @rule(prompt=prompts, lineage=st.sampled_from("ab"), reuse=st.booleans())
    def open(self, prompt: tuple[list[int], int], lineage: str, reuse: bool) -> None:
        tokens = [token for token in prompt[0] for _ in range(BLOCK)] + [2] * prompt[1]
        view = self.cache.open(1, tokens, lineage, reuse=reuse)
        assert view.filled < len(tokens) and (reuse or view.filled == 0)
        assert all(table.filled <= view.filled for table in view.tables.values())
        self.hits += view.filled
        self.open_views.append((view, tokens))

    @rule(prompt=prompts, lineage=st.sampled_from("ab"), rows=st.integers(1, 64))
    def serve(self, prompt: tuple[list[int], int], lineage: str, rows: int) -> None:
        """A request from beginning to end, which may come early."""
        self.open(prompt, lineage, True)
        self.run(-1, rows, list(self.cache.lanes), ahead=4 * BLOCK)
        self.publish(-1)
        self.close(-1)

    @precondition(lambda self: self.open_views)
    @rule(
        choice=choice,
        rows=st.integers(1, 40),
        ahead=st.integers(0, 40),
        lanes=st.sampled_from([["main", "early", "hidden"], ["early"]]),
    )
    def run(self, choice: int, rows: int, lanes: list[str], ahead: int = 0) -> None:
        view, tokens = self.pick(choice)
        upto = min(view.tables[lanes[0]].filled + rows, len(tokens))
        if self.reserve(view, upto + ahead, lanes):
            self.compute(view, tokens, None, upto, lanes)
            view.advance(upto, lanes)

    @precondition(lambda self: self.open_views)
    @rule(choice=choice, rows=st.integers(1, 8))
    def run_through_scratch(self, choice: int, rows: int) -> None:
        view, tokens = self.pick(choice)
        first = min(table.filled for table in view.tables.values())
        upto = min(first + rows, len(tokens))
        if self.reserve(view, upto, None, first):
            taken = self.cache.take_scratch(upto - first)
            for lane, base in self.cache.scratch_bases.items():
                self.model.write(lane, [base + row for row in taken], self.expected(view, lane, tokens, first, upto))
            self.cache.keep([(view, row, first + number) for number, row in enumerate(taken)])
            view.advance(upto)
        self.cache.reset_scratch()

    @precondition(lambda self: self.open_views)
    @rule(choice=choice, tokens=st.lists(st.integers(0, 3), min_size=1, max_size=20))
    def generate(self, choice: int, tokens: list[int]) -> None:
        self.pick(choice)[1].extend(tokens)

    @precondition(lambda self: self.open_views)
    @rule(choice=choice, to=st.integers(0, 60), early=st.booleans())
    def rewind(self, choice: int, to: int, early: bool) -> None:
        view, tokens = self.pick(choice)
        view.truncate(to, ["early"] if early else None)
        if not early:
            tokens[to:] = [3]

    @precondition(lambda self: self.open_views)
    @rule(choice=choice, start=st.integers(0, 60), fault=st.booleans())
    def overwrite(self, choice: int, start: int, fault: bool) -> None:
        """Rows from ``start`` on are computed again from other tokens. With a fault, copying blocks raises."""
        view, tokens = self.pick(choice)
        lanes, filled = list(view.tables), [table.filled for table in view.tables.values()]
        stop = max(filled)
        if start >= min(filled):
            return
        if fault:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Lane, "copy", fail)
                held = [list(table.blocks) for table in view.tables.values()]
                try:
                    view.reserve(stop, lanes, start)
                except MemoryError:
                    assert [list(table.blocks) for table in view.tables.values()] == held
        if self.reserve(view, stop, lanes, start):
            tokens[start:stop] = [(token + 1) % 4 for token in tokens[start:stop]]
            for lane in lanes:
                self.compute(view, tokens, start, view.tables[lane].filled, [lane])

    @precondition(lambda self: self.open_views)
    @rule(choice=choice)
    def publish(self, choice: int) -> None:
        """What is published is found by the next request with these tokens."""
        view, tokens = self.pick(choice)
        view.publish(tokens)
        twin = self.cache.open(0, tokens, view.lineage)
        assert twin.filled >= min(view.filled, len(tokens) - 1) // BLOCK * BLOCK
        self.hits += twin.filled
        self.open_views.append((twin, tokens))
        self.whole()
        self.close(-1)

    @precondition(lambda self: self.open_views)
    @rule(choice=choice)
    def fork(self, choice: int) -> None:
        view, tokens = self.pick(choice)
        self.open_views.append((view.fork(view.request + 1), list(tokens)))

    @precondition(lambda self: self.open_views)
    @rule(choice=choice)
    def close(self, choice: int) -> None:
        view, _ = self.open_views.pop(choice % len(self.open_views))
        view.close()
        view.close()

    @rule(lane=st.sampled_from(["main", "early", "hidden"]), count=st.integers(0, 3))
    def evict(self, lane: str, count: int) -> None:
        room = self.cache.room(lane)
        self.cache.tree.evict(lane, count)
        assert self.cache.room(lane) == room

    @invariant()
    def whole(self) -> None:
        self.cache.check()
        for lane, store in self.model.storage.items():
            assert not any(rows[store.null].any() for rows in self.model.rows(lane)), "the null slot was written"
        assert self.cache.available() == BLOCK * min(self.left(lane) for lane in self.cache.lanes)
        assert self.cache.stats()["hits"] == self.hits
        for view, tokens in self.open_views:
            for lane, table in view.tables.items():
                expected = tuple(self.expected(view, lane, tokens, 0, table.filled))
                found = self.model.read(lane, table.slots(0, table.filled).tolist())
                assert found == {expected}, f"{lane} lane holds other rows than the tokens imply"

    def teardown(self) -> None:
        for view, _ in self.open_views:
            view.close()
        self.cache.forget()
        self.cache.check()
        assert not list(self.cache.tree.nodes())
        assert all(lane.pool.free == self.blocks for lane in self.cache.lanes.values())


def fail(*_: object) -> None:
    raise MemoryError("no memory to copy")


SLOW = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_requests() -> None:
    run_state_machine_as_test(Requests, settings=SLOW)


def no_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(view_module, "_shared", lambda lane, table, start: [])


def tree_without_lineage(patch: pytest.MonkeyPatch) -> None:
    match, insert = PrefixTree.match, PrefixTree.insert
    patch.setattr(PrefixTree, "match", lambda self, lineage, tokens: match(self, "", tokens))
    patch.setattr(PrefixTree, "insert", lambda self, lineage, *rest: insert(self, "", *rest))


def tree_by_last_block(patch: pytest.MonkeyPatch) -> None:
    """Finds a node by its own block of tokens, whatever stands before it."""

    def match(self: PrefixTree, lineage: str, tokens: list[int]) -> list[object]:
        path = []
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = tuple(tokens[start : start + BLOCK])
            found = [node for node in self.nodes() if node.lineage == lineage and node.key == key]
            if not found:
                break
            path.append(found[0])
        return path

    patch.setattr(PrefixTree, "match", match)


def watermark_ignored_by_publish(patch: pytest.MonkeyPatch) -> None:
    """Offers blocks that are reserved but not computed."""

    def publish(self: View, tokens: list[int]) -> None:
        for lane, table in self._paged:
            self._publish(lane, table, self._published[lane.name], min(table.reserved, len(tokens)) // BLOCK, tokens)

    patch.setattr(View, "publish", publish)


def leak(patch: pytest.MonkeyPatch) -> None:
    """A truncation that forgets to release the first of the blocks it drops."""
    patch.setattr(Table, "cut", lambda self, count: [self.blocks.pop() for _ in self.blocks[count:]][:-1])


def eviction_in_any_order(patch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release

    def reordered(self: BlockPool, block: int) -> None:
        release(self, block)
        if block in self.idle:
            self.idle.move_to_end(block, last=False)

    patch.setattr(BlockPool, "release", reordered)


@pytest.mark.parametrize(
    "broken",
    [
        no_copy_on_write,
        tree_without_lineage,
        tree_by_last_block,
        watermark_ignored_by_publish,
        leak,
        eviction_in_any_order,
    ],
)
def test_broken_caches_fail(broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    generous = settings(SLOW, max_examples=600, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    with pytest.raises((AssertionError, ValueError)):
        run_state_machine_as_test(Requests, settings=generous)


def test_least_recently_used_leaves_go_first() -> None:
    _, cache = make(MAIN, blocks=6)
    prompts = [[name] * 2 * BLOCK + [9] for name in range(3)]
    for prompt in [*prompts, prompts[0]]:
        view = cache.open(0, prompt, "")
        assert view.reserve(2 * BLOCK)
        view.advance(2 * BLOCK)
        view.publish(prompt)
        view.close()

    def hits() -> list[int]:
        return [len(cache.tree.match("", prompt)) for prompt in prompts]

    assert hits() == [2, 2, 2] and cache.stats()["free"] == 0
    seen = []
    for _ in range(6):
        cache.tree.evict("main", 1)
        seen.append(hits())
    assert seen == [[2, 1, 2], [2, 0, 2], [2, 0, 1], [2, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_states_are_apart_forked_and_cleared() -> None:
    model, cache = make(MAIN, STATE, sequences=3)
    first, second = cache.open(1, [1] * 40, ""), cache.open(2, [1] * 40, "")
    states = model.storage["state"].keys
    for number, view in enumerate([first, second], 1):
        assert view.reserve(20)
        states[view.tables["state"].slot(7)] = number
        view.advance(20)
        view.publish([1] * 40)
        assert view.filled == view.tables["state"].filled == 20
    third = first.fork(3)
    slots = [view.tables["state"].slots(3, 5).tolist() for view in (first, second, third)]
    assert [states[slot, 0].tolist() for slot in slots] == [[1, 1], [2, 2], [1, 1]]
    assert len({slot for pair in slots for slot in pair}) == 3
    with pytest.raises(RuntimeError, match="all 3 state slots of lane state are taken"):
        cache.open(4, [1], "")
    with pytest.raises(ValueError, match="cannot go back from position 20 to 4"):
        first.truncate(4)
    assert first.filled == 20
    first.truncate(0)
    assert not states[slots[0]].any() and states[slots[2]].all()
    row = cache.take_scratch(1)[0]
    states[cache.scratch_bases["state"] + row] = 5
    assert third.reserve(21)
    cache.keep([(third, row, 20)])
    assert (states[slots[2]] == 5).all()
    for view in (first, second, third):
        view.close()
    cache.check()
    assert cache.available() == cache.capacity and cache.open(5, [1] * 40, "").filled == 0


def test_refusals_name_what_is_wrong() -> None:
    _, cache = make(MAIN, scratch=4)
    view = cache.open(1, [1, 2], "")
    cache.take_scratch(3)
    with pytest.raises(RuntimeError, match="2 scratch rows were asked for, 1 of 4 are left"):
        cache.take_scratch(2)
    with pytest.raises(ValueError, match="watermark 5 in a lane where 0 positions are reserved"):
        view.advance(5)
    with pytest.raises(ValueError, match=r"position 0 of lane main is not reserved for writing; call reserve\(1\)"):
        cache.keep([(view, 0, 0)])
    with pytest.raises(ValueError, match=r"lanes \['side'\] are not among the model's"):
        view.reserve(1, ["side"])
    with pytest.raises(IndexError, match="position 3 has no slot"):
        view.tables["main"].slots(0, 4)
    pool = BlockPool(1)
    assert pool.allocate() == 0 and pool.allocate() is None
    pool.release(0)
    with pytest.raises(RuntimeError, match="released again"):
        pool.release(0)
