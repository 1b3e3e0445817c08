"""Weights formats: each keeps what it says it keeps, and ``auto`` loses nothing."""

from __future__ import annotations

import pytest
import torch

from stretto.kernels.quantized import GROUP, Quantized
from stretto.weights.formats import FORMATS, own_format

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(48, 80), (1, 32), (7, 33), (700, 260)]
"""(outputs, inputs)"""


def matrix(shape: tuple[int, int], stored: torch.dtype = torch.float32) -> torch.Tensor:
    """Outputs and groups of very different sizes, one of each all zeros."""
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(shape, generator=generator) * torch.exp2(
        torch.randint(-4, 4, (shape[0], 1), generator=generator)
    )
    made[-1:, 32:] *= 100
    made[2:3], made[4:5, :32] = 0, 0
    return made.to(stored)


@pytest.mark.parametrize("stored", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_keeps_what_it_says(name, stored):
    given, each = matrix((48, 80), stored), FORMATS[name]
    encoded = each.encode(given)
    assert torch.equal(each.decode(encoded), given.float()) == (stored in each.lossless)
    if isinstance(encoded, Quantized):
        assert (encoded.layout, encoded.activations) == (each.layout, each.activations) and each.quantized
    else:
        assert 8 * encoded.element_size() == each.bits and not each.quantized


@pytest.mark.parametrize("stored", PRECISIONS)
def test_auto_loses_nothing(stored):
    assert stored in own_format(stored).lossless
    assert own_format(torch.bfloat16).name == "bf16"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["int8", "int8-fast", "int8x2"])
def test_int8_is_within_half_a_step(name, shape):
    """A step is a 127th of the largest magnitude, or where products need it of the largest pair of one sign."""
    given = matrix(shape)
    stored = FORMATS[name].encode(given)
    assert stored.values.dtype == torch.int8 and stored.scales.shape == shape[:1]
    pairs = torch.constant_pad_nd(given, (0, shape[1] % 2)).unflatten(1, (-1, 2))
    of_one_sign = torch.maximum(pairs.relu().sum(-1), (-pairs).relu().sum(-1))
    step = (given.abs() if name == "int8x2" else of_one_sign).amax(1, keepdim=True) / 127
    assert ((stored.dequantize() - given).abs() <= step * 0.5001).all()
    assert torch.allclose(stored.scales[:, None], step)


def test_neighbours_of_one_sign_fit_into_the_products_of_bytes():
    """Halves are rounded to even, which can lift both of a pair; random rows have pairs that are lifted too."""
    ties = torch.tensor([[63.5, 63.5, -127.0, 1.0], [-63.5, -63.5, 0.0, 127.0], [126.5, 0.5, 126.5, -126.5]])
    for given in (ties, matrix((400, 64)), matrix((40, 1025))):
        values = torch.constant_pad_nd(FORMATS["int8"].encode(given).values.int(), (0, given.shape[1] % 2))
        pairs = values.unflatten(1, (-1, 2))
        assert pairs.relu().sum(-1).max() <= 128 and (-pairs).relu().sum(-1).max() <= 128
        assert pairs.abs().sum(-1).max() >= 127


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_never_worse_than_one_fixed_scale(shape):
    """The fixed one maps the value of largest magnitude to -8; anything in a group is within one step of 8."""
    given = matrix(shape)
    stored = FORMATS["int4"].encode(given)
    groups = -(-shape[1] // GROUP)
    assert stored.values.dtype == torch.uint8 and stored.values.max() <= 15
    assert stored.scales.dtype == torch.float16 and stored.scales.shape == (shape[0], groups)
    wide = torch.constant_pad_nd(given, (0, groups * GROUP - shape[1])).view(-1, GROUP)
    extreme = wide.gather(1, wide.abs().argmax(1, keepdim=True))
    scale = (extreme / -8).half().float()
    fixed = (wide / scale).nan_to_num().round().clamp(-8, 7) * scale
    found = torch.constant_pad_nd(stored.dequantize(), (0, groups * GROUP - shape[1])).view(-1, GROUP)
    error, bound = (found - wide).square().sum(1), (fixed - wide).square().sum(1)
    assert (error <= bound * 1.0001).all()
    assert shape[0] < 20 or error.sum() < 0.95 * bound.sum()
    assert ((found - wide).abs() <= extreme.abs() / 6).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_encoding_is_the_same_at_any_number_of_threads(name):
    given, found = matrix((700, 260)), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(FORMATS[name].encode(given))
        assert torch.get_num_threads() == threads
    assert torch.equal(found[0].values, found[1].values) and torch.equal(found[0].scales, found[1].scales)
    some = FORMATS[name].encode(given[100:103])
    assert torch.equal(some.values, found[0].values[100:103])


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_no_integer_stands_for_is_refused(name, bad):
    given = matrix((48, 80))
    given[3, 5] = bad
    with pytest.raises(ValueError, match="NaN or a value beyond"):
        FORMATS[name].encode(given)
