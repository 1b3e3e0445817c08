"""Small random checkpoints of every family, written by transformers: odd shapes, and weights large enough to bite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

_SHARED: dict[str, Any] = {"vocab_size": 331, "bos_token_id": None, "eos_token_id": None}
_LLAMA = _SHARED | {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "rms_norm_eps": 1e-2}

CASES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "max_position_embeddings": 128}
    | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-linear": _LLAMA
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "llama-llama3": _LLAMA
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80, "max_position_embeddings": 256}
    | {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama-yarn": _LLAMA
    | {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": 24}
    | {"max_position_embeddings": 128}
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        }
    },
    "qwen3": _LLAMA
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 128}
    | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "tie_word_embeddings": True},
    "gemma2": _LLAMA
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80, "max_position_embeddings": 128}
    | {"sliding_window": 11, "query_pre_attn_scalar": 40, "num_hidden_layers": 3}
    | {"attn_logit_softcapping": 7.0, "final_logit_softcapping": 9.0},
    "mixtral": _LLAMA
    | {"num_attention_heads": 7, "num_key_value_heads": 7, "hidden_size": 56, "head_dim": 24}
    | {"max_position_embeddings": 128, "sliding_window": 13, "num_local_experts": 6, "num_experts_per_tok": 3},
    "gpt2": _SHARED
    | {"n_embd": 72, "n_head": 3, "n_layer": 2, "n_inner": 100, "n_positions": 128, "layer_norm_epsilon": 1e-2},
}
"""Arguments of transformers' configuration classes; what comes before a dash is the model_type."""


def configure(case: str, **overrides: Any) -> transformers.PreTrainedConfig:
    """Return transformers' configuration of ``case``, a key of ``CASES``."""
    return transformers.AutoConfig.for_model(case.partition("-")[0], **(CASES[case] | overrides))


def make(
    folder: Path, case: str, *, dtype: torch.dtype = torch.float32, shard: str = "1GB", seed: int = 0, **overrides: Any
) -> transformers.PreTrainedModel:
    """Write a random checkpoint of ``case`` to ``folder``, in files of at most ``shard``, and return its model.

    Matrices and biases are N(0, 0.2), effective norm weights N(1, 0.2): with the usual tiny initial weights, logits
    would hardly depend on anything but the embedding, and wrong attention would pass for right.
    """
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configure(case, **overrides), attn_implementation="eager")
    offset = 1.0 if case == "gemma2" else 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and not name.endswith("bias")
            parameter.normal_(1.0 - offset if is_norm else 0.0, 0.2, generator=generator)
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def alter(source: Path, target: Path, changes: dict[str, Any]) -> Path:
    """Copy a checkpoint with other values in its config.json: ``changes`` by key, a dot leading into an object.

    ``...`` deletes the key.
    """
    shutil.copytree(source, target)
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *outer, last = key.split(".")
        place = config
        for name in outer:
            place = place[name]
        place[last] = value
        if value is ...:
            del place[last]
    path.write_text(json.dumps(config), encoding="utf-8")
    return target


def token_ids(count: int, seed: int = 1) -> list[int]:
    """Return random ids of the checkpoints' vocabulary."""
    ids: Tensor = torch.randint(331, (count,), generator=torch.Generator().manual_seed(seed))
    return ids.tolist()
