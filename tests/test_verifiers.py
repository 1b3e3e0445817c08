"""Coupled walks give the text of plain decoding, rejection gives the target's distribution."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from chi_square import FALSE_ALARM, fit
from torch import Tensor

from stretto.core import verifiers
from stretto.core.choose import NAN_LOGITS, choose, probabilities, sample, top
from stretto.core.noise import Stream
from stretto.core.params import SamplingParams
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Coupled, Rejection, Verifier, Walked

VOCAB = 32
EOS = frozenset({0})
PROMPT = [5, 6, 5]
Logits = Callable[[list[int]], Tensor]  # the toy model: the path so far to the next row's logits


def begin(params: SamplingParams, seed: int = 0, limit: int = 40) -> SamplerState:
    return SamplerState.begin(params, PROMPT, sample=0, seed=seed, vocab_size=VOCAB, eos_ids=EOS, limit=limit)


def of_whole_path(path: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(hash(tuple(path)) % 2**31)
    return torch.randn(VOCAB, generator=generator) * 2


def answer(verifier: Verifier, tree: DraftTree, state: SamplerState, model: Logits, path: list[int]) -> Walked:
    """Drive one walk as the engine does, every row computed from its own path only."""
    walk = verifier.walk(tree, state)
    ask = next(walk)
    while True:
        logits = model(path + [tree.tokens[node] for node in tree.path(ask.node)])
        try:
            ask = walk.send(logits if ask.want == "logits" else choose(logits[None], [ask.state])[0])
        except StopIteration as end:
            return end.value


def generate(
    verifier: Verifier, draft: Callable[[list[int], SamplerState], DraftTree], state: SamplerState, model: Logits
) -> tuple[list[int], str | None]:
    """Generate a text by repeated drafting and walking."""
    text: list[int] = []
    finish = None
    while finish is None:
        tree = draft(PROMPT + text, state)
        tree.validate(VOCAB)
        walked = answer(verifier, tree, state, model, PROMPT + text)
        assert walked.error is None and len(walked.tokens) == len(walked.nodes) + 1
        assert [tree.tokens[node] for node in walked.nodes] == walked.tokens[:-1]
        for token in walked.tokens:
            state.commit(token)
        text += walked.tokens
        finish = walked.finish
    return text, finish


def no_draft(path: list[int], state: SamplerState) -> DraftTree:
    return DraftTree.run([])


FEATURES = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.5, "banned": ((5, 6), (7,))},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "frequency_penalty": 0.8, "min_tokens": 9, "stop_token_ids": (4,)},
    {"temperature": 2.0, "ignore_eos": True, "presence_penalty": 1.0, "logit_bias": {0: 3.0}},
    {"temperature": 3.0, "mask": ("choice", {"choices": [[1, 2, 3, 1, 2], [1, 2, 4], [1, 2, 3, 9, 9, 9], [8]]})},
]


def garbage_and_truth(truth: list[int], random: Random) -> Callable[[list[int], SamplerState], DraftTree]:
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


# Rejection: a target and a drafter whose next token depends on the last one only, so that the exact distribution of
# the whole text is a product of matrices. They share two likely tokens, and each has likely tokens that the other
# hardly knows: so half of the drafts are rejected, and a residual that is not independent of its draft shows.
LENGTH = 5
GROUPS = (2, 20, 10)  # the sizes of the groups of tokens: shared, the target's, the drafter's
SAMPLING = SamplingParams(temperature=0.8, ignore_eos=True)


def table(masses: tuple[float, ...], seed: int) -> Tensor:
    """Logits [last token, next token] with these masses on the groups, at the temperature in use."""
    weights = torch.rand(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed)) + 0.5
    groups = zip(masses, weights.split(GROUPS, dim=-1), strict=True)
    scaled = [mass * group / group.sum(-1, keepdim=True) for mass, group in groups]
    return torch.cat(scaled, dim=-1).log() * SAMPLING.temperature


TARGET = table((0.69, 0.30, 0.01), seed=1)
DRAFTER = table((0.45, 0.01, 0.54), seed=2)
PROPOSAL = [probabilities(row, begin(SAMPLING)) for row in DRAFTER]


def independent_draft(path: list[int], state: SamplerState) -> DraftTree:
    """Draw a run of four from the drafter's distribution with the noise of the stream DRAFT."""
    tokens, q = [], []
    for _ in range(4):
        q.append(PROPOSAL[(path + tokens)[-1]])
        tokens.append(sample(q[-1], state.key().bits(Stream.DRAFT)))
        state = state.advance(tokens[-1])
    return DraftTree.run(tokens, q=q)


