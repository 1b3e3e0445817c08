"""The rows of drafting systems, from the checkpoint up: their texts, their acceptance, what must be aboard for them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from helpers import request, run
from safetensors.torch import load_file, save_file
from small_tokenizers import byte_level
from tables import Steps, Watched
from toy import NullModel

from stretto import LLM, SamplingParams
from stretto.core.batch import Batch, Result
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.drafters.translated import TranslatedDrafter, common, ids_behind, text_behind
from stretto.decoding.speculative.method import Speculative
from stretto.engine import llm as llm_module
from stretto.engine.llm import same_vocabulary
from stretto.engine.step import Engine
from stretto.recipes.drafting import DRAFTING
from stretto.recipes.recipe import Aboard
from stretto.recipes.table import build_method
from stretto.tokens import Tokenizer
from stretto.weights.resolve import resolve

CLEAR = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"
"""A text that goes on clearly: even the target's outer layers know how."""
SAMPLING = SamplingParams(temperature=0.3, top_p=0.5, seed=1, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def twins() -> LLM:
    """stretto-tiny with itself as its draft."""
    return LLM("stretto-tiny", draft="stretto-tiny", cache_tokens=1024, threads=1)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return stretto-tiny with its tokens renumbered: the same mind, another vocabulary."""
    home, folder = Path(resolve("stretto-tiny")), tmp_path_factory.mktemp("renamed")
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(home / name, folder / name)
    described = json.loads((home / "tokenizer.json").read_text(encoding="utf-8"))
    special = len(described["added_tokens"])
    size = len(described["model"]["vocab"])
    new = [*range(special), *random.Random(1).sample(range(special, size), size - special)]
    described["model"]["vocab"] = {token: new[number] for token, number in described["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    weights = load_file(home / "model.safetensors")
    rows = torch.empty_like(weights["model.embed_tokens.weight"])
    rows[torch.tensor(new)] = weights["model.embed_tokens.weight"][:size]
    save_file(weights | {"model.embed_tokens.weight": rows}, folder / "model.safetensors")
    return folder


def plain(llm: LLM, prompt: str = CLEAR, params: SamplingParams = SAMPLING) -> str:
    [done] = llm.generate(prompt, params, method="plain")
    return done.text


@pytest.mark.parametrize("name", sorted({row.name for row in DRAFTING} - {"slem", "early-exit"}))
def test_a_clear_text_has_half_of_its_drafts_accepted(twins: LLM, name: str):
    [done] = twins.generate(CLEAR, SAMPLING, method=name)
    assert done.error is None and done.text == plain(twins) and done.fidelity == "exact"
    assert done.stats["drafted"] >= 30 and 2 * done.stats["accepted"] >= done.stats["drafted"]
    assert list(done.stats["drafts"]) == [name], "every row's drafter has its name in the statistics"


def test_early_exit_is_accepted_where_the_later_layers_change_nothing():
    target = Steps([1, 2, 0, 0])
    method = build_method("early-exit", Aboard({"target": target}))
    engine = Engine({"target": target}, [Plain(), method], cache_tokens=128, max_rows=32)
    asked = request(engine, [5], "early-exit", max_tokens=30)
    assert run(engine, asked) == [[(5 + 3 * step) % 64 for step in range(1, 31)]]
    assert asked.stats.accepted == asked.stats.drafted == 25
    with pytest.raises(ValueError, match=r"'early-exit' leaves layers out and needs 2 at least; this model has 1"):
        build_method("early-exit", Aboard({"target": NullModel()}))


# ---- another vocabulary ----


def test_a_draft_of_another_vocabulary(renamed: Path):
    llm = LLM("stretto-tiny", draft=str(renamed), cache_tokens=1024, threads=1)
    with pytest.raises(ValueError, match="has another vocabulary than the target; use method='slem'"):
        llm.method("draft-model")
    story = "Once upon a time there was a king who had three sons"
    for prompt, temperature in ((CLEAR, 0.0), (story, 0.0), (story, 0.7)):
        params = SamplingParams(temperature=temperature, top_p=0.9, seed=2, max_tokens=60, ignore_eos=True)
        [done] = llm.generate(prompt, params, method="slem")
        assert done.error is None and done.text == plain(llm, prompt, params)
        if not temperature:
            assert 2 * done.stats["accepted"] >= done.stats["drafted"] > 30
        assert done.stats["accepted"] > 10 and done.stats["catch_up"] > 0


def test_its_rows_are_not_taken_for_the_targets(renamed: Path, twins: LLM):
    """The control: read in the target's numbers, the renumbered draft's words are noise."""
    llm = LLM("stretto-tiny", draft=str(renamed), cache_tokens=1024, threads=1)
    llm._foreign = frozenset()
    [done] = llm.generate(CLEAR, SAMPLING, method="draft-model")
    assert done.text == plain(twins) and 5 * done.stats["accepted"] < done.stats["drafted"]


class Told(NullModel):
    """Says the token that stands behind a position in a text told beforehand."""

    def __init__(self, text: list[int], vocab: int) -> None:
        super().__init__(vocab, 512)
        self.text = text

    def forward(self, batch: Batch) -> Result:
        index = [position for part in batch.parts for position in part.chunk.index]
        rows = [self.text[min(index[row] + 1, len(self.text) - 1)] for row in batch.wanted]
        logits = torch.zeros(len(rows), self.vocab_size)
        logits[range(len(rows)), rows] = 50.0
        return Result(logits)


def characters() -> Tokenizer:
    """Return a tokenizer whose tokens are single bytes."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([], trainer)
    return Tokenizer(core)


def test_bytes_that_draft_for_words_by_hand():
    """The draft writes seven bytes; spelled by the target they are a whole word and what the cut leaves of the next."""
    words, letters = byte_level(), characters()
    text = "The fox said hello, hello, hello! and the wood said nothing at all."
    spelled, told = words.encode_plain(text), letters.encode_plain(text)
    target, draft = Told(spelled, words.vocab_size), Told(told, letters.vocab_size)
    watched = Watched(TranslatedDrafter(words, letters, length=7))
    method = Speculative("slem", [watched], rows=8, patience=1e9)
    engine = Engine({"target": target, "draft": draft}, [Plain(), method], cache_tokens=256, max_rows=32)
    known = words.encode_plain("The fox said")
    assert spelled[: len(known)] == known
    asked = request(engine, known, "slem", max_tokens=len(spelled) - len(known))
    run(engine, asked)
    assert words.decode(asked.tokens) == text and method.drafters == [watched]
    # The pass over the prompt says the first token behind it; seven bytes go on from there.
    first = words.decode(spelled[: len(known) + 1])
    written = text[len(first) : len(first) + 7]
    assert watched.trees[0][-1].split(".") == [str(token) for token in words.encode_plain(written)]
    assert asked.stats.accepted >= len(spelled) // 3


@pytest.mark.parametrize("text", ["The fox said hello", "naïve café, 日本語", "  two  blanks"])
def test_text_and_tokens_behind_others(text: str):
    words = byte_level()
    ids = words.encode_plain(text)
    for cut in range(1, len(ids)):
        head = words.decode(ids[:cut])
        if head.endswith("\ufffd"):
            continue
        assert head + text_behind(words, ids, cut) == text
        assert words.decode([*ids[:cut], *ids_behind(words, ids[:cut], text_behind(words, ids, cut))]) == text
    assert common([1, 2, 3, 4, 5], [1, 2, 3, 9]) == 3 and common([], [1]) == 0 and common([2], [1]) == 0


# ---- what is aboard ----


def test_a_draft_takes_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(llm_module, "default_cache_tokens", lambda size, context, free: asked.append(size) or 512)
    alone, twins = LLM("stretto-tiny", threads=1), LLM("stretto-tiny", draft="stretto-tiny", threads=1)
    assert asked == [asked[0], 2 * asked[0]]
    assert alone.engine.caches.keys() == {"target"}
    assert {name: cache.capacity for name, cache in twins.engine.caches.items()} == {"target": 512, "draft": 512}


def test_what_a_method_brings_comes_aboard_once(twins: LLM):
    twins.method("quantspec")
    brought = twins.engine.models["int4"]
    assert brought.fingerprint != twins.fingerprint
    assert twins.engine.caches["int4"].capacity == twins.engine.caches["target"].capacity
    twins.engine.methods.pop("quantspec")
    twins.method("quantspec")
    assert twins.engine.models["int4"] is brought


def test_what_is_missing_is_said(twins: LLM):
    with pytest.raises(ValueError, match=r"'draft-model' needs draft, .* draft=PATH \(--draft PATH\)"):
        LLM("stretto-tiny", method="draft-model", cache_tokens=64, threads=1)
    with pytest.raises(ValueError, match="has the target's own vocabulary; use method='draft-model'"):
        twins.method("slem")
    sizes = {"target": SimpleNamespace(vocab_size=10), "draft": SimpleNamespace(vocab_size=12)}
    with pytest.raises(ValueError, match=r"draft='d' has 12 tokens, the target 10, and the draft has no tokenizer"):
        same_vocabulary(sizes, {"target": byte_level(), "draft": None}, "d")
    sizes["draft"].vocab_size = 10
    assert same_vocabulary(sizes, {"target": byte_level(), "draft": None}, "d")
    sizes["draft"].vocab_size = 16  # padding
    assert same_vocabulary(sizes, {"target": byte_level(), "draft": byte_level()}, "d")
    assert not same_vocabulary(sizes, {"target": byte_level(), "draft": characters()}, "d")
