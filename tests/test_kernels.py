"""The ops: right, and a row's bits the same in any company, at any place and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.kernels import reference as ops

SHAPES = [(97, 72), (64, 24), (112, 333), (256, 256)]
"""(outputs, inputs)"""


def companies(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches that hold some of ``rows`` and the rows' numbers, strangers having higher ones."""
    for count in (1, 3, 15, 17):
        chosen = torch.randperm(len(rows))[:count]
        yield rows[chosen], chosen
    strangers = torch.randn(21, *rows.shape[1:]).to(rows.dtype) * 100
    places = torch.randperm(len(rows) + len(strangers))
    yield torch.cat((rows, strangers))[places], places


def varies(op: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
    """Whether any row's result differs by a bit from what it is in the company of the other rows."""
    torch.set_num_threads(1)
    expected = op(rows)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for batch, chosen in companies(rows):
            known = chosen < len(rows)
            if not torch.equal(op(batch)[known], expected[chosen[known]]):
                return True
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_rows_are_right_and_alone(shape, sharded, dtype) -> None:
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype), torch.randn(40, shape[1])
    rows = rows.to(dtype)
    packed = ops.pack([weight], [bias], dtype=dtype, sharded=sharded)
    given = ops.linear(rows, packed)[:, : shape[0]]
    expected = rows.double() @ weight.double().T + bias.double()
    limit = expected.abs().max() * (1e-2 if dtype == torch.bfloat16 else 1e-6)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=limit)
    assert given.dtype == dtype
    assert not varies(partial(ops.linear, packed=packed), rows)


def test_a_linear_without_tiles_is_caught() -> None:
    torch.manual_seed(0)
    caught = []
    for shape in SHAPES:
        weight = torch.randn(shape)
        caught.append(varies(partial(F.linear, weight=weight), torch.randn(40, shape[1])))
    assert any(caught)


def test_matrices_side_by_side_give_what_each_gives() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(30, 20), torch.randn(50, 20)]
    rows = torch.randn(5, 20)
    out = ops.linear(rows, ops.pack(weights, [None, torch.ones(50)], dtype=torch.float32, align=32))
    assert out.shape == (5, 96)
    torch.testing.assert_close(out[:, :30], rows @ weights[0].T)
    torch.testing.assert_close(out[:, 32:82], rows @ weights[1].T + 1)
    assert not out[:, 30:32].any()


def test_bf16_weights_under_fp32_rows_are_widened() -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(32, 48).bfloat16(), torch.randn(3, 48)
    out = ops.linear(rows, ops.pack([weight], dtype=torch.float32))
    torch.testing.assert_close(out, rows @ weight.float().T)


@pytest.mark.parametrize("width", [24, 97, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_on_rows_are_right_and_alone(width, dtype) -> None:
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(width), torch.randn(width), (torch.randn(40, width) * 3).to(dtype)
    oracles: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
        partial(ops.rms_norm, weight=weight, eps=1e-5): lambda x: F.rms_norm(x, (width,), weight, 1e-5),
        partial(ops.layer_norm, weight=weight, bias=bias, eps=1e-5): (
            lambda x: F.layer_norm(x, (width,), weight, bias, 1e-5)
        ),
        partial(ops.activate, up=None, activation="silu"): F.silu,
        partial(ops.activate, up=None, activation="gelu"): F.gelu,
        partial(ops.activate, up=None, activation="gelu_tanh"): partial(F.gelu, approximate="tanh"),
        partial(ops.activate, up=None, activation="relu"): F.relu,
        partial(ops.activate, up=None, activation="relu_squared"): lambda x: F.relu(x) ** 2,
        partial(ops.softcap, cap=3.0): lambda x: 3 * torch.tanh(x / 3),
    }
    for op, oracle in oracles.items():
        torch.testing.assert_close(op(rows), oracle(rows.float()).to(dtype))
        assert not varies(op, rows), op


def test_rope_turns_pairs_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    inverse = (1.0, 0.1, 0.01)
    positions = torch.tensor([0, 5, 2047])
    x = torch.randn(3, 2, 10)
    turned = ops.rotate(x, *ops.RopeTable(inverse, 1.0, torch.device("cpu")).rows(positions, 2047))
    plane = torch.complex(x[..., :3].double(), x[..., 3:6].double())
    expected = plane * torch.exp(1j * positions[:, None, None] * torch.tensor(inverse, dtype=torch.float64))
    torch.testing.assert_close(turned[..., :3].double(), expected.real, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(turned[..., 3:6].double(), expected.imag, atol=1e-3, rtol=1e-3)
    assert torch.equal(turned[..., 6:], x[..., 6:]) and torch.equal(turned[0], x[0])


def test_rope_does_not_depend_on_which_positions_came_first() -> None:
    inverse = tuple(0.7**pair for pair in range(13))
    near_first, far_first = (ops.RopeTable(inverse, 1.0, torch.device("cpu")) for _ in range(2))
    near_first.rows(torch.tensor([3]), 3)
    positions = torch.tensor([3, 1500, 3000])
    for one, other in zip(near_first.rows(positions, 3000), far_first.rows(positions, 3000), strict=True):
        assert torch.equal(one, other)


def test_equal_experts_go_to_the_lower_id() -> None:
    logits = torch.zeros(3, 8)
    logits[1, 6] = 1
    ids, shares = ops.choose_experts(logits, 2, True)
    assert ids.tolist() == [[0, 1], [6, 0], [0, 1]]
    torch.testing.assert_close(shares.sum(-1), torch.ones(3))
    assert torch.equal(ops.choose_experts(logits, 2, False)[1][0], torch.full((2,), 0.125))


def test_experts_add_in_ascending_id() -> None:
    order: list[int] = []
    experts = [lambda x, number=number: order.append(number) or x * number for number in range(4)]
    ids, shares = torch.tensor([[3, 1], [0, 3]]), torch.tensor([[0.5, 0.25], [1.0, 2.0]])
    out = ops.mixture(torch.ones(2, 5), ids, shares, experts)
    assert order == [0, 1, 3]
    torch.testing.assert_close(out, torch.tensor([[1.75], [6.0]]).expand(2, 5))
