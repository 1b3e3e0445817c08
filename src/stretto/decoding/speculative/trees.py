"""Draft trees as rows: packing a tree behind the last known token, and finding its rows again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stretto.core.chunk import ALL_ROWS, CONTEXT, Chunk, Role, Segment
from stretto.core.masks import lawful
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.decoding.speculative.drafter import Draft, Probes

EMPTY = DraftTree.run([])
"""Nothing drafted."""


def depths(tree: DraftTree) -> list[int]:
    """Return each node's depth, 1 for children of the root."""
    result: list[int] = []
    for parent in tree.parents:
        result.append(1 if parent < 0 else result[parent] + 1)
    return result


def only(tree: DraftTree, nodes: Sequence[int], root: int = -1) -> DraftTree:
    """Return the tree of ``nodes`` under ``root``: ascending, with each node's parent among them or ``root``."""
    if len(nodes) == len(tree):
        return tree
    place = {root: -1, **{old: new for new, old in enumerate(nodes)}}
    return DraftTree(
        [tree.tokens[node] for node in nodes],
        [place[tree.parents[node]] for node in nodes],
        [tree.survival[node] for node in nodes],
        [tree.owners[node] for node in nodes],
        None if tree.q is None else {place[node]: q for node, q in tree.q.items() if node in place},
    )


def obeying(draft: Draft, state: SamplerState) -> Draft:
    """Return what of a draft behind ``state`` its token mask allows, with everything that hangs on it."""
    mask, tree = state.committed.mask, draft.tree
    if mask is None:
        return draft
    after = {-1: state.mask_state}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        reached = lawful(mask, after[parent], token) if parent in after else None
        if reached is not None:
            after[node] = reached
    nodes = list(after)[1:]
    if len(nodes) == len(tree):
        return draft
    entered = None if draft.entered is None else draft.entered.only(nodes)
    return Draft(only(tree, nodes), rehung(draft.probes, nodes, len(tree)), entered)


def rehung(probes: Probes | None, nodes: Sequence[int], before: int) -> Probes | None:
    """Return the probe rows of a tree of which ``nodes`` are left, None if some hang on others that are gone.

    ``before``: how many nodes there were.
    """
    if probes is None or len(nodes) == before:
        return probes
    place = {CONTEXT: CONTEXT, 0: 0, **{old + 1: new + 1 for new, old in enumerate(nodes)}}
    place |= {1 + before + row: 1 + len(nodes) + row for row in range(len(probes.tokens))}
    if any(segment.parent not in place for segment in probes.segments):
        return None
    return replace(probes, segments=[replace(each, parent=place[each.parent]) for each in probes.segments])


def descend(tree: DraftTree, tokens: list[int]) -> DraftTree | None:
    """Return what remains of a late tree behind ``tokens`` that were committed since, or None if they left it."""
    node = -1
    for token in tokens:
        child = tree.child(node, token)
        if child is None:
            return None
        node = child
    return tree if node < 0 else only(tree, [i for i in range(node + 1, len(tree)) if node in tree.path(i)], node)


def tree_segments(tree: DraftTree) -> list[Segment]:
    """Return the segments of the last known row (row 0) and the tree's nodes (row node + 1) behind it.

    A node that follows its parent directly prolongs its segment; every other begins one of its own.
    """
    segments = [Segment(1)]
    for node, parent in enumerate(tree.parents):
        if parent == node - 1 and (parent >= 0 or node == 0):
            segments[-1].rows += 1
        else:
            segments.append(Segment(1, parent=parent + 1))
    return segments


def draft_chunk(request: Request, draft: Draft) -> Chunk:
    """Return the chunk of a request whose one pending token is followed by a draft: known row, nodes, probe rows."""
    tree, probes, position = draft.tree, draft.probes, request.filled
    tokens = [request.tokens[position], *tree.tokens]
    index = [position, *(position + depth for depth in depths(tree))]
    segments = tree_segments(tree)
    roles = [Role.COMMIT, *[Role.CANDIDATE] * len(tree)]
    chunk = Chunk(request.id, request.model, tokens, index, segments, roles, logits=(ALL_ROWS,))
    if draft.entered is not None:
        chunk.layers, chunk.entering = draft.entered.layers, draft.entered.hidden
        chunk.scratch = draft.entered.scratch
    if probes is not None:
        behind = [position + depth for depth in probes.depth]
        if probes.rope is not None:
            chunk.rope = index + probes.rope
        chunk.tokens = tokens + probes.tokens
        chunk.index = index + behind
        chunk.roles = roles + [Role.PROBE] * len(probes.tokens)
        shift = len(segments)
        chunk.segments = segments + [
            replace(segment, also=tuple(other + shift for other in segment.also)) for segment in probes.segments
        ]
        chunk.embeddings = probes.embeddings
    return chunk
