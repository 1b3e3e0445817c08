"""What tests register in an engine's own process, by ``AsyncEngine(init="plugins:register")``."""

from __future__ import annotations

import os
import time

import torch

from stretto.core.masks import register_mask


class Fatal:
    """Allows every token, and ends or holds up the process where it is asked what may follow the ``after``-th."""

    def __init__(self, vocab_size: int, eos_ids: frozenset[int], after: int = 3, how: str = "exit") -> None:
        self.everything, self.after, self.how = torch.ones(vocab_size, dtype=torch.bool), after, how

    def start(self) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + 1

    def allowed(self, state: int) -> torch.Tensor:
        if state == self.after:
            time.sleep(1000) if self.how == "sleep" else os._exit(3)
        return self.everything


def deadly(vocab_size: int, eos_ids: frozenset[int]) -> Fatal:
    """Ends the process while it is built, beside the steps of others."""
    time.sleep(0.2)
    os._exit(3)


def register() -> None:
    register_mask("fatal", Fatal)
    register_mask("deadly", deadly, lasting=True)
