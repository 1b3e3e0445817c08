"""The keys that Llama and its descendants share, and changes to a specification's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from stretto.models.configuration import Configuration
from stretto.models.rope import read_rope
from stretto.models.spec import AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}
_RMS = NormSpec()
KINDS = ("full_attention", "sliding_attention")
"""What ``layer_types`` may call a layer."""


def read_decoder(
    config: Configuration,
    *,
    eps: float = 1e-6,
    eps_key: str = "rms_norm_eps",
    norm: NormSpec = _RMS,
    theta: float | None = 10000.0,
    partial: float | None = None,
    tied: bool = False,
    activation: str = "hidden_act",
    activations: Mapping[str, Activation] = ACTIVATIONS,
    default_activation: str = "silu",
    head_size: int | None = None,
    bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    gated: bool = True,
    inner: int | None = None,
    experts: Callable[[MlpSpec], ExpertsSpec] | None = None,
) -> ModelSpec:
    """Read the keys that Llama and its descendants share; arguments are a family's defaults and spellings.

    ``theta``: the base of rope; None: its caller reads rope, layer by layer.
    ``partial``: the share of a head that rope turns where the configuration does not say; None: all of it, always.
    ``inner``: the width of the feed-forward block, where it is not ``intermediate_size``.
    """
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if not config.has("head_dim") and head_size is None and width % heads:
        raise config.refuse("num_attention_heads", f"a divisor of hidden_size ({width}), or head_dim beside it")
    size = config.integer("head_dim", head_size or width // heads)
    context = config.integer("max_position_embeddings")
    norm = replace(norm, eps=config.number(eps_key, eps))
    rope = None if theta is None else read_rope(config, size, context, theta, partial)
    attention = AttentionSpec(heads, kv_heads, size, size**-0.5, rope, bias=bias, output_bias=output_bias)
    act = config.choice(activation, activations, default_activation)
    mlp = MlpSpec(inner or config.integer("intermediate_size"), act, gated=gated, bias=mlp_bias)
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


def each_layer(spec: ModelSpec, change: Callable[[int, LayerSpec], LayerSpec]) -> ModelSpec:
    """Change every layer."""
    return replace(spec, layers=tuple(change(i, layer) for i, layer in enumerate(spec.layers)))


def each_attention(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """Change the attention of every layer."""
    return each_layer(spec, lambda i, layer: replace(layer, attention=replace(layer.attention, **changes)))


def sliding(config: Configuration, spec: ModelSpec, window: int | None, usual: Callable[[int], bool]) -> ModelSpec:
    """Give ``window`` to the layers that ``layer_types`` calls sliding; where it is absent, to those of ``usual``."""
    kinds = config.names("layer_types", KINDS, len(spec.layers))
    slide = [usual(i) if kinds is None else kinds[i] == "sliding_attention" for i in range(len(spec.layers))]
    if any(slide) and window is None:
        raise config.refuse("layer_types", "full_attention throughout, because the sliding window is off")

    def windowed(i: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention=replace(layer.attention, window=window if slide[i] else None))

    return each_layer(spec, windowed)


def without_rope(spec: ModelSpec, leaves_out: Callable[[int, AttentionSpec], bool]) -> ModelSpec:
    """Leave rope out of the layers for which ``leaves_out(number, attention)`` holds."""

    def bare(i: int, layer: LayerSpec) -> LayerSpec:
        attention = layer.attention
        return replace(layer, attention=replace(attention, rope=None)) if leaves_out(i, attention) else layer

    return each_layer(spec, bare)


def normed_behind(spec: ModelSpec) -> ModelSpec:
    """Move the norms of every layer behind its branches (OLMo 2, arXiv 2501.00656)."""
    return each_layer(spec, lambda i, layer: replace(layer, norm=None, after=layer.norm))
