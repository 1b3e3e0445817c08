"""The transformer: every row gets the bits of plain decoding, and the numbers of a dense forward under its mask."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import decoder
import numpy as np
import pytest
import torch
from decoder import Lanes, dense, specify
from torch import Tensor

from stretto.core.batch import LaneSpec
from stretto.core.chunk import Chunk, Role, Segment
from stretto.kernels import native
from stretto.kernels.table import REFERENCE, Ops
from stretto.models import passes
from stretto.models.spec import ModelSpec
from stretto.models.transformer import Transformer

ODD = {
    "even": specify(),  # in the sense of sizes that suit the vector units
    "one-kv-head": specify(heads=4, kv_heads=1, size=24, width=72, inner=100, vocab=97),
    "seven-kv-heads": specify(heads=7, kv_heads=7, size=80, width=72, inner=40, vocab=97),
    "window-and-cap": specify(heads=6, kv_heads=2, size=24, width=40, inner=72, window=37, softcap=5.0),
    "wide": specify(inner=2100),  # one row's activations are shared by threads
    "experts": specify(experts=5, inner=40, vocab=97),
}
Cut = tuple[int, int, bool, int]
"""The first slice's size (0: like the others), theirs, whether there is company, threads."""
LENGTH = 150
"""Crosses the border between two groups of 128."""
CUTS: list[Cut] = [(115, 1, False, 1), (0, 16, True, 1), (9, 33, False, 3), (1, 128, True, 3), (0, LENGTH, True, 2)]


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(97), k=length)


def prompt(request: int, tokens: list[int], start: int = 0) -> Chunk:
    return Chunk(request, "test", tokens, list(range(start, start + len(tokens))))


def sliced(
    lanes: Lanes, request: int, tokens: list[int], size: int, *, first: int = 0, company: bool = False
) -> Tensor:
    """Return the logits of ``tokens`` in slices of ``size`` behind one of ``first``, perhaps among others' rows."""
    logits = []
    for number, start in enumerate([*([0] if first else []), *range(first, len(tokens), size)]):
        stop = first if start < first else min(start + size, len(tokens))
        chunks = [prompt(request, tokens[start:stop], start)]
        if company:
            chunks.insert(0, prompt(1000 + number, text(3 + number % 19, number)))
            chunks.append(prompt(2000, text(11, number), number * 11))
        before = len(chunks[0]) if company else 0
        logits.append(lanes.run(*chunks).logits[before : before + stop - start])
    return torch.cat(logits)


def set_threads(count: int) -> None:
    torch.set_num_threads(count)
    native.set_threads(count)


def differences(
    spec: ModelSpec, case: str, ops: Ops | None = None, *, length: int = LENGTH, cuts: Sequence[Cut] = CUTS
) -> Iterator[str]:
    """Yield in which ways of computing a text any of its logits changes by a bit."""
    lanes = Lanes(decoder.build(spec, case, ops=ops))
    tokens = text(length)
    set_threads(1)
    alone = sliced(lanes, 0, tokens, length)
    for number, (first, size, company, threads) in enumerate(cuts):
        set_threads(threads)
        lanes = Lanes(lanes.model, seed=number)
        if not torch.equal(sliced(lanes, 1, tokens, size, first=first, company=company), alone):
            yield f"slices of {size} behind {first}, {threads} threads, company: {company}"


