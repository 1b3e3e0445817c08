"""Coupled walks give the text of plain decoding; what holds for every verifier; trees and their unions."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor
from walks import EOS, MARKOV, PROMPT, VOCAB, Draft, answer, begin, generate, no_draft, sampled

from stretto.core import verifiers
from stretto.core.choose import NAN_LOGITS, choose, top
from stretto.core.params import SamplingParams
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers import (
    Block,
    Coupled,
    KSequential,
    MultiRound,
    Rejection,
    Rollback,
    Typical,
    Verifier,
    WithoutReplacement,
)

ALL = [Coupled(), Rejection(), MultiRound(), WithoutReplacement(), KSequential(), Block(), Typical(), Rollback()]
RUNS = (Rejection, Block, Rollback)
"""Those that take runs only."""


def of_whole_path(path: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(hash(tuple(path)) % 2**31)
    return torch.randn(VOCAB, generator=generator) * 2


FEATURES = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.5, "banned": ((5, 6), (7,))},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "frequency_penalty": 0.8, "min_tokens": 9, "stop_token_ids": (4,)},
    {"temperature": 2.0, "ignore_eos": True, "presence_penalty": 1.0, "logit_bias": {0: 3.0}},
    {"temperature": 3.0, "mask": ("choice", {"choices": [[1, 2, 3, 1, 2], [1, 2, 4], [1, 2, 3, 9, 9, 9], [8]]})},
]


def garbage_and_truth(truth: list[int], random: Random) -> Draft:
    """Drafts random trees that hold a stretch of the true text among random tokens and a second drafter's guesses."""

    def draft(path: list[int], state: SamplerState) -> DraftTree:
        ahead = truth[len(path) - len(PROMPT) :][: random.randrange(6)]
        true = DraftTree.run([*ahead, random.randrange(VOCAB)], owner="true")
        size = random.randrange(8)
        parents = [random.randrange(-1, node) if node else -1 for node in range(size)]
        tokens = [random.choice([*truth, random.randrange(VOCAB)]) for _ in range(size)]
        noise = DraftTree(tokens, parents, [0.5] * size, [frozenset({"noise"})] * size)
        guesses = top(of_whole_path(path)[None], [state], None, 3)[0]
        lead = DraftTree(guesses, [-1] * len(guesses), [0.9] * len(guesses), [frozenset({"top"})] * len(guesses))
        return DraftTree.union(random.sample([true, noise, lead], random.randrange(1, 4)))

    return draft


def coupled_equals_plain(verifier: Verifier) -> bool:
    for fields in FEATURES:
        for seed in range(12):
            params = SamplingParams(**fields)
            plain = generate(Coupled(), no_draft, begin(params, seed), of_whole_path)
            draft = garbage_and_truth(plain[0], Random(seed))
            if generate(verifier, draft, begin(params, seed), of_whole_path) != plain:
                return False
            if params.mask:
                assert plain[0][-1] in EOS and plain[0][:-1] in params.mask[1]["choices"]
    return True


class ForgetsThePath(Coupled):
    """A wrong verifier: every row is chosen with the state before the tree."""

    def walk(self, tree: DraftTree, state: SamplerState) -> verifiers.Walk:
        walk = super().walk(tree, state)
        ask = next(walk)
        while True:
            try:
                ask = walk.send((yield verifiers.Ask(ask.node, state, ask.want)))
            except StopIteration as end:
                return end.value


def test_coupled_walks_of_any_trees_give_the_text_of_plain_decoding() -> None:
    assert coupled_equals_plain(Coupled())


def test_control_a_walk_that_forgets_its_path_gives_another_text() -> None:
    assert not coupled_equals_plain(ForgetsThePath())


@pytest.mark.parametrize("fields", FEATURES[:5])
def test_a_drafter_with_the_targets_logits_and_noise_is_accepted_every_time(fields: dict[str, object]) -> None:
    def draft(path: list[int], state: SamplerState) -> DraftTree:
        tokens: list[int] = []
        for _ in range(5):
            (token,) = choose(of_whole_path(path + tokens)[None], [state])
            tokens.append(token)
            if state.ends(token):
                break
            state = state.advance(token)
        return DraftTree.run(tokens)

    state = begin(SamplingParams(**fields))
    while True:
        path = [*PROMPT, *state.committed.output]
        tree = draft(path, state)
        walked = answer(Coupled(), tree, state, of_whole_path, path)
        assert walked.finish or len(walked.nodes) == len(tree) == 5
        assert walked.tokens[: len(tree)] == tree.tokens
        for token in walked.tokens:
            state.commit(token)
        if walked.finish:
            break


def named(verifier: Verifier) -> str:
    return type(verifier).__name__


