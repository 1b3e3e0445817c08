"""Llama and the families that differ from it by biases, windows, norms of heads, or multipliers."""

from __future__ import annotations

from dataclasses import replace

from stretto.models.configuration import Configuration
from stretto.models.readers.common import (
    each_attention,
    each_layer,
    normed_behind,
    read_decoder,
    sliding,
    without_rope,
)
from stretto.models.rope import read_ropes
from stretto.models.spec import LayerSpec, ModelSpec, NormSpec


def read_llama(config: Configuration) -> ModelSpec:
    """Llama 1 to 3 (arXiv 2302.13971, 2407.21783)."""
    bias = config.flag("attention_bias", False)
    return read_decoder(config, bias=bias, output_bias=bias, mlp_bias=config.flag("mlp_bias", False))


def read_internlm3(config: Configuration) -> ModelSpec:
    """InternLM 3: Llama, its flags of bias in a spelling of its own."""
    bias = config.flag("attention_bias", config.flag("qkv_bias", False))
    mlp_bias = config.flag("mlp_bias", config.flag("bias", False))
    return read_decoder(config, eps=1e-5, head_size=128, bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def read_mistral(config: Configuration) -> ModelSpec:
    """Mistral (arXiv 2310.06825): a window in every layer, where there is one."""
    spec = read_decoder(config)
    return each_attention(spec, window=config.integer_or_off("sliding_window", 4096))


def read_ministral(config: Configuration) -> ModelSpec:
    """Ministral: Mistral with a window in some layers."""
    window = config.integer_or_off("sliding_window", 4096)
    return sliding(config, read_decoder(config), window, lambda i: window is not None)


def read_qwen2(config: Configuration) -> ModelSpec:
    """Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on query, key and value, windows in the upper layers if any."""
    config.only("use_mrope", False)
    return _upper_windows(config, read_decoder(config, bias=True))


def read_qwen3(config: Configuration) -> ModelSpec:
    """Qwen3, dense (arXiv 2505.09388): norms over each head, windows in the upper layers where they are used."""
    bias = config.flag("attention_bias", False)
    spec = _upper_windows(config, read_decoder(config, head_size=128, bias=bias, output_bias=bias))
    return each_attention(spec, head_norm=spec.norm)


def _upper_windows(config: Configuration, spec: ModelSpec) -> ModelSpec:
    window, first = config.integer_or_off("sliding_window", 4096), config.integer("max_window_layers", 28, least=0)
    if not config.flag("use_sliding_window", False):
        window = None
    return sliding(config, spec, window, lambda i: window is not None and i >= first)


def read_phi3(config: Configuration) -> ModelSpec:
    """Phi-3 and 3.5 (arXiv 2404.14219): Llama with fused matrices."""
    spec = read_decoder(config, eps=1e-5, partial=1.0)
    return each_attention(spec, window=config.integer_or_off("sliding_window", None))


def read_olmo2(config: Configuration, theta: float | None = 10000.0) -> ModelSpec:
    """OLMo 2 (arXiv 2501.00656): norms behind the branches, and over all heads of query and of key together."""
    bias = config.flag("attention_bias", False)
    spec = read_decoder(config, eps=1e-5, theta=theta, bias=bias, output_bias=bias)
    return each_attention(normed_behind(spec), head_norm=spec.norm, norm_span="all")


def read_olmo3(config: Configuration) -> ModelSpec:
    """OLMo 3: OLMo 2 with windows in three layers of four, each kind with a rope of its own."""
    window, spec = config.integer_or_off("sliding_window", 4096), read_olmo2(config, theta=None)
    spec = sliding(config, spec, window, lambda i: (i + 1) % 4 > 0)
    return read_ropes(config, spec, full=500000.0, window=500000.0)


def read_exaone4(config: Configuration) -> ModelSpec:
    """EXAONE 4 (arXiv 2507.11407): norms behind the branches and over each head; rope only where a window is."""
    window, count = config.integer_or_off("sliding_window", 4096), config.integer("num_hidden_layers")
    pattern = config.values.get("sliding_window_pattern", 4)
    config.free("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= set("LG"):
        slides = [pattern[i % len(pattern)] == "L" and i + 1 < count for i in range(count)]
    elif window is None or not pattern:
        slides = [False] * count
    elif isinstance(pattern, int) and pattern > 0:
        slides = [(i + 1) % pattern > 0 for i in range(count)]
    else:
        raise config.refuse("sliding_window_pattern", "a number of layers, or a text of L (window) and G (none)")
    spec = sliding(config, read_decoder(config, eps=1e-5), window, slides.__getitem__)
    spec = each_attention(normed_behind(spec), head_norm=spec.norm)
    return without_rope(spec, lambda i, attention: window is not None and attention.window is None)


def read_smollm3(config: Configuration) -> ModelSpec:
    """SmolLM3: Llama without rope in every fourth layer."""
    bias = config.flag("attention_bias", False)
    spec = read_decoder(
        config, theta=2e6, tied=True, bias=bias, output_bias=bias, mlp_bias=config.flag("mlp_bias", False)
    )
    every = config.integer("no_rope_layer_interval", 4)
    listed = config.flags("no_rope_layers", len(spec.layers))  # despite its name it tells which layers have rope
    turned = [(i + 1) % every > 0 for i in range(len(spec.layers))] if listed is None else listed
    window = config.integer_or_off("sliding_window", None)
    if not config.flag("use_sliding_window", False):
        window = None
    spec = sliding(config, spec, window, lambda i: window is not None and not turned[i])
    return without_rope(spec, lambda i, attention: not turned[i])


def read_granite(config: Configuration) -> ModelSpec:
    """Granite 3 (arXiv 2405.04324 and its successors): Llama with factors on embedding, branches, scores and logits.

    A factor m on every branch is the same function as hidden states that are m times smaller: norms do not see their
    size but for epsilon, which shrinks with its square.
    """
    bias = config.flag("attention_bias", False)
    spec = read_decoder(config, bias=bias, output_bias=bias, mlp_bias=config.flag("mlp_bias", False))
    branch = config.number("residual_multiplier", 1.0)
    norm = replace(spec.norm, eps=spec.norm.eps / branch**2)
    spec = each_attention(spec, scale=config.number("attention_multiplier", 1.0))
    return replace(
        each_layer(spec, lambda i, layer: replace(layer, norm=norm)),
        norm=norm,
        embedding_scale=config.number("embedding_multiplier", 1.0) / branch,
        logit_scale=1.0 / config.number("logits_scaling", 1.0),
    )


def read_ernie4_5(config: Configuration) -> ModelSpec:
    """ERNIE 4.5, dense: rope turns neighbouring entries."""
    bias = config.flag("use_bias", False)
    return read_decoder(
        config, eps=1e-5, theta=500000.0, tied=True, head_size=128, bias=bias, output_bias=bias, mlp_bias=bias
    )


def read_glm(config: Configuration) -> ModelSpec:
    """GLM-4 of 2024: rope turns neighbouring entries of half a head, biases on query, key and value."""
    bias = config.flag("attention_bias", True)
    return read_decoder(config, eps=1.5625e-7, partial=0.5, head_size=128, bias=bias)


def read_glm4(config: Configuration) -> ModelSpec:
    """GLM-4 of 2025: norms before and behind each branch."""
    spec = read_glm(config)
    return each_layer(spec, lambda i, layer: replace(layer, after=spec.norm))


def read_helium(config: Configuration) -> ModelSpec:
    """Helium: rope turns neighbouring entries."""
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return read_decoder(config, eps=1e-8, theta=100000.0, head_size=128, bias=bias, mlp_bias=mlp_bias)


def read_hunyuan(config: Configuration) -> ModelSpec:
    """Hunyuan, dense: norms over each head behind rope, whose base ``alpha`` stretches."""
    config.only("use_qk_norm", True)
    bias = config.flag("attention_bias", False)
    spec = read_decoder(config, eps=1e-5, bias=bias, output_bias=bias)
    return each_attention(spec, head_norm=spec.norm, norm_behind_rope=True)


def read_seed_oss(config: Configuration) -> ModelSpec:
    """Seed-OSS: Llama with biases on query, key and value."""
    return read_decoder(
        config,
        head_size=128,
        bias=config.flag("attention_bias", True),
        output_bias=config.flag("attention_out_bias", False),
        mlp_bias=config.flag("mlp_bias", False),
    )


def read_arcee(config: Configuration) -> ModelSpec:
    """Arcee's AFM: Llama with a squared ReLU and no gate."""
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return read_decoder(
        config, eps=1e-5, default_activation="relu2", gated=False, bias=bias, output_bias=bias, mlp_bias=mlp_bias
    )


def read_nemotron(config: Configuration) -> ModelSpec:
    """Nemotron (arXiv 2402.16819): layer norms whose weights are stored less 1, squared ReLU, half a head turned."""
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return read_decoder(
        config, eps=1e-5, eps_key="norm_eps", norm=NormSpec("layer", bias=True, offset=1.0), partial=0.5,
        default_activation="relu2", gated=False, bias=bias, output_bias=bias, mlp_bias=mlp_bias,
    )  # fmt: skip


def read_stablelm(config: Configuration) -> ModelSpec:
    """StableLM: Llama with layer norms and a quarter of each head turned."""
    config.only("use_parallel_residual", False)
    config.only("qk_layernorm", False)
    return read_decoder(
        config, eps=1e-5, eps_key="layer_norm_eps", norm=NormSpec("layer", bias=True), partial=0.25,
        bias=config.flag("use_qkv_bias", False),
    )  # fmt: skip


def read_starcoder2(config: Configuration) -> ModelSpec:
    """StarCoder 2 (arXiv 2402.19173): layer norms, biases, no gate, a window in every layer."""
    config.only("mlp_type", "default")
    config.only("norm_type", "layer_norm")
    bias = config.flag("use_bias", True)
    spec = read_decoder(
        config, eps=1e-5, eps_key="norm_epsilon", norm=NormSpec("layer", bias=True), tied=True,
        default_activation="gelu_pytorch_tanh", gated=False, bias=bias, output_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    return each_attention(spec, window=config.integer_or_off("sliding_window", None))


def read_cohere(config: Configuration) -> ModelSpec:
    """Cohere's Command-R: parallel branches behind one layer norm, scaled logits, rope on neighbouring entries."""
    config.only("use_qk_norm", False)
    return _cohere(config, theta=500000.0)


def read_cohere2(config: Configuration) -> ModelSpec:
    """Cohere's Command-R7B: three layers of four slide and have rope, the fourth sees all and has none."""
    every = config.integer("sliding_window_pattern", 4)
    for key, value in _COHERE2.items():
        config.only(key, value)
    spec = sliding(
        config, _cohere(config), config.integer_or_off("sliding_window", 4096), lambda i: (i + 1) % every > 0
    )
    return without_rope(spec, lambda i, attention: attention.window is None)


_COHERE2 = {
    "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0, "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
    "use_parallel_embedding": True,
}  # fmt: skip
"""Keys of its first configurations, with their only values."""


def _cohere(config: Configuration, theta: float = 10000.0) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    spec = read_decoder(
        config, eps=1e-5, eps_key="layer_norm_eps", norm=NormSpec("layer"), theta=theta, tied=True,
        bias=bias, output_bias=bias,
    )  # fmt: skip
    return replace(each_layer(spec, _side_by_side), logit_scale=config.number("logit_scale", 0.0625))


def _side_by_side(number: int, layer: LayerSpec) -> LayerSpec:
    return replace(layer, parallel=True)
