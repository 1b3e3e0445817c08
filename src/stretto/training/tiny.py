"""The recipe of ``stretto-tiny``: a Llama of 5.8 M weights on four small corpora, two hours on two cores.

``train_tiny`` resumes from its last checkpoint, also after ``kill -9``: every batch is a function of the step's
number, and a checkpoint holds all state, so a resumed run prints the losses of an undisturbed one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from stretto.training.bpe import BEGIN, END, save_tokenizer, train_tokenizer
from stretto.training.corpus import document_hash, find_corpora, read_documents
from stretto.training.llama import Llama, LlamaShape
from stretto.training.muon import Muon
from stretto.weights.files import whole, write_whole


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: a step sees ``rows`` tokens; the rate is constant, then falls linearly to zero."""

    steps: int = 3200
    rows: int = 4096
    window: int = 512
    long_share: float = 0.2
    """Share of the steps, at the end, that train on windows of the whole context."""
    cooldown: float = 0.55
    matrix_rate: float = 0.02
    other_rate: float = 0.004
    warmup: int = 40

    def rate(self, step: int) -> float:
        """Return the factor on both learning rates at ``step``."""
        left = (self.steps - step) / (self.steps * self.cooldown)
        return min(1.0, (step + 1) / self.warmup, left)


def load_training_documents(data: Path) -> dict[str, list[str]]:
    """Return the train documents by corpus, without any that also stands in ``valid`` or ``test``."""
    held_out = {
        document_hash(text)
        for split in ("valid", "test")
        for path in find_corpora(data, split).values()
        for text in read_documents(path)
    }
    return {
        name: [text for text in read_documents(path) if document_hash(text) not in held_out]
        for name, path in find_corpora(data, "train").items()
    }


def prepare(data: Path, out: Path, shape: LlamaShape) -> tuple[np.ndarray, np.ndarray]:
    """Train the tokenizer and encode the corpora, once: later calls read the files in ``out``.

    Returns all tokens (uint16, documents one after another, each BOS ... EOS) and where each document starts.
    """
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "tokens.npz"
    if not cache.exists():
        documents = [text for texts in load_training_documents(data).values() for text in texts]
        tokenizer = train_tokenizer(documents, shape.vocab_size)
        save_tokenizer(tokenizer, out, shape.max_position_embeddings)
        end = tokenizer.token_to_id(END)
        encoded = [[*e.ids, end] for e in tokenizer.encode_batch(documents)]
        starts = np.cumsum([0, *map(len, encoded)])
        hashes = sorted(map(document_hash, documents))
        write_whole(out / "train_documents.txt", "\n".join(hashes) + "\n")
        with whole(cache) as partial, partial.open("wb") as file:
            np.savez(file, tokens=np.concatenate([np.asarray(e, np.uint16) for e in encoded]), starts=starts)
    with np.load(cache) as arrays:
        return arrays["tokens"], arrays["starts"]


class Batches:
    """Batches as a function of the step: documents in a new random order each epoch, cut into windows."""

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, schedule: Schedule, context: int, seed: int) -> None:
        self.tokens, self.starts, self.schedule, self.context, self.seed = tokens, starts, schedule, context, seed
        self.switch = int(schedule.steps * (1 - schedule.long_share))
        self._epoch: tuple[tuple[int, int], np.ndarray] | None = None

    def _windows(self, epoch: int, width: int) -> np.ndarray:
        key = (epoch, width)
        if self._epoch is None or self._epoch[0] != key:
            generator = np.random.default_rng([self.seed, epoch, width])
            order = generator.permutation(len(self.starts) - 1)
            stream = np.concatenate([self.tokens[self.starts[i] : self.starts[i + 1]] for i in order])
            count = (len(stream) - 1) // width
            index = np.arange(count)[:, None] * width + np.arange(width + 1)
            self._epoch = key, stream[index][generator.permutation(count)]
        return self._epoch[1]

    def __call__(self, step: int) -> Tensor:
        """Return the windows of ``step``: int64 [windows, width + 1]."""
        width = self.schedule.window if step < self.switch else self.context
        base = 0 if step < self.switch else self.switch
        each = self.schedule.rows // width
        per_epoch = (len(self.tokens) - 1) // width
        rows = []
        for number in range((step - base) * each, (step - base + 1) * each):
            rows.append(self._windows(number // per_epoch, width)[number % per_epoch])
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def save_atomically(state: object, path: Path) -> None:
    """Write ``state`` so that a crash at any moment leaves the old file or the new one."""
    with whole(path) as partial:
        torch.save(state, partial)


def train_tiny(
    data: Path,
    out: Path,
    schedule: Schedule | None = None,
    shape: LlamaShape | None = None,
    *,
    seed: int = 0,
    compiled: bool = False,
    save_every: int = 100,
    report_every: int = 20,
    report: Callable[[str], None] = print,
) -> None:
    """Train and write ``model.safetensors``, ``config.json``, the tokenizer and document hashes into ``out``.

    ``compiled`` uses ``torch.compile`` (needs a C++ compiler; a quarter faster).
    """
    schedule = schedule or Schedule()
    shape = shape or LlamaShape(hidden_size=256, intermediate_size=768, num_attention_heads=4)
    tokens, starts = prepare(data, out, shape)
    batches = Batches(tokens, starts, schedule, shape.max_position_embeddings, seed)
    torch.manual_seed(seed)
    model = Llama(shape)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, lr=schedule.matrix_rate, weight_decay=0.05)
    adam = torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
    first, path = 0, out / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        first = saved["step"]
        report(f"resuming behind step {first}")
    loss_of = torch.compile(model.loss) if compiled else model.loss
    started, total = time.monotonic(), sum(p.numel() for p in model.parameters())
    report(f"{total / 1e6:.2f} M weights, {len(tokens) / 1e6:.2f} M tokens an epoch, {schedule.steps} steps")
    for step in range(first, schedule.steps):
        for optimizer, rate in ((muon, schedule.matrix_rate), (adam, schedule.other_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.rate(step)
        windows, mean = batches(step), 0.0
        # Micro-batches of 2,048 tokens keep the logits in the last-level cache: faster than one large batch.
        parts = windows.split(max(1, 2048 // (windows.shape[1] - 1)))
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(part) / len(parts)
            loss.backward()
            mean += loss.item()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        if step % report_every == 0 or step + 1 == schedule.steps:
            report(f"step {step} loss {mean:.4f} minutes {(time.monotonic() - started) / 60:.1f}")
        if (step + 1) % save_every == 0 or step + 1 == schedule.steps:
            state = {
                "model": model.state_dict(),
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
                "step": step + 1,
            }
            save_atomically(state, path)
    export(model, out)


def export(model: Llama, out: Path) -> None:
    """Write the model in ``out`` as a Hugging Face checkpoint in bfloat16."""
    ids = Tokenizer.from_file(str(out / "tokenizer.json"))
    begin, end = ids.token_to_id(BEGIN), ids.token_to_id(END)
    assert begin is not None and end is not None
    config = model.shape.config(begin, end)
    write_whole(out / "config.json", json.dumps(config, indent=1) + "\n")
    with whole(out / "model.safetensors") as partial:
        save_file(model.checkpoint(), partial, metadata={"format": "pt"})
