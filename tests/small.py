"""Small random transformers, built from a specification without a checkpoint."""

from __future__ import annotations

import torch

from stretto.core.batch import LaneSpec
from stretto.models.backend import AnyTransformer, build
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec


def small(
    *,
    name: str = "target",
    layers: int = 3,
    width: int = 48,
    vocab: int = 64,
    context: int = 512,
    seed: int = 0,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    lanes: tuple[LaneSpec, ...] | None = None,
) -> AnyTransformer:
    """Return a Llama-like transformer whose logits spread by more than 1 and whose attention is peaked."""
    spec = small_spec(layers, width, vocab, context, window)
    return build(
        spec, small_parameters(spec, seed), name=name, dtype=dtype, fingerprint=f"small-{name}-{seed}", lanes=lanes
    )


def small_spec(
    layers: int = 3, width: int = 48, vocab: int = 64, context: int = 512, window: int | None = None
) -> ModelSpec:
    norm = NormSpec()
    rope = RopeSpec(tuple(10000.0 ** (-2 * pair / 16) for pair in range(8)))
    attention = AttentionSpec(heads=4, kv_heads=2, head_size=16, scale=0.25, rope=rope, window=window)
    return ModelSpec("llama", vocab, width, context, (LayerSpec(attention, MlpSpec(2 * width), norm),) * layers, norm)


def small_parameters(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator) * 0.2 + (1.0 if len(shape) == 1 else 0.0)
        for key, shape in parameter_shapes(spec).items()
    }
