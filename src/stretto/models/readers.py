"""From the configuration keys of each family to a ``ModelSpec``. Defaults are those of the family's first release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from stretto.models.configuration import Configuration
from stretto.models.rope import read_rope
from stretto.models.spec import AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

_ACTIVATIONS: dict[str, Literal["silu", "gelu", "gelu_tanh", "relu"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _decoder(
    config: Configuration,
    *,
    eps: float = 1e-6,
    theta: float = 10000.0,
    tied: bool = False,
    offset: float = 0.0,
    activation: str = "hidden_act",
    default_activation: str = "silu",
    head_size: int | None = None,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    experts: Callable[[MlpSpec], ExpertsSpec] | None = None,
) -> ModelSpec:
    """Read the keys that Llama and its descendants share; arguments are a family's defaults and spellings."""
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if not config.has("head_dim") and head_size is None and width % heads:
        raise config.refuse("num_attention_heads", f"a divisor of hidden_size ({width}), or head_dim beside it")
    size = config.integer("head_dim", head_size or width // heads)
    context = config.integer("max_position_embeddings")
    norm = NormSpec("rms", config.number("rms_norm_eps", eps), offset=offset)
    rope = read_rope(config, size, context, theta)
    attention = AttentionSpec(heads, kv_heads, size, size**-0.5, rope, bias=attention_bias, output_bias=attention_bias)
    act = config.choice(activation, _ACTIVATIONS, default_activation)
    mlp = MlpSpec(config.integer("intermediate_size"), act, bias=mlp_bias)
    return ModelSpec(
        family=config.values["model_type"],
        vocab_size=config.integer("vocab_size"),
        width=width,
        context=context,
        layers=(LayerSpec(attention, experts(mlp) if experts else mlp, norm),) * config.integer("num_hidden_layers"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", tied),
        eos_ids=config.ids("eos_token_id"),
    )


def _each_layer(spec: ModelSpec, change: Callable[[int, LayerSpec], LayerSpec]) -> ModelSpec:
    return replace(spec, layers=tuple(change(i, layer) for i, layer in enumerate(spec.layers)))


def _attending(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """Change the attention of every layer."""
    return _each_layer(spec, lambda i, layer: replace(layer, attention=replace(layer.attention, **changes)))


def _sliding(config: Configuration, spec: ModelSpec, window: int | None, usual: Callable[[int], bool]) -> ModelSpec:
    """Give ``window`` to the layers that ``layer_types`` calls sliding; where it is absent, to those of ``usual``."""
    kinds = config.names("layer_types", ("full_attention", "sliding_attention"), len(spec.layers))
    slide = [usual(i) if kinds is None else kinds[i] == "sliding_attention" for i in range(len(spec.layers))]
    if any(slide) and window is None:
        raise config.refuse("layer_types", "full_attention throughout, because the sliding window is off")

    def windowed(i: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention=replace(layer.attention, window=window if slide[i] else None))

    return _each_layer(spec, windowed)


def read_llama(config: Configuration) -> ModelSpec:
    """Llama 1 to 3 (arXiv 2302.13971, 2407.21783)."""
    return _decoder(
        config, attention_bias=config.flag("attention_bias", False), mlp_bias=config.flag("mlp_bias", False)
    )


def read_qwen3(config: Configuration) -> ModelSpec:
    """Qwen3, dense (arXiv 2505.09388): norms over each head, windows in the upper layers where they are used."""
    spec = _decoder(config, head_size=128, attention_bias=config.flag("attention_bias", False))
    window, first = config.integer_or_off("sliding_window", 4096), config.integer("max_window_layers", 28, least=0)
    if not config.flag("use_sliding_window", False):
        window = None
    spec = _sliding(config, spec, window, lambda i: window is not None and i >= first)
    return _attending(spec, head_norm=spec.norm)


def read_gemma2(config: Configuration) -> ModelSpec:
    """Gemma 2 (arXiv 2408.00118): every other layer slides, scores and logits are capped, four norms a layer."""
    config.only("use_bidirectional_attention", False)
    spec = _decoder(
        config,
        tied=True,
        offset=1.0,
        activation="hidden_activation",
        default_activation="gelu_pytorch_tanh",
        head_size=256,
        attention_bias=config.flag("attention_bias", False),
    )
    spec = _sliding(config, spec, config.integer_or_off("sliding_window", 4096), lambda i: i % 2 == 0)
    spec = _attending(
        spec,
        scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        softcap=config.number_or_off("attn_logit_softcapping", 50.0),
    )
    return replace(
        _each_layer(spec, lambda i, layer: replace(layer, after=spec.norm)),
        embedding_scale=spec.width**0.5,
        logit_softcap=config.number_or_off("final_logit_softcapping", 30.0),
    )


def read_mixtral(config: Configuration) -> ModelSpec:
    """Mixtral (arXiv 2401.04088): a mixture of experts in every layer."""
    config.only("norm_topk_prob", True)
    count, chosen = config.integer("num_local_experts", 8), config.integer("num_experts_per_tok", 2)
    if chosen > count:
        raise config.refuse("num_experts_per_tok", f"at most num_local_experts ({count})")
    spec = _decoder(config, eps=1e-5, theta=1e6, experts=lambda expert: ExpertsSpec(count, chosen, expert))
    return _attending(spec, window=config.integer_or_off("sliding_window", None))


def read_gpt2(config: Configuration) -> ModelSpec:
    """GPT-2: learned positions, layer norms, biases everywhere."""
    width, heads = config.integer("n_embd"), config.integer("n_head")
    if width % heads:
        raise config.refuse("n_head", f"a divisor of n_embd ({width})")
    norm = NormSpec("layer", config.number("layer_norm_epsilon", 1e-5), bias=True)
    activation = config.choice("activation_function", _ACTIVATIONS, "gelu_new")
    mlp = MlpSpec(config.integer("n_inner", 4 * width), activation, gated=False, bias=True)
    scale = (width // heads) ** -0.5 if config.flag("scale_attn_weights", True) else 1.0
    inverse = config.flag("scale_attn_by_inverse_layer_idx", False)
    layers = config.integer("n_layer")
    attention = AttentionSpec(heads, heads, width // heads, scale, bias=True, output_bias=True)
    context = config.integer("n_positions")
    return ModelSpec(
        family=config.values["model_type"],
        vocab_size=config.integer("vocab_size"),
        width=width,
        context=context,
        layers=tuple(
            LayerSpec(replace(attention, scale=scale / (i + 1 if inverse else 1)), mlp, norm) for i in range(layers)
        ),
        norm=norm,
        tied=config.flag("tie_word_embeddings", True),
        positions=context,
        eos_ids=config.ids("eos_token_id"),
    )
