"""What every backend's transformer says of itself: sizes, lanes, precision."""

from __future__ import annotations

import torch

from stretto.core.batch import LaneSpec, LaneStorage, PassPrice
from stretto.models.spec import ModelSpec

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
"""Precisions of activations and cache."""


class Described:
    """The attributes of ``core.batch.Model``, from a specification."""

    own_threads = False
    price: PassPrice | None = None

    def __init__(
        self, spec: ModelSpec, name: str, dtype: torch.dtype, fingerprint: str, lanes: tuple[LaneSpec, ...] | None
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16")
        self.spec = spec
        self.name = name
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.vocab_size, self.context, self.width = spec.vocab_size, spec.context, spec.width
        self.layers, self.rope_border = len(spec.layers), spec.rope_border
        self.lanes = default_lanes(spec, DTYPES[dtype]) if lanes is None else lanes
        self.places = places(self.lanes, self.layers)
        self.storage: dict[str, LaneStorage] = {}

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        """Take the lanes' storage once, at load; passes read and write it by slot."""
        self.storage = storage

    def measure(self) -> None:
        """Find out what passes cost here, where the backend can tell."""


def default_lanes(spec: ModelSpec, dtype: str) -> tuple[LaneSpec, ...]:
    """Return one lane of all layers, named ``main``, or one for each shape of heads."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, layer in enumerate(spec.layers):
        by_shape.setdefault((layer.attention.kv_heads, layer.attention.head_size), []).append(number)
    return tuple(
        LaneSpec(
            name="main" if len(by_shape) == 1 else f"main-{heads}x{size}",
            layers=tuple(layers),
            kv_heads=heads,
            head_size=size,
            dtype=dtype,
        )
        for (heads, size), layers in by_shape.items()
    )


def places(lanes: tuple[LaneSpec, ...], layers: int) -> list[tuple[str, int]]:
    """Return for each layer its lane and its number in the lane's storage."""
    found = {
        layer: (lane.name, place) for lane in lanes if lane.kind == "kv" for place, layer in enumerate(lane.layers)
    }
    if sorted(found) != list(range(layers)):
        raise ValueError(f"lanes hold the layers {sorted(found)}, expected each of 0 to {layers - 1} once")
    return [found[layer] for layer in range(layers)]
