"""Advancing the walks of many requests in lockstep, and what a walk's end means for its request."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.core.choose import choose
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Answer, Ask, Walk, Walked
from stretto.decoding.known import fail
from stretto.decoding.speculative.drafter import Observation


def walk_all(walks: Sequence[Walk], walking: Sequence[Observation]) -> list[Walked]:
    """Advance all walks in lockstep, so that each round's choices are one call; return their ends in order."""
    ends: list[Walked | None] = [None] * len(walks)
    asks: list[tuple[int, Ask]] = []

    def advance(number: int, answer: Answer | None) -> None:
        try:
            ask = next(walks[number]) if answer is None else walks[number].send(answer)
            asks.append((number, ask))
        except StopIteration as stop:
            ends[number] = stop.value

    for number in range(len(walks)):
        advance(number, None)
    while asks:
        round_, asks = asks, []
        places = [walking[n].output.row(walking[n].base + 1 + ask.node) for n, ask in round_]
        logits = walking[0].output.logits
        picked = [i for i, (_, ask) in enumerate(round_) if ask.want == "token"]
        tokens: dict[int, int] = {}
        if picked:
            chosen = choose(logits, [round_[i][1].state for i in picked], rows=[places[i] for i in picked])
            tokens = dict(zip(picked, chosen, strict=True))
        for i, (number, _) in enumerate(round_):
            advance(number, tokens[i] if i in tokens else logits[places[i]])
    return [end for end in ends if end is not None]


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
            mine += [[0, 0] for _ in range(depth + 1 - len(mine))]
            mine[depth][0] += 1
            mine[depth][1] += hit
    return drafts
