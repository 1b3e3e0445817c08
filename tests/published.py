"""Configurations as they are published on the hub, in the spelling of their day, one for each family."""

from __future__ import annotations

from typing import Any


def _config(model_type: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return the keys that Llama's descendants share, from width, inner width, layers, heads, K/V heads, positions and
    vocabulary."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings", "vocab_size",
    )  # fmt: skip
    return {
        "model_type": model_type, **dict(zip(names, sizes, strict=True)), "initializer_range": 0.02, "use_cache": True,
        "torch_dtype": "bfloat16", "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip


_SWIGLU = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "torch_dtype": "bfloat16", "transformers_version": "4.43.0", "use_cache": True, "vocab_size": 128256,
    },
    "Qwen3-8B": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 40960,
        "max_window_layers": 36, "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "gemma-2-9b": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "torch_dtype": "float32", "transformers_version": "4.42.0.dev0",
        "use_cache": True, "vocab_size": 256000,
    },
    "Mixtral-8x7B-v0.1": {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    },
    "Mistral-7B-v0.1": _config(
        "mistral", (4096, 14336, 32, 32, 8, 32768, 32000), rms_norm_eps=1e-5, hidden_act="silu", rope_theta=10000.0,
        sliding_window=4096, tie_word_embeddings=False,
    ),
    "Ministral-8B": _config(
        "ministral", (4096, 12288, 36, 32, 8, 32768, 131072), **_SWIGLU, head_dim=128, rope_theta=1e8,
        sliding_window=32768, layer_types=["full_attention", *["sliding_attention"] * 3] * 9,
    ),
    "Qwen2.5-7B": _config(
        "qwen2", (3584, 18944, 28, 28, 4, 131072, 152064), **_SWIGLU, rope_theta=1000000.0, max_window_layers=28,
        sliding_window=131072, use_sliding_window=False, use_mrope=False,
    ),
    "Qwen3-30B-A3B": _config(
        "qwen3_moe", (2048, 6144, 48, 32, 4, 40960, 151936), **_SWIGLU, attention_bias=False, decoder_sparse_step=1,
        head_dim=128, max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768, norm_topk_prob=True,
        num_experts=128, num_experts_per_tok=8, output_router_logits=False, rope_scaling=None, rope_theta=1000000.0,
        router_aux_loss_coef=0.001, sliding_window=None, use_sliding_window=False,
    ),
    "gemma-2b": _config(
        "gemma", (2048, 16384, 18, 8, 1, 8192, 256000), attention_bias=False, head_dim=256, hidden_act="gelu",
        pad_token_id=0, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=10000.0,
    ),
    "gemma-3-1b-it": _config(
        "gemma3_text", (1152, 6912, 26, 4, 1, 32768, 262144), attention_bias=False, attn_logit_softcapping=None,
        cache_implementation="hybrid", final_logit_softcapping=None, head_dim=256, pad_token_id=0,
        hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, rms_norm_eps=1e-6,
        rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512,
        sliding_window_pattern=6,
    ),
    "Phi-3-mini-4k": _config(
        "phi3", (3072, 8192, 32, 32, 32, 4096, 32064), hidden_act="silu", rms_norm_eps=1e-5, embd_pdrop=0.0,
        resid_pdrop=0.0, original_max_position_embeddings=4096, rope_scaling=None, rope_theta=10000.0,
        sliding_window=2047, tie_word_embeddings=False, pad_token_id=32000,
    ),
    "OLMo-2-1124-7B": _config(
        "olmo2", (4096, 11008, 32, 32, 32, 4096, 100352), **_SWIGLU, attention_bias=False, rope_scaling=None,
        rope_theta=500000, pad_token_id=100277,
    ),
    "Olmo-3-7B": _config(
        "olmo3", (4096, 11008, 32, 32, 32, 65536, 100278), **_SWIGLU, attention_bias=False, rope_theta=500000,
        sliding_window=4096, layer_types=[*["sliding_attention"] * 3, "full_attention"] * 8,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192,
                      "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0},
    ),
    "EXAONE-4.0-32B": _config(
        "exaone4", (5120, 27392, 64, 40, 8, 131072, 102400), hidden_act="silu", rms_norm_eps=1e-5, head_dim=128,
        rope_theta=1000000, sliding_window=4096, sliding_window_pattern="LLLG", tie_word_embeddings=False,
        rope_scaling={"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                      "original_max_position_embeddings": 8192},
    ),
    "SmolLM3-3B": _config(
        "smollm3", (2048, 11008, 36, 16, 4, 65536, 128256), hidden_act="silu", rms_norm_eps=1e-6,
        attention_bias=False, mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9,
        layer_types=["full_attention"] * 36, rope_scaling=None, rope_theta=5000000.0, sliding_window=None,
        use_sliding_window=False, pad_token_id=128004, max_window_layers=28,
    ),
    "granite-3.3-2b": _config(
        "granite", (2048, 8192, 40, 32, 8, 131072, 49159), hidden_act="silu", rms_norm_eps=1e-5,
        attention_bias=False, attention_multiplier=0.015625, embedding_multiplier=12.0, logits_scaling=8.0,
        mlp_bias=False, residual_multiplier=0.22, rope_scaling=None, rope_theta=10000000.0, tie_word_embeddings=True,
    ),
    "c4ai-command-r-v01": _config(
        "cohere", (8192, 22528, 40, 64, 64, 8192, 256000), hidden_act="silu", layer_norm_eps=1e-5, logit_scale=0.0625,
        attention_bias=False, model_max_length=131072, pad_token_id=0, rope_theta=8000000.0, use_qk_norm=False,
    ),
    "c4ai-command-r7b": _config(
        "cohere2", (4096, 14336, 32, 32, 8, 8192, 256000), hidden_act="silu", layer_norm_eps=1e-5, logit_scale=0.25,
        attention_bias=False, cache_implementation="hybrid", head_dim=128, layer_switch=4, order_of_interleaved_layers=
        "local_attn_first", pad_token_id=0, position_embedding_type="rope_gptj", rope_scaling=None, rope_theta=50000,
        rotary_pct=1.0, sliding_window=4096, sliding_window_pattern=4, use_embedding_sharing=True,
        use_gated_activation=True, use_parallel_block=True, use_parallel_embedding=True,
    ),
    "pythia-1b": {
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 16,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
    },
    "starcoder2-3b": _config(
        "starcoder2", (3072, 12288, 30, 24, 2, 16384, 49152), hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5,
        activation_function="gelu", embedding_dropout=0.1, layer_norm_epsilon=1e-5, mlp_type="default",
        norm_type="layer_norm", residual_dropout=0.1, rope_theta=999999.4420358813, sliding_window=4096,
        use_bias=True,
    ),
    "ERNIE-4.5-0.3B": _config(
        "ernie4_5", (1024, 3072, 18, 16, 2, 131072, 103424), hidden_act="silu", rms_norm_eps=1e-5, head_dim=128,
        pad_token_id=0, rope_scaling=None, rope_theta=500000.0, tie_word_embeddings=True, use_bias=False,
    ),
    "glm-4-9b-chat-hf": _config(
        "glm", (4096, 13696, 40, 32, 2, 131072, 151552), hidden_act="silu", rms_norm_eps=1.5625e-7, head_dim=128,
        attention_bias=True, pad_token_id=151329, rope_theta=10000.0, tie_word_embeddings=False,
    ),
    "GLM-4-9B-0414": _config(
        "glm4", (4096, 13696, 40, 32, 2, 32768, 151552), hidden_act="silu", rms_norm_eps=1e-5, head_dim=128,
        attention_bias=True, pad_token_id=151329, partial_rotary_factor=0.5, rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "helium-1-2b": _config(
        "helium", (2048, 8192, 28, 16, 8, 4096, 64000), hidden_act="silu", rms_norm_eps=1e-8, head_dim=128,
        attention_bias=False, mlp_bias=False, pad_token_id=3, rope_theta=20000.0, tie_word_embeddings=False,
    ),
    "Hunyuan-7B-Instruct": _config(
        "hunyuan_v1_dense", (4096, 14336, 32, 32, 8, 32768, 128167), hidden_act="silu", rms_norm_eps=1e-5,
        attention_bias=False, eod_token_id=3, head_dim=128, pad_token_id=0, rope_theta=10000.0,
        rope_scaling={"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                      "mscale_all_dim": 1.0, "type": "dynamic"}, tie_word_embeddings=False, use_qk_norm=True,
    ),
    "internlm3-8b-instruct": _config(
        "internlm3", (4096, 10240, 48, 32, 2, 32768, 128512), hidden_act="silu", rms_norm_eps=1e-5, bias=False,
        head_dim=128, qkv_bias=False, rope_theta=50000000, rope_scaling={"factor": 6.0, "rope_type": "linear"},
        tie_word_embeddings=False,
    ),
    "Seed-OSS-36B": _config(
        "seed_oss", (5120, 27648, 64, 80, 8, 524288, 155136), hidden_act="silu", rms_norm_eps=1e-6, head_dim=128,
        attention_bias=True, attention_out_bias=False, mlp_bias=False, residual_dropout=0.1, rope_theta=10000000.0,
        rope_scaling={"rope_type": "default"}, tie_word_embeddings=False,
    ),
    "AFM-4.5B": _config(
        "arcee", (2560, 18432, 36, 20, 4, 65536, 128004), hidden_act="relu2", rms_norm_eps=1e-5, head_dim=128,
        attention_bias=False, mlp_bias=False, rope_theta=10000.0, tie_word_embeddings=False,
        rope_scaling={"beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0, "rope_type": "yarn",
                      "original_max_position_embeddings": 4096},
    ),
    "Minitron-4B-Base": _config(
        "nemotron", (3072, 9216, 32, 24, 8, 4096, 256000), hidden_act="relu2", norm_eps=1e-5, head_dim=128,
        attention_bias=False, mlp_bias=False, partial_rotary_factor=0.5, rope_theta=10000,
        tie_word_embeddings=False,
    ),
    "stablelm-3b-4e1t": _config(
        "stablelm", (2560, 6912, 32, 32, 32, 4096, 50304), hidden_act="silu", layer_norm_eps=1e-5,
        partial_rotary_factor=0.25, rope_theta=10000, tie_word_embeddings=False, use_qkv_bias=False,
    ),
    "DeepSeek-V2-Lite": _config(
        "deepseek_v2", (2048, 10944, 27, 16, 16, 163840, 102400), **_SWIGLU, attention_bias=False,
        auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"}, aux_loss_alpha=0.001, ep_size=1,
        first_k_dense_replace=1, kv_lora_rank=512, moe_intermediate_size=1408, moe_layer_freq=1, n_group=1,
        n_routed_experts=64, n_shared_experts=2, norm_topk_prob=False, num_experts_per_tok=6, pretraining_tp=1,
        q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, rope_theta=10000, routed_scaling_factor=1.0,
        scoring_func="softmax", seq_aux=True, topk_group=1, topk_method="greedy", v_head_dim=128,
        rope_scaling={"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                      "original_max_position_embeddings": 4096, "type": "yarn"},
    ),
}  # fmt: skip
