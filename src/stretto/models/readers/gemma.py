"""Gemma: norm weights stored less 1, a scaled embedding, and from the second on four norms a layer and windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stretto.models.configuration import Configuration
from stretto.models.readers.common import ACTIVATIONS, Activation, each_attention, each_layer, read_decoder, sliding
from stretto.models.rope import read_ropes
from stretto.models.spec import ModelSpec, NormSpec

_OFFSET = NormSpec(offset=1.0)


def read_gemma(config: Configuration) -> ModelSpec:
    """Gemma 1 (arXiv 2403.08295). Its first configurations say ``gelu`` and mean the approximation by tanh."""
    config.only("hidden_activation", "gelu_pytorch_tanh")
    return _gemma(config, activation="hidden_act", activations={**ACTIVATIONS, "gelu": "gelu_tanh"})


def read_gemma2(config: Configuration) -> ModelSpec:
    """Gemma 2 (arXiv 2408.00118): every other layer slides, scores and logits are capped."""
    spec = _four_norms(config, _gemma(config), 50.0, 30.0)
    return sliding(config, spec, config.integer_or_off("sliding_window", 4096), lambda i: i % 2 == 0)


def read_gemma3(config: Configuration) -> ModelSpec:
    """Gemma 3, the text model (arXiv 2503.19786): norms over heads, and five of six layers slide with a rope of
    their own."""
    spec = _four_norms(config, _gemma(config, theta=None), None, None)
    every = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", 6))
    spec = sliding(config, spec, config.integer_or_off("sliding_window", 4096), lambda i: (i + 1) % every > 0)
    spec = each_attention(spec, head_norm=spec.norm)
    return read_ropes(config, spec, full=1e6, window=10000.0, window_key="rope_local_base_freq")


def _gemma(
    config: Configuration,
    *,
    theta: float | None = 10000.0,
    activation: str = "hidden_activation",
    activations: Mapping[str, Activation] = ACTIVATIONS,
) -> ModelSpec:
    config.only("use_bidirectional_attention", False)
    bias = config.flag("attention_bias", False)
    spec = read_decoder(
        config, norm=_OFFSET, theta=theta, tied=True, activation=activation, activations=activations,
        default_activation="gelu_pytorch_tanh", head_size=256, bias=bias, output_bias=bias,
    )  # fmt: skip
    return replace(spec, embedding_scale=spec.width**0.5, rounds_scale=True)


def _four_norms(config: Configuration, spec: ModelSpec, score_cap: float | None, logit_cap: float | None) -> ModelSpec:
    spec = each_attention(
        spec,
        scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        softcap=config.number_or_off("attn_logit_softcapping", score_cap),
    )
    return replace(
        each_layer(spec, lambda i, layer: replace(layer, after=spec.norm)),
        logit_softcap=config.number_or_off("final_logit_softcapping", logit_cap),
    )
