"""DeepSeek: attention by way of latents, and many small experts beside some that every row goes through."""

from __future__ import annotations

import math
from dataclasses import replace

from stretto.models.configuration import Configuration
from stretto.models.readers.common import each_attention, each_layer, read_decoder
from stretto.models.readers.experts import counts
from stretto.models.rope import described_rope, read_rope
from stretto.models.spec import ExpertsSpec, LatentSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec


def read_deepseek_v2(config: Configuration) -> ModelSpec:
    """DeepSeek-V2 in the layout of V2-Lite (arXiv 2405.04434): latent attention; experts beside shared ones."""
    for key, value in _FIXED.items():
        config.only(key, value)
    still, turned = config.integer("qk_nope_head_dim", 128), config.integer("qk_rope_head_dim", 64)
    size = still + turned
    for key, value in {"head_dim": turned, "qk_head_dim": size}.items():
        config.only(key, value)
    config.only("num_key_value_heads", config.integer("num_attention_heads"))
    bias = config.flag("attention_bias", False)
    spec = read_decoder(
        config, theta=None, head_size=size, bias=bias, output_bias=bias, mlp_bias=config.flag("mlp_bias", False)
    )
    latent = LatentSpec(
        config.integer("kv_lora_rank", 512),
        config.integer("v_head_dim", 128),
        NormSpec(eps=1e-6),  # whatever rms_norm_eps says
        config.integer_or_off("q_lora_rank", 1536),
    )
    if latent.value_size > size:
        raise config.refuse("v_head_dim", f"at most qk_nope_head_dim + qk_rope_head_dim ({size})")
    scale = _temperature(config, spec.context) ** 2 * size**-0.5
    rope = read_rope(config, turned, spec.context, 10000.0, None)
    spec = each_attention(spec, head_size=size, scale=scale, rope=rope, latent=latent)

    count, chosen = counts(config, "n_routed_experts", 64, 6)
    inner, shared = config.integer("moe_intermediate_size", 1407), config.integer("n_shared_experts", 2)
    plain = config.integer("first_k_dense_replace", 0, least=0)

    def mixed(i: int, layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.mlp, MlpSpec)
        if i < plain:
            return layer
        expert = replace(layer.mlp, width=inner, bias=False)
        beside = replace(layer.mlp, width=inner * shared)
        return replace(layer, mlp=ExpertsSpec(count, chosen, expert, normalised=False, shared=beside))

    return each_layer(spec, mixed)


_FIXED = {
    "ep_size": 1, "moe_layer_freq": 1, "n_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
}  # fmt: skip
"""Keys whose other values (of the large V2, of V3) are not implemented."""


def _temperature(config: Configuration, context: int) -> float:
    """Return YaRN's factor on queries and keys, which ``mscale_all_dim`` asks for (arXiv 2309.00071)."""
    rope = described_rope(config)
    scale = rope.number_or_off("mscale_all_dim", None)
    if scale is None:
        return 1.0
    factor = rope.number("factor", context / rope.integer("original_max_position_embeddings", context))
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
