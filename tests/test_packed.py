"""AWQ, GPTQ and compressed-tensors: the weights that each layout stands for, and transformers' logits with them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import packed_files
import pytest
import torch
from packed_files import Write, awq, compressed, gptq, group_described, plain_bytes
from stored_models import assert_as_rounded, distance, exact, logits

from stretto import LLM
from stretto.kernels.quantized import Quantized
from stretto.models.footprint import footprint
from stretto.models.loader import open_source
from stretto.models.quantize import quantize
from stretto.models.stored import open_checkpoint
from stretto.weights.formats import own_format

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
SECOND = GPTQ | {"checkpoint_format": "gptq_v2"}
INT4, INT8 = group_described("pack-quantized"), group_described("pack-quantized", num_bits=8, strategy="channel")
BYTES = group_described("int-quantized", num_bits=8, strategy="channel")


class Case(NamedTuple):
    write: Write
    described: dict[str, Any]
    layout: str | None
    """In which format of ours its matrices stay; None: they are widened."""
    dtype: torch.dtype = torch.float16
    """Of the other weights."""


CASES = {
    "awq": Case(awq(64), AWQ, "int4"),
    "awq, groups of 32": Case(awq(32), AWQ | {"group_size": 32}, "int4"),
    "awq, groups of 16": Case(awq(16), AWQ | {"group_size": 16}, None),
    "gptq": Case(gptq(64), GPTQ, "int4"),
    "gptq, one group": Case(gptq(-1), GPTQ | {"group_size": -1}, "int4"),
    "gptq, zeros": Case(gptq(32, symmetric=False), GPTQ | {"sym": False}, "int4"),
    "gptq, zeros, second version": Case(gptq(32, symmetric=False, shift=0), SECOND, "int4"),
    "gptq, 2 bits": Case(gptq(64, bits=2, symmetric=False), GPTQ | {"bits": 2}, "int4"),
    "gptq, biases of zeros": Case(gptq(64, bias=True), GPTQ, "int4"),
    "gptq, groups in any order": Case(gptq(64, shuffled=True), GPTQ | {"desc_act": True}, None),
    "gptq, 8 bits": Case(gptq(64, bits=8), GPTQ | {"bits": 8}, None),
    "gptq, 8 bits, one group": Case(gptq(-1, bits=8), GPTQ | {"bits": 8, "group_size": -1}, "int8"),
    "compressed": Case(compressed(64), INT4, "int4", torch.bfloat16),
    "compressed, zeros": Case(compressed(32, symmetric=False), INT4, "int4", torch.bfloat16),
    "compressed, fp32 scales": Case(compressed(64, dtype=torch.float32), INT4, None, torch.bfloat16),
    "compressed, groups in any order": Case(compressed(64, shuffled=True), INT4, None),
    "compressed, 8 bits": Case(compressed(-1, bits=8), INT8, "int8", torch.bfloat16),
    "compressed, 8 bits in groups": Case(compressed(64, bits=8), INT8, None, torch.bfloat16),
    "compressed, bytes": Case(plain_bytes(), BYTES, "int8", torch.bfloat16),
    "compressed, bytes with zeros": Case(plain_bytes(symmetric=False), BYTES, None, torch.bfloat16),
}
PLAIN = {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}


def write(folder: Path, case: Case, **overrides: Any) -> Any:
    return packed_files.write_packed(folder, case.write, case.described, case.dtype, **PLAIN | overrides)


def layout(matrix: torch.Tensor | Quantized) -> str | None:
    return matrix.layout if isinstance(matrix, Quantized) else None


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_the_same_model(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """To the bit in its weights, whichever way they are kept; in its logits with inputs rounded where they are."""
    case, folder = CASES[name], tmp_path / "packed"
    model = write(folder, case)
    exact(folder, model, tmp_path / "plain")
    source = open_source(folder, "auto")
    assert {layout(source.parameters[f"layers.{i}.{name}.weight"]) for i in (0, 1) for name in ("query", "down")} == {
        case.layout
    }
    assert source.own() is (torch.bfloat16 if case.layout and case.dtype is torch.bfloat16 else torch.float32)
    with caplog.at_level(logging.WARNING):
        if case.layout is None:
            assert distance(logits(folder), model) < 1e-4
        else:
            assert_as_rounded(folder, model, source.checkpoint)
    assert ("kept as stored" in caplog.text) == (case.layout is not None)
    assert ("widened to fp32, for want" in caplog.text) == (case.layout is None)


WRONG = {
    "order of nibbles": Case(awq(64, order=tuple(range(8))), AWQ, "int4"),
    "zeros off by one": Case(gptq(32, symmetric=False), SECOND, "int4"),
    "groups in any order, not said": Case(gptq(64, shuffled=True), GPTQ, "int4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reading_shows(name: str, tmp_path: Path):
    """The comparisons above must notice such a reader: here the file is written wrong, and the reader is right."""
    folder = tmp_path / "packed"
    model = write(folder, WRONG[name])
    if "not said" in name:
        drop_parts(folder, "g_idx")
    with pytest.raises(AssertionError):
        exact(folder, model, tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_as_rounded(folder, model, open_checkpoint(folder))


def drop_parts(folder: Path, part: str) -> None:
    tensors = packed_files.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(part)}
    packed_files.save_file(kept, folder / "model.safetensors")


def test_memory_is_told_from_what_stays_as_it_is(tmp_path: Path):
    """A model whose matrices are widened needs several times as much as one whose matrices stay."""
    taken = {}
    for name in ("awq", "awq, groups of 16"):
        write(tmp_path / name, CASES[name])
        source = open_source(tmp_path / name, "auto")
        form = source.parameters.matrices
        taken[name] = footprint(source.spec, form, own_format(source.own()), torch.float32).weights
        found = [matrix for matrix in source.parameters.values() if len(matrix.shape) > 1]
        held = sum(
            matrix.values.nbytes // 2 + matrix.scales.nbytes if isinstance(matrix, Quantized) else matrix.nbytes
            for matrix in found
        )
        assert taken[name] == pytest.approx(held, rel=0.1)
    assert taken["awq, groups of 16"] > 2 * taken["awq"]


def test_asked_for_by_name_a_format_encodes_what_the_numbers_stand_for(tmp_path: Path):
    write(tmp_path / "packed", CASES["awq"]).save_pretrained(tmp_path / "plain")
    ids = checkpoints.token_ids(32)
    quantize(tmp_path / "packed", tmp_path / "int8", "int8")
    packed, plain = (LLM(str(tmp_path / name), weights="int8", dtype="fp32") for name in ("packed", "plain"))
    again = LLM(str(tmp_path / "int8"), dtype="fp32")
    assert torch.equal(packed.logits(ids), plain.logits(ids)) and torch.equal(packed.logits(ids), again.logits(ids))
    assert packed.fingerprint == again.fingerprint
    prints = {LLM(str(tmp_path / "packed"), weights=form).fingerprint for form in ("auto", "fp32", "int4")}
    assert len(prints) == 3


def test_a_matrix_that_is_not_packed_keeps_its_company_from_staying(tmp_path: Path):
    """Matrices side by side in one product have one layout: here a value projection was left as it was."""
    folder = tmp_path / "packed"
    write(folder, CASES["awq"])
    tensors = packed_files.load_file(folder / "model.safetensors")
    stem = "model.layers.1.self_attn.v_proj"
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(stem)}
    tensors[f"{stem}.weight"] = torch.randn(64, 128).half()
    packed_files.save_file(tensors, folder / "model.safetensors")
    parameters = open_source(folder, "auto").parameters
    kept = [layout(parameters[f"layers.1.{name}.weight"]) for name in ("query", "value", "output")]
    assert kept == [None, None, "int4"]
    assert LLM(str(folder)).logits([1, 2]).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes', expected awq, gptq"),
        ({"version": "gemv"}, "version is 'gemv', expected 'gemm'"),
        ({"quant_method": "gptq", "bits": 3}, "bits is 3, expected 2 or 4 or 8"),
        (group_described("marlin-24"), "format is 'marlin-24'"),
        (group_described("pack-quantized", type="float"), "type is 'float', expected 'int'"),
        (INT4, "no tensor is named"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path):
    folder = tmp_path / "packed"
    write(folder, Case(awq(64), AWQ | changes, None))
    with pytest.raises(ValueError, match=f"quantization_config.*{words}"):
        open_source(folder, "auto")


def test_parts_that_do_not_fit_are_refused(tmp_path: Path):
    folder = tmp_path / "packed"
    write(folder, CASES["gptq"])
    drop_parts(folder, "layers.0.mlp.up_proj.qzeros")
    with pytest.raises(ValueError, match=r"up_proj\.qzeros|up_proj\.\w+"):
        open_source(folder, "auto")
