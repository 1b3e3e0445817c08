"""From a matrix to whole numbers and scales.

Every operation here works on single elements or picks a largest one, sums of a group are added in one fixed order: the
result is the same to the bit on every machine, at every number of threads and for every division into pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from stretto.kernels.quantized import GROUP, NIBBLE_ZERO, SMALLEST, Quantized

_PIECE = 1 << 17
"""Weights that are worked on at a time: what a core's own cache holds."""

_LARGEST = 5e5
"""Largest magnitude for which fp16 holds a scale, with room to search."""

_DIVISORS = (-8.0, -7.2, -8.8, 8.2)
"""Candidates: the group's value of largest magnitude divided by each. -8 maps it to the end of the range."""


def quantize_int8(matrix: Tensor, activations: str = "int8") -> Quantized:
    """Return ``matrix`` [out, in] in int8 with one scale, peak / 127, for each output.

    ``activations`` says how products read their rows. For int8x2 the peak is the largest magnitude; for int8 and
    int8_row it is the largest sum of those of inputs 2i and 2i + 1 that have one sign. Such neighbours then add up to
    128 at most, and a processor that adds products of bytes in 16 bits needs three instructions instead of four. It
    costs one bit of eight at worst, 0.4 for normally distributed weights, less the heavier their tails. Raises
    ``ValueError`` for NaN and infinities.
    """
    values = torch.empty(matrix.shape, dtype=torch.int8)
    scales = torch.empty(len(matrix))

    def encode(rows: slice) -> None:
        piece = _checked(matrix[rows].float())
        peak = piece.abs().amax(1) if activations == "int8x2" else _largest_pair(piece)
        usable = peak >= SMALLEST
        scales[rows] = torch.where(usable, peak / 127, 0.0)
        values[rows] = (piece * torch.where(usable, 127 / peak, 0.0)[:, None]).round_()

    _in_pieces(encode, *matrix.shape)
    return Quantized("int8", activations, values, scales)


def _largest_pair(matrix: Tensor) -> Tensor:
    """Return the peak of each output [out] of ``matrix`` [out, in] as ``quantize_int8`` says."""
    pairs = torch.constant_pad_nd(matrix, (0, matrix.shape[1] % 2)).view(len(matrix), -1, 2)
    one, other = pairs.unbind(-1)  # of two signs, their sum is smaller than the larger
    return torch.maximum(matrix.abs().amax(1), (one + other).abs().amax(1))


def quantize_int4(matrix: Tensor, activations: str = "int8") -> Quantized:
    """Return ``matrix`` [out, in] in int4: groups of 32 inputs, symmetric around 8, fp16 scales of either sign.

    Each group takes, of a few candidate scales, the one with the smallest sum of squared errors. Raises ``ValueError``
    for NaN, infinities, and values beyond 500,000, for which fp16 has no scales.
    """
    outputs, inputs = matrix.shape
    groups = -(-inputs // GROUP)
    values = torch.empty(outputs, inputs, dtype=torch.uint8)
    scales = torch.empty(outputs, groups, dtype=torch.float16)

    def encode(rows: slice) -> None:
        piece = torch.constant_pad_nd(_checked(matrix[rows].float(), _LARGEST), (0, groups * GROUP - inputs))
        columns = piece.view(-1, GROUP).t().contiguous()
        chosen = _search(columns)
        numbers = _round(columns, chosen).add_(NIBBLE_ZERO).t().reshape(-1, groups * GROUP)
        values[rows] = numbers[:, :inputs]
        scales[rows] = chosen.view(-1, groups)

    _in_pieces(encode, outputs, inputs)
    return Quantized("int4", activations, values, scales)


def _checked(piece: Tensor, largest: float = torch.finfo(torch.float32).max) -> Tensor:
    if not piece.abs().amax() <= largest:
        raise ValueError(f"a matrix holds NaN or a value beyond {largest:g}, which its weights format cannot keep")
    return piece


def _in_pieces(encode: Callable[[slice], None], outputs: int, inputs: int) -> None:
    """Call ``encode`` for pieces of rows, on as many threads as PyTorch has, each of which works on pieces alone.

    PyTorch's own threads meet after every operation, which beside other busy processes takes a hundred times as long.
    """
    step = max(1, _PIECE // inputs)
    pieces = [slice(start, start + step) for start in range(0, outputs, step)]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(encode, pieces))
    finally:
        torch.set_num_threads(threads)  # the calls above set what later threads begin with


def _search(columns: Tensor) -> Tensor:
    """Return the best scales, fp16 [groups], for whole numbers from -8 to 7 in ``columns`` [32, groups].

    The best candidate's whole numbers then say which scale would suit them best: the last candidate.
    """
    low, high = columns.amin(0), columns.amax(0)
    extreme = torch.where(-low > high, low, high)
    chosen = torch.zeros(columns.shape[1], dtype=torch.float16)
    best = torch.full(chosen.shape, torch.inf)

    def consider(scale: Tensor) -> None:
        error = _total((_round(columns, scale) * scale.float()).sub_(columns).square_())
        better = error < best
        torch.where(better, error, best, out=best)
        torch.where(better, scale, chosen, out=chosen)

    for divisor in _DIVISORS:
        consider((extreme / divisor).half())
    numbers = _round(columns, chosen)
    consider((_total(numbers * columns) / _total(numbers.square()).clamp_(min=1)).half())
    return chosen


def _round(columns: Tensor, scale: Tensor) -> Tensor:
    """Return the whole numbers from -8 to 7 for given scales, fp32 [32, groups]."""
    wide = scale.float()
    return (columns * torch.where(wide != 0, 1 / wide, 0.0)).round_().clamp_(-8, 7)


def _total(columns: Tensor) -> Tensor:
    """Return the sums over the 32 entries, fp32 [groups]: halves added to halves."""
    while len(columns) > 1:
        half = len(columns) // 2
        columns = columns[:half] + columns[half:]
    return columns[0]
