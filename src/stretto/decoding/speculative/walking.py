"""Advancing the walks of many requests in lockstep, and what a walk's end means for its request."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.core.choose import choose
from stretto.core.noise import NoiseKey
from stretto.core.picking import narrows
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Answer, Ask, Walk, Walked
from stretto.decoding.known import fail
from stretto.decoding.speculative.drafter import Observation

AHEAD = 3
"""Rows that are chosen from ahead of a walk in the first round, in the hope that the text is as drafted; twice as many
in each round behind it."""
CALL = 16
"""Rows of a round of all walks up to which they go ahead: for fewer, a call takes longer than they do."""


def walk_all(walks: Sequence[Walk], walking: Sequence[Observation]) -> list[Walked]:
    """Advance all walks in lockstep, so that each round's choices are one call; return their ends in order."""
    ends: list[Walked | None] = [None] * len(walks)
    asks: list[tuple[int, Ask]] = []
    known: list[dict[int, int]] = [{} for _ in walks]
    """By walk and node, tokens that were chosen ahead."""

    def advance(number: int, answer: Answer | None) -> None:
        try:
            while True:
                ask = next(walks[number]) if answer is None else walks[number].send(answer)
                answer = known[number].get(ask.node) if ask.want == "token" else None
                if answer is None:
                    break
            asks.append((number, ask))
        except StopIteration as stop:
            ends[number] = stop.value

    for number in range(len(walks)):
        advance(number, None)
    logits, reach = walking[0].output.logits if walking else None, AHEAD
    eager = logits is not None and narrows(logits)  # else each row that a filter narrows takes long
    while asks:
        assert logits is not None
        round_, asks = asks, []
        places: list[tuple[int, int]] = []
        states: list[SamplerState] = []
        keys: list[NoiseKey] = []
        for number, ask in round_:
            if ask.want == "token":
                ahead = min(reach, CALL // len(round_) - 1) if eager or not ask.state.shaped else 0
                nodes = _onward(ask, ahead)
                places += [(number, node) for node in nodes]
                states += [ask.state] * len(nodes)
                keys += [ask.state.key(ahead=depth) for depth in range(len(nodes))]
        if places:
            rows = [walking[number].output.row(walking[number].base + 1 + node) for number, node in places]
            for (number, node), token in zip(places, choose(logits, states, keys, rows), strict=True):
                known[number][node] = token
        for number, ask in round_:
            row = walking[number].output.row(walking[number].base + 1 + ask.node)
            advance(number, known[number][ask.node] if ask.want == "token" else logits[row])
        reach *= 2
    return [end for end in ends if end is not None]


def _onward(ask: Ask, ahead: int) -> list[int]:
    """Return the node that a walk asks for, and up to so many that it will ask for if the text is as drafted first.

    Only where nothing but a row's place decides what is chosen from it: what shapes the scores knows the path.
    """
    nodes, tree = [ask.node], ask.tree
    if tree is not None and ask.state.committed.plain:
        while len(nodes) <= ahead and (children := tree.children(nodes[-1])):
            nodes.append(children[0])
    return nodes


def settle(seen: Observation, walked: Walked) -> None:
    """Write a walk's end into the commit: tokens, rows to keep, watermark, statistics."""
    committed, output, base, tree = seen.committed, seen.output, seen.base, seen.tree
    if walked.error is not None and not walked.tokens:
        fail(committed, walked.error)
        return
    # A drafted token that ends the text was right, too, though its row is not kept.
    last = tree.child(walked.nodes[-1] if walked.nodes else -1, walked.tokens[-1]) if walked.finish else None
    seen.nodes = walked.nodes if last is None else [*walked.nodes, last]
    position = committed.filled
    assert position is not None
    # A walk cut by an error keeps its last token's row for the next step, where the error is met at the root.
    nodes = walked.nodes[: len(walked.tokens) - 1]
    rows = [output.scratch[base + 1 + node] for node in nodes]
    committed.keep = [(row, position + depth) for depth, row in enumerate(rows) if row is not None]
    committed.filled = position + len(nodes)
    committed.tokens, committed.finish = tuple(walked.tokens), walked.finish
    committed.drafted, committed.accepted = len(tree), len(seen.nodes)
    committed.drafts = by_depth(tree, seen.nodes, ended=last is not None)
    owners = ["+".join(sorted(tree.owners[node])) for node in seen.nodes]
    committed.origins = (owners + [""] * len(walked.tokens))[: len(walked.tokens)]
    if seen.request.params.logprobs is not None:
        places = [output.row(base), *(output.row(base + 1 + node) for node in nodes)]
        committed.logits = output.logits[places]


def by_depth(tree: DraftTree, accepted: Sequence[int], ended: bool = False) -> dict[str, list[list[int]]]:
    """Return by drafter and depth how many positions it drafted tokens for that were checked, and accepted.

    A depth is checked where the path to it was accepted: what hangs under a rejected token says nothing, nor does what
    hangs under the last accepted one where the text ``ended`` with it.
    """
    drafts: dict[str, list[list[int]]] = {}
    reached = [-1, *accepted][: len(accepted) + (not ended)]
    for depth, parent in enumerate(reached):
        kept = accepted[depth] if depth < len(accepted) else None
        names: dict[str, bool] = {}
        for child in tree.children(parent):
            for name in tree.owners[child]:
                names[name] = names.get(name, False) or child == kept
        for name, hit in names.items():
            mine = drafts.setdefault(name, [])
            while len(mine) <= depth:
                mine.append([0, 0])
            mine[depth][0] += 1
            mine[depth][1] += hit
    return drafts
