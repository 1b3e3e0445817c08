"""Rotary position embedding (arXiv 2104.09864) and its long-context variants: from configuration keys to frequencies.

Frequencies are computed in float32, the precision that models are trained with, in the usual order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stretto.models.configuration import Configuration
from stretto.models.spec import RopeSpec


def read_rope(config: Configuration, head_size: int, context: int, theta: float) -> RopeSpec:
    """Return the rope that ``config`` describes, in its older spelling (``rope_theta``, ``rope_scaling``) or its newer
    one (``rope_parameters``). ``theta`` is the family's default base, ``context`` the longest sequence in positions.

    Raises ``ValueError`` naming what is not implemented or contradicts itself.
    """
    if head_size % 2:
        raise ValueError(f"{config.place}: heads have {head_size} entries, expected an even number to rotate in pairs")
    config.only("partial_rotary_factor", 1.0)
    rope = _described(config)
    rope.only("partial_rotary_factor", 1.0)
    outer = config.number("rope_theta", theta)
    base = rope.number("rope_theta", outer)
    if config.has("rope_theta") and base != outer:
        raise config.refuse("rope_theta", f"{base} as {rope.place} says; keep one of the two")
    variant = rope.choice("rope_type", VARIANTS, "default")
    powers = base ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    inverse, attention = variant(rope, powers, base, context)
    rope.finish()
    return RopeSpec(tuple(inverse.tolist()), attention)


def _described(config: Configuration) -> Configuration:
    """Return the object that describes the rope, with ``type`` spelled ``rope_type``; empty where there is none."""
    found: dict[str, object] = {}
    place = config.place
    for key in ("rope_parameters", "rope_scaling"):
        if rope := config.inner(key):
            place = rope.place
            for name, value in rope.values.items():
                known = "rope_type" if name == "type" else name
                if found.setdefault(known, value) != value:
                    raise rope.refuse(name, f"{found[known]!r} as {known} elsewhere; keep one of the two")
    return Configuration(found, place)


Variant = Callable[[Configuration, Tensor, float, int], tuple[Tensor, float]]
"""(configuration, powers float32 [pairs]: radians turn once per ``2 pi * power`` positions, base, context)
-> inverse frequencies float32 [pairs], factor on cosine and sine."""


def _default(rope: Configuration, powers: Tensor, base: float, context: int) -> tuple[Tensor, float]:
    return 1.0 / powers, 1.0


def _linear(rope: Configuration, powers: Tensor, base: float, context: int) -> tuple[Tensor, float]:
    """Position interpolation (arXiv 2306.15595)."""
    return 1.0 / powers / rope.number("factor"), 1.0


def _llama3(rope: Configuration, powers: Tensor, base: float, context: int) -> tuple[Tensor, float]:
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
    return torch.where(wave > original / low, inverse / factor, bent), 1.0


def _yarn(rope: Configuration, powers: Tensor, base: float, context: int) -> tuple[Tensor, float]:
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
    return inverse, rope.number("attention_factor", usual)


VARIANTS: dict[str, Variant] = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
