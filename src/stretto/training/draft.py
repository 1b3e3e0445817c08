"""The recipe of draft models: a small Llama distilled from a target with DistillSpec's objectives (arXiv 2310.08461).

It learns from the target's logits over corpus text, over text that the target wrote, and, if wanted, over text that the
draft itself wrote so far. ``stretto-tiny-draft`` is its result with the defaults.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from stretto.engine.llm import LLM
from stretto.models.loader import open_source
from stretto.tokens.tokenizer import Tokenizer
from stretto.training.batches import Batches, Documents, Mixture, Schedule
from stretto.training.corpus import begun, load_training_documents
from stretto.training.divergence import Divergence, divergence
from stretto.training.llama import Llama, LlamaShape, save_model
from stretto.training.loop import train
from stretto.training.written import LONGEST_ANSWER, LONGEST_PROMPT, beginnings, write_documents
from stretto.weights.files import whole
from stretto.weights.resolve import COMPANIONS, resolve

SCHEDULE = Schedule(
    steps=11200, rows=1024, window=512, long_share=0.2, cooldown=1.0, matrix_rate=0.02, other_rate=0.0065
)
"""Windows of 256 are not enough: a draft agrees much less at positions that it was not trained on."""


LONGEST_WINDOW = 2048
"""Of a target with a longer context, no more of it is trained on at once."""


@dataclass(frozen=True)
class DraftShape:
    """Sizes of the draft; vocabulary, context and tokenizer are its target's. Heads have 64 inputs."""

    width: int = 128
    layers: int = 2
    mlp: int = 512
    kv_heads: int = 1

    def llama(self, target: LLM) -> LlamaShape:
        """Return the shape of a draft for ``target``. Raises ``ValueError`` for a width that heads do not divide."""
        if self.width % 64:
            raise ValueError(f"width={self.width}: expected a multiple of 64, the width of a head")
        return LlamaShape(
            vocab_size=target.model.spec.vocab_size,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=target.model.context,
        )


@dataclass(frozen=True)
class Text:
    """What the draft is distilled on: shares of the windows, and how much text they are drawn from.

    The rest is corpus text. ``written``: by the target; ``pieces`` of ``piece`` documents are written before training.
    ``own``: by the draft, ``own_pieces`` anew every ``refresh`` steps; corpus text until the first are written.
    """

    written: float = 0.4
    pieces: int = 20
    piece: int = 192
    own: float = 0.0
    own_pieces: int = 2
    refresh: int = 250


def encode_corpora(tokenizer: Tokenizer, data: Path, path: Path) -> Documents:
    """Return the training documents in the target's tokens, each BOS ... EOS; ``path`` keeps them."""
    if not path.exists():
        texts = [text for each in load_training_documents(data).values() for text in each]
        end = tokenizer.encode_plain(tokenizer.special_tokens.get("eos_token", ""))
        Documents.of([*begun(tokenizer, text), *end] for text in texts).save(path)
    return Documents.load(path)


