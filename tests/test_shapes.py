"""Growth rules: topologies and sums against brute force, runs that stop against examples by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from random import Random

import pytest

from stretto.decoding.speculative.growth import ROOT, Expansion, Growing, Growth, Run
from stretto.decoding.speculative.shapes.dynamic import DySpec, OptTree
from stretto.decoding.speculative.shapes.static import Sequoia, Static, best_static, branching, expected
from stretto.decoding.speculative.shapes.stopping import AnyRejection, Confidence, Fallback, Svip

Says = Callable[[tuple[int, ...]], tuple[Sequence[float], float]]
"""A draft model: the drafted path to its candidates' chances and its entropy. The candidate of rank k is token k."""


def grow(rule: Growth, says: Says, rows: int) -> tuple[Growing, list[int], int]:
    """Grow a tree in rounds; return it, the nodes that are proposed, and how many nodes were computed."""
    tree, frontier, computed = Growing(), [ROOT], 0
    while frontier:
        computed += len(frontier)
        expansions = []
        for node in frontier:
            chances, entropy = says(path(tree, node))
            chances = chances[: rule.width]
            expansions.append(Expansion(node, range(len(chances)), chances, entropy))
        frontier = list(rule.grow(tree, expansions, rows))
    nodes = list(rule.finish(tree, rows))
    assert nodes == sorted(nodes) and len(nodes) <= rows and all(tree.parents[node] in (ROOT, *nodes) for node in nodes)
    return tree, nodes, computed


def path(tree: Growing, node: int) -> tuple[int, ...]:
    return () if node == ROOT else (*path(tree, tree.parents[node]), tree.tokens[node])


def paths(rule: Growth, says: Says, rows: int) -> list[str]:
    tree, nodes, _ = grow(rule, says, rows)
    return [".".join(map(str, path(tree, node))) for node in nodes]


def surely(drafted: tuple[int, ...]) -> tuple[Sequence[float], float]:
    return [0.5, 0.2, 0.1], 0.0


def forests(nodes: int, width: int, depth: int) -> Iterator[tuple[int, ...]]:
    """Yield every topology of ``nodes`` nodes, level by level."""

    def levels(parents: tuple[int, ...], level: list[int], left: int, deep: int) -> Iterator[tuple[int, ...]]:
        if not left:
            yield parents
        elif level and deep:
            for counts in shares(len(level), left):
                new = tuple(node for node, count in zip(level, counts, strict=True) for _ in range(count))
                yield from levels(
                    parents + new, list(range(len(parents), len(parents) + len(new))), left - len(new), deep - 1
                )

    def shares(places: int, left: int) -> Iterator[tuple[int, ...]]:
        if not places:
            yield ()
        for count in range(min(width, left) + 1 if places else 0):
            yield from ((count, *rest) for rest in shares(places - 1, left - count))

    seen = set()
    for parents in levels((), [ROOT], nodes, depth):
        if len(parents) == nodes and parents not in seen:
            seen.add(parents)
            yield parents


@pytest.mark.parametrize("rows,width,depth", [(1, 3, 3), (4, 2, 4), (5, 3, 2), (6, 3, 6), (7, 3, 3)])
def test_sequoias_programme_finds_the_best_of_all_topologies(rows: int, width: int, depth: int) -> None:
    random = Random(rows)
    for _ in range(10):
        chances = tuple(sorted((random.random() for _ in range(width)), reverse=True))
        if random.random() < 0.5:
            chances = tuple(random.sample(chances, width))  # no order is assumed
        best = max(expected(chances, each) for n in range(1, rows + 1) for each in forests(n, width, depth))
        found = best_static(chances, rows, depth).parents
        assert found in set(forests(len(found), width, depth))
        assert expected(chances, found) == pytest.approx(best)


def test_control_a_fixed_branching_is_not_the_best_topology() -> None:
    chances = (0.7, 0.1, 0.05)
    assert expected(chances, branching(2, 2)) < expected(chances, best_static(chances, 6, 8).parents)


