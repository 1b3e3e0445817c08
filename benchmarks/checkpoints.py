"""Random checkpoints in published shapes, written once in the layout that every engine here reads."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stretto.weights.resolve import resolve

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192, "vocab_size": 32000,
    },
    "1b-tinyvocab": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192, "vocab_size": 4096,
    },
    "135m": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152,
    },
    "135m-tinyvocab": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "intermediate_size": 1536, "vocab_size": 4096,
    },
    "tiny": {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "intermediate_size": 768, "vocab_size": 4096,
    },
}  # fmt: skip
"""Llamas by the keys of their ``config.json``: 1.1 G weights and 135 M, each also with the vocabulary of
``stretto-tiny``, and one for trying a benchmark out."""

_SHARED: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def random_checkpoint(shape: str, models: Path) -> Path:
    """Return the folder of a random bf16 Llama of that shape under ``models``, written if it is not there."""
    folder = models / f"random-{shape}"
    config = folder / "config.json"
    if config.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    save_file(_tensors(SHAPES[shape], generator), folder / "model.safetensors", metadata={"format": "pt"})
    # Written last: a folder without it is one whose writing was interrupted.
    config.write_text(json.dumps(_SHARED | SHAPES[shape], indent=1) + "\n", encoding="utf-8")
    return folder


def speaking_checkpoint(shape: str, models: Path) -> Path:
    """Return the folder of a random Llama with the embedded model's vocabulary, and its tokenizer in it."""
    folder = random_checkpoint(shape, models)
    for path in resolve("stretto-tiny").glob("tokenizer*"):
        copyfile(path, folder / path.name)
    return folder


def _tensors(shape: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    width, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    queries, keys = (shape["head_dim"] * shape[name] for name in ("num_attention_heads", "num_key_value_heads"))
    matrices = {
        "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip

    def matrix(size: tuple[int, int]) -> Tensor:
        return torch.empty(size).normal_(0, 0.02, generator=generator).bfloat16()

    def norm() -> Tensor:
        return torch.ones(width, dtype=torch.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix((vocabulary, width)), "model.norm.weight": norm()}
    for number in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        tensors |= {f"{layer}{name}.weight": matrix(size) for name, size in matrices.items()}
        tensors |= {f"{layer}{name}.weight": norm() for name in ("input_layernorm", "post_attention_layernorm")}
    return tensors | {"lm_head.weight": matrix((vocabulary, width))}
