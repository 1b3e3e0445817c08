"""A token mask that is an automaton over the row's own path, walked along every branch of drafted trees."""

from __future__ import annotations

import torch
from company import prompts, text
from drafters import GarbageDrafter

from stretto.core.masks import register_mask
from stretto.core.sampler import SamplerState
from stretto.core.verifiers import Ask, Coupled
from stretto.decoding.speculative.method import Speculative

DEEPEST = 3


class Brackets:
    """Nested brackets: token ids divisible by 3 open one, those with remainder 1 close one, the others are words.

    A word follows an opening bracket.
    """

    def __init__(self, vocab_size: int, eos_ids: frozenset[int], deepest: int) -> None:
        self.kind, self.deepest = torch.arange(vocab_size) % 3, deepest

    def start(self) -> tuple[int, bool]:
        return 0, False

    def advance(self, state: tuple[int, bool], token: int) -> tuple[int, bool]:
        kind = token % 3
        return state[0] + (1, -1, 0)[kind], kind == 0

    def allowed(self, state: tuple[int, bool]) -> torch.Tensor:
        depth, opened = state
        if opened:
            return self.kind == 2
        allowed = self.kind != 0 if depth == self.deepest else torch.ones_like(self.kind, dtype=torch.bool)
        return allowed & (self.kind != 1) if depth == 0 else allowed


register_mask("brackets", Brackets)


def obeys(tokens: list[int]) -> bool:
    depth = 0
    for token, following in zip(tokens, [*tokens[1:], 2], strict=True):
        depth += (1, -1, 0)[token % 3]
        if not 0 <= depth <= DEEPEST or (token % 3 == 0 and following % 3 != 2):
            return False
    return True


class Stuck(Coupled):
    """Control: asks every row of the tree with the mask's state before the tree."""

    def walk(self, tree, state):
        walk, answer = super().walk(tree, state), None
        while True:
            try:
                ask = walk.send(answer)
            except StopIteration as stop:
                return stop.value
            at = ask.state
            answer = yield Ask(
                ask.node, SamplerState(at.committed, at.pending, at.generated, state.mask_state), ask.want
            )


def test_drafted_trees_obey_the_automaton_as_plain_decoding_does(company):
    masked = {"mask": ("brackets", {"deepest": DEEPEST}), "max_tokens": 22, "seed": 2}
    asked = [(prompt, {**masked, "temperature": t}) for prompt, t in zip(prompts(4), [0.0, 1.0] * 2, strict=True)]
    plain = [company.alone(prompt, **params) for prompt, params in asked]
    assert all(obeys(each) for each in plain)
    assert not any(obeys(company.alone(prompt, **{**params, "mask": None})) for prompt, params in asked)

    truth = {tuple(prompt): each for (prompt, _), each in zip(asked, plain, strict=True)}
    for known, verifier in [(truth, Coupled()), ({}, Coupled()), (truth, Stuck())]:
        method = Speculative("trees", [GarbageDrafter(64, known)], verifier=verifier)
        engine = company.engine(method, rows=16)
        played = company.play(engine, [(prompt, "trees", params) for prompt, params in asked])
        texts = [text(each) for each in played]
        if isinstance(verifier, Stuck):
            assert not all(obeys(each) for each in texts)
        else:
            assert texts == plain and (not known or sum(each.stats.accepted for each in played) > 20)