def test_a_static_tree_has_its_topology_whatever_is_drafted() -> None:
    # The root's two best, and two behind the better one, as in a small tree of the Medusa paper's kind.
    rule = Static((-1, -1, 0, 0, 2))
    assert paths(rule, surely, 8) == ["0", "1", "0.0", "0.1", "0.0.0"]
    assert paths(rule, surely, 3) == ["0", "1", "0.0"]
    assert grow(rule, surely, 8)[2] == 3  # the root, 0 and 0.0: nodes without children are not computed
    assert rule.width == 2
    # Where there is one candidate only, what would hang on others is missing.
    assert paths(rule, lambda drafted: ([0.9], 0.0), 8) == ["0", "0.0", "0.0.0"]
    assert branching(2, 1, 2) == (-1, -1, 0, 1, 2, 2, 3, 3)
    with pytest.raises(ValueError, match=r"parents\[1\]=1"):
        Static((-1, 1))


def test_sequoia_by_hand() -> None:
    # With 0.6 for the first and 0.3 for the second child, nodes are worth .6, .36, .3, .216, .18 (twice), .13, ...
    rule = Sequoia((0.6, 0.3))
    assert paths(rule, surely, 1) == ["0"]
    assert paths(rule, surely, 3) == ["0", "1", "0.0"]
    assert paths(rule, surely, 4) == ["0", "1", "0.0", "0.0.0"]
    assert len(paths(rule, surely, 16)) == 16
    assert paths(Sequoia((0.6, 0.3), depth=2), surely, 6) == ["0", "1", "0.0", "0.1", "1.0", "1.1"]


def wild(seed: int, width: int = 3, depth: int = 4) -> Says:
    """A draft model of random chances that falls silent at a depth."""

    def says(drafted: tuple[int, ...]) -> tuple[Sequence[float], float]:
        random = Random(f"{seed} {drafted}")
        cuts = sorted(random.random() for _ in range(width + 1))
        chances = sorted((high - low for low, high in pairwise(cuts)), reverse=True)
        return (chances if len(drafted) < depth else []), 0.0

    return says


def every(
    says: Says, drafted: tuple[int, ...] = (), reached: float = 1.0
) -> Iterator[tuple[tuple[int, ...], float, float]]:
    """Yield every path that can be drafted, the chance that it is kept, and what its last draw was worth before."""
    left = 1.0
    for token, chance in enumerate(says(drafted)[0]):
        yield (*drafted, token), reached * chance, reached * left
        yield from every(says, (*drafted, token), reached * chance)
        left -= chance


def best_sum(nodes: dict[tuple[int, ...], float], count: int, elder: bool) -> float:
    """Return the largest sum over sets of ``count`` paths that hold parents (and elder siblings)."""
    best = 0.0
    for chosen in combinations(nodes, count):
        held = {*chosen, ()}
        if all(each[:-1] in held for each in chosen) and not (
            elder and any(each[-1] and (*each[:-1], each[-1] - 1) not in held for each in chosen)
        ):
            best = max(best, sum(nodes[each] for each in chosen))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_opt_tree_finds_the_largest_sum_of_path_chances(seed: int) -> None:
    says = wild(seed, width=3, depth=3)
    kept = {each: chance for each, chance, _ in every(says)}
    likely = dict(sorted(kept.items(), key=lambda item: -item[1])[:14])
    for rows in (1, 3, 5):
        tree, nodes, computed = grow(OptTree(threshold=-1.0, width=3), says, rows)
        assert sum(tree.path[node] for node in nodes) == pytest.approx(best_sum(likely, rows, elder=False))
        assert computed <= 1 + len(kept) and {path(tree, node) for node in nodes} <= kept.keys()


@pytest.mark.parametrize("seed", range(6))
def test_dyspec_finds_the_draws_that_are_worth_most(seed: int) -> None:
    says = wild(seed, width=3, depth=3)
    worth = {each: before for each, _, before in every(says)}
    likely = dict(sorted(worth.items(), key=lambda item: -item[1])[:14])
    for rows in (1, 3, 5):
        tree, nodes, _ = grow(DySpec(width=3), says, rows)
        drawn = [path(tree, node) for node in nodes]
        assert sum(worth[each] for each in drawn) == pytest.approx(best_sum(likely, rows, elder=True))