def distillation_loss(draft: Llama, target: LLM, measure: Divergence, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Return the loss of windows [N, W + 1]: the draft's mean divergence from the target, the last token left out.

    The target's logits are the engine's own, so any model that the engine runs can be the target.
    """

    def divergence_of(ids: Tensor, wanted: Tensor) -> Tensor:
        return measure(wanted, draft.logits(ids)).mean()

    loss_of = torch.compile(divergence_of) if compiled else divergence_of

    def loss(windows: Tensor) -> Tensor:
        ids = windows[:, :-1]
        return loss_of(ids, torch.stack([target.logits(row) for row in ids.tolist()]))

    return loss


def principal_part(embedding: Tensor, width: int, deviation: float = 0.03) -> Tensor:
    """Return the first ``width`` principal components [V, width] of ``embedding`` [V, W], scaled to ``deviation``.

    They keep which tokens are alike, which a draft otherwise needs hundreds of steps to learn.
    """
    left, size, _ = torch.linalg.svd(embedding.float(), full_matrices=False)
    part = (left * size)[:, :width]
    return part * (deviation / part.std())


def new_draft(target: str, llm: LLM, shape: DraftShape, seed: int) -> Llama:
    """Return an untrained draft; its tied embedding begins as the principal part of the target's."""
    torch.manual_seed(seed)
    model = Llama(shape.llama(llm))
    embedding = open_source(target, "auto").parameters["embed"]
    assert isinstance(embedding, Tensor), "lookups are never quantized"
    with torch.no_grad():
        part = principal_part(embedding, shape.width)
        model.embed_tokens.weight[:, : part.shape[1]] = part
    return model


def train_draft(
    target: str,
    data: Path,
    out: Path,
    schedule: Schedule = SCHEDULE,
    shape: DraftShape = DraftShape(),
    text: Text = Text(),
    *,
    objective: str = "fkl",
    beta: float = 0.5,
    seed: int = 0,
    compiled: bool = False,
    threads: int | None = None,
    save_every: int = 50,
    report_every: int = 20,
    report: Callable[[str], None] = print,
) -> None:
    """Distil a draft for ``target`` and write it, with the target's tokenizer, into ``out``; an unfinished run resumes.

    ``objective`` and ``beta`` choose the divergence; ``compiled`` uses ``torch.compile`` (needs a C++ compiler). Raises
    ``ValueError`` for arguments, and for a target without a tokenizer in files of its own.
    """
    measure = divergence(objective, beta)
    llm = LLM(target, threads=threads)
    if llm.tokenizer is None:
        raise ValueError(f"{target} has no tokenizer: a draft learns from text")
    out.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(resolve(target), out)
    corpus = encode_corpora(llm.tokenizer, data, out / "corpus.npz")
    model = new_draft(target, llm, shape, seed)
    report(f"{model.size() / 1e6:.2f} M weights, {len(corpus.tokens) / 1e6:.2f} M tokens, {schedule.steps} steps")
    train(
        model,
        distillation_loss(model, llm, measure, compiled=compiled),
        mixture(model, llm, corpus, schedule, text, out, seed),
        schedule,
        out / "checkpoint.pt",
        precision=torch.float32,
        micro_tokens=512,
        save_every=save_every,
        report_every=report_every,
        report=report,
    )
    save_draft(model, llm, out)


def mixture(
    model: Llama, target: LLM, corpus: Documents, schedule: Schedule, text: Text, out: Path, seed: int
) -> Mixture:
    """Return the batches of all sources; the target's text is written now, that of the draft ``model`` in rounds."""
    context = min(target.model.context, LONGEST_WINDOW)
    first, others = Batches(corpus, schedule, context, seed), []

    def texts(author: Callable[[], LLM], name: str, pieces: int, seed: int) -> Batches:
        longest = min(LONGEST_PROMPT, context // 2)
        documents = write_documents(
            author, lambda number: beginnings(corpus, text.piece, longest, [seed, number]), out / name, pieces, seed
        )
        return Batches(documents, schedule, context, seed + 1)

    def draft(name: str) -> LLM:
        (out / name).mkdir(exist_ok=True)
        save_draft(model, target, out / name)
        return LLM(str(out / name), cache_tokens=text.piece * (LONGEST_PROMPT + LONGEST_ANSWER))

    @lru_cache(maxsize=1)
    def own(number: int) -> Batches:
        name = f"own-{number:03}"
        return texts(lambda: draft(name), name, text.own_pieces, seed + number) if number else first

    if text.written:
        written = texts(lambda: target, "written", text.pieces, seed)
        others.append((text.written, lambda step: written))
    if text.own:
        others.append((text.own, lambda step: own(step // text.refresh)))
    return Mixture(first, others)


def save_draft(model: Llama, target: LLM, out: Path) -> None:
    """Write the draft as it is now, with the target's special tokens."""
    end = sorted(target.model.spec.eos_ids)
    assert target.tokenizer is not None
    save_model(model, out, target.tokenizer.bos, end[0] if len(end) == 1 else end)


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the files of tokenizer, chat template and generation settings. Raises ``ValueError`` if there are none."""
    found = [folder / name for name in COMPANIONS if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has no tokenizer files to give to a draft: use a checkpoint folder with them")
    for path in found:
        with whole(out / path.name) as partial:
            shutil.copyfile(path, partial)
