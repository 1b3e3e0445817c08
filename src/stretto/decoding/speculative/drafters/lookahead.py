"""Lookahead decoding: a window of Jacobi iterations writes n-grams into a pool, from which drafts are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stretto.core.chunk import Segment
from stretto.core.picking import GREEDY, pick
from stretto.core.tree import DraftTree
from stretto.decoding.speculative.drafter import Draft, Probes
from stretto.decoding.speculative.drafters.base import ModelFree, chance

if TYPE_CHECKING:
    from stretto.core.request import Request
    from stretto.decoding.speculative.drafter import Observation

NGrams = dict[int, list[tuple[int, ...]]]
"""By first token: what stood behind it, the newest last."""


@dataclass(slots=True)
class _Window:
    """The window of one request: ``levels[k][i]`` was guessed k passes before the newest level, for a later position.

    The last known token is column 0 of the oldest level, so ``levels[0]`` begins with column 1. Column i holds
    successive tokens: the oldest guess at distance i, then those of the newer levels at i + 1, i + 2, ...
    """

    levels: list[list[int]]
    pool: NGrams = field(default_factory=dict)
    sent: int = 0
    """Probe rows of the draft at hand, 0 when the window was left out."""

    def rows(self) -> Probes:
        """Return the window as probe rows: the oldest level a run, behind each of its rows the rest of that column."""
        oldest, newer = self.levels[0], self.levels[1:]
        tokens, depth = list(oldest), list(range(1, len(oldest) + 1))
        segments = [Segment(len(oldest), parent=0)] if oldest else []
        if newer:
            for column in range(len(newer[0])):
                tokens += [level[column] for level in newer]
                depth += range(column + 1, column + 1 + len(newer))
                segments.append(Segment(len(newer), parent=column))
        return Probes(tokens, depth, segments)


class Lookahead(ModelFree):
    """Lookahead decoding (Fu et al., arXiv 2402.02057).

    The window guesses ``window`` positions in ``ngram`` - 1 stages. A pass computes the newest stage's rows, each in
    sight of the oldest stage up to its column and of its own column. What they choose, greedily, completes one n-gram
    per column for the pool and becomes the newest stage; the oldest is given up. Drafted are the at most ``branches``
    newest n-grams that begin with the text's last token, merged where they begin alike. The pool is the request's own.
    """

    def __init__(self, name: str = "lookahead", *, window: int = 5, ngram: int = 4, branches: int = 3) -> None:
        """Raises ``ValueError`` for n-grams of fewer than 3 tokens."""
        super().__init__(name)
        if ngram < 3:
            raise ValueError(f"ngram={ngram}: expected at least 3, two stages of guesses and what they lead to")
        self.window, self.ngram, self.branches = window, ngram, branches

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return n-grams of the pool, and the window where the rows suffice for it."""
        window: _Window | None = request.memory.get(self.name)
        if window is None:
            window = request.memory[self.name] = self._begin(request)
        probes: Probes | None = window.rows()
        assert probes is not None
        if len(probes.tokens) > room:
            probes = None
        window.sent = 0 if probes is None else len(probes.tokens)
        tree = self._branches(window.pool.get(request.tokens[-1], ()), room - window.sent)
        if probes is not None:
            _hang(probes, len(tree))
        return Draft(tree, probes) if len(tree) or probes is not None else None

    def observe(self, observations: Sequence[Observation]) -> None:
        """Move each window that was computed by one stage and put its n-grams into the pool."""
        windows: list[_Window] = []
        newest: list[int] = []  # rows of the logits, window after window
        last: list[int] = []
        for seen in observations:
            window: _Window | None = seen.request.memory.get(self.name)
            first = seen.base + 1 + len(seen.tree)
            if window is None:
                continue
            sent, window.sent = window.sent, 0
            if not sent or len(seen.output.chunk) != first + sent:
                continue  # the window was left out of the pass
            oldest, newer = len(window.levels[0]), len(window.levels) - 1
            ends = range(oldest + newer - 1, sent, newer) if newer else range(sent)
            newest += [seen.output.row(first + end) for end in ends]
            windows.append(window)
            last.append(seen.request.tokens[-1])
        if not windows:
            return
        count = len(newest)
        chosen = pick(observations[0].output.logits, newest, [GREEDY] * count, [0] * count)
        for window, token in zip(windows, last, strict=True):
            columns = len(window.levels[-1])
            said, chosen = chosen[:columns], chosen[columns:]
            if min(said, default=0) >= 0:
                self._move(window, token, said)

    def _begin(self, request: Request) -> _Window:
        """Return a window of one stage: tokens of the prompt, evenly spread, for want of guesses."""
        prompt, wide = request.tokens, self.window + self.ngram - 3
        return _Window([[prompt[place * len(prompt) // wide] for place in range(wide)]])

    def _move(self, window: _Window, last: int, said: list[int]) -> None:
        """Take over what the newest stage's rows said, a token per column."""
        levels = window.levels
        if len(levels) < self.ngram - 1:  # still filling: every stage gives up the position that the text has reached
            rest = said if len(levels) == 1 else said[1:]
            window.levels = [level[1:] for level in levels] + [rest]
            return
        for column, key in enumerate([last, *levels[0]]):
            self._put(window.pool, key, (*(level[column] for level in levels[1:]), said[column]))
        window.levels = [levels[1][1:], *levels[2:], said]

    def _put(self, pool: NGrams, key: int, behind: tuple[int, ...]) -> None:
        known = pool.setdefault(key, [])
        if behind in known:
            known.remove(behind)
        known.append(behind)
        del known[: -self.branches]

    def _branches(self, ngrams: Sequence[tuple[int, ...]], room: int) -> DraftTree:
        """Return the newest n-grams first, of shared beginnings the first; survival is a node's share of branches."""
        tree = self.tree([], [], [])
        counts: list[int] = []
        place: dict[tuple[int, int], int] = {}
        for behind in reversed(ngrams):
            parent = -1
            for token in behind:
                node = place.get((parent, token))
                if node is None:
                    if len(counts) == room:
                        break
                    node = place[parent, token] = len(counts)
                    tree.tokens.append(token)
                    tree.parents.append(parent)
                    counts.append(0)
                counts[node] += 1
                parent = node
        depths: list[int] = []
        for node, parent in enumerate(tree.parents):
            depths.append(0 if parent < 0 else depths[parent] + 1)
            total = len(ngrams) if parent < 0 else counts[parent]
            tree.survival.append(chance(counts[node], total, depths[node]))
        tree.owners += [self.owner] * len(counts)
        return tree


def _hang(probes: Probes, nodes: int) -> None:
    """Let the probes follow a tree of ``nodes`` rows: their parents are the last known token or rows among them."""
    for segment in probes.segments:
        if segment.parent > 0:
            segment.parent += nodes
