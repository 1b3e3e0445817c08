"""What one pass must read and compute, and how fast this machine could do that: the limit that passes are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from stretto.models.base import Described
from stretto.models.parameters import parameter_shapes
from stretto.weights.formats import FORMATS, WeightFormat

PRODUCTS = {
    "fp32": ("fp32", 1), "bf16": ("bf16", 1), "int8": ("int8", 1), "int8_row": ("int8", 1), "int8x2": ("int8", 2),
}  # fmt: skip
"""By what products read their rows as: the kind of product instruction, and how often for each weight and row."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass cannot do without."""

    bytes: float
    """Weights, their scales, and the cache of the positions seen."""
    operations: Mapping[str, float]
    """By kind of product instruction; a multiplication and its addition are two."""

    def seconds(self, read: float, peaks: Mapping[str, float]) -> tuple[float, str]:
        """Return the least time at ``read`` bytes/s and ``peaks`` operations/s, and which of the two it is."""
        reading = self.bytes / read
        computing = self.computing(peaks)
        return max((reading, "bytes"), (computing, "operations"))

    def computing(self, peaks: Mapping[str, float]) -> float:
        """Return the seconds of arithmetic alone at ``peaks`` operations/s."""
        return sum(count / peaks[kind] for kind, count in self.operations.items())

    def minus(self, other: Work) -> Work:
        """Return what this pass must do beyond ``other``."""
        left = {kind: count - other.operations.get(kind, 0.0) for kind, count in self.operations.items()}
        return Work(self.bytes - other.bytes, left)


def work(model: Described, weights: str, rows: int, context: int, wanted: int) -> Work:
    """Return the work of ``rows`` rows of one request behind ``context`` positions, logits at ``wanted`` of them.

    ``weights`` is the name of the format; of an embedding that is not the head too, a pass reads next to nothing.
    """
    spec = model.spec
    shapes = parameter_shapes(spec)
    embed = shapes.pop("embed")
    head = shapes.pop("head", embed)
    layers = FORMATS[weights]
    last = FORMATS[layers.head] if layers.head else layers
    matrices = [shape for shape in shapes.values() if len(shape) > 1]
    kept = sum(_bytes(shape, layers) for shape in matrices) + _bytes(head, last)
    kept += 4 * sum(prod(shape) for shape in shapes.values() if len(shape) == 1)
    cache = context * sum(lane.bytes_per_token() for lane in model.lanes)
    operations: dict[str, float] = {}

    def add(kind: str, count: float) -> None:
        operations[kind] = operations.get(kind, 0.0) + count

    for form, products in ((layers, sum(map(prod, matrices)) * rows), (last, prod(head) * wanted)):
        kind, times = PRODUCTS[form.activations]
        add(kind, 2.0 * times * products)
    seen = rows * context + rows * (rows + 1) / 2
    width = sum(layer.attention.heads * layer.attention.head_size for layer in spec.layers)
    add(model.lanes[0].dtype, 4.0 * width * seen)  # query by key, weight by value
    return Work(kept + cache, operations)


def _bytes(shape: tuple[int, ...], form: WeightFormat) -> float:
    scales = 4 * shape[0] if form.layout == "int8" else 0  # those of groups count among a format's bits
    return prod(shape) * form.bits / 8 + scales
