"""The outlier twin of a model: the same function, much harder to quantize.

Large models have a few channels with values far above the others', and an activation format that is fine on a small
model fails there. The twin gives a small model such channels: in each norm and each up-projection two of them grow by
64, and the columns that read them shrink by 64. Both are powers of two, so that in floating point nothing changes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stretto.weights.checkpoint import Checkpoint
from stretto.weights.files import whole, write_whole
from stretto.weights.resolve import COMPANIONS

FACTOR = 64.0
CHANNELS = 2


def write_twin(source: Path, folder: Path) -> None:
    """Write the twin of the checkpoint ``source``, a Llama, to ``folder``. A tied head becomes a matrix of its own."""
    checkpoint = Checkpoint(source)
    if checkpoint.config.get("model_type") != "llama":
        raise ValueError(f"model_type is {checkpoint.config.get('model_type')!r}, expected llama: twins have its names")
    tensors = {name: checkpoint.get(name) for name in checkpoint.names()}
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "model.safetensors") as partial:
        save_file(twin(tensors), partial)
    config = checkpoint.config | {"tie_word_embeddings": False}
    write_whole(folder / "config.json", json.dumps(config, indent=1))
    for name in COMPANIONS:
        if (source / name).is_file():
            with whole(folder / name) as partial:
                shutil.copyfile(source / name, partial)


def twin(tensors: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return the twin of a Llama's ``tensors``, by their names in a checkpoint; ``seed`` picks the channels."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: tensor.clone() for name, tensor in tensors.items()}

    def grow(grown: list[str], readers: list[str]) -> None:
        channels = torch.randperm(len(made[grown[0]]), generator=generator)[:CHANNELS]
        for name in grown:
            if name in made:
                made[name][channels] *= FACTOR
        for name in readers:
            made[name][:, channels] /= FACTOR

    for layer in range(sum(name.endswith("input_layernorm.weight") for name in tensors)):
        prefix = f"model.layers.{layer}."
        readers = [f"{prefix}self_attn.{name}_proj.weight" for name in ("q", "k", "v")]
        grow([f"{prefix}input_layernorm.weight"], readers)
        readers = [f"{prefix}mlp.{name}_proj.weight" for name in ("gate", "up")]
        grow([f"{prefix}post_attention_layernorm.weight"], readers)
        grow([f"{prefix}mlp.up_proj.{part}" for part in ("weight", "bias")], [f"{prefix}mlp.down_proj.weight"])
    grow(["model.norm.weight"], ["lm_head.weight"])
    return made
