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

_KIN = _LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_LAYER_NORMED = {key: value for key, value in _KIN.items() if key != "rms_norm_eps"} | {"layer_norm_eps": 1e-2}
_LATENT = {key: value for key, value in _KIN.items() if key != "num_key_value_heads"} | {
    "num_hidden_layers": 3, "qk_nope_head_dim": 14, "qk_rope_head_dim": 20, "v_head_dim": 18, "kv_lora_rank": 28,
    "first_k_dense_replace": 1, "moe_intermediate_size": 40, "n_routed_experts": 6, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1,
}  # fmt: skip

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
    "mistral": _KIN | {"head_dim": 16, "sliding_window": 9},
    "ministral": _KIN | {"head_dim": 16, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": _KIN | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3_moe": _KIN
    | {"head_dim": 24, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True}
    | {"mlp_only_layers": [1], "decoder_sparse_step": 1, "num_hidden_layers": 3, "use_sliding_window": True}
    | {"sliding_window": 11},
    "gemma": _KIN | {"head_dim": 24},
    "gemma3_text": _KIN
    | {"head_dim": 24, "sliding_window": 9, "query_pre_attn_scalar": 20, "num_hidden_layers": 3}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        }
    },
    "phi3": _KIN
    | {"sliding_window": 15, "rope_parameters": {"rope_type": "default", "rope_theta": 1e3}}
    | {"num_key_value_heads": 2, "pad_token_id": None},
    "olmo2": _KIN | {"attention_bias": True},
    "olmo3": _KIN
    | {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        }
    },
    "exaone4": _KIN | {"sliding_window": 9, "sliding_window_pattern": 3, "num_hidden_layers": 3},
    "smollm3": _KIN
    | {"no_rope_layers": [1, 0, 1], "num_hidden_layers": 3, "attention_bias": True}
    | {"pad_token_id": None, "use_sliding_window": True, "sliding_window": 9},
    "granite": _KIN
    | {"embedding_multiplier": 3.0, "logits_scaling": 0.5, "residual_multiplier": 0.4, "attention_multiplier": 0.2},
    "cohere": _LAYER_NORMED | {"logit_scale": 1.4, "attention_bias": True},
    "cohere2": _LAYER_NORMED
    | {"logit_scale": 0.7, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": _SHARED
    | {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}
    | {"max_position_embeddings": 128, "layer_norm_eps": 1e-2}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5}},
    "starcoder2": _SHARED
    | {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "max_position_embeddings": 128, "norm_epsilon": 1e-2, "sliding_window": 9},
    "ernie4_5": _KIN | {"head_dim": 24, "use_bias": True},
    "glm": _KIN | {"head_dim": 24, "pad_token_id": None},
    "glm4": _KIN | {"head_dim": 24, "pad_token_id": None},
    "helium": _KIN | {"head_dim": 12},
    "hunyuan_v1_dense": _KIN
    | {"head_dim": 24, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 50.0, "factor": 1.0}},
    "internlm3": _KIN | {"head_dim": 24, "attention_bias": True, "mlp_bias": True},
    "seed_oss": _KIN | {"head_dim": 24, "attention_out_bias": True, "mlp_bias": True},
    "arcee": _KIN | {"attention_bias": True, "mlp_bias": True},
    "nemotron": {key: value for key, value in _KIN.items() if key != "rms_norm_eps"} | {"norm_eps": 1e-2},
    "deepseek_v2": _LATENT
    | {
        "q_lora_rank": None,
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "mscale": 0.7,
            "truncate": False,
            "mscale_all_dim": 0.4,
            "original_max_position_embeddings": 32,
        },
    },
    "deepseek_v2-query": _LATENT | {"q_lora_rank": 20, "attention_bias": True},
    "stablelm": _LAYER_NORMED | {"num_attention_heads": 3, "num_key_value_heads": 3, "use_qkv_bias": True},
}
"""Arguments of transformers' configuration classes; what comes before a dash is the model_type."""


LESS_ONE = ("gemma", "gemma2", "gemma3_text", "nemotron")
"""Families that store the weights of their norms less 1."""


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
    offset = 1.0 if case in LESS_ONE else 0.0
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
