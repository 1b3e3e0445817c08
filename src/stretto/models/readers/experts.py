"""Mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from stretto.models.configuration import Configuration
from stretto.models.readers.common import each_attention, each_layer, read_decoder
from stretto.models.spec import ExpertsSpec, LayerSpec, MlpSpec, ModelSpec


def read_mixtral(config: Configuration) -> ModelSpec:
    """Mixtral (arXiv 2401.04088): a mixture in every layer."""
    config.only("norm_topk_prob", True)
    count, chosen = counts(config, "num_local_experts", 8, 2)
    spec = read_decoder(config, eps=1e-5, theta=1e6, experts=lambda expert: ExpertsSpec(count, chosen, expert))
    return each_attention(spec, window=config.integer_or_off("sliding_window", None))


def read_qwen3_moe(config: Configuration) -> ModelSpec:
    """Qwen3's mixtures (arXiv 2505.09388): many small experts, plain blocks in some layers."""
    # Newer configurations spell it as Mixtral's do.
    count, chosen = counts(config, "num_local_experts" if config.has("num_local_experts") else "num_experts", 128, 8)
    normalised, inner = config.flag("norm_topk_prob", False), config.integer("moe_intermediate_size", 768)
    step = config.integer("decoder_sparse_step", 1)
    plain = config.numbers("mlp_only_layers")
    bias = config.flag("attention_bias", False)
    spec = read_decoder(config, bias=bias, output_bias=bias)

    def mixed(i: int, layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.mlp, MlpSpec)
        if i in plain or (i + 1) % step:
            return layer
        return replace(layer, mlp=ExpertsSpec(count, chosen, replace(layer.mlp, width=inner), normalised))

    window = config.integer_or_off("sliding_window", 4096)
    if not config.flag("use_sliding_window", False):
        window = None
    return each_attention(each_layer(spec, mixed), head_norm=spec.norm, window=window)


def counts(config: Configuration, key: str, count: int, chosen: int) -> tuple[int, int]:
    """Return how many experts there are and how many a row chooses."""
    count, chosen = config.integer(key, count), config.integer("num_experts_per_tok", chosen)
    if chosen > count:
        raise config.refuse("num_experts_per_tok", f"at most {key} ({count})")
    return count, chosen
