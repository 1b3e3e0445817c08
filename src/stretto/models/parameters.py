"""The weights that a specification calls for: their names as in ``spec.PARAMETERS``, and their shapes."""

from __future__ import annotations

from functools import partial

from stretto.models.spec import AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(spec: ModelSpec, *, filled: bool = True) -> Shapes:
    """Return the shape of every weight of the model, matrices as [out, in], in the order of use.

    Without ``filled`` the heads of latent attention lack the zeros that fill them up, as in checkpoints.
    """
    shapes: Shapes = {"embed": (spec.vocab_size, spec.width)}
    if spec.positions:
        shapes["positions"] = (spec.positions, spec.width)
    for number, layer in enumerate(spec.layers):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in _layer(layer, spec.width, filled).items()}
    shapes |= _norm("norm", spec.norm, spec.width)
    if not spec.tied:
        shapes["head"] = (spec.vocab_size, spec.width)
    return shapes


def _layer(layer: LayerSpec, width: int, filled: bool) -> Shapes:
    shapes = _norm("attention_norm", layer.norm, width) if layer.norm else {}
    read = _attention if layer.attention.latent is None else partial(_latent_attention, filled=filled)
    shapes |= read(layer.attention, width)
    if layer.after:
        shapes |= _norm("attention_after", layer.after, width)
    if layer.norm:
        shapes |= _norm("mlp_norm", layer.norm, width)
    if isinstance(layer.mlp, ExpertsSpec):
        shapes["router.weight"] = (layer.mlp.count, width)
        for expert in range(layer.mlp.count):
            shapes |= _mlp(f"experts.{expert}.", layer.mlp.expert, width)
        if layer.mlp.shared:
            shapes |= _mlp("shared_", layer.mlp.shared, width)
    else:
        shapes |= _mlp("", layer.mlp, width)
    if layer.after:
        shapes |= _norm("mlp_after", layer.after, width)
    return shapes


def _attention(attention: AttentionSpec, width: int) -> Shapes:
    queries, keys = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
    shapes: Shapes = {}
    for name, size in {"query": queries, "key": keys, "value": keys}.items():
        shapes |= _linear(name, size, width, attention.bias)
    if attention.head_norm:
        together = attention.norm_span == "all"
        shapes |= _norm("query_norm", attention.head_norm, queries if together else attention.head_size)
        shapes |= _norm("key_norm", attention.head_norm, keys if together else attention.head_size)
    return shapes | _linear("output", width, queries, attention.output_bias)


def _latent_attention(attention: AttentionSpec, width: int, filled: bool) -> Shapes:
    latent, heads, size = attention.latent, attention.heads, attention.head_size
    assert latent is not None
    if latent.query_size is None:
        shapes = _linear("query", heads * size, width, False)
    else:
        shapes = _linear("query_latent", latent.query_size, width, attention.bias)
        shapes |= _norm("query_latent_norm", latent.norm, latent.query_size)
        shapes |= _linear("latent_query", heads * size, latent.query_size, False)
    shapes |= _linear("latent", latent.size, width, attention.bias)
    shapes |= _linear("turned", attention.turned, width, attention.bias)
    shapes |= _norm("latent_norm", latent.norm, latent.size)
    key, value = (size, size) if filled else (size - attention.turned, latent.value_size)
    shapes |= _linear("latent_key", heads * key, latent.size, False)
    shapes |= _linear("latent_value", heads * value, latent.size, False)
    return shapes | _linear("output", width, heads * value, attention.output_bias)


def _mlp(prefix: str, mlp: MlpSpec, width: int) -> Shapes:
    shapes = _linear(f"{prefix}gate", mlp.width, width, mlp.bias) if mlp.gated else {}
    return (
        shapes
        | _linear(f"{prefix}up", mlp.width, width, mlp.bias)
        | _linear(f"{prefix}down", width, mlp.width, mlp.bias)
    )


def _norm(name: str, norm: NormSpec, size: int) -> Shapes:
    return {f"{name}.{part}": (size,) for part in (["weight", "bias"] if norm.bias else ["weight"])}


def _linear(name: str, out: int, into: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})
