"""Drafts from text seen before: each system's tree on an example worked out by hand, its stores, a text made for it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from helpers import assert_whole, request, run
from scripted import Chain, Scripted, Told

from stretto.core.masks import register_mask
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.drafters.automaton import SuffixAutomaton
from stretto.decoding.speculative.drafters.base import chance
from stretto.decoding.speculative.drafters.copying import AggressiveDecoding
from stretto.decoding.speculative.drafters.forced import JumpForward
from stretto.decoding.speculative.drafters.ngram import Anpd, PromptLookup
from stretto.decoding.speculative.drafters.recycling import SHAPE, Adjacency, TokenRecycling
from stretto.decoding.speculative.drafters.suffix import PastOutputs, SuffixDecoding
from stretto.decoding.speculative.drafters.trie import AlipayLookahead, BranchTrie
from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.stores import TenantStores
from stretto.engine.step import Engine
from stretto.recipes.jacobi import JACOBI
from stretto.recipes.recipe import Aboard, Recipe
from stretto.recipes.retrieval import RETRIEVAL

MODEL_FREE = {recipe.name: recipe for recipe in (*RETRIEVAL, *JACOBI)}


def test_prompt_lookup():
    # The longest n-gram decides: (1, 2, 3) stood there once, behind it 4; (2, 3) stood earlier, behind it 9.
    assert Scripted(PromptLookup(), [2, 3, 9, 1, 2, 3, 4, 5, 1, 2, 3]).paths(4) == ["4", "4.5", "4.5.1", "4.5.1.2"]
    # The first place wins, and the copy ends where the text does.
    long = Scripted(PromptLookup(), [1, 2, 7, 1, 2, 8, 1, 2]).paths(16)
    assert long[-1] == "7.1.2.8.1.2"
    assert Scripted(PromptLookup(), [1, 2, 3, 4]).paths() == []
    # The index grows with the text.
    assert Scripted(PromptLookup(), [1, 2, 3]).say(4, 1).paths(2) == ["2", "2.3"]


def test_anpd():
    # Behind (1, 2) 3 stood once, 4 twice. Behind (1, 2, 4) 1 and 5 stood once each, 5 later. Then 4-grams lead to 1 and
    # 2; behind (4, 5, 1, 2) nothing is known, and the bigram level's (1, 2) is the longest that is.
    text = [1, 2, 3, 1, 2, 4, 1, 2, 4, 5, 1, 2]
    assert Scripted(Anpd(), text).paths()[-1] == "4.5.1.2.4.5"
    draft = Scripted(Anpd(), text).draft()
    assert draft.tree.survival[:3] == [chance(2, 3, 2), chance(1, 2, 3), chance(1, 1, 4)]
    assert Scripted(Anpd(), [1, 2, 3]).paths() == []


def test_aggressive_decoding():
    copy = Scripted(AggressiveDecoding(), [1, 2, 3, 4, 2, 5, 6])
    assert copy.paths(3) == ["1", "1.2", "1.2.3"]
    assert copy.say(1).paths(16)[-1] == "2.3.4.2.5.6"
    assert copy.say(9).paths() == []  # departed
    assert copy.say(2).paths() == []  # 2 stands in the input twice, and (9, 2) never
    assert copy.say(5).paths() == ["6"]
    assert copy.say(6).paths() == []  # the input is used up
    again = Scripted(AggressiveDecoding(), [1, 2, 3, 4, 2, 5, 6]).say(9, 4, 2)  # (4, 2) is unique
    assert again.paths() == ["5", "5.6"]
    assert again.draft().tree.survival == [chance(1, 1, 2), chance(1, 1, 3)]


def test_suffix_decoding():
    # (1, 2) stands there four times, the text's end included: 4 followed twice, 3 once; behind (1, 2, 4) 1 and 5 did.
    text = [1, 2, 3, 1, 2, 4, 1, 2, 4, 5, 1, 2]
    assert Scripted(SuffixDecoding(), text).paths() == ["4", "3"]  # as many nodes as the match is long
    wide = Scripted(SuffixDecoding(factor=2.0), text)
    assert wide.paths() == ["4", "3", "4.1", "4.5"]
    assert wide.draft().tree.survival == [chance(2, 3, 2), chance(1, 3, 2), chance(1, 2, 3), chance(1, 2, 3)]
    assert Scripted(SuffixDecoding(factor=2.0, least=0.3), text).paths() == ["4"]
    # A certain continuation of a long match promises more than what shorter ones offer.
    assert Scripted(SuffixDecoding(), [7, 1, 2, 3, 9, 9, 3, 8, 3, 8, 1, 2, 3]).paths() == ["9", "9.9", "9.9.3"]


def test_suffix_decoding_reads_past_outputs():
    drafter = SuffixDecoding()
    Scripted(drafter, [1, 2]).say(20, 21, 22, 23, 24).end()
    assert drafter.stores() == {"suffix-decoding": {"tokens": 5, "limit": 1 << 15, "tenants": 1}}
    assert Scripted(drafter, [5, 6]).say(20, 21).paths() == ["22", "22.23"]
    # Its own text promises more: two times of three (its own end included) four tokens, where 22 and 23 are certain.
    own = [5, 6, 20, 21, 7, 8, 9, 10]
    assert Scripted(drafter, [*own, 60, *own, 61, 5, 6]).say(20, 21).paths() == ["7", "7.8", "7.8.9", "7.8.9.10"]


def test_lookahead_of_alipay():
    # Behind (1, 2): 3 twice, 4 once; behind (1, 2, 3): 1, 2 twice, then 3 and 4 once each. Room for five: the three
    # that stood twice, then those that stood once, the earlier found first. Listed depth first.
    text = [1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2]
    assert Scripted(AlipayLookahead(), text).paths(5) == ["3", "3.1", "3.1.2", "3.1.2.3", "4"]
    # Half of the nodes are chosen by frequency in outputs, of which the prompt knows nothing.
    drafter = AlipayLookahead()
    for _ in range(3):
        Scripted(drafter, [40]).say(1, 2, 9, 8).end()
    assert Scripted(drafter, text).paths(4) == ["3", "3.1", "9", "9.8"]
    # Nothing stands behind (7, 2): the last token alone is looked up.
    assert Scripted(AlipayLookahead(), [1, 2, 3, 7, 2]).paths(2) == ["3", "3.7"]


def test_token_recycling():
    says = {5: [6, 7, 8], 6: [5, 9], 7: [5, 4]}
    told = Scripted(TokenRecycling(), [1, 5])
    assert told.step(lambda path: says[path[-1]], 4) == []
    assert told.step(lambda path: says[path[-1]], 4) == []  # the text is 1 5 6: nothing is known behind 6
    # Behind 5 stood 6, 7 and 8, behind 6 first of all 5: breadth first.
    assert told.step(lambda path: says.get(path[-1], [1]), 4) == ["6", "7", "8", "6.5"]
    # 6 and 5 were accepted; 7 was rejected, and yet its row was learnt from.
    assert told.request.tokens == [1, 5, 6, 5, 6, 5, 6]
    assert told.drafter.past.find(told.request).successors[7][:2] == [5, 4]
    # The whole shape, filled by hand: token t is followed by t + 1, t + 2, ..., t + 8.
    matrix = told.drafter.past.open(told.request)
    for token in range(64):
        matrix.put(token, [(token + rank) % 64 for rank in range(1, 9)])
    expected = [".".join(str(6 + sum(int(r) + 1 for r in path[: d + 1])) for d in range(len(path))) for path in SHAPE]
    assert len(SHAPE) == 80 and told.paths(80) == expected


class Counting:
    """Allows 5 alone, three times, then anything; it does not know where it leaves no choice."""

    def __init__(self, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self.ids = torch.arange(vocab_size)

    def start(self) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + 1

    def allowed(self, state: int) -> torch.Tensor:
        return (self.ids == 5) | (state > 2)


def test_jump_forward():
    mask = ("choice", {"choices": [[5, 6, 7, 9], [5, 6, 8]]})
    told = Scripted(JumpForward(), [1], mask=mask)
    assert told.paths() == ["5", "5.6"] and told.draft().tree.survival == [1.0, 1.0]
    assert told.say(5, 6).paths() == []
    assert told.say(7).paths() == ["9", "9.0"]  # and the end token
    assert Scripted(JumpForward(), [1]).paths() == []
    register_mask("counting", Counting)
    assert Scripted(JumpForward(), [1], mask=("counting", {})).paths() == ["5", "5.5", "5.5.5"]


def test_the_automaton_counts_every_substring():
    """Against counting by hand, in texts that grow side by side, and for matches followed while they grow."""
    for seed in range(40):
        source = random.Random(seed)
        automaton, texts, ends = SuffixAutomaton(), [[], [], []], [0, 0, 0]
        probe = [source.randrange(3) for _ in range(60)]
        state, length = 0, 0
        for place in range(60):
            which, token = source.randrange(3), source.randrange(3)
            texts[which].append(token)
            ends[which] = automaton.extend(ends[which], token)
            state, length = automaton.follow(state, length, probe[place])
            match = probe[place + 1 - length : place + 1]
            assert not match or any(match == text[i : i + length] for text in texts for i in range(len(text)))
        counts: Counter[tuple[int, ...]] = Counter()
        for text in texts:
            counts.update(tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1))
        for string, count in counts.items():
            state = 0
            for token in string:
                state = automaton.next[state][token]
            assert automaton.count[state] == count, string
        assert len(automaton) == 60 and len(automaton.link) <= 120


STORED = [SuffixDecoding, AlipayLookahead, TokenRecycling]
SECRET = [30, 31, 32, 33, 34, 35, 36, 37, 38, 39]


class Shared(TenantStores):
    """The control: one store for everyone."""

    def key(self, request):
        return "", ""


def secrets_drafted(drafter, tenant: str) -> set[int]:
    """Return the tokens of SECRET that are drafted for a tenant whose text has come to its first two."""
    told = Scripted(drafter, [1, 2], tenant=tenant).say(*SECRET[:2])
    tree = getattr(told.draft(8), "tree", None)
    return set() if tree is None else set(tree.tokens) & set(SECRET[2:])


@pytest.mark.parametrize("make", STORED)
def test_nothing_that_one_tenant_wrote_is_drafted_for_another(make):
    for shared in (False, True):
        drafter = make()
        if shared:
            drafter.past.__class__ = Shared
        told = Scripted(drafter, [1, 2], tenant="writer")
        for _ in range(8):
            told.step(lambda path: SECRET[len(path) - 2], 1)
        told.end()
        assert secrets_drafted(drafter, "writer")
        assert bool(secrets_drafted(drafter, "stranger")) == shared


def test_a_store_serves_one_model():
    drafter = SuffixDecoding()
    Scripted(drafter, [1, 2]).say(*SECRET).end()
    assert Scripted(drafter, [1, 2], model="other").say(*SECRET[:3]).draft() is None
    assert Scripted(drafter, [1, 2]).say(*SECRET[:3]).draft() is not None


@pytest.mark.parametrize("tenants", [1, 5])
@pytest.mark.parametrize("make", STORED)
def test_stores_stay_under_their_limit(make, tenants):
    """Ten times the limit is written; the control, with a limit beyond it, holds more than this one may."""
    source = random.Random(3)
    texts = [[source.randrange(60) for _ in range(100)] for _ in range(40)]
    sizes = []
    for limit in (40, 100_000):
        drafter = make(limit=limit)
        for number, text in enumerate(texts):
            told = Scripted(drafter, [1], tenant=str(number % tenants))
            for place in range(0, len(text), 10):
                told.step(lambda path, text=text: text[min(len(path), len(text)) - 1], 1)
                told.say(*text[len(told.request.tokens) - 1 : place + 10])
                told.draft()
            told.end()
            (size,) = drafter.stores().values()
            held = next(value for key, value in size.items() if key not in ("limit", "tenants"))
            assert 0 < held <= size["limit"] == limit and 1 <= size["tenants"] <= tenants
        sizes.append(held)
    assert sizes[1] > 40


def test_tenants_are_counted_and_the_least_recently_used_are_dropped():
    stores = TenantStores(PastOutputs, limit=1000, tenants=3)
    asked = [Scripted(PromptLookup(), [1], tenant=str(number)).request for number in range(4)]
    for each in asked[:3]:
        stores.open(each).add([1, 2])
        stores.trim()
    stores.find(asked[0])
    stores.open(asked[3]).add([1, 2])
    stores.trim()
    assert [stores.find(each) is not None for each in asked] == [True, False, True, True]


def test_stores_keep_what_was_used_last():
    trie = BranchTrie(100)
    for first in range(60):
        trie.add(first, [1, 2])
    assert trie.find([59, 1, 2]) is not None and trie.find([0]) is None and len(trie) <= 100
    for first in range(500):
        trie.add(first, [])
    assert len(trie.roots) <= 100, "first tokens with nothing behind them count, too"
    decaying = BranchTrie(10_000)
    for token in range(3000):
        decaying.add(5, [token % 700, 1])
        decaying.add(5, [999, 1])
    assert decaying.find([5, 999, 1]) is not None and len(decaying) <= 512
    matrix = Adjacency(3)
    for token in (1, 2, 3, 1, 4):
        matrix.put(token, [0])
    assert list(matrix.successors) == [3, 1, 4]
    past = PastOutputs(20)
    for number in range(30):
        past.add([number, number + 1, number + 2])
        assert len(past) <= 20
    assert 29 in past.young.next[0] and 0 not in past.old.next[0]


def test_survival_is_informed():
    """It rises with the share, with the length of the match, and with how often it was seen."""
    assert chance(1, 2, 3) < chance(2, 2, 3) < chance(2, 2, 4) < chance(4, 4, 4) < 1
    assert chance(1, 8, 0) > 0


def drafter_of(recipe: Recipe):
    (drafter,) = recipe.build(Aboard()).drafters
    return drafter


PERIOD = [3, 14, 15, 9, 26, 53, 58, 7, 23, 46]
EDITED = [*PERIOD, *range(30, 50)]
TEXTS: dict[str, tuple[list[int], int, dict]] = {
    "jacobi": ([token for token in PERIOD for _ in range(8)], 12, {}),
    "aggressive": ([*EDITED, *EDITED[:6], 2, *EDITED[7:20], 1, *EDITED[20:], 0, 0], 30, {}),
    "jump-forward": ([1, *EDITED, *EDITED], 1, {"mask": ("choice", {"choices": [[*EDITED, *EDITED]]})}),
}
"""By recipe: a text made for it, how much of it is the prompt, parameters. The others like repetition best."""


@pytest.mark.parametrize("name", MODEL_FREE)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_half_of_what_is_drafted_is_accepted_on_a_text_made_for_it(name, temperature):
    text, prompt, params = TEXTS.get(name, (PERIOD * 8, 12, {}))
    method = MODEL_FREE[name].build(Aboard())
    model = Chain(text) if name == "token-recycling" else Told(text)
    engine = Engine({"target": model}, [Plain(), method], cache_tokens=512, max_rows=64)
    asked = request(
        engine, text[:prompt], name, max_tokens=len(text) - prompt, temperature=temperature, seed=1, **params
    )
    assert run(engine, asked) == [text[prompt:]]
    assert_whole(engine)
    stats = asked.stats
    checked, accepted = (sum(depth[i] for depth in stats.drafts[name]) for i in (0, 1))
    assert accepted == stats.accepted >= (len(text) - prompt) // 2
    assert 2 * accepted >= checked
    if name not in ("token-recycling", "lookahead-alipay", "lookahead"):  # runs: every node is a position
        assert 2 * accepted >= stats.drafted


def trace(recipe: Recipe, texts: list[list[int]]) -> list[list[str]]:
    """Return all drafts of a new drafter on texts, a token a step."""
    drafter, drafts = drafter_of(recipe), []
    for text in texts:
        told = Scripted(drafter, text[:8])
        for _ in range(30):
            drafts.append(told.step(lambda path, text=text: text[min(len(path), len(text) - 1)], 23))
        told.end()
    return drafts


def test_no_two_recipes_draft_the_same():
    source = random.Random(5)
    texts = []
    for _ in range(4):
        parts = [[source.randrange(1, 64) for _ in range(source.randint(2, 6))] for _ in range(4)]
        texts.append([token for _ in range(40) for token in source.choice(parts)][:120])
    traces = {name: trace(recipe, texts) for name, recipe in MODEL_FREE.items()}
    assert sum(not any(each) for each in traces.values()) == 1  # without a mask nothing is forced
    for name, mine in traces.items():
        same = [other for other, theirs in traces.items() if other != name and theirs == mine]
        assert same == ([MODEL_FREE[name].same_as] if MODEL_FREE[name].same_as else [])
    assert traces["anpd"] == trace(MODEL_FREE["anpd"], texts)  # the control: the same recipe does


def test_methods_unite_what_their_drafters_store():
    method = Speculative("several", [PromptLookup(), SuffixDecoding(), TokenRecycling()])
    assert set(method.stores()) == {"suffix-decoding", "token-recycling"}
