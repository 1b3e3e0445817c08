"""A trained prefix, input embeddings instead of tokens, that only probe rows see: nothing else may notice it."""

from __future__ import annotations

import pytest
import torch
from company import prompts, target, text
from dense import Dense, same
from helpers import request, run

from stretto.core.choose import choose
from stretto.core.chunk import Chunk, Role, Segment
from stretto.core.request import Committed
from stretto.decoding.known import known_chunk
from stretto.decoding.method import Facts

PREFIX, AHEAD, LENGTH = 3, 2, 24
TRAINED = torch.randn(PREFIX + AHEAD, 48, generator=torch.Generator().manual_seed(9)) * 0.5
"""The prefix, then the embeddings that stand for the tokens to come."""
PROBES = PREFIX + AHEAD + 1
ASKED = [
    (prompt, "prefixed", {"max_tokens": LENGTH, "temperature": temperature, "seed": 2})
    for prompt, temperature in zip(prompts(5, seed=41), [0.0, 0.7] * 3, strict=False)
]


class Prefixed:
    """Plain decoding whose steps also ask what the next tokens may be: once with the prefix in sight, once without.

    With ``leak`` the known row sees the prefix too, which plain decoding must show.
    """

    name, facts = "prefixed", Facts()

    def __init__(self, probes: int = PROBES, leak: bool = False) -> None:
        self.probes, self.leak = probes, leak
        self.known: dict[tuple[int, ...], torch.Tensor] = {}
        self.probed: dict[tuple[int, ...], torch.Tensor] = {}
        """By the tokens up to the known row: its logits, and those of the probes ahead [AHEAD + 1, vocab]."""

    def bind(self, services): ...
    def preempted(self, request): ...
    def end(self, request): ...

    def extra(self, request):
        return self.probes

    def propose(self, requests, rows):
        return [
            self.chunk(each) if each.pending == 1 and self.probes and count > PROBES else known_chunk(each, count)
            for each, count in zip(requests, rows, strict=True)
        ]

    def chunk(self, request):
        last = request.filled
        token, prefix = [request.tokens[last]], list(range(-1, -1 - PREFIX, -1))
        ahead = [-1 - PREFIX - i for i in range(AHEAD)]
        if self.leak:
            begin = [*prefix, *token], [*range(PREFIX), last]
            segments = [Segment(PREFIX, sees=()), Segment(1, also=(0,))]
        else:
            begin = [*token, *prefix], [last, *range(PREFIX)]
            segments = [Segment(1), Segment(PREFIX, sees=())]
        at = PREFIX if self.leak else 0
        segments += [Segment(AHEAD, parent=at, also=(0 if self.leak else 1,)), Segment(1, parent=at)]
        roles = [Role.PROBE] * (1 + PROBES)
        roles[at] = Role.COMMIT
        return Chunk(
            request.id,
            "target",
            [*begin[0], *ahead, ahead[0]],
            [*begin[1], last + 1, last + 2, last + 1],
            segments,
            roles,
            logits=(at, *range(PREFIX + 1, PREFIX + 1 + AHEAD + 1)),
            embeddings=TRAINED,
        )

    def commit(self, requests, chunks, outputs):
        return [self.settle(*each) for each in zip(requests, chunks, outputs, strict=True)]

    def settle(self, request, chunk, output):
        stop = request.filled + (len(chunk) if chunk.roles is None else 1)
        if stop < len(request.tokens):
            return Committed(request, filled=stop)
        logits = output.logits[output.first : output.first + len(chunk.wanted)].clone()
        self.known[tuple(request.tokens)] = logits[0]
        if chunk.roles is not None:
            self.probed[tuple(request.tokens)] = logits[1:]
        (token,) = choose(logits[:1], [request.state])
        return Committed(request, [token], stop, finish=request.state.ends(token))


def hold(probed: dict[tuple[int, ...], torch.Tensor], forget: int | None = None) -> list[bool]:
    """Return for every fifth step whether its probes are those of a dense forward under their mask.

    The control: the last probe that sees the prefix does not see its row ``forget``.
    """
    dense, results = Dense(len(target().spec.layers)), []
    for tokens, found in [*probed.items()][::5]:
        n = len(tokens)
        ahead = TRAINED[[*range(len(TRAINED)), PREFIX]].double()
        positions = [*range(n), *range(PREFIX), *range(n, n + AHEAD), n]
        mask = torch.ones(len(positions), len(positions)).tril().bool()
        mask[n : n + PREFIX, :n] = False
        mask[-1, n:-1] = False
        if forget is not None:
            mask[-2, n + forget] = False
        logits = dense.logits(torch.cat((dense.embed(tokens), ahead)), positions, mask)
        results.append(same(found, logits[n + PREFIX :]))
    return results


@pytest.fixture(scope="module")
def plain(company):
    """The same requests without probes, alone."""
    plain = Prefixed(probes=0)
    engine = company.engine(plain, tokens=1024, rows=64)
    run(engine, *(request(engine, prompt, method, **params) for prompt, method, params in ASKED))
    return plain


def same_bits(found, expected):
    both = found.known.keys() & expected.known.keys()
    return all(torch.equal(found.known[tokens], expected.known[tokens]) for tokens in both)


def test_a_prefix_that_probes_see_changes_nothing_else(company, plain):
    prefixed = Prefixed()
    tested = company.play(company.engine(prefixed, rows=24), ASKED)
    assert [text(each) for each in tested] == [company.alone(prompt, **params) for prompt, _, params in ASKED]
    assert prefixed.known.keys() == plain.known.keys() and same_bits(prefixed, plain)
    assert len(prefixed.probed) > LENGTH
    assert all(hold(prefixed.probed)) and not any(hold(prefixed.probed, forget=1))
    assert all(not torch.allclose(rows[0], rows[-1], rtol=0.01) for rows in prefixed.probed.values())


def test_a_known_row_that_sees_the_prefix_makes_the_difference(company, plain):
    """The control."""
    leaking = Prefixed(leak=True)
    company.play(company.engine(leaking, rows=24), ASKED)
    assert not same_bits(leaking, plain)
