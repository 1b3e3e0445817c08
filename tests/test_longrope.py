"""LongRoPE: behind the original context a text is another function of all its tokens, whoever computes it and how."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch
from drafters import GarbageDrafter
from torch import Tensor

from stretto import LLM, SamplingParams
from stretto.decoding.speculative.method import Speculative
from stretto.models.configuration import Configuration
from stretto.models.rope import read_rope

BORDER, NEW = 32, 24
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.2, 1.5, 1.4],
    "long_factor": [2.0, 3.0, 2.5, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": BORDER,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)


class Told:
    """A checkpoint, and what transformers makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = checkpoints.make(
            folder, "phi3", rope_parameters=ROPE, original_max_position_embeddings=BORDER, sliding_window=None
        )

    def logits(self, ids: list[int]) -> Tensor:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0]

    def text(self, ids: list[int]) -> list[int]:
        with torch.inference_mode():
            found = self.model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)
        return found[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("longrope"))


def load(folder: Path, rows: int = 7) -> LLM:
    return LLM(str(folder), dtype="fp32", max_rows=rows, cache_tokens=512)


def off(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("length", [BORDER - 1, BORDER, BORDER + 1, 60])
def test_logits_equal_on_both_sides_of_the_border(told: Told, length: int):
    ids = checkpoints.token_ids(length)
    assert off(load(told.folder).logits(ids), told.logits(ids)) < 1e-4


def test_text_that_crosses_the_border_equals_however_it_is_drafted(told: Told):
    """The controls cross with the rows of the shorter text in the cache, or with drafts over the border."""
    llm = load(told.folder, rows=16)
    prompts = [checkpoints.token_ids(length, seed) for seed, length in enumerate((20, 31, 32, 33, 12))]
    texts = [told.text(prompt) for prompt in prompts]
    truth = {tuple(prompt): text for prompt, text in zip(prompts, texts, strict=True)}
    llm.engine.add_method(Speculative("drafted", [GarbageDrafter(331, truth)], rows=6))
    for method in ("plain", "drafted"):
        assert [done.token_ids for done in llm.generate(prompts, GREEDY, method=method)] == texts
        # Again, with everything in the prefix cache that may be there.
        assert [done.token_ids for done in llm.generate(prompts, GREEDY, method=method)] == texts


def crossed_wrongly(told: Told, monkeypatch: pytest.MonkeyPatch, target: str, name: str, wrong: object) -> bool:
    """Whether the texts differ once a part of the rule is replaced."""
    monkeypatch.setattr(f"{target}.{name}", wrong)
    llm = load(told.folder, rows=16)
    prompts = [checkpoints.token_ids(20, seed) for seed in range(6)]
    texts = [told.text(prompt) for prompt in prompts]
    truth = {tuple(prompt): text for prompt, text in zip(prompts, texts, strict=True)}
    llm.engine.add_method(Speculative("drafted", [GarbageDrafter(331, truth)], rows=6))
    return [done.token_ids for done in llm.generate(prompts, GREEDY, method="drafted")] != texts


def test_a_cache_that_stays_is_caught(told: Told, monkeypatch: pytest.MonkeyPatch):
    assert crossed_wrongly(
        told, monkeypatch, "stretto.engine.scheduler.Scheduler", "preempt", lambda self, request: None
    )


def test_drafts_over_the_border_are_caught(told: Told, monkeypatch: pytest.MonkeyPatch):
    def bid(self: object, request: object) -> int:
        return self.method(request).extra(request)  # type: ignore[attr-defined]  # the scheduler's, without its bound

    assert crossed_wrongly(told, monkeypatch, "stretto.engine.scheduler.Scheduler", "_bid", bid)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters.short_factor": [1.0] * 6},
        {"rope_parameters.long_factor": [1.0] * 6},
        {"rope_parameters.attention_factor": 2.0},
        {"rope_parameters.original_max_position_embeddings": 40, "original_max_position_embeddings": 40},
        {"rope_parameters.rope_theta": 2000.0},
        {"rope_parameters.rope_type": "default"},
    ],
)
def test_every_altered_key_is_noticed(told: Told, change: dict[str, object], tmp_path: Path):
    altered = checkpoints.alter(told.folder, tmp_path / "altered", change)
    differences = []
    for length in (BORDER, BORDER + 4):
        ids = checkpoints.token_ids(length)
        try:
            differences.append(off(load(altered).logits(ids), told.logits(ids)))
        except ValueError:
            return
    assert max(differences) > 1e-4


def test_older_spellings_and_what_is_wrong(told: Told):

    def rope(**changes: object):
        scaling = {key: value for key, value in (ROPE | changes).items() if key not in ("rope_theta",)}
        scaling["type"] = scaling.pop("rope_type")
        top = scaling.pop("original_max_position_embeddings")
        values = {"rope_scaling": scaling, "rope_theta": 1000.0, "original_max_position_embeddings": top}
        return read_rope(Configuration(values), 12, 128, 10000.0, None)

    spec = rope()
    assert (spec.border, len(spec.inverse), len(spec.beyond)) == (BORDER, 6, 6)
    assert rope(rope_type="su") == spec
    with pytest.raises(ValueError, match=r"short_factor is \[1.0\], expected a list of 6 positive numbers"):
        rope(short_factor=[1.0])