@pytest.mark.parametrize("verifier", ALL, ids=named)
def test_a_bad_row_ends_the_walk_with_its_code_and_the_tokens_before_it(verifier: Verifier) -> None:
    def broken_after_two(path: list[int]) -> Tensor:
        return MARKOV(path) if len(path) < len(PROMPT) + 2 else torch.full((VOCAB,), torch.nan)

    params = SamplingParams(temperature=0.0, ignore_eos=True)
    tokens, _ = generate(Coupled(), no_draft, begin(params, limit=3), MARKOV)
    for drafted in (tokens, tokens[:2]):
        walked = answer(verifier, DraftTree.run(drafted), begin(params), broken_after_two, PROMPT)
        assert (walked.tokens, walked.nodes, walked.finish, walked.error) == (tokens[:2], [0, 1], None, NAN_LOGITS)
    walked = answer(
        verifier, DraftTree.run(tokens), begin(params), lambda path: torch.full((VOCAB,), torch.nan), PROMPT
    )
    assert (walked.tokens, walked.nodes, walked.error) == ([], [], NAN_LOGITS)


@pytest.mark.parametrize("verifier", ALL, ids=named)
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_drafted_token_that_ends_the_text_ends_the_walk(verifier: Verifier, reason: str) -> None:
    tokens, _ = generate(Coupled(), no_draft, begin(SamplingParams(temperature=0.0), limit=5), of_whole_path)
    params = SamplingParams(temperature=0.0, stop_token_ids=(tokens[2],) if reason == "stop" else ())
    assert tokens[2] not in tokens[:2]
    state = begin(params, limit=3 if reason == "length" else 9)
    walked = answer(verifier, DraftTree.run(tokens), state, of_whole_path, PROMPT)
    assert (walked.tokens, walked.nodes, walked.finish) == (tokens[:3], [0, 1], reason)


@pytest.mark.parametrize("verifier", [each for each in ALL if not isinstance(each, Rollback)], ids=named)
def test_at_temperature_zero_the_text_is_that_of_greedy_decoding(verifier: Verifier) -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True, frequency_penalty=0.3, banned=((5, 6),))
    width = 1 if isinstance(verifier, RUNS) else 3
    distinct = not isinstance(verifier, KSequential) and width > 1
    for seed in range(20):
        plain = generate(Coupled(), no_draft, begin(params, seed, limit=12), MARKOV)
        for q in (True, False):
            draft = sampled(Random(seed), width, distinct=distinct, q=q)
            assert generate(verifier, draft, begin(params, seed, limit=12), MARKOV) == plain


@pytest.mark.parametrize(
    "verifier,tokens,advice",
    [
        (Rejection(), [1, 2], "use MultiRound for independent draws, WithoutReplacement for distinct ones"),
        (Block(), [1, 2], "expected a run; use MultiRound or WithoutReplacement"),
        (Rollback(), [1, 2], "expected a run; use Typical"),
        (WithoutReplacement(), [1, 1], "use MultiRound or KSequential"),
    ],
)
def test_a_tree_that_a_verifier_cannot_judge_is_refused_with_advice(verifier, tokens, advice) -> None:
    tree = DraftTree(tokens, [-1, -1], [1.0, 1.0], [frozenset()] * 2)
    with pytest.raises(ValueError, match=advice):
        answer(verifier, tree, begin(SamplingParams()), of_whole_path, PROMPT)


def test_a_union_holds_each_path_once_with_all_its_owners() -> None:
    random = Random(3)
    for _ in range(50):
        trees = []
        for name in "abc":
            size = random.randrange(10)
            parents = [random.randrange(-1, node) if node else -1 for node in range(size)]
            chances = [random.random() for _ in range(size)]
            trees.append(
                DraftTree([random.randrange(3) for _ in range(size)], parents, chances, [frozenset(name)] * size)
            )
        owners: dict[tuple[int, ...], frozenset[str]] = {}
        best: dict[tuple[int, ...], float] = {}
        for tree in trees:
            for node in range(len(tree)):
                path = tuple(tree.tokens[each] for each in tree.path(node))
                owners[path] = owners.get(path, frozenset()) | tree.owners[node]
                best[path] = max(best.get(path, 0.0), tree.survival[node])
        union = DraftTree.union(trees)
        union.validate(3)
        paths = [tuple(union.tokens[each] for each in union.path(node)) for node in range(len(union))]
        assert dict(zip(paths, union.owners, strict=True)) == owners and len(paths) == len(owners)
        assert dict(zip(paths, union.survival, strict=True)) == best
        for node in range(-1, len(union)):
            assert union.children(node) == [child for child, parent in enumerate(union.parents) if parent == node]


@pytest.mark.parametrize(
    "broken,named",
    [
        (DraftTree([1], [], [1.0], [frozenset()]), "parents"),
        (DraftTree([VOCAB], [-1], [1.0], [frozenset()]), r"tokens\[0\]=32"),
        (DraftTree([1], [0], [1.0], [frozenset()]), r"parents\[0\]=0"),
        (DraftTree([1], [-1], [1.5], [frozenset()]), r"survival\[0\]=1.5"),
        (DraftTree.run([1], q=[torch.ones(3)]), r"q\[-1\] of shape"),
        (DraftTree.run([1], q=[torch.eye(VOCAB)[2]]), r"q\[-1\].* tokens\[0\]=1 was drawn from.* no chance"),
    ],
)
def test_broken_trees_are_named(broken: DraftTree, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        broken.validate(VOCAB)
