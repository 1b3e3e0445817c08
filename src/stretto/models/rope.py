"""Rotary position embedding (arXiv 2104.09864) and its long-context variants: from configuration keys to frequencies.

Frequencies are computed in float32, the precision that models are trained with, in the usual order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stretto.models.configuration import Configuration
from stretto.models.spec import LayerSpec, ModelSpec, RopeSpec


def read_rope(
    config: Configuration, head_size: int, context: int, theta: float, partial: float | None, kind: str | None = None
) -> RopeSpec:
    """Return the rope that ``config`` describes, in its older spelling (``rope_theta``, ``rope_scaling``) or its newer
    one (``rope_parameters``, for each ``kind`` of layer where there are several).

    ``theta`` is the family's default base, ``context`` the longest sequence in positions, ``partial`` the family's
    default share of a head that is turned; None: the whole head, always.

    Raises ``ValueError`` naming what is not implemented or contradicts itself.
    """
    rope = described_rope(config, kind)
    if partial is None:
        for place in (config, rope):
            place.only("partial_rotary_factor", 1.0)
        turned = head_size
    else:
        turned = int(head_size * rope.number("partial_rotary_factor", config.number("partial_rotary_factor", partial)))
    if turned % 2 or not 0 < turned <= head_size:
        raise ValueError(
            f"{config.place}: {turned} of a head's {head_size} entries turn, expected an even number to rotate in pairs"
        )
    outer = config.number("rope_theta", theta)
    base = rope.number("rope_theta", outer)
    if config.has("rope_theta") and base != outer:
        raise config.refuse("rope_theta", f"{base} as {rope.place} says; keep one of the two")
    variant = rope.choice("rope_type", VARIANTS, "default")
    powers = base ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned)
    found = variant(rope, powers, base, context)
    rope.finish()
    return found


def read_ropes(
    config: Configuration, spec: ModelSpec, *, full: float, window: float, window_key: str = "rope_theta"
) -> ModelSpec:
    """Give layers that see all positions and layers with a window ropes of their own, with these default bases.

    The older spelling writes the windows' base as ``window_key`` and scales only the rope of the others.
    """

    def turned(layer: LayerSpec) -> LayerSpec:
        size, sees_all = layer.attention.head_size, layer.attention.window is None
        if sees_all:
            rope = read_rope(config, size, spec.context, full, None, "full_attention")
        elif config.has("rope_parameters"):
            rope = read_rope(config, size, spec.context, window, None, "sliding_attention")
        else:
            base = config.number(window_key, window)
            rope = read_rope(Configuration({"rope_theta": base}, config.place), size, spec.context, base, None)
        return replace(layer, attention=replace(layer.attention, rope=rope))

    config.free("rope_parameters", "rope_scaling", "rope_theta", window_key)
    ropes = {layer.attention.window: turned(layer).attention.rope for layer in dict.fromkeys(spec.layers)}
    return replace(
        spec,
        layers=tuple(
            replace(layer, attention=replace(layer.attention, rope=ropes[layer.attention.window]))
            for layer in spec.layers
        ),
    )


def described_rope(config: Configuration, kind: str | None = None) -> Configuration:
    """Return the object that describes the rope, with ``type`` spelled ``rope_type``; empty where there is none."""
    found: dict[str, object] = {}
    place = config.place
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.inner(key)
        if rope and kind and key == "rope_parameters":
            rope = rope.inner(kind)
        if rope:
            place = rope.place
            for name, value in rope.values.items():
                known = "rope_type" if name == "type" else name
                if found.setdefault(known, value) != value:
                    raise rope.refuse(name, f"{found[known]!r} as {known} elsewhere; keep one of the two")
    if found.get("rope_type") in ("longrope", "su") and config.has("original_max_position_embeddings"):
        found.setdefault("original_max_position_embeddings", config.integer("original_max_position_embeddings"))
    return Configuration(found, place)


Variant = Callable[[Configuration, Tensor, float, int], RopeSpec]
"""Reads (configuration, powers float32 [pairs]: radians turn once per ``2 pi * power`` positions, base, context)."""


def _spec(inverse: Tensor, attention: float = 1.0) -> RopeSpec:
    return RopeSpec(tuple(inverse.tolist()), attention)


def _default(rope: Configuration, powers: Tensor, base: float, context: int) -> RopeSpec:
    return _spec(1.0 / powers)


def _linear(rope: Configuration, powers: Tensor, base: float, context: int) -> RopeSpec:
    """Position interpolation (arXiv 2306.15595)."""
    return _spec(1.0 / powers / rope.number("factor"))


def _llama3(rope: Configuration, powers: Tensor, base: float, context: int) -> RopeSpec:
    """Llama 3.1: long waves slowed by ``factor``, short ones kept, a linear blend between (arXiv 2407.21783)."""
    factor, low, high = rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    original = rope.integer("original_max_position_embeddings", context)
    if low >= high:
        raise rope.refuse("low_freq_factor", f"less than high_freq_factor ({high})")
    inverse = 1.0 / powers
    wave = 2 * math.pi / inverse
    blend = (original / wave - low) / (high - low)
    smooth = (1 - blend) * inverse / factor + blend * inverse
    bent = torch.where(wave < original / high, inverse, smooth)
    return _spec(torch.where(wave > original / low, inverse / factor, bent))


def _yarn(rope: Configuration, powers: Tensor, base: float, context: int) -> RopeSpec:
    """YaRN (arXiv 2309.00071): pairs that turn more than ``beta_fast`` times within the original context are kept,
    those below ``beta_slow`` interpolated, a ramp over the pair's number between; and a temperature on the scores."""
    original = rope.integer("original_max_position_embeddings", context)
    factor = rope.number("factor", context / original)
    fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    pairs = len(powers)

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(original / (times * 2 * math.pi)) / math.log(base)

    first, last = pair_that_turns(fast), pair_that_turns(slow)
    if rope.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first or 0.001
    kept = 1 - ((torch.arange(pairs, dtype=torch.float32) - first) / width).clamp(0, 1)
    inverse = (1.0 / (factor * powers)) * (1 - kept) + (1.0 / powers) * kept

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    scale, scale_all = rope.number_or_off("mscale", None), rope.number_or_off("mscale_all_dim", None)
    usual = temperature(scale) / temperature(scale_all) if scale and scale_all else temperature(1.0)
    return _spec(inverse, rope.number("attention_factor", usual))


def _stretched(rope: Configuration, powers: Tensor, base: float, context: int) -> RopeSpec:
    """A base stretched by a fixed ``alpha`` (Hunyuan's reading of "dynamic", which depends on no length)."""
    rope.only("factor", 1.0)
    rope.free("beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # of YaRN, whose names its checkpoints keep
    size = 2 * len(powers)
    stretched = base * rope.number("alpha") ** (size / (size - 2))
    return _spec(1.0 / stretched ** (torch.arange(0, size, 2, dtype=torch.float32) / size))


def _longrope(rope: Configuration, powers: Tensor, base: float, context: int) -> RopeSpec:
    """LongRoPE (arXiv 2402.13753): one set of factors for texts within the original context, one for longer ones."""
    border = rope.integer("original_max_position_embeddings", context)
    factor = rope.number("factor", max(1.0, context / border))
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(border))
    within, beyond = (
        tuple((1.0 / (torch.tensor(rope.factors(key, len(powers)), dtype=torch.float32) * powers)).tolist())
        for key in ("short_factor", "long_factor")
    )
    return RopeSpec(within, rope.number("attention_factor", usual), beyond, border)


VARIANTS: dict[str, Variant] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _stretched,
    "longrope": _longrope,
    "su": _longrope,
}
