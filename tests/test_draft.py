"""The recipe of drafts: its divergences; that it learns, resumes and measures what it says; the draft that ships."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.distributions import Categorical, kl_divergence

from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM
from stretto.training.agreement import agreement, agreement_on_files
from stretto.training.batches import Batches, Documents, Mixture, Schedule
from stretto.training.divergence import divergence
from stretto.training.draft import DraftShape, Text, train_draft
from stretto.weights.resolve import resolve

SHAPE = DraftShape(width=64, layers=1, mlp=64)
SCHEDULE = Schedule(steps=14, rows=256, window=64, long_share=0.0, warmup=3)
TEXT = Text(written=0.3, pieces=1, own=0.3, own_pieces=1, piece=12, refresh=6)


@pytest.fixture(scope="module")
def tiny() -> LLM:
    return LLM("stretto-tiny", threads=2, cache_tokens=16384)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder, source = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = ["the", "king", "said", "to", "his", "wife", "and", "went", "home", "with", "gold"]
    for split, count in (("train", 60), ("valid", 3), ("test", 3)):
        lines = [{"text": " ".join(source.choices(words, k=40))} for _ in range(count)]
        (folder / f"toy.{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def oracle(name: str, beta: float, p: Categorical, q: Categorical) -> torch.Tensor:
    """Return the divergence by PyTorch's own distributions."""
    m = Categorical(probs=beta * p.probs + (1 - beta) * q.probs)
    return {
        "fkl": kl_divergence(p, q),
        "rkl": kl_divergence(q, p),
        "jsd": beta * kl_divergence(p, m) + (1 - beta) * kl_divergence(q, m),
        "tvd": 1 - torch.minimum(p.probs, q.probs).sum(-1),
    }[name]


@pytest.mark.parametrize("name, beta", [("fkl", 0.5), ("rkl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("tvd", 0.5)])
def test_divergences_are_those_of_pytorch_and_vanish_only_for_equals(name: str, beta: float):
    generator = torch.Generator().manual_seed(0)
    target, draft = torch.randn(2, 4, 50, generator=generator).mul(3)
    found = divergence(name, beta)(target, draft)
    expected = oracle(name, beta, Categorical(logits=target), Categorical(logits=draft))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.min() > 0.1
    assert divergence(name, beta)(target, target + 5).abs().max() < 1e-5
    others = {each: divergence(each, 0.3)(target, draft) for each in ("fkl", "rkl", "jsd", "tvd")}
    same = [each for each, value in others.items() if torch.allclose(value, found, rtol=0.01)]
    assert same == ([] if name == "jsd" else [name]), "the comparison must tell the divergences, and jsd's beta, apart"


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "tvd"])
def test_every_divergence_leads_to_the_target(name: str):
    target = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    draft = torch.zeros(3, 20, requires_grad=True)
    optimizer = torch.optim.Adam([draft], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        divergence(name)(target, draft).sum().backward()
        optimizer.step()
    assert (target.softmax(-1) - draft.softmax(-1)).abs().max() < 0.02


def test_wrong_objectives_are_refused():
    with pytest.raises(ValueError, match=r"'kl'.*fkl, rkl, jsd, tvd"):
        divergence("kl")
    with pytest.raises(ValueError, match=r"beta=1.*between 0 and 1"):
        divergence("jsd", 1)


class Interrupted(Exception):
    pass


def distil(corpus: Path, out: Path, stop: int | None = None) -> list[str]:
    """Return the lines of the steps; with ``stop``, leave behind that step as a crash would."""
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line.rsplit(" minutes", 1)[0])
        if line.startswith(f"step {stop} "):
            raise Interrupted

    train_draft("stretto-tiny", corpus, out, SCHEDULE, SHAPE, TEXT, save_every=5, report_every=1, report=report)
    return [line for line in lines if line.startswith("step")]


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, distil(corpus, folder)


def test_an_interrupted_run_resumes_with_the_same_losses(corpus, straight, tmp_path):
    folder, lines = straight
    # Behind step 8 the draft has written its own text, from the weights of step 6, and the checkpoint is of step 5.
    with pytest.raises(Interrupted):
        distil(corpus, tmp_path, stop=8)
    assert (tmp_path / "own-001").exists() and not (tmp_path / "model.safetensors").exists()
    assert distil(corpus, tmp_path) == lines[5:]
    first, second = (load_file(each / "model.safetensors") for each in (folder, tmp_path))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    losses = [float(line.split()[-1]) for line in lines]
    assert losses[-1] < losses[0] - 1


def test_the_draft_writes_text_of_its_own(straight):
    folder, _ = straight
    pieces = [folder / name / "piece-0000.npz" for name in ("own-001", "own-002", "written")]
    texts = [{tuple(each[i]) for i in range(len(each))} for each in map(Documents.load, pieces)]
    assert all(len(each) == TEXT.piece for each in texts), "all of them different"
    assert not texts[0] & texts[1] and not texts[0] & texts[2]


def test_shares_are_kept_and_every_window_is_of_its_source():
    schedule = Schedule(steps=100, rows=40, window=10, long_share=0.0)
    sources = [Batches(Documents.of([[kind] * 200] * 3), schedule, 10, 0) for kind in range(3)]
    mixture = Mixture(sources[0], [(0.25, lambda step: sources[1]), (0.5, lambda step: sources[2])])
    windows = torch.cat([mixture(step) for step in range(100)])
    assert (windows == windows[:, :1]).all()
    shares = F.one_hot(windows[:, 0], 3).double().mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]).double(), rtol=0, atol=0.02)


