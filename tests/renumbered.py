"""The same model in another vocabulary: its tokens and the rows of its embedding in another order."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import torch
from safetensors.torch import load_file, save_file

KEPT = 8
"""Tokens that keep their numbers: the special ones."""


def renumbered(folder: Path, to: Path, seed: int = 0) -> Path:
    """Write a checkpoint with tied embeddings and a BPE tokenizer to ``to``, all tokens but the first renumbered."""
    copytree(folder, to)
    told = json.loads((to / "tokenizer.json").read_text(encoding="utf-8"))
    size = json.loads((to / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    order = torch.randperm(size - KEPT, generator=torch.Generator().manual_seed(seed)) + KEPT
    new = [*range(KEPT), *order.tolist()]  # by old number
    vocabulary = {token: new[number] for token, number in told["model"]["vocab"].items()}
    told["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    (to / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    tensors = load_file(to / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    rows = torch.empty_like(tensors[name])
    rows[torch.tensor(new)] = tensors[name]
    save_file(tensors | {name: rows}, to / "model.safetensors", metadata={"format": "pt"})
    return to
