"""The engine as a state machine with injected faults: nothing leaks, nobody starves, texts stay their own."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from drafters import GarbageDrafter
from helpers import assert_whole, plain_text, request
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from toy import ToyModel

from stretto.core.request import Phase
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.method import Speculative
from stretto.engine.scheduler import Scheduler
from stretto.engine.step import Engine

LENGTH, FATAL = 12, 63
"""Tokens a request generates, and a token whose row makes the model raise."""
TEXTS: dict[tuple[tuple[int, ...], float], list[int]] = {}


def expected(prompt: tuple[int, ...], temperature: float) -> list[int]:
    """Return the plain text of a prompt by a model without faults, computed once."""
    key = prompt, temperature
    if key not in TEXTS:
        TEXTS[key] = plain_text(ToyModel(), list(prompt), temperature=temperature, max_tokens=LENGTH)
    return TEXTS[key]


class Faulty(Plain):
    """Plain decoding that raises for some requests: in its bid, in propose, in commit, or in end."""

    name = "faulty"

    def extra(self, request):
        if request.prompt[0] == 59:
            raise RuntimeError("the bid broke")
        return 0

    def propose(self, requests, rows):
        if any(r.prompt[0] == 60 for r in requests):
            raise RuntimeError("propose broke")
        return super().propose(requests, rows)

    def commit(self, requests, chunks, outputs):
        if any(r.prompt[0] == 61 for r in requests):
            raise RuntimeError("commit broke")
        return super().commit(requests, chunks, outputs)

    def end(self, request):
        if request.prompt[0] == 62:
            raise RuntimeError("end broke")


class EngineMachine(RuleBasedStateMachine):
    scheduler = Scheduler

    @initialize(blocks=st.integers(6, 20), max_rows=st.sampled_from([1, 2, 3, 8, 24]))
    def build(self, blocks, max_rows):
        self.model = ToyModel()
        self.model.broken_at = FATAL
        drafted = Speculative("drafted", [GarbageDrafter(60)], rows=6)
        self.engine = Engine(
            {"target": self.model}, [Plain(), drafted, Faulty()], cache_tokens=blocks * 16, max_rows=max_rows
        )
        self.engine.scheduler.__class__ = self.scheduler
        self.alive, self.unserved, self.rows = {}, {}, {}

    @rule(
        prompt=st.lists(st.integers(1, 62), min_size=1, max_size=40).map(tuple),
        method=st.sampled_from(["plain", "drafted", "faulty"]),
        priority=st.integers(0, 1),
        temperature=st.sampled_from([0.0, 0.9]),
        fatal=st.booleans(),
    )
    def submit(self, prompt, method, priority, temperature, fatal):
        if fatal and len(self.alive) % 4 == 3:
            prompt = (*prompt, FATAL)
        asked = request(
            self.engine, list(prompt), method, max_tokens=LENGTH, temperature=temperature, priority=priority
        )
        self.engine.submit(asked)
        self.alive[asked.id] = asked
        self.unserved[asked.id] = 0

    @rule(count=st.integers(1, 12))
    def step(self, count):
        for _ in range(count):
            running = {r.id for r in self.engine.scheduler.running}
            before = {number: r.stats.rows for number, r in self.alive.items()}
            self.engine.step()
            for number, asked in list(self.alive.items()):
                served = asked.stats.rows > before[number] or number not in running or asked.phase is not Phase.RUNNING
                self.unserved[number] = 0 if served else self.unserved[number] + 1
                if asked.finish:
                    self.settle(asked)

    @rule(data=st.data())
    def abort(self, data):
        if self.alive:
            number = data.draw(st.sampled_from(sorted(self.alive)))
            assert self.engine.abort(number)
            asked = self.alive[number]
            assert asked.finish == "abort"
            self.settle(asked)

    @rule(data=st.data())
    def preempt(self, data):
        if self.engine.scheduler.running:
            self.engine.scheduler.preempt(data.draw(st.sampled_from(self.engine.scheduler.running)))

    @rule()
    def forget(self):
        self.engine.caches["target"].forget()

    @rule(data=st.data())
    def a_reservation_raises(self, data):
        """One running request's next reservation raises: it ends, the others go on."""
        if not self.engine.scheduler.running:
            return
        victim = data.draw(st.sampled_from(self.engine.scheduler.running))
        view = victim.views["target"]

        def broken(*arguments, **named):
            raise MemoryError("no memory")

        view.reserve = broken
        self.step(1)
        if victim.finish is None:
            del view.reserve
        else:
            assert victim.finish in ("error", "length")

    @rule(prompt=st.lists(st.integers(1, 58), min_size=1, max_size=40).map(tuple))
    def an_admission_raises(self, prompt):
        """The cache raises while one request is admitted: it alone ends."""
        cache = self.engine.caches["target"]
        opened, doomed = cache.open, request(self.engine, list(prompt), max_tokens=LENGTH, priority=2)

        def broken(number, *arguments, **named):
            view = opened(number, *arguments, **named)
            if number == doomed.id:
                view.reserve = lambda *_, **__: 1 // 0
            return view

        cache.open = broken
        self.engine.submit(doomed)
        for _ in range(200):
            if doomed.finish:
                break
            self.step(1)
        del cache.open
        assert doomed.finish == "error" and "division" in doomed.error

    def settle(self, asked):
        del self.alive[asked.id], self.unserved[asked.id]
        got = asked.tokens[len(asked.prompt) :]
        doomed = asked.prompt[-1] == FATAL or (asked.method == "faulty" and asked.prompt[0] in (59, 60, 61))
        if asked.finish == "error":
            memory = "no memory" in asked.error
            assert memory or doomed or FATAL in expected(tuple(asked.prompt), asked.params.temperature), asked.error
        elif not doomed:
            text = expected(tuple(asked.prompt), asked.params.temperature)
            assert got == text[: len(got)]
            assert asked.finish == "abort" or len(got) == LENGTH

    @invariant()
    def whole(self):
        if hasattr(self, "engine"):
            self.engine.caches["target"].check()
            count = len(self.engine.scheduler.running)
            bound = -(-max(count, 1) // self.engine.scheduler.max_rows) + 2
            assert all(unserved <= bound for unserved in self.unserved.values()), "a running request starves"

    def teardown(self):
        if hasattr(self, "engine"):
            for _ in range(6000):
                if not self.engine.busy:
                    break
                self.step(1)
            assert not self.alive, "requests never ended"
            assert_whole(self.engine)


SETTINGS = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def test_engine():
    run_state_machine_as_test(EngineMachine, settings=SETTINGS)


class Leaking(Scheduler):
    """The control: forgets to close a preempted request's view."""

    def _release(self, request):
        if request.phase is Phase.RUNNING:
            request.views.clear()
        super()._release(request)


class Starving(Scheduler):
    """The control: the first ones always win the rows."""

    def _in_turn(self):
        served = self.running[: self.max_rows]
        return served, [1] * len(served)


CONTROL = settings(SETTINGS, max_examples=400, phases=[Stage.generate], report_multiple_bugs=False)


@pytest.mark.parametrize("scheduler", [Leaking, Starving])
def test_the_machine_notices(scheduler):
    machine = type("Machine", (EngineMachine,), {"scheduler": scheduler})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=CONTROL)