def test_agreement_is_one_with_itself_and_counts_what_the_engine_chooses(tiny, corpus, straight):
    draft = LLM(str(straight[0]), threads=2, cache_tokens=1024)
    itself = agreement_on_files(tiny, tiny, corpus)
    assert itself["all"].tokens > 100 and itself["all"].greedy == itself["all"].coupled == itself["all"].tokens
    other = agreement_on_files(tiny, draft, corpus)["all"]
    assert other.tokens == itself["all"].tokens
    assert other.greedy < other.tokens / 2 and other.coupled < other.tokens / 2, "14 steps make no good draft"
    # By the engine: one token chosen greedily behind each prefix of a document.
    text = "Once upon a time there was a king"
    ids = tiny.tokenizer.encode(text)
    prefixes = [ids[: stop + 1] for stop in range(len(ids))]
    chosen = [
        [c.token_ids for c in llm.generate(prefixes, SamplingParams(temperature=0, max_tokens=1))]
        for llm in (tiny, draft)
    ]
    assert agreement(tiny, draft, [text]).greedy == sum(a == b for a, b in zip(*chosen, strict=True))


def test_a_draft_with_other_tokens_is_refused(tiny, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((resolve("stretto-tiny") / name).read_bytes())
    text = (resolve("stretto-tiny") / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    swapped = [token for token, number in vocabulary.items() if number in (4000, 4001)]
    vocabulary[swapped[0]], vocabulary[swapped[1]] = vocabulary[swapped[1]], vocabulary[swapped[0]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    other = LLM(str(tmp_path), cache_tokens=512)
    with pytest.raises(ValueError, match="token 4000 is"):
        agreement(tiny, other, ["Once"])


def test_the_shipped_draft_agrees_with_its_target_on_what_the_target_writes(tiny, corpus, straight):
    draft = LLM("stretto-tiny-draft", threads=2, cache_tokens=4096)
    beginnings = [
        "Once upon a time there was a poor woodcutter who",
        "The princess took the golden ring and said to the fox,",
        "Question: Tom has 12 apples and buys 7 more. How many apples does he have?\nAnswer:",
        "Natalia sold 48 clips in April and half as many in May.",
        "def read_lines(path):\n    ",
        "class Queue:\n    def __init__(self, maxsize=0):\n",
        "User: Tell me about the sea.\nAssistant:",
        "User: You are a pirate. Where do you sail?\nAssistant:",
    ]
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=120, seed=7)
    texts = [text + done.text for text, done in zip(beginnings, tiny.generate(beginnings, params), strict=True)]
    found = agreement(tiny, draft, texts)
    assert found.tokens > 500
    assert found.greedy > 0.5 * found.tokens and found.coupled > 0.5 * found.tokens
    untrained = agreement(tiny, LLM(str(straight[0]), threads=2, cache_tokens=4096), texts)
    assert untrained.greedy < 0.3 * found.tokens, "a draft that has hardly been trained must not pass"


def test_the_shipped_draft_is_small_has_its_targets_tokenizer_and_a_card():
    draft, target = resolve("stretto-tiny-draft"), resolve("stretto-tiny")
    weights = load_file(draft / "model.safetensors")
    assert 0.8e6 < sum(weight.numel() for weight in weights.values()) < 1.2e6
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (draft / name).read_bytes() == (target / name).read_bytes()
    card = (draft / "README.md").read_text(encoding="utf-8")
    assert all(
        word in card for word in ("Gutenberg", "GSM8K", "CPython", "GPTeacher", "MIT", "PSF", "1.02 M", "2310.08461")
    )
