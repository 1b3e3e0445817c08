"""What a model needs of memory, told from its specification before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from stretto.cache.memory import free_memory
from stretto.kernels import native
from stretto.kernels.linear import round_up
from stretto.kernels.quantized import GROUP
from stretto.models.base import DTYPES, default_lanes
from stretto.models.lowering import PANEL
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import ModelSpec
from stretto.weights.formats import FORMATS, WeightFormat

BESIDE = 10 << 20
"""What else loading takes: holes between small tensors, the program itself, as measured (``benchmarks/memory.py``)."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, of a model in one weights format."""

    weights: int
    """Resident: packed matrices with their scales, tables of lookups, vectors."""
    peak: int
    """Most while loading: the weights, and what reading and encoding a matrix takes."""
    cache_per_token: int
    read_per_token: int
    """Weights that a pass of one row reads."""


def footprint(spec: ModelSpec, form: WeightFormat, own: WeightFormat, dtype: torch.dtype) -> Footprint:
    """Return what the model needs in the format ``form``; what is not quantized keeps the format ``own``.

    ``dtype`` is the precision of activations and cache.
    """
    if form.layout == "bf16" and dtype is torch.float32:
        form = FORMATS["fp32"]  # rows that are not rounded meet widened matrices
    shapes = parameter_shapes(spec)
    embed = shapes.pop("embed")
    table = 0
    if not spec.tied or form.quantized:
        table = math.prod(embed) * int(own.bits if form.quantized else form.bits) // 8
    head = FORMATS[form.head] if form.head else form
    matrices, read = [(shapes.pop("head", embed), head)], 0
    for name, shape in shapes.items():
        if len(shape) > 1 and name != "positions":
            matrices.append((shape, own if name.endswith("router.weight") and form.quantized else form))
        else:
            read += 4 * math.prod(shape)
    for attention in (layer.attention for layer in spec.layers):
        if attention.latent is not None:  # zeros, behind which keys and values are written
            matrices.append(((attention.heads * attention.head_size, attention.latent.size), form))
    read += sum(_packed(*each) for each in matrices)
    largest = max(math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and name != "positions")
    cache = sum(lane.bytes_per_token() for lane in default_lanes(spec, DTYPES[dtype]))
    kept = read + table + sum(_sums(*each) for each in matrices)
    passing = _passing(form, own)
    head_first = table + int(passing * math.prod(embed)) + (0 if form.quantized else _packed(embed, form))
    if form.folds:
        passing = max(passing, 2 * own.bits / 8)  # a matrix, and the one whose factors it takes
    peak = max(kept + int(passing * largest), head_first) + BESIDE
    return Footprint(kept, peak, cache, read)


def _passing(form: WeightFormat, own: WeightFormat) -> float:
    """Return the bytes for each weight of a matrix that are held while it is encoded, beside what stays: as it is
    stored, and as whole numbers, of which an int4 takes a byte too, or in the other floating-point format."""
    stored = own.bits / 8
    if form.quantized:
        return stored + 1
    return stored if form.layout == own.layout else stored + form.bits / 8


def check_room(spec: ModelSpec, form: WeightFormat, own: WeightFormat, dtype: torch.dtype, name: str) -> None:
    """Refuse a model that does not fit into the memory that is free now.

    Raises ``MemoryError`` that says what is needed, what there is, and which formats would fit.
    """
    free, needed = free_memory(), footprint(spec, form, own, dtype).peak
    if needed <= free:
        return
    smaller = [each for each in FORMATS.values() if each.bits < form.bits]
    fits = [each.name for each in smaller if footprint(spec, each, own, dtype).peak <= free]
    advice = f"add --weights {' or '.join(fits)} (weights=...), which fits" if fits else "no format of it fits here"
    raise MemoryError(
        f"{name} needs {needed / 1e9:.1f} GB to load as {form.name}, and {free / 1e9:.1f} GB are free; {advice}, or "
        "free memory"
    )


def _packed(shape: tuple[int, ...], form: WeightFormat) -> int:
    outputs, inputs = round_up(shape[0], PANEL), round_up(shape[1], GROUP)
    return int(outputs * inputs * form.bits / 8) + (4 * outputs if form.layout == "int8" else 0)


def _sums(shape: tuple[int, ...], form: WeightFormat) -> int:
    if form.layout != "int8" or form.activations == "int8x2" or not native.sums_groups():
        return 0
    return 2 * round_up(shape[0], PANEL) * (round_up(shape[1], GROUP) // GROUP)