def test_control_the_two_rules_and_a_run_differ() -> None:
    differing = 0
    for seed in range(6):
        trees = [paths(rule, wild(seed), 5) for rule in (OptTree(-1.0, 3), DySpec(3), Run(5))]
        differing += len({tuple(sorted(each)) for each in trees}) == 3
    assert differing >= 3


def test_opt_tree_by_hand() -> None:
    def says(drafted: tuple[int, ...]) -> tuple[Sequence[float], float]:
        return {(): [0.6, 0.3], (0,): [0.9, 0.05], (1,): [0.5, 0.4], (0, 0): [0.2, 0.1]}.get(drafted, [0.1, 0.1]), 0.0

    # Path chances: 0 .6, 1 .3, 0.0 .54, 1.0 .15, 0.0.0 .108. Three nodes: .6 + .54 + .3 = 1.44, layer by layer .9,
    # then 1.44 (.54 more), then no more.
    assert paths(OptTree(threshold=0.2, width=2), says, 3) == ["0", "1", "0.0"]
    assert grow(OptTree(threshold=0.2, width=2), says, 3)[2] == 1 + 2 + 1
    # Where a pass costs more than .54 tokens, 0.0 is not computed for another layer.
    assert grow(OptTree(threshold=0.55, width=2), says, 3)[2] == 1 + 2
    assert paths(OptTree(threshold=0.0, width=2), says, 5) == ["0", "1", "0.0", "1.0", "1.1"]


def test_dyspec_by_hand() -> None:
    def says(drafted: tuple[int, ...]) -> tuple[Sequence[float], float]:
        return {(): [0.6, 0.3], (0,): [0.9, 0.05], (1,): [0.5, 0.4]}.get(drafted, [0.1, 0.1]), 0.0

    # Worth before the draw: 0 1; 0.0 .6; 0.0.0 .54; 0.0.0.0 .054; 0.0.1 .486; 1 .4; 1.0 .3; 1.1 .15; 0.1 .06.
    assert paths(DySpec(width=2), says, 3) == ["0", "0.0", "0.0.0"]
    assert paths(DySpec(width=2), says, 4) == ["0", "0.0", "0.0.0", "0.0.1"]
    assert paths(DySpec(width=2), says, 6) == ["0", "1", "0.0", "1.0", "0.0.0", "0.0.1"]


def doubtful(*steps: tuple[float, float]) -> Says:
    """A draft model that says at depth i with which chance and entropy it drafts its one candidate."""
    return lambda drafted: ([steps[len(drafted)][0]], steps[len(drafted)][1])


def test_runs_end_where_their_rule_doubts() -> None:
    # SVIP: sqrt(0.15 H) exceeds 0.3 from H = 0.6 on. The token of the doubtful place is still sent.
    says = doubtful((0.9, 0.2), (0.1, 0.59), (0.9, 0.61), (0.9, 0.0))
    assert len(paths(Svip(), says, 8)) == 3
    assert len(paths(Svip(threshold=math.sqrt(0.15 * 0.5)), says, 8)) == 2
    assert len(paths(Svip(), says, 2)) == 2
    # Confidence: the first chance below 0.4 ends the run, behind its token.
    says = doubtful((0.9, 9.0), (0.4, 9.0), (0.39, 0.0), (0.9, 0.0))
    assert len(paths(Confidence(), says, 8)) == 3
    assert len(paths(Confidence(threshold=0.5), says, 8)) == 2
    # Any rejection: .9 * .4 = .36, which leaves .64; times .39 = .14, which leaves .86.
    assert len(paths(AnyRejection(), says, 8)) == 3
    assert len(paths(AnyRejection(threshold=0.6), says, 8)) == 2
    # Fallback: the doubtful token is held back.
    assert len(paths(Fallback(threshold=0.4), says, 8)) == 2
    assert paths(Fallback(threshold=0.95), says, 8) == []
    # A draft model without a candidate ends any run.
    assert paths(Confidence(), lambda drafted: ([], 0.0) if drafted else ([0.9], 0.0), 8) == ["0"]
