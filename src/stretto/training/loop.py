"""The loop that the recipes share: Muon for the matrices, AdamW for the rest, and checkpoints that hold all state.

Every batch is a function of the step's number, so a run resumed after ``kill -9`` prints the losses of an undisturbed
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stretto.training.batches import Schedule
from stretto.training.llama import Llama
from stretto.training.muon import Muon
from stretto.weights.files import whole


def save_atomically(state: object, path: Path) -> None:
    """Write ``state`` so that a crash at any moment leaves the old file or the new one."""
    with whole(path) as partial:
        torch.save(state, partial)


def train(
    model: Llama,
    loss_of: Callable[[Tensor], Tensor],
    batches: Callable[[int], Tensor],
    schedule: Schedule,
    path: Path,
    *,
    precision: torch.dtype = torch.bfloat16,
    micro_tokens: int = 2048,
    save_every: int = 100,
    report_every: int = 20,
    report: Callable[[str], None] = print,
) -> None:
    """Train ``model`` on ``loss_of`` the windows that ``batches`` returns for each step; ``path`` is the checkpoint.

    ``precision`` is that of the products: bfloat16 is fast only where the processor has instructions for it.
    Micro-batches of ``micro_tokens`` keep the logits in the last-level cache: faster than one large batch.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, lr=schedule.matrix_rate, weight_decay=0.05, precision=precision)
    adam = torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        first = saved["step"]
        report(f"resuming behind step {first}")
    started = time.monotonic()
    for step in range(first, schedule.steps):
        for optimizer, rate in ((muon, schedule.matrix_rate), (adam, schedule.other_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.rate(step)
        windows, mean = batches(step), 0.0
        parts = windows.split(max(1, micro_tokens // (windows.shape[1] - 1)))
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
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
