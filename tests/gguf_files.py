"""GGUF files of small random models, written with the ``gguf`` package, and the transformers model of the same weights.

Names come from the package's own table. What converters do to a family's weights beside naming them is written here
anew from their published description: rows of query and key reordered for Llama's kin, 1 added to Gemma's norms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import numpy as np
import small_tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

ARCHITECTURES = {
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "cohere": "command-r",
    "hunyuan_v1_dense": "hunyuan-dense",
}
"""What families are called, where they are called something else."""
REORDERED = ("llama", "mixtral", "granite", "smollm3", "arcee")
LESS_ONE = ("gemma", "gemma2", "gemma3_text", "nemotron")
MATRICES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Sizes of which every kind's blocks are a divisor."""

# Bytes of a block in which fp16 scales stand, of the kinds that the package reads but does not write, and a fitting
# scale: blocks of random bytes then stand for numbers of about 0.1.
_RANDOM = {
    Kind.Q2_K: (80, 82, 2e-3),
    Kind.Q3_K: (108, 108, 1e-3),
    Kind.Q4_K: (0, 2, 4e-4),
    Kind.Q5_K: (0, 2, 2e-4),
    Kind.Q6_K: (208, 208, 1e-4),
}


def write_gguf(
    path: Path,
    case: str,
    kind: Kind = Kind.F32,
    *,
    kinds: dict[str, Kind] | None = None,
    reorder: bool = True,
    speaks: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> transformers.PreTrainedModel:
    """Write a random model of ``case`` (as in ``checkpoints``), its matrices of ``kind`` or, where a name in ``kinds``
    occurs in theirs, of that one; return transformers' model with the weights that the file stands for.

    ``speaks``: with the byte-level tokenizer of ``small_tokenizers``.
    """
    torch.manual_seed(seed)
    config = checkpoints.configure(case, **overrides)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    family = case.partition("-")[0]
    architecture = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(str(path), architecture)
    _metadata(writer, architecture, config)
    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for ours, part in _split(name, parameter):
                chosen = next((each for word, each in (kinds or {}).items() if word in ours), kind)
                stem, _, end = ours.rpartition(".")
                theirs = names.get_name(stem)
                assert theirs is not None, ours
                _write(writer, f"{theirs}.{end}", part, chosen, random, config, family, reorder)
    if speaks:
        tokens, kinds_of_tokens, said = byte_level()
        writer.add_token_list(tokens)
        writer.add_token_types(kinds_of_tokens)
        add_tokenizer_keys(writer, said | {"add_bos_token": True})
    if "llama3" in case:
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _split(name: str, parameter: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors that a file has for one of transformers': it keeps gate and up of experts apart."""
    if name.endswith("gate_up_proj") and parameter.ndim == 3:
        stem, half = name.removesuffix("gate_up_proj"), parameter.shape[1] // 2
        return [(f"{stem}gate_proj.weight", parameter[:, :half]), (f"{stem}up_proj.weight", parameter[:, half:])]
    if parameter.ndim == 3:
        return [(f"{name}.weight", parameter)]
    return [(name, parameter)]


def _write(
    writer: gguf.GGUFWriter, name: str, parameter: torch.Tensor, kind: Kind, random: np.random.Generator, config: Any,
    family: str, reorder: bool,
) -> None:  # fmt: skip
    """Write one tensor, and set ``parameter`` to what was written."""
    shape = tuple(parameter.shape)
    values = random.normal(0, 0.2, shape).astype(np.float32)
    one = 1.0 if family in LESS_ONE else 0.0
    if len(shape) == 1 or "_norm" in name or "ffn_gate_inp" in name:
        if name.endswith("norm.weight"):
            parameter.copy_(torch.from_numpy(values) + 1 - one)
            stored = (parameter + one).numpy()
        else:
            parameter.copy_(torch.from_numpy(values))
            stored = values
    else:
        stored = _blocks(values, kind, random) if kind in _RANDOM else quantize(values, kind)
        parameter.copy_(torch.from_numpy(dequantize(stored, kind)))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads and family in REORDERED:
        # In the file the two halves of each head alternate; the same bytes row by row, whatever their kind.
        halves = stored.reshape(heads, 2, shape[0] // heads // 2, -1)
        stored = np.ascontiguousarray(halves.swapaxes(1, 2) if reorder else halves).reshape(stored.shape)
    if stored.dtype == np.float32:
        writer.add_tensor(name, stored)
    else:
        writer.add_tensor(name, stored if kind == Kind.F16 else stored.view(np.uint8), raw_dtype=kind)


def _blocks(values: np.ndarray, kind: Kind, random: np.random.Generator) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    first, second, scale = _RANDOM[kind]
    made = random.integers(0, 256, (values.size // block, size), dtype=np.uint8)
    for place in (first, second):
        scales = (scale * random.uniform(0.5, 1.5, len(made))).astype(np.float16)
        made[:, place : place + 2] = scales[:, None].view(np.uint8)
    return made.reshape(*values.shape[:-1], -1)


def byte_level(pre: str = "gpt-2") -> tuple[list[str], list[int], dict[str, Any]]:
    """Return tokens, their kinds and the further keys of the byte-level tokenizer of ``small_tokenizers``."""
    core = small_tokenizers.byte_level()._core
    tokens = [core.id_to_token(number) for number in range(core.get_vocab_size(with_added_tokens=True))]
    kinds = [3 if number < 3 else 4 if token in ("[plain]", "日本") else 1 for number, token in enumerate(tokens)]
    merges = [" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    return tokens, kinds, {"model": "gpt2", "pre": pre, "merges": merges, "bos_token_id": 0, "eos_token_id": 1}


def add_tokenizer_keys(writer: gguf.GGUFWriter, keys: dict[str, Any]) -> None:
    """Add metadata under ``tokenizer.ggml.``."""
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        elif key.endswith("_id"):
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_key_value(f"tokenizer.ggml.{key}", value, gguf.GGUFValueType.get_type(value))


def _metadata(writer: gguf.GGUFWriter, architecture: str, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    local = rope.get("sliding_attention", rope)
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    eps = [getattr(config, name, None) for name in ("norm_epsilon", "layer_norm_eps", "norm_eps")]
    if any(eps):
        writer.add_layer_norm_eps(next(filter(None, eps)))
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope.get("rope_type") in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope.get("factor") or 0.0)
        for name in ("short", "long"):
            if f"{name}_factor" in rope:
                writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], np.float32))
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture in ("gemma2", "gemma3", "phi3", "cohere2"):
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "gemma3":
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if architecture in ("command-r", "cohere2"):
        writer.add_logit_scale(config.logit_scale)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _llama3_factors(config: Any) -> np.ndarray:
    """Return by what Llama 3.1's rope divides each frequency, as its paper's code has it, pair by pair."""
    rope, size = config.rope_parameters, config.head_dim
    factors = []
    for pair in range(size // 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (2 * pair / size)
        original = rope["original_max_position_embeddings"]
        if wave < original / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wave > original / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (original / wave - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