@pytest.mark.parametrize("case", decoder.CASES)
@pytest.mark.parametrize("shape", ODD)
def test_rows_are_alone(shape, case) -> None:
    assert list(differences(ODD[shape], case)) == []


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in decoder.CASES if case.startswith("native")])
@pytest.mark.parametrize("shape", ODD)
def test_rows_are_alone_at_every_size_of_a_slice(shape, case) -> None:
    sizes = [*range(1, 65), 100, 128, 200, 512, 600]
    cuts = [(size // 3, size, size >= 8 and size % 4 == 0, 1 + size % 3) for size in sizes]
    assert list(differences(ODD[shape], case, length=600, cuts=cuts)) == []


def test_a_linear_without_tiles_is_caught() -> None:
    def untiled(x: Tensor, packed) -> Tensor:
        weight = packed.weight.permute(2, 0, 1).flatten(1) if packed.sharded else packed.weight
        return torch.nn.functional.linear(x, weight[:, : x.shape[1]])

    ops = replace(REFERENCE, linear=untiled)
    assert any(list(differences(ODD[shape], "reference-fp32", ops)) for shape in ("even", "one-kv-head"))


def tree(rng: random.Random, request: int, start: int, path: list[int]) -> tuple[Chunk, list[int]]:
    """Return a chunk of candidates with ``path`` somewhere among its branches, and the rows that carry it."""
    segments: list[Segment] = []
    tokens: list[int] = []
    index: list[int] = []
    carries: list[int] = []
    while len(carries) < len(path):
        on_path = rng.random() < 0.5
        parent = carries[-1] if on_path and carries else -1 if on_path else rng.randrange(-1, len(tokens))
        count = rng.randint(1, len(path) - len(carries) if on_path else 4)
        at = start if parent == -1 else index[parent] + 1
        segments.append(Segment(count, parent))
        if on_path:
            tokens += path[len(carries) : len(carries) + count]
            carries += range(len(index), len(index) + count)
        else:
            tokens += rng.choices(range(97), k=count)
        index += range(at, at + count)
    return Chunk(request, "test", tokens, index, segments, [Role.CANDIDATE] * len(tokens)), carries


def strayed(spec: ModelSpec, case: str, rounds: int = 6) -> list[int]:
    """Return the rounds of random trees in which the committed path differed from plain decoding by a bit."""
    rng = random.Random(1)
    model = decoder.build(spec, case)
    tokens = text(LENGTH)
    plain = sliced(Lanes(model), 0, tokens, 1, first=110)
    lanes, wrong = Lanes(model, seed=1), []
    lanes.run(prompt(0, tokens[:110]))
    lanes.run(prompt(1, text(20)))
    for number in range(rounds):
        at = lanes.filled(0)
        chunk, rows = tree(rng, 0, at, tokens[at : at + rng.randint(2, 8)])
        company = tree(rng, 1, 20, text(rng.randint(1, 9), number))[0]
        chunks = (company, chunk) if number % 2 else (chunk, company)
        before = len(company) if number % 2 else 0
        given = lanes.run(*chunks).logits[[before + row for row in rows]]
        lanes.commit(0, [before + row for row in rows])
        if not torch.equal(given, plain[at : at + len(rows)]):
            wrong.append(number)
    return wrong


@pytest.mark.parametrize("case", decoder.CASES)
@pytest.mark.parametrize("shape", ODD)
def test_the_committed_path_of_a_tree_is_plain_decoding(shape, case) -> None:
    assert strayed(ODD[shape], case) == []


def test_attention_in_order_of_storage_is_caught(monkeypatch) -> None:
    honest = passes.views

    def by_storage(*args):
        found = honest(*args)
        for view in found:
            view.index = np.argsort(np.argsort(view.slots))
        return found

    monkeypatch.setattr(passes, "views", by_storage)
    assert strayed(ODD["even"], "reference-fp32")


def visible(chunk: Chunk, filled: int) -> list[set[tuple[str, int]]]:
    """Return what each row of ``chunk`` sees: cached positions ("cache", position) and rows ("row", number)."""
    sees: list[set[tuple[str, int]]] = []
    members = [number for number, segment in enumerate(chunk.segments) for _ in range(segment.rows)]

    def cached(number: int) -> set[int]:
        segment = chunk.segments[number]
        if segment.sees is not None:
            return {position for span in segment.sees for position in range(*span)}
        return set(range(filled)) if segment.parent == -1 else cached(members[segment.parent])

    for row, number in enumerate(members):
        segment = chunk.segments[number]
        first = members.index(number)
        mine = {("cache", position) for position in cached(number)}
        if segment.parent != -1:
            mine |= {entry for entry in sees[segment.parent] if entry[0] == "row"}
        for other in segment.also:
            mine |= {("row", at) for at, owner in enumerate(members) if owner == other}
        mine |= {("row", at) for at in range(first, first + segment.rows if segment.mutual else row + 1)}
        refreshed = {chunk.index[at] for kind, at in mine if kind == "row" and chunk.role(at) == Role.REFRESH}
        sees.append({entry for entry in mine if entry[0] == "row" or entry[1] not in refreshed})
    return sees


FORESTS: dict[str, tuple[list[tuple[int, int]], list[Segment], list[Role] | None]] = {
    # (first index, rows) of each segment, the segments, the roles
    "mutual block": ([(130, 20)], [Segment(20, mutual=True)], None),
    "blocks over the same positions": (
        [(130, 9)] * 3, [Segment(9, mutual=True), Segment(9, mutual=True), Segment(9, mutual=True, also=(0,))], None,
    ),
    "a block twice, also seen from behind": (
        [(124, 10), (124, 10), (134, 3)],
        [Segment(10, mutual=True, sees=((0, 100),)), Segment(10, parent=9, mutual=True), Segment(3, 19, also=(0,))],
        None,
    ),
    "spans before and after": ([(40, 12)], [Segment(12, sees=((0, 7), (20, 40), (60, 130)))], None),
    "nothing cached": ([(0, 30)], [Segment(30, sees=())], None),
    "a refreshed block": ([(50, 16)], [Segment(16, mutual=True)], [Role.REFRESH] * 16),
    "a tree of blocks": (
        [(130, 5), (135, 4), (135, 4), (133, 3), (138, 2)],
        [Segment(5), Segment(4, 4, mutual=True), Segment(4, 4), Segment(3, 2), Segment(2, 11, sees=((3, 90),))],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", decoder.EXACT)
@pytest.mark.parametrize("shape", ["even", "one-kv-head", "window-and-cap"])
@pytest.mark.parametrize("forest", FORESTS)
def test_any_forest_equals_a_dense_forward_under_its_mask(forest, shape, case) -> None:
    spec, filled = ODD[shape], 130
    places, segments, roles = FORESTS[forest]
    index = [at + offset for at, count in places for offset in range(count)]
    roles = roles or [Role.PROBE] * len(index)
    chunk = Chunk(0, "test", text(len(index), 5), index, segments, roles)
    context = text(filled)
    lanes = Lanes(decoder.build(spec, case))
    lanes.run(prompt(0, context))
    given = lanes.run(prompt(7, text(40)), chunk, prompt(8, text(3))).logits[40 : 40 + len(index)]

    sees = torch.zeros(filled + len(index), filled + len(index), dtype=torch.bool)
    sees[:filled, :filled] = torch.ones(filled, filled).tril().bool()
    for row, entries in enumerate(visible(chunk, filled)):
        for kind, number in entries:
            sees[filled + row, number if kind == "cache" else filled + number] = True
    expected = dense(spec, decoder.draw(spec), context + chunk.tokens, [*range(filled), *index], sees)[filled:]
    assert expected.abs().max() > 1
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("case", decoder.CASES)
def test_rows_held_in_scratch_are_seen_by_a_later_pass(case) -> None:
    model = decoder.build(ODD["one-kv-head"], case)
    tokens = text(140)
    plain = sliced(Lanes(model), 0, tokens, 140)
    lanes = Lanes(model)
    lanes.run(prompt(0, tokens[:120]))
    draft = Chunk(0, "test", tokens[120:130], list(range(120, 130)), roles=[Role.CANDIDATE] * 10)
    lanes.run(prompt(1, text(5)), draft)
    held = tuple((120 + row, row) for row in range(10))
    scratch = [*range(10, 20)]  # the rows of this pass go behind those that are held
    later = Chunk(
        0, "test", tokens[130:140], list(range(130, 140)), [Segment(10, held=held)], [Role.CANDIDATE] * 10,
        scratch=scratch,
    )  # fmt: skip
    assert torch.equal(lanes.run(later).logits, plain[130:])


@pytest.mark.parametrize("case", decoder.CASES)
def test_nan_stays_with_its_request(case) -> None:
    spec = ODD["experts"]
    model = decoder.build(spec, case)
    poison = Chunk(1, "test", [-1, 3, 4], [0, 1, 2], embeddings=torch.full((1, spec.width), torch.nan))
    lanes = Lanes(model)
    expected = sliced(Lanes(model), 0, text(40), 40)
    lanes.run(poison)
    poison = Chunk(1, "test", [-1, 3, 4], [3, 4, 5], embeddings=torch.full((1, spec.width), torch.nan))
    logits = lanes.run(prompt(0, text(30)), poison, prompt(2, text(5))).logits
    assert torch.equal(logits[:30], expected[:30])
    assert logits[30:33].isnan().all() and not logits[33:].isnan().any()
    assert torch.equal(lanes.run(prompt(0, text(40)[30:], 30)).logits, expected[30:])


class Watcher:
    """A policy that hides entries by index and keeps what it is told."""

    def __init__(self, hides: set[int] | None = None) -> None:
        self.hides = hides
        self.heard: dict[int, Tensor] = {}

    def bias(self, layer, query, rows, index):
        assert query.shape[0] == len(rows)
        if self.hides is None:
            return None
        hidden = torch.tensor([at in self.hides for at in index.tolist()])
        return torch.where(hidden, -torch.inf, 0.0).expand(len(rows), 1, -1)

    def mass(self, layer, rows, index, mass):
        self.heard[layer] = mass


@pytest.mark.parametrize("case", decoder.EXACT)
def test_a_policy_hides_entries_and_learns_their_mass(case) -> None:
    spec = ODD["window-and-cap"]
    model, tokens = decoder.build(spec, case), text(LENGTH)
    lanes = Lanes(model)
    plain = sliced(lanes, 0, tokens[:140], 140)

    silent = Watcher()
    chunk = prompt(1, tokens[:140])
    chunk.sight, chunk.mass = silent, True
    assert torch.equal(lanes.run(chunk, prompt(5, text(9))).logits[:140], plain)
    heads = spec.layers[0].attention.heads / spec.layers[0].attention.kv_heads
    for layer, mass in silent.heard.items():
        assert mass.shape == (140, spec.layers[0].attention.kv_heads, 140)
        torch.testing.assert_close(mass.sum(-1), torch.full(mass.shape[:2], heads))
        unseen = torch.ones(140, 140).triu(1).bool()
        if layer % 2:
            unseen |= torch.ones(140, 140).tril(-37).bool()
        assert not mass.transpose(0, 1)[:, unseen].any() and mass.transpose(0, 1)[:, ~unseen].all()

    hiding = prompt(0, tokens[140:], 140)
    hiding.sight = Watcher(set(range(4, 100)))
    spans = Chunk(1, "test", tokens[140:], hiding.index, [Segment(10, sees=((0, 4), (100, 140)))])
    logits = lanes.run(hiding, spans).logits
    assert torch.equal(logits[:10], logits[10:])
    assert not torch.equal(logits[:10], sliced(Lanes(model), 0, tokens, LENGTH)[140:])


@pytest.mark.parametrize("case", decoder.EXACT)
def test_rows_enter_leave_and_are_changed_between_layers(case) -> None:
    spec = specify(layers=4)
    lanes = Lanes(decoder.build(spec, case))
    tokens = text(20)
    whole = prompt(0, tokens)
    whole.hidden = (0, 2, 4)
    result = lanes.run(whole)

    early = prompt(1, tokens)
    early.layers = (0, 2)
    both = lanes.run(prompt(2, tokens), early)
    assert torch.equal(both.logits[:20], result.logits) and both.hidden[0] == {}
    assert torch.equal(both.hidden[1][2], result.hidden[0][2])
    assert not torch.equal(both.logits[20:], result.logits)

    late = prompt(1, tokens)
    late.layers, late.entering, late.logits = (2, 4), both.hidden[1][2], (3, 19)
    lanes.tables[1]["main"].filled = 0
    given = lanes.run(prompt(3, text(6)), late)
    assert torch.equal(given.logits[6:], result.logits[[3, 19]])
    assert torch.equal(given.hidden[1][4], result.hidden[0][4])

    crossed: list[int] = []
    hooked = prompt(4, tokens)
    hooked.hook = lambda border, rows: crossed.append(border) or (rows * 2 if border == 3 else None)
    hooked.hidden = (2, 3)
    changed = lanes.run(hooked, prompt(5, tokens))
    assert crossed == [1, 2, 3]
    assert torch.equal(changed.logits[20:], result.logits) and not torch.equal(changed.logits[:20], result.logits)
    assert torch.equal(changed.hidden[0][2], result.hidden[0][2])


@pytest.mark.parametrize("case", decoder.EXACT)
def test_layers_in_lanes_of_their_own_and_a_feature_lane(case) -> None:
    spec = specify(layers=4)
    shape = {"kv_heads": 2, "head_size": 16}
    split = (
        LaneSpec("front", layers=(0, 1), **shape),
        LaneSpec("back", layers=(2, 3), **shape),
        LaneSpec("features", "feature", width=spec.width),
    )
    plain = decoder.build(spec, case)
    tokens = text(30)
    chunk = prompt(0, tokens)
    chunk.hidden = (1, 3)
    expected = Lanes(plain).run(chunk)

    lanes = Lanes(decoder.build(spec, case, lanes=split))
    chunk.feature = "features"
    given = lanes.run(prompt(1, text(7)), chunk)
    assert torch.equal(given.logits[7:], expected.logits)
    slots = lanes.tables[0]["features"].slots(0, 30)
    assert torch.equal(lanes.model.storage["features"].keys[slots], expected.hidden[0][3])


@pytest.mark.parametrize("case", decoder.EXACT)
def test_input_embeddings_stand_for_tokens(case) -> None:
    spec = ODD["even"]
    lanes = Lanes(decoder.build(spec, case))
    tokens = text(10)
    rows = decoder.draw(spec)["embed"][tokens[4:6]]
    given = Chunk(0, "test", [*tokens[:4], -1, -2, *tokens[6:]], list(range(10)), embeddings=rows)
    logits = lanes.run(given, prompt(1, tokens)).logits
    assert torch.equal(logits[:10], logits[10:])


def test_what_does_not_fit_is_named() -> None:
    spec = specify()
    with pytest.raises(ValueError, match=r"dtype is torch\.float16"):
        Transformer(spec, decoder.draw(spec), name="test", dtype=torch.float16, fingerprint="test")
    with pytest.raises(ValueError, match=r"lanes hold the layers \[0\]"):
        decoder.build(spec, lanes=(LaneSpec("main", layers=(0,), kv_heads=2, head_size=16),))
    lanes = Lanes(decoder.build(spec))
    chunk = prompt(0, text(3))
    chunk.layers = (1, 5)
    with pytest.raises(ValueError, match=r"layers is \(1, 5\)"):
        lanes.run(chunk)