def one_guess(path: list[int], state: SamplerState) -> DraftTree:
    """A drafter that draws nothing and has no probabilities: a fixed run of the likeliest tokens."""
    tokens: list[int] = []
    for _ in range(4):
        tokens.append(int(DRAFTER[(path + tokens)[-1]].argmax()))
    return DraftTree.run(tokens)


def by_group(tokens: Tensor) -> Tensor:
    return torch.stack([group.sum() for group in tokens.split(GROUPS)])


def whole_text(verifier: Verifier, draft: Callable[[list[int], SamplerState], DraftTree], count: int) -> float:
    """The smallest p-value of the counts of groups over whole texts (a group's chance is the same everywhere), and of
    tokens and pairs of neighbours at each place.
    """
    rows = torch.stack([probabilities(each, begin(SAMPLING)) for each in TARGET])
    observed = torch.zeros(LENGTH, VOCAB, VOCAB, dtype=torch.float64)
    for seed in range(count):
        text, finish = generate(verifier, draft, begin(SAMPLING, seed, limit=LENGTH), lambda path: TARGET[path[-1]])
        assert finish == "length" and len(text) == LENGTH
        for place, pair in enumerate(zip([PROMPT[-1], *text], text, strict=False)):
            observed[place][pair] += 1
    last = torch.zeros(VOCAB, dtype=torch.float64)
    last[PROMPT[-1]] = 1.0
    p_values = [fit(by_group(observed.sum((0, 1))), by_group(rows[0]) * count * LENGTH)]
    for counts in observed:
        pairs = count * last[:, None] * rows
        p_values += [fit(counts, pairs), fit(counts.sum(0), pairs.sum(0))]
        last = last @ rows
    return min(p_values)


def test_rejection_keeps_the_distribution_of_whole_texts() -> None:
    assert whole_text(Rejection(), independent_draft, 600) > FALSE_ALARM
    assert whole_text(Rejection(), one_guess, 300) > FALSE_ALARM


def test_control_a_residual_drawn_with_the_drafts_noise_is_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reused:
        CHOICE, ACCEPT, RESIDUAL = Stream.CHOICE, Stream.ACCEPT, Stream.DRAFT

    monkeypatch.setattr("stretto.core.verifiers.rejection.Stream", Reused)
    assert whole_text(Rejection(), independent_draft, 600) < FALSE_ALARM


def test_rejection_accepts_as_often_as_the_distributions_overlap() -> None:
    """A run of one: the first token is kept with chance sum(min(p, q))."""
    count, kept = 2000, 0
    p, q = probabilities(TARGET[PROMPT[-1]], begin(SAMPLING)), PROPOSAL[PROMPT[-1]]
    for seed in range(count):
        state = begin(SAMPLING, seed)
        tree = DraftTree.run([sample(q, state.key().bits(Stream.DRAFT))], q=[q])
        kept += len(answer(Rejection(), tree, state, lambda path: TARGET[path[-1]], PROMPT).nodes)
    overlap = float(torch.minimum(p, q).sum())
    expected = torch.tensor([overlap, 1 - overlap]) * count
    assert fit(torch.tensor([kept, count - kept]), expected) > FALSE_ALARM


def test_rejection_at_temperature_zero_is_greedy_decoding() -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    for seed in range(20):
        plain = generate(Coupled(), no_draft, begin(params, seed, limit=12), lambda path: TARGET[path[-1]])
        for draft in (independent_draft, one_guess):
            assert generate(Rejection(), draft, begin(params, seed, 12), lambda path: TARGET[path[-1]]) == plain


@pytest.mark.parametrize("verifier", [Coupled(), Rejection()])
def test_a_bad_row_ends_the_walk_with_its_code_and_the_tokens_before_it(verifier: Verifier) -> None:
    def broken_after_two(path: list[int]) -> Tensor:
        return TARGET[path[-1]] if len(path) < len(PROMPT) + 2 else torch.full((VOCAB,), torch.nan)

    params = SamplingParams(temperature=0.0, ignore_eos=True)
    state = begin(params)
    tokens, _ = generate(Coupled(), no_draft, begin(params, limit=3), lambda path: TARGET[path[-1]])
    walked = answer(verifier, DraftTree.run(tokens), state, broken_after_two, PROMPT)
    assert (walked.tokens, walked.nodes, walked.finish, walked.error) == (tokens[:2], [0, 1], None, NAN_LOGITS)


def test_rejection_refuses_a_tree() -> None:
    tree = DraftTree([1, 2], [-1, -1], [1.0, 1.0], [frozenset()] * 2)
    with pytest.raises(ValueError, match="expected a run"):
        answer(Rejection(), tree, begin(SamplingParams()), of_whole_path, PROMPT)


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
        (DraftTree.run([1], q=[torch.ones(3)]), r"q\[-1\]"),
    ],
)
def test_broken_trees_are_named(broken: DraftTree, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        broken.validate(VOCAB)
