"""Machines that do not exist, and steps of an allocator on them: known costs, known chances, a clock of our own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

from stretto.core.tree import DraftTree
from stretto.decoding.method import Load
from stretto.decoding.speculative.allocator import Drafted
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.ledger import Ledger
from stretto.decoding.speculative.paying import NEVER, Paying
from stretto.decoding.speculative.trees import only


class Machine:
    """Passes of ``base`` ms and ``row`` ms for each row beyond the free ones, on a clock that only it moves."""

    def __init__(self, base: float = 10.0, row: float = 0.5, free: int = 4) -> None:
        self.base, self.row, self.free, self.now = base, row, free, 0.0

    def ms(self, rows: int, context: int = 0, pairs: int | None = None) -> float:
        return self.base + self.row * max(0, rows - self.free)

    def clock(self) -> float:
        return self.now / 1e3


@dataclass
class Game:
    """Steps of one method's allocator: drafters of set skill and cost draft runs for requests that never end."""

    machine: Machine
    drafters: dict[str, tuple[float, float]]
    """By name: the chance that each of its tokens is right, and the milliseconds that it takes."""
    requests: int = 1
    length: int = 6
    priced: bool = True
    """Whether the price of a pass is known."""
    overhead: float = 0.0
    """Milliseconds that a drafted step takes beyond its pass, unknown to the price."""
    by_token: float = 0.0
    """Milliseconds that every token takes beside."""
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    calls: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    plain: int = 0
    period: int = 0
    """Of the texts; 0: they never repeat themselves."""
    resting: int = 0
    rested: int = 0

    def __post_init__(self) -> None:
        self.paying = Paying(Ledger(self.machine.clock))
        self.services = SimpleNamespace(
            models={"target": SimpleNamespace(price=self.machine if self.priced else None)},
            load={"target": Load(self.requests, self.requests, 0)},
            steps=0,
            rows=0,
        )
        self.paying.bind(self.services)
        self.asked = [self.request(number) for number in range(self.requests)]

    def request(self, number: int, mask: object = None) -> SimpleNamespace:
        stats = SimpleNamespace(decoding_ms=0.0, plain_ms=0.0, accepted=0)
        params = SimpleNamespace(mask=mask)
        return SimpleNamespace(id=number, model="target", prompt=(), tokens=[], params=params, memory={}, stats=stats)

    def step(self) -> None:
        """Draft, send, keep what is right, and let the clock run."""
        self.services.steps += 1
        for request in self.asked:
            if self.resting and "seen" not in request.memory:
                self.paying.meets(request)
                self.paying.rest((), self.rested)
                self.resting, self.rested = self.paying.rests(), 0
            request.memory["seen"] = True
        if self.resting:
            self.resting -= 1
            self.rested += 1
            self.plain, self.tokens = self.plain + 1, self.tokens + self.requests
            self.services.rows += self.requests
            self.machine.now += self.machine.ms(self.requests) + self.by_token * self.requests
            done = [SimpleNamespace(request=each, tokens=self.written(each, 1)) for each in self.asked]
            if not self.resting:
                self.paying.rest(done, self.rested)
                self.resting, self.rested = self.paying.rests(), 0
            for each in done:
                each.request.tokens += each.tokens
            return
        rows = [self.paying.bid(request, 16) for request in self.asked]
        self.services.load["target"] = Load(self.requests, self.requests, 0)
        drafted = [Drafted(request) for request, room in zip(self.asked, rows, strict=True) if room]
        rooms = [room for room in rows if room]
        spent: dict[str, float] = {}
        for name, (skill, cost) in self.drafters.items() if drafted else ():
            for found, room in zip(drafted, self.paying.rooms(name, drafted, rooms), strict=True):
                if not room:
                    continue
                found.asked.append(name)
                spent[name] = spent.get(name, 0.0) + cost
                self.calls[name] = self.calls.get(name, 0) + 1
                right = [self.chance.random() < skill for _ in range(min(room, self.length))]
                tokens = [0 if each else 1 + len(name) for each in right]
                found.by_drafter[name] = Draft(DraftTree.run(tokens, skill, name))
        for found in drafted:
            found.tree = DraftTree.union(draft.tree for draft in found.by_drafter.values())
        sent = [only(f.tree, nodes) for f, nodes in zip(drafted, self.paying.select(drafted, rooms), strict=True)]
        by_request = {found.request.id: tree for found, tree in zip(drafted, sent, strict=True)}
        observations = [self.seen(request, by_request.get(request.id, DraftTree.run([]))) for request in self.asked]
        rows_sent, gained = sum(map(len, sent)), sum(len(seen.committed.tokens) for seen in observations)
        self.services.rows += self.requests + rows_sent
        self.plain += not rows_sent
        self.machine.now += self.machine.ms(self.requests + rows_sent) + sum(spent.values())
        self.machine.now += self.by_token * gained + (self.overhead if rows_sent else 0.0)
        self.paying.learn(drafted, observations, spent)
        self.resting = self.paying.rests()
        for seen in observations:
            seen.request.tokens += self.written(seen.request, len(seen.committed.tokens))
            seen.request.stats.accepted += len(seen.nodes)

    def read(self, rows: int) -> None:
        """Take a step that reads so many rows of prompts, behind which every request gains its first token."""
        self.services.steps += 1
        self.services.load["target"] = Load(self.requests, rows, 0)
        self.services.rows += rows
        self.machine.now += self.machine.ms(rows)
        seen = [self.seen(request, DraftTree.run([])) for request in self.asked]
        self.paying.learn([], seen, {})
        self.resting = self.paying.rests()
        for each in seen:
            each.request.tokens += self.written(each.request, 1)

    def seen(self, request: SimpleNamespace, tree: DraftTree) -> SimpleNamespace:
        nodes, node = [], -1
        while (child := tree.child(node, 0)) is not None:
            nodes.append(child)
            node = child
        self.tokens += len(nodes) + 1
        return SimpleNamespace(
            request=request, tree=tree, nodes=nodes, committed=SimpleNamespace(tokens=[0] * (len(nodes) + 1))
        )

    def written(self, request: SimpleNamespace, count: int) -> list[int]:
        """Return what the text goes on with: tokens that it never had, or those ``period`` tokens before."""
        length = len(request.tokens)
        return [place % (self.period or NEVER) for place in range(length, length + count)]

    def play(self, steps: int) -> float:
        """Return how many times faster than plain decoding ``steps`` steps were."""
        began, tokens = self.machine.now, self.tokens
        for _ in range(steps):
            self.step()
        plain = (self.tokens - tokens) / self.requests * self.machine.ms(self.requests)
        return plain / (self.machine.now - began)
