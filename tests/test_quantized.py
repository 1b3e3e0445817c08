"""Products of integers: right to the definition, each row alone; and quantized models from load to disk and back."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import pairwise

import checkpoints
import pytest
import torch
from decoder import Lanes
from test_kernels import varies

from stretto import LLM
from stretto.core.chunk import Chunk
from stretto.kernels import reference as ops
from stretto.kernels.quantized import LIMITS, Quantized, shard_borders
from stretto.models.folding import Folding, sites
from stretto.models.loader import load_model, open_source
from stretto.models.quantize import quantize
from stretto.models.transformer import Transformer
from stretto.weights import Checkpoint
from stretto.weights.formats import FORMATS
from stretto.weights.twin import write_twin

QUANTIZED = [name for name, each in FORMATS.items() if each.quantized]
SHAPES = [(97, 72), (64, 24), (48, 333)]
"""(outputs, inputs)"""


def rows_and_matrix(shape: tuple[int, int], name: str) -> tuple[torch.Tensor, Quantized, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, shape[1], generator=generator)
    rows[3, 5], rows[4] = 300.0, 0.0
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
    return rows, FORMATS[name].encode(weight), bias


def scalar(row: list[float], matrix: Quantized, output: int, borders: tuple[int, ...]) -> float:
    """One output of one row in float64, number by number, as the documentation has it."""
    limit, size = LIMITS[matrix.activations], matrix.shape[1]
    row = row + [0.0] * (borders[-1] - len(row))
    centre = 8 if matrix.layout == "int4" else 0
    total = 0.0
    for first, last in pairwise(borders):
        for start in range(first, last, 32):
            seen = row if matrix.activations == "int8_row" else row[start : start + 32]
            peak = max(map(abs, seen))
            if peak == 0:
                continue
            numbers = [round(value * limit / peak) for value in row[start : start + 32]]
            weights = [int(value) - centre for value in matrix.values[output, start : min(size, start + 32)]]
            part = sum(number * weight for number, weight in zip(numbers, weights, strict=False)) * peak / limit
            total += part * float(matrix.scales[output, start // 32]) if matrix.layout == "int4" else part
    return total if matrix.layout == "int4" else total * float(matrix.scales[output])


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANTIZED)
def test_linear_is_what_it_says_and_a_row_is_alone(name, shape, sharded):
    rows, matrix, bias = rows_and_matrix(shape, name)
    packed = ops.pack([matrix], [bias], dtype=torch.float32, sharded=sharded)
    given = ops.linear(rows, packed)[:, : shape[0]]
    borders = shard_borders(shape[1])
    assert len(borders) == 9 and borders[-1] >= shape[1] and not any(border % 32 for border in borders)
    for row in (0, 3, 4):
        for output in (0, 1, shape[0] - 1):
            expected = scalar(rows[row].tolist(), matrix, output, borders) + float(bias[output])
            assert math.isclose(float(given[row, output]), expected, rel_tol=1e-5, abs_tol=1e-3), (row, output)
    assert not varies(partial(ops.linear, packed=packed), rows)
    assert ops.linear(rows[:0], packed).shape == (0, packed.values.shape[-1])


@pytest.mark.parametrize("name", QUANTIZED)
def test_several_matrices_lie_side_by_side(name):
    rows, first, bias = rows_and_matrix((64, 72), name)
    second = FORMATS[name].encode(torch.randn(33, 72))
    packed = ops.pack([first, second], [bias, None], dtype=torch.float32, align=128)
    given = ops.linear(torch.constant_pad_nd(rows, (0, 100)), packed)
    assert given.shape == (40, 256) and not given[:, 64:128].any() and not given[:, 161:].any()
    assert torch.equal(given[:, :64], ops.linear(rows, ops.pack([first], [bias], dtype=torch.float32)))
    alone = ops.linear(rows, ops.pack([second], dtype=torch.float32))[:, :33]
    assert torch.equal(given[:, 128:161], alone)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", QUANTIZED)
def test_what_is_not_finite_stays_in_its_row(name, bad):
    rows, matrix, _ = rows_and_matrix((64, 256), name)
    packed = ops.pack([matrix], dtype=torch.float32, sharded=True)
    expected = ops.linear(rows, packed)
    rows[7, 100] = bad
    given = ops.linear(rows, packed)
    assert given[7].isnan().all()
    rest = torch.arange(40) != 7
    assert torch.equal(given[rest], expected[rest])


def test_a_group_keeps_an_outlier_to_itself():
    """And finer digits lose less: the control that one scale for a row (int8-fast) must fail."""
    generator = torch.Generator().manual_seed(2)
    rows, weight = torch.randn(30, 512, generator=generator), torch.randn(64, 512, generator=generator)
    rows[:, 77] *= 300
    exact = rows.double() @ weight.double().T

    def error(name: str) -> float:
        matrix = FORMATS[name].encode(weight)
        meant = rows.double() @ matrix.dequantize().double().T
        given = ops.linear(rows, ops.pack([matrix], dtype=torch.float32))
        return float((given - meant).norm() / exact.norm())

    int8, two_digits, per_row = error("int8"), error("int8x2"), error("int8-fast")
    assert two_digits < 0.01 * int8 and per_row > 3 * int8, (int8, two_digits, per_row)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint each of a tied and biased, a mixture, a fused and an offset family."""
    place = tmp_path_factory.mktemp("checkpoints")
    for case in ("llama", "mixtral", "gpt2", "gemma2"):
        checkpoints.make(place / case, case, dtype=torch.bfloat16 if case == "gemma2" else torch.float32)
    return place


