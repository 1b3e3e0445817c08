"""A head that drafts from a feature lane: hidden states stored beside keys and values, kept and shared like them."""

from __future__ import annotations

import pytest
import torch
from company import Company, other, prompts, text
from drafters import GarbageDrafter
from helpers import request, run
from small import small

from stretto.core.batch import LaneSpec
from stretto.core.tree import DraftTree
from stretto.decoding.method import Facts
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.method import Speculative

LAYERS, LENGTH, ROWS = 2, 24, 6
LANES = (LaneSpec("main", "kv", tuple(range(LAYERS)), 2, 16), LaneSpec("feature", "feature", width=48))
HEAD = torch.randn(48, 64, generator=torch.Generator().manual_seed(5))
PARAMS = {"max_tokens": LENGTH, "temperature": 0.7, "seed": 6}
PROMPTS = prompts(4, lengths=(20, 40), seed=61)


def with_features():
    return small(layers=LAYERS, lanes=LANES)


class Head:
    """Drafts one token from the vector of the last stored position, and notes all vectors of the request."""

    name = "head"

    def __init__(self) -> None:
        self.read: list[tuple[tuple[int, ...], torch.Tensor]] = []
        """Tokens whose rows stand in the cache, and their vectors."""

    def bind(self, services):
        self.services = services

    def begin(self, request): ...
    def rewind(self, request): ...
    def end(self, request): ...
    def observe(self, observations): ...

    def stores(self):
        return {}

    def draft(self, requests, rows):
        drafts = []
        for each in requests:
            slots = self.services.view(each, "target").tables["feature"].slots(0, each.filled)
            vectors = self.services.models["target"].storage["feature"].keys[slots]
            self.read.append((tuple(each.tokens[: each.filled]), vectors))
            drafts.append(Draft(DraftTree.run([int((vectors[-1] @ HEAD).argmax())], owner=self.name)))
        return drafts


class Featured(Speculative):
    """Has the head's lane written by every row; as a control, by rows of known tokens alone."""

    def __init__(self, head: Head, *others: GarbageDrafter, drafted: bool = True) -> None:
        super().__init__("featured", [head, *others], rows=ROWS)
        self.facts = Facts(needs=frozenset({"feature"}))
        self.drafted = drafted

    def propose(self, requests, rows):
        chunks = super().propose(requests, rows)
        for chunk in chunks:
            if self.drafted or chunk.roles is None:
                chunk.feature, chunk.hidden = "feature", (LAYERS,)
        return chunks


class States(Plain):
    """Plain decoding that notes the hidden states behind the last layer."""

    name = "states"

    def __init__(self) -> None:
        self.hidden: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def propose(self, requests, rows):
        chunks = super().propose(requests, rows)
        for chunk in chunks:
            chunk.hidden = (LAYERS,)
        return chunks

    def commit(self, requests, chunks, outputs):
        for each, output in zip(requests, outputs, strict=True):
            self.hidden.setdefault(tuple(each.prompt), []).append(output.hidden[LAYERS])
        return super().commit(requests, chunks, outputs)


def exact(company: Company, head: Head) -> bool:
    """Whether everything the head read is, bit for bit, what a computation of the same tokens gives."""
    states = States()
    engine = company.engine(states, tokens=1024, rows=16)
    longest: list[tuple[int, ...]] = []
    for tokens, _ in sorted(head.read, key=lambda pair: -len(pair[0])):
        if all(longer[: len(tokens)] != tokens for longer in longest):
            longest.append(tokens)
    run(engine, *(request(engine, list(tokens), "states", max_tokens=1) for tokens in longest))
    hidden = {tokens: torch.cat(parts) for tokens, parts in states.hidden.items()}
    for tokens, vectors in head.read:
        whole = next(found for longer, found in hidden.items() if longer[: len(tokens)] == tokens)
        if not torch.equal(vectors, whole[: len(tokens)]):
            return False
    return True


@pytest.fixture(scope="module")
def featured():
    return Company((with_features, other))


@pytest.fixture(scope="module")
def plain(featured):
    return [featured.alone(prompt, **PARAMS) for prompt in PROMPTS]


@pytest.mark.parametrize("drafted", [True, False])
def test_the_head_reads_the_hidden_states(featured, plain, drafted):
    """The control: without the rows of accepted candidates the head must not read the same."""
    head = Head()
    truth = {tuple(prompt): found for prompt, found in zip(PROMPTS, plain, strict=True)}
    engine = featured.engine(Featured(head, GarbageDrafter(64, truth), drafted=drafted), tokens=176, rows=24)
    tested = featured.play(engine, [(prompt, "featured", PARAMS) for prompt in PROMPTS])
    assert [text(each) for each in tested] == plain
    assert sum(each.stats.accepted for each in tested) > LENGTH
    again = request(engine, tested[-1].prompt, "featured", **PARAMS)
    assert run(engine, again) == plain[-1:] and again.stats.cached >= 16
    assert exact(featured, head) is drafted


def test_rows_of_plain_decoding_lack_the_features(featured, plain):
    """A request that needs the lane takes over only rows that have it; a later one finds all of them."""
    head = Head()
    engine = featured.engine(Featured(head), tokens=512, rows=24)
    prompt = PROMPTS[0] + plain[0]
    first, second, third = (request(engine, prompt, method, **PARAMS) for method in ("plain", "featured", "featured"))
    texts = [run(engine, each) for each in (first, second, third)]
    assert texts[0] == texts[1] == texts[2]
    assert second.stats.cached == 0 and third.stats.cached >= 32
    assert exact(featured, head)
