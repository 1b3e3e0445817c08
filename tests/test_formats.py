"""Weights formats: each keeps what it says it keeps, and ``auto`` loses nothing."""

from __future__ import annotations

import pytest
import torch

from stretto.kernels.table import REFERENCE
from stretto.weights.formats import FORMATS, own_format

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("stored", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_keeps_what_it_says(name, stored):
    matrix = torch.randn(48, 80, generator=torch.Generator().manual_seed(1)).to(stored)
    each = FORMATS[name]
    encoded = each.encode(matrix)
    assert torch.equal(each.decode(encoded), matrix.float()) == (stored in each.lossless)
    assert 8 * encoded.element_size() == each.bits and callable(getattr(REFERENCE, each.op))


@pytest.mark.parametrize("stored", PRECISIONS)
def test_auto_loses_nothing(stored):
    assert stored in own_format(stored).lossless
    assert own_format(torch.bfloat16).name == "bf16"
