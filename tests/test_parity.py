"""Logits and greedy text equal transformers', for every family, and stop doing so when any key is altered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stretto import LLM, SamplingParams
from stretto.kernels import native

TOLERANCE = 1e-4
"""Of the largest logit, in fp32."""
PROMPT, NEW = 48, 64

# Keys of the written configurations that do not change the logits. All others are altered, one at a time.
HARMLESS = {
    "architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "classifier_dropout", "dtype", "embd_pdrop",
    "embedding_dropout", "eod_token_id", "eos_token_id", "hidden_dropout", "initializer_range", "is_decoder",
    "max_position_embeddings", "max_window_layers", "original_max_position_embeddings", "output_router_logits",
    "pad_token_id", "reorder_and_upcast_attn", "resid_pdrop", "residual_dropout", "router_aux_loss_coef",
    "router_jitter_noise", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "transformers_version", "use_cache",
    # Written beside layer_types and no_rope_layers, which go before them.
    "_sliding_window_pattern", "no_rope_layer_interval", "sliding_window_pattern",
}  # fmt: skip

# Changes to keys that the written configurations leave out, or that a small step would not show.
FURTHER: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"hidden_act": "gelu"},
        {"model_type": "qwen3"},
        {"sliding_window": 9},
        {"logit_scale": 2.0},
        {"rope_theta": 20000.0},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_other.Other"}},
    ],
    "llama-llama3": [{"rope_parameters.rope_type": "linear"}],
    "llama-yarn": [
        {"rope_parameters.truncate": ...},
        {"rope_parameters.attention_factor": 1.0},
        {"rope_parameters.mscale": 2.0, "rope_parameters.mscale_all_dim": 1.0},
    ],
    "qwen3": [
        {"layer_types": ..., "max_window_layers": 0},
        {"layer_types": ..., "use_sliding_window": False},
        {"sliding_window": None},
    ],
    "gemma2": [
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"hidden_activation": "gelu"},
        {"layer_types": ["sliding_attention"] * 3},
    ],
    "mixtral": [{"norm_topk_prob": False}, {"sliding_window": None}],
    "gpt2": [{"activation_function": "gelu"}],
    "deepseek_v2": [
        {"topk_method": "group_limited_greedy"},
        {"scoring_func": "sigmoid"},
        {"moe_layer_freq": 2},
        {"rope_parameters.mscale_all_dim": ...},
    ],
    "deepseek_v2-query": [{"q_lora_rank": ...}],
}

# Settings that the cases leave at their usual values.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_act": "gelu", "tie_word_embeddings": False, "mlp_bias": False, "num_key_value_heads": 2}),
    (
        "llama-yarn",
        {"rope_parameters": {**checkpoints.CASES["llama-yarn"]["rope_parameters"], "attention_factor": 0.7}},
    ),
    ("qwen3", {"use_sliding_window": False, "attention_bias": True, "tie_word_embeddings": False}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True}),
    ("mixtral", {"sliding_window": None, "tie_word_embeddings": True, "num_experts_per_tok": 1}),
    (
        "deepseek_v2",
        {
            "mlp_bias": True,
            "attention_bias": False,
            "v_head_dim": 6,
            "first_k_dense_replace": 2,
            "rope_parameters": None,
        }
        | {"tie_word_embeddings": True},
    ),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "tie_word_embeddings": False}),
]


@dataclass(frozen=True)
class Oracle:
    """A checkpoint and what transformers makes of it."""

    folder: Path
    ids: list[int]
    logits: Tensor
    """float32 [PROMPT, vocabulary]"""
    attentions: list[Tensor]
    """Per layer, probabilities [heads, PROMPT, PROMPT]."""
    text: list[int]
    """The NEW ids that greedy decoding appends."""


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Oracle]:
    made: dict[str, Oracle] = {}

    def get(case: str) -> Oracle:
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            model = checkpoints.make(folder, case)
            ids = checkpoints.token_ids(PROMPT)
            with torch.inference_mode():
                out = model(torch.tensor([ids]), output_attentions=True)
                text = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
            made[case] = Oracle(folder, ids, out.logits[0].clone(), [a[0].clone() for a in out.attentions], text)
        return made[case]

    return get


def load(folder: Path, rows: int | None = None) -> LLM:
    return LLM(str(folder), dtype="fp32", max_rows=rows, cache_tokens=256)


def distance(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected logit."""
    return float((logits - expected).abs().max() / expected.abs().max())


