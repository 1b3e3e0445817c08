"""Driving walks without an engine: toy models are functions of the path, texts grow by drafting and walking."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from random import Random

import torch
from torch import Tensor

from stretto.core.choose import choose, probabilities
from stretto.core.params import SamplingParams
from stretto.core.sampler import SamplerState
from stretto.core.tree import DraftTree
from stretto.core.verifiers import Verifier, Walked

VOCAB = 32
EOS = frozenset({0})
PROMPT = [5, 6, 5]
Logits = Callable[[list[int]], Tensor]
"""A toy model: the path so far to the next row's logits."""
Draft = Callable[[list[int], SamplerState], DraftTree]
"""A toy drafter: the path so far and the state behind it to a tree."""


def begin(params: SamplingParams, seed: int = 0, limit: int = 40) -> SamplerState:
    return SamplerState.begin(params, PROMPT, sample=0, seed=seed, vocab_size=VOCAB, eos_ids=EOS, limit=limit)


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


def generate(verifier: Verifier, draft: Draft, state: SamplerState, model: Logits) -> tuple[list[int], str | None]:
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


# A target and a drafter whose next token depends on the last one only, so that the exact distribution of the whole
# text is a product of matrices. Groups of tokens have the same chances behind every token. Two are likely for both,
# one more for the target and one more for the drafter, so that a run may make up for its doubtful tokens; one is the
# target's own; and one token is the drafter's own: drafted often and rejected nearly always, so that it shows what is
# done behind a rejection, and whether the next draw might have been that one again.
DEPTH = 8
SAMPLING = SamplingParams(temperature=0.8, ignore_eos=True)
GROUPS = (2, 2, 27, 1)
TARGET_MASS, DRAFTER_MASS = (0.45, 0.25, 0.29, 0.01), (0.20, 0.39, 0.01, 0.40)


def table(masses: tuple[float, ...], seed: int) -> Tensor:
    """Return logits [last token, next token] with these masses on the groups, at the temperature in use."""
    weights = torch.rand(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed)) + 0.5
    groups = zip(masses, weights.split(GROUPS, dim=-1), strict=True)
    scaled = [mass * group / group.sum(-1, keepdim=True) for mass, group in groups]
    return torch.cat(scaled, dim=-1).log() * SAMPLING.temperature


TARGET, DRAFTER = table(TARGET_MASS, seed=1), table(DRAFTER_MASS, seed=2)
ROWS = torch.stack([probabilities(row, begin(SAMPLING)) for row in TARGET])
"""float64 [last token, next token]: what the target draws from."""
PROPOSAL = [probabilities(row, begin(SAMPLING)) for row in DRAFTER]
_SUMS = [list(accumulate(q.tolist())) for q in PROPOSAL]


def MARKOV(path: list[int]) -> Tensor:
    """The target."""
    return TARGET[path[-1]]


def sampled(random: Random, width: int, *, distinct: bool = False, depth: int = DEPTH, q: bool = True) -> Draft:
    """Return a drafter of trees as deep as chance will, up to ``depth``.

    Below every first child hang ``width`` children drawn from the drafter's distribution, ``distinct`` or not.
    """

    def draft(path: list[int], state: SamplerState) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        drawn: dict[int, Tensor] = {}
        node, last = -1, path[-1]
        for _ in range(random.randint(1, depth)):
            drawn[node] = PROPOSAL[last]
            siblings: list[int] = []
            while len(siblings) < width:
                token = min(bisect_right(_SUMS[last], random.random() * _SUMS[last][-1]), VOCAB - 1)
                if not (distinct and token in siblings):
                    siblings.append(token)
            parents += [node] * width
            node, last = len(tokens), siblings[0]
            tokens += siblings
        count = len(tokens)
        return DraftTree(tokens, parents, [0.5] * count, [frozenset()] * count, drawn if q else None)

    return draft
