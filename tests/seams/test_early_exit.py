"""The first half of the layers drafts, the second verifies from stored hidden states: no layer runs twice for a row."""

from __future__ import annotations

import copy

import pytest
import torch
from company import Company, other, prompts, text
from helpers import request, run
from small import small_parameters, small_spec

from stretto.core.batch import LaneSpec
from stretto.core.choose import choose
from stretto.core.chunk import Chunk, Role, Segment
from stretto.core.tree import DraftTree
from stretto.decoding.known import known_chunk
from stretto.decoding.speculative.method import Speculative
from stretto.models.backend import build

LAYERS, EXIT, DRAFTED, LENGTH = 4, 2, 3, 20
SPLIT = tuple(LaneSpec(name, "kv", layers, 2, 16) for name, layers in {"early": (0, 1), "late": (2, 3)}.items())
ASKED = [
    (prompt, "early-exit", {"max_tokens": LENGTH, "temperature": temperature, "seed": 4})
    for prompt, temperature in zip(prompts(4, seed=51), [0.0, 0.7] * 2, strict=True)
]


def four(lanes):
    """Return a function that makes a model of four layers, whose later two change little."""
    spec = small_spec(LAYERS)
    parameters = small_parameters(spec)
    for name in [f"layers.{layer}.{matrix}.weight" for layer in range(EXIT, LAYERS) for matrix in ("output", "down")]:
        parameters[name] *= 0.3
    return lambda: build(spec, parameters, name="target", dtype=torch.float32, fingerprint="four", lanes=lanes)


class EarlyExit(Speculative):
    """Drafts a run where its rows leave early and lets the same rows go on.

    With ``fresh`` the rows that go on get scratch rows of their own, without the first layers' keys and values.
    """

    def __init__(self, drafted: int = DRAFTED, fresh: bool = False) -> None:
        super().__init__("early-exit", [], rows=drafted)
        self.drafted, self.fresh = drafted, fresh
        self.seen: dict[tuple[int, ...], torch.Tensor] = {}
        """Logits of committed rows, by the tokens up to them."""

    def extra(self, request):
        return self.drafted

    def propose(self, requests, rows):
        drafting = [i for i, each in enumerate(requests) if each.pending == 1 and rows[i] > self.drafted > 0]
        verified = iter(self.draft([requests[i] for i in drafting]) if drafting else [])
        chunks = []
        for i, (each, count) in enumerate(zip(requests, rows, strict=True)):
            chunk = next(verified) if i in drafting else known_chunk(each, count)
            each.memory[self._tree] = DraftTree.run(chunk.tokens[1:] if i in drafting else [])
            chunks.append(chunk)
        return chunks

    def draft(self, requests):
        """Return the chunks that verify, when all their rows have come through the first layers, one pass a token."""
        tokens, states = [[each.tokens[-1]] for each in requests], [each.state for each in requests]
        hidden, scratch = [[] for _ in requests], [[] for _ in requests]
        for _ in range(self.drafted + 1):
            chunks = [self.early(*each) for each in zip(requests, tokens, scratch, strict=True)]
            outputs = self.services.forward(requests, chunks)
            chosen = choose(torch.stack([output.logits[output.row(0)] for output in outputs]), states)
            states = [state.advance(token) for state, token in zip(states, chosen, strict=True)]
            for i, (output, token) in enumerate(zip(outputs, chosen, strict=True)):
                hidden[i].append(output.hidden[EXIT])
                scratch[i] += output.scratch
                tokens[i].append(token)
        return [
            Chunk(
                each.id,
                "target",
                tokens[i][:-1],
                list(range(each.filled, each.filled + len(hidden[i]))),
                roles=[Role.COMMIT] + [Role.CANDIDATE] * self.drafted,
                scratch=None if self.fresh else scratch[i],
                layers=(EXIT, LAYERS),
                entering=torch.cat(hidden[i]),
            )
            for i, each in enumerate(requests)
        ]

    def early(self, request, tokens, scratch):
        """Return the chunk of the last of ``tokens``: the first is committed, the others lie in ``scratch`` rows."""
        last, depth = request.filled, len(tokens) - 1
        spans = ((0, last + min(depth, 1)),)
        held = tuple((last + i, scratch[i]) for i in range(1, depth))
        role = Role.CANDIDATE if depth else Role.COMMIT
        segments = [Segment(1, sees=spans, held=held)]
        return Chunk(request.id, "target", tokens[-1:], [last + depth], segments, [role], layers=(0, EXIT))

    def commit(self, requests, chunks, outputs):
        done = super().commit(requests, chunks, outputs)
        for committed, chunk, output in zip(done, chunks, outputs, strict=True):
            if committed.tokens:
                known = len(chunk) - len(committed.request.memory[self._tree]) - 1
                path = [*committed.request.tokens]
                for row, token in enumerate(committed.tokens, known):
                    self.seen[tuple(path)] = output.logits[output.row(row)].clone()
                    path.append(token)
        return done


def same_bits(found, expected):
    return all(torch.equal(found[path], expected[path]) for path in found.keys() & expected.keys())


@pytest.fixture(scope="module")
def four_layers():
    return Company((four(None), other))


@pytest.fixture(scope="module")
def plain(four_layers):
    """Texts and logits of plain decoding, alone, in one lane."""
    plain = EarlyExit(drafted=0)
    engine = four_layers.engine(plain, tokens=1024, rows=64)
    return run(engine, *(request(engine, prompt, method, **params) for prompt, method, params in ASKED)), plain.seen


@pytest.mark.parametrize("lanes", [None, SPLIT], ids=["one lane", "two lanes"])
def test_layers_that_verify_what_earlier_layers_drafted(four_layers, plain, lanes):
    company, early = copy.copy(four_layers), EarlyExit()
    company.models = {**four_layers.models, "target": four(lanes)}
    tested = company.play(company.engine(early, rows=20), ASKED)
    assert [text(each) for each in tested] == plain[0]
    assert text(tested[0]) == company.alone(ASKED[0][0], **ASKED[0][2])
    assert LENGTH < sum(each.stats.accepted for each in tested) < sum(each.stats.drafted for each in tested)
    assert early.seen.keys() == plain[1].keys() and same_bits(early.seen, plain[1])


def test_rows_without_the_first_layers_keys_make_the_difference(four_layers, plain):
    """The control."""
    fresh = EarlyExit(fresh=True)
    four_layers.play(four_layers.engine(fresh, rows=64), ASKED)
    assert not same_bits(fresh.seen, plain[1])
