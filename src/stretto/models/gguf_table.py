"""What GGUF files call the metadata and tensors of each architecture, and what was done to weights on the way there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_NORMS_AROUND = _NORMS_BEHIND | {"ffn_norm": "pre_feedforward_layernorm"}

KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_BIASES = {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One ``general.architecture``: what its metadata and tensors are called in the family ``model_type``."""

    model_type: str
    layer: Mapping[str, str] = field(default_factory=dict)
    """Names of a layer's tensors beyond, or other than, Llama's; ``{e}``: one of the experts stacked in the tensor."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Metadata keys (without the architecture's name) beyond those of all, and what config.json calls them."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """What goes without saying in this architecture."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Flags of config.json that a tensor's bias tells."""
    neighbours: bool = False
    """Whether rows of query and key were reordered so that rope turns neighbouring entries."""
    offset: float = 0.0
    """What was added to the weights of norms."""


_MIXTURE = {"ffn_gate_inp": "mlp.gate"} | {
    f"ffn_{name}_exps": f"mlp.experts.{{e}}.{name}_proj" for name in ("gate", "up", "down")
}
_EXPERTS = {"expert_used_count": "num_experts_per_tok"}
_COHERE = {"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", biases=_BIASES, neighbours=True),
    # Written by its name here only: in files it is llama with experts.
    "mixtral": Architecture(
        "mixtral",
        {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
            "ffn_up_exps": "block_sparse_moe.experts.{e}.w3",
            "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
        },
        _EXPERTS | {"expert_count": "num_local_experts"},
        neighbours=True,
    ),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", _HEAD_NORMS, biases={"attention_bias": "attn_q"}),
    "qwen3moe": Architecture(
        "qwen3_moe",
        _HEAD_NORMS | _MIXTURE,
        _EXPERTS | {"expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"},
        {"norm_topk_prob": True},
    ),
    "gemma": Architecture("gemma", offset=1.0),
    "gemma2": Architecture("gemma2", _NORMS_AROUND, _CAPS, offset=1.0),
    "gemma3": Architecture(
        "gemma3_text",
        _HEAD_NORMS | _NORMS_AROUND,
        _CAPS | {"rope.freq_base_swa": "rope_local_base_freq"},
        offset=1.0,
    ),
    "phi3": Architecture(
        "phi3",
        {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        {"attention.sliding_window": "sliding_window"},
    ),
    "olmo2": Architecture("olmo2", _HEAD_NORMS | _NORMS_BEHIND, biases={"attention_bias": "attn_q"}),
    "granite": Architecture(
        "granite",
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        biases=_BIASES,
        neighbours=True,
    ),
    "smollm3": Architecture("smollm3", biases=_BIASES, neighbours=True),
    "arcee": Architecture("arcee", biases=_BIASES, neighbours=True),
    "seed_oss": Architecture("seed_oss", _NORMS_BEHIND, biases={"attention_bias": "attn_q"}),
    "ernie4_5": Architecture("ernie4_5", biases={"use_bias": "attn_q"}),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense", {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
    ),
    "glm4": Architecture(
        "glm4",
        {
            "ffn_up": "mlp.gate_up_proj",
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
        biases={"attention_bias": "attn_q"},
    ),
    "command-r": Architecture("cohere", keys=_COHERE),
    "cohere2": Architecture("cohere2", keys=_COHERE | {"attention.sliding_window": "sliding_window"}),
    "nemotron": Architecture("nemotron", keys={"attention.layer_norm_epsilon": "norm_eps"}, biases=_BIASES, offset=1.0),
    "starcoder2": Architecture(
        "starcoder2",
        {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        {"attention.layer_norm_epsilon": "norm_epsilon"},
        biases={"use_bias": "attn_q"},
    ),
}