def stepped(value: Any) -> Any:
    """Return another value of the same type, near for numbers; a number for null."""
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, int):
        return (value or 0) + 1
    if isinstance(value, float):
        return 1.5 * value if value else 0.5
    if isinstance(value, list):
        turned = value[1:] + value[:1]
        return turned if turned != value else [stepped(one) for one in value]
    return f"not-{value}"


def alterations(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return each key of a config.json with another value: those that change the logits, and those that do not."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters", {})
    keys = {key: stepped(value) for key, value in config.items()}
    keys |= {f"rope_parameters.{key}": stepped(value) for key, value in rope.items()}
    return {k: v for k, v in keys.items() if k not in HARMLESS}, {k: v for k, v in keys.items() if k in HARMLESS}


@pytest.mark.parametrize("case", checkpoints.CASES)
def test_the_weights_bite(case: str, oracle: Callable[[str], Oracle]):
    """Logits spread, and attention chooses: its largest probability is a multiple of an even share of what it sees."""
    told = oracle(case)
    assert told.logits.std() > 1
    for attention in told.attentions:
        seen = (attention > 0).sum(-1)
        rows = seen > 8
        assert rows.any()
        assert (attention.amax(-1) * seen)[rows].mean() > 2.5


@pytest.mark.parametrize("rows", [None, 7])
@pytest.mark.parametrize("case", checkpoints.CASES)
def test_logits_equal(case: str, rows: int | None, oracle: Callable[[str], Oracle]):
    told = oracle(case)
    logits = load(told.folder, rows).logits(told.ids)
    assert logits.dtype == torch.float32 and logits.shape == told.logits.shape
    assert distance(logits, told.logits) < TOLERANCE


@pytest.mark.parametrize("case", checkpoints.CASES)
def test_greedy_text_equals(case: str, oracle: Callable[[str], Oracle]):
    told = oracle(case)
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    assert load(told.folder, rows=7).generate([told.ids], greedy)[0].token_ids == told.text


@pytest.mark.parametrize("case", checkpoints.CASES)
def test_every_altered_key_is_noticed(case: str, oracle: Callable[[str], Oracle], tmp_path: Path):
    told = oracle(case)
    changes = [{key: value} for key, value in alterations(told.folder)[0].items()] + FURTHER.get(case, [])
    unnoticed = []
    for number, change in enumerate(changes):
        try:
            logits = load(checkpoints.alter(told.folder, tmp_path / str(number), change)).logits(told.ids)
        except ValueError:
            continue
        if distance(logits, told.logits) < TOLERANCE:
            unnoticed.append(change)
    assert len(changes) > 12 and unnoticed == []


@pytest.mark.parametrize("case", checkpoints.CASES)
def test_harmless_keys_change_nothing(case: str, oracle: Callable[[str], Oracle], tmp_path: Path):
    told = oracle(case)
    altered = checkpoints.alter(told.folder, tmp_path / "altered", alterations(told.folder)[1])
    assert distance(load(altered).logits(told.ids), told.logits) < TOLERANCE


@pytest.mark.parametrize("case", ["deepseek_v2", "deepseek_v2-query", "mixtral", "olmo2"])
def test_the_reference_kernels_agree(case: str, oracle: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "load", lambda: None)
    told = oracle(case)
    whole, sliced = (load(told.folder, rows).logits(told.ids) for rows in (None, 7))
    assert distance(whole, told.logits) < TOLERANCE and torch.equal(whole, sliced)


@pytest.mark.parametrize(("case", "overrides"), VARIANTS)
def test_other_settings_are_honoured(case: str, overrides: dict[str, Any], tmp_path: Path):
    model = checkpoints.make(tmp_path, case, **overrides)
    ids = checkpoints.token_ids(PROMPT)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    assert distance(load(tmp_path).logits(ids), expected) < TOLERANCE


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shards_widen_exactly(case: str, dtype: torch.dtype, tmp_path: Path):
    """The stored numbers are representable in fp32, so that computing in fp32 must give transformers' fp32 logits."""
    checkpoints.make(tmp_path, case, dtype=dtype, shard="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids = checkpoints.token_ids(PROMPT)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0]
    assert distance(load(tmp_path).logits(ids), expected) < TOLERANCE
