"""GPT-2 and GPT-NeoX: layer norms and biases everywhere, no gates."""

from __future__ import annotations

from dataclasses import replace

from stretto.models.configuration import Configuration
from stretto.models.readers.common import ACTIVATIONS, each_layer, read_decoder
from stretto.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec


def read_gpt2(config: Configuration) -> ModelSpec:
    """GPT-2: learned positions."""
    width, heads = config.integer("n_embd"), config.integer("n_head")
    if width % heads:
        raise config.refuse("n_head", f"a divisor of n_embd ({width})")
    norm = NormSpec("layer", config.number("layer_norm_epsilon", 1e-5), bias=True)
    activation = config.choice("activation_function", ACTIVATIONS, "gelu_new")
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


def read_gpt_neox(config: Configuration) -> ModelSpec:
    """GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): parallel branches, a part of each head turned."""
    bias = config.flag("attention_bias", True)
    spec = read_decoder(
        config,
        eps=1e-5,
        eps_key="layer_norm_eps",
        norm=NormSpec("layer", bias=True),
        theta=config.number("rotary_emb_base", 10000.0),
        partial=config.number("rotary_pct", 0.25),
        default_activation="gelu",
        bias=bias,
        output_bias=bias,
        mlp_bias=True,
        gated=False,
    )
    parallel = config.flag("use_parallel_residual", True)
    return each_layer(spec, lambda i, layer: replace(layer, parallel=parallel))