def logits(folder, weights: str) -> torch.Tensor:
    return LLM(str(folder), weights=weights, cache_tokens=256).logits(checkpoints.token_ids(60))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("case", ["llama", "mixtral", "gpt2", "gemma2"])
def test_a_quantized_folder_is_quantizing_at_load(folders, tmp_path, case, name):
    said: list[tuple[int, int]] = []
    quantize(folders / case, tmp_path / "out", name, lambda done, total: said.append((done, total)))
    assert said[-1][0] == said[-1][1]
    at_load = load_model(folders / case, weights=name)
    stored = load_model(tmp_path / "out")
    assert stored.fingerprint == at_load.fingerprint != load_model(folders / case).fingerprint
    assert stored.dtype == at_load.dtype
    assert torch.equal(logits(tmp_path / "out", "auto"), logits(folders / case, name))
    assert load_model(tmp_path / "out", weights=name).fingerprint == stored.fingerprint
    with pytest.raises(ValueError, match=f"weights is 'bf16', but .* holds {name}"):
        load_model(tmp_path / "out", weights="bf16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "awq"}, "quantization_config"),
        ({"bits": 3}, "bits missing or not known"),
        ({"version": 99}, "version 99"),
        ({"format": "int5"}, "format is 'int5'"),
        ({"content": "0"}, "changed after stretto quantize"),
    ],
)
def test_a_record_that_does_not_hold_is_refused(folders, tmp_path, change, message):
    quantize(folders / "llama", tmp_path / "out", "int8")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] |= change
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "out")


def test_quantize_refuses_what_it_cannot_do(folders, tmp_path):
    with pytest.raises(ValueError, match="expected one of int8"):
        quantize(folders / "llama", tmp_path / "out", "bf16")
    quantize(folders / "llama", tmp_path / "out", "int8")
    with pytest.raises(ValueError, match="holds int8 already"):
        quantize(tmp_path / "out", tmp_path / "again", "int8")
    with pytest.raises(ValueError, match="not an empty folder"):
        quantize(folders / "llama", tmp_path / "out", "int8")


def tensors_of(folder) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.get(name) for name in checkpoint.names()}


def test_the_twin_is_the_same_function_and_folding_undoes_it(tmp_path):
    """To the last bit in fp32 (64 is a power of two). Control: int8-fast, neither folded nor in groups, suffers."""
    checkpoints.make(tmp_path / "plain", "llama-linear", dtype=torch.bfloat16)
    write_twin(tmp_path / "plain", tmp_path / "twin")
    plain, altered = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "twin")
    assert all(not torch.equal(plain[name], altered[name]) for name in plain if "norm" in name or "down_proj" in name)
    exact = logits(tmp_path / "plain", "fp32")
    assert torch.equal(logits(tmp_path / "twin", "fp32"), exact)

    def error(weights: str) -> float:
        return float((logits(tmp_path / "twin", weights) - exact).norm() / exact.norm())

    lossy = {name: error(name) for name in QUANTIZED}
    assert lossy["int8x2"] < lossy["int8"] < lossy["int4"] < 0.6, lossy
    assert lossy["int8-fast"] > 5 * lossy["int8"], lossy


@pytest.mark.parametrize("case", ["llama", "mixtral", "gpt2", "gemma2"])
def test_folding_leaves_the_function_as_it_was(folders, case):
    """A model of folded parameters, not quantized, says what the model with the loud channels says."""
    source = open_source(folders / case, "fp32")
    loud: dict[str, torch.Tensor] = dict(source.parameters)
    if "head" not in loud:
        loud["head"] = loud["embed"].clone()
    found = list(sites(source.spec))
    for number, site in enumerate(found):
        channels = torch.tensor([number % 24, 40])
        for name in (f"{site.source}.weight", f"{site.source}.bias"):
            if name in loud:
                offset = site.offset if name.endswith("weight") else 0.0
                loud[name][channels] = (loud[name][channels] + offset) * 64 - offset
        for name in site.readers:
            loud[name][:, channels] /= 64
    folding = Folding(source.spec, loud.__getitem__)
    folded = {name: folding.fold(name, tensor.clone()) for name, tensor in loud.items()}
    assert not any(torch.equal(folded[name], loud[name]) for name in (f"{site.source}.weight" for site in found))
    tokens = checkpoints.token_ids(20)
    before, after = (decoder_logits(source.spec, parameters, tokens) for parameters in (loud, folded))
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


def decoder_logits(spec, parameters, tokens: list[int]) -> torch.Tensor:
    model = Transformer(spec, parameters, name="test", dtype=torch.float32, fingerprint="test")
    chunk = Chunk(0, "test", tokens, list(range(len(tokens))))
    return Lanes(model).run(chunk).logits
