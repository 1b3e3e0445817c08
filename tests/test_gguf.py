"""GGUF files: every kind and architecture gives the weights, specification and logits of transformers' model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import gguf_files
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from stored_models import assert_as_rounded, assert_greedy, distance, exact, logits
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from stretto import LLM
from stretto.cli.info import examine
from stretto.models.loader import open_source
from stretto.models.quantize import quantize
from stretto.models.stored import open_checkpoint
from stretto.tokens.gguf_header import read_header
from stretto.weights.gguf import GgufFile

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "llama-linear": {},
    "llama-llama3": {"head_dim": 80},
    "llama-yarn": {"rope_parameters": YARN},
    "mixtral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "head_dim": 24, "num_attention_heads": 8},
    "qwen3_moe": {"use_sliding_window": False, "mlp_only_layers": [], "moe_intermediate_size": 64},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7}
    | {"layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]},
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "use_sliding_window": False},
    "arcee": {},
    "seed_oss": {"attention_out_bias": False, "mlp_bias": False},
    "ernie4_5": {},
    "hunyuan_v1_dense": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3}},
    "glm4": {},
    "cohere": {"attention_bias": False},
    "cohere2": {"num_hidden_layers": 4, "layer_types": [*["sliding_attention"] * 3, "full_attention"]},
    "nemotron": {},
    "starcoder2": {"sliding_window": None},
}


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_is_the_same_model(case: str, tmp_path: Path):
    """Its kinds take turns, so that stacks of experts, biases and reordered rows are seen in blocks, too."""
    path = tmp_path / "model.gguf"
    model = gguf_files.write_gguf(
        path, case, Kind.Q8_0, kinds={"v_proj": Kind.F16, "embed": Kind.BF16}, **SMALL | CASES[case]
    )
    exact(path, model, tmp_path / "plain")
    assert distance(logits(path), model) < 1e-4
    assert_greedy(path, model)


HARMLESS = {"context_length", "vocab_size", "rope.scaling.finetuned"}
"""Keys that do not change the logits."""


@pytest.mark.parametrize(
    "case", ["llama", "llama-linear", "mixtral", "gemma2", "phi3", "granite", "cohere2", "nemotron"]
)
def test_no_key_is_overlooked(case: str, tmp_path: Path):
    """Each key of the architecture is altered, one at a time: the file is refused, or is another model."""
    path = tmp_path / "model.gguf"
    gguf_files.write_gguf(path, case, **SMALL | CASES[case])
    before, whole = logits(path), path.read_bytes()
    name = GgufFile(path).metadata["general.architecture"]
    keys = [key for key in GgufFile(path).metadata if key.startswith(f"{name}.")]
    assert len(keys) > 10
    unseen = set()
    for key in keys:
        path.write_bytes(whole)
        field = GGUFReader(str(path), "r+").fields[key]
        place = field.parts[field.data[0]]
        place[:] = ord("x") if place.dtype == np.uint8 else place + 1 if place.dtype.kind in "iu" else place * 1.5
        place.base.flush()
        try:
            found = logits(path)
        except ValueError:
            continue
        if torch.equal(found, before):
            unseen.add(key.removeprefix(f"{name}."))
    assert unseen <= HARMLESS, unseen


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_for_what_the_package_says(kind: str, tmp_path: Path):
    path = tmp_path / "model.gguf"
    model = gguf_files.write_gguf(path, "llama", Kind[kind], **gguf_files.MATRICES, head_dim=64)
    exact(path, model, tmp_path / "plain")
    if kind == "Q4_0":
        assert_as_rounded(path, model, open_checkpoint(path))
    else:
        assert distance(logits(path), model) < 1e-4


def test_longrope_is_read_from_its_tensors(tmp_path: Path):
    """On a text that goes beyond the original context, where the other factors hold."""
    short = [1.0, 1.1, 1.3, 1.2, 1.5, 1.4, 1.6, 1.7]
    factors = {"short_factor": short, "long_factor": [2 * factor + place for place, factor in enumerate(short)]}
    rope = {"rope_type": "longrope", "rope_theta": 1e3, "original_max_position_embeddings": 32, **factors}
    overrides = {"rope_parameters": rope, "original_max_position_embeddings": 32, "sliding_window": None}
    model = gguf_files.write_gguf(tmp_path / "model.gguf", "phi3", Kind.Q8_0, **SMALL | overrides)
    exact(tmp_path / "model.gguf", model, tmp_path / "plain")
    assert distance(logits(tmp_path / "model.gguf"), model) < 1e-4


def test_experts_stay_as_they_are(tmp_path: Path):
    """Each a part of the stack in which files hold them, and read by kernels that round their inputs. All are chosen,
    so that no rounding changes who is."""
    path = tmp_path / "model.gguf"
    overrides = CASES["mixtral"] | {"num_experts_per_tok": 6}
    model = gguf_files.write_gguf(path, "mixtral", kinds={"experts": Kind.Q4_0}, **SMALL | overrides)
    exact(path, model, tmp_path / "plain")
    kept = open_checkpoint(path).keeps
    assert sum(".experts." in name for name in kept) == 2 * 6 * 3 and not any("gate.weight" in name for name in kept)
    assert 1e-4 < distance(logits(path), model) < 0.05


def test_q4_0_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """All matrices but the lookups, which are widened; where one of a product's matrices is not, its company is."""
    path, kinds = tmp_path / "model.gguf", {"layers.1.self_attn.v": Kind.Q6_K}
    gguf_files.write_gguf(path, "llama", Kind.Q4_0, kinds=kinds, **gguf_files.MATRICES, head_dim=64)
    parameters = open_source(path, "auto").parameters
    layouts = {name: getattr(parameters[name], "layout", "float") for name in parameters}
    assert {name for name, layout in layouts.items() if layout == "int4"} == {
        "head", "layers.0.query.weight", "layers.0.key.weight", "layers.0.value.weight",
        *(f"layers.{i}.{name}.weight" for i in (0, 1) for name in ("output", "gate", "up", "down")),
    }  # fmt: skip
    assert examine(str(path))["stored_as"] == "Q4_0, Q6_K" and "auto" in examine(str(path))["formats"]
    with caplog.at_level(logging.WARNING):
        LLM(str(path))
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("stretto.models")]
    assert (
        "Q4_0 kept as stored" in line
        and "Q4_0, Q4_0 lookups, Q6_K widened to fp32" in line
        and "weights='int8'" in line
    )


def test_asked_for_by_name_a_format_encodes_what_the_file_stands_for(tmp_path: Path):
    """And ``stretto quantize`` writes the same, with the fingerprint of the file in that format."""
    path, folder = tmp_path / "model.gguf", tmp_path / "int8"
    model = gguf_files.write_gguf(path, "llama-llama3", Kind.Q4_0, **SMALL)
    model.save_pretrained(tmp_path / "plain")
    quantize(path, folder, "int8")
    ids = checkpoints.token_ids(32)
    found = [
        LLM(str(each), weights=form) for each, form in ((path, "int8"), (folder, "auto"), (tmp_path / "plain", "int8"))
    ]
    first, *others = [llm.logits(ids) for llm in found]
    assert all(torch.equal(first, other) for other in others)
    assert (
        found[0].fingerprint
        == found[1].fingerprint
        != LLM(str(path)).fingerprint
        != LLM(str(path), weights="fp32").fingerprint
    )


@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma2"])
def test_transformers_reads_the_same_out_of_the_file(case: str, tmp_path: Path):
    """Its own reader of such files, as a second opinion on names, keys and the order of rows."""
    path, unsaid = tmp_path / "model.gguf", {"attention_bias": False, "mlp_bias": False}
    if case == "gemma2":  # its reader leaves at their defaults what files say of caps
        unsaid |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    gguf_files.write_gguf(path, case, Kind.Q5_0, **SMALL | CASES[case] | unsaid)
    config = AutoConfig.for_model(**load_gguf_checkpoint(path)["config"])
    if case == "gemma2":
        config.query_pre_attn_scalar = config.head_dim  # of which files say nothing
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict(tensors, strict=False)
    assert distance(logits(path), theirs) < 1e-4


def swapped_nibbles(path: Path) -> None:
    """Write the two halves of every group of Q4_0 the other way round."""
    raw = np.fromfile(path, np.uint8)
    for tensor in GGUFReader(str(path)).tensors:
        if tensor.tensor_type == Kind.Q4_0:
            blocks = raw[tensor.data_offset : tensor.data_offset + tensor.n_bytes].reshape(-1, 18)
            blocks[:, 2:] = blocks[:, 2:] << 4 | blocks[:, 2:] >> 4
    raw.tofile(path)


@pytest.mark.parametrize("wrong", ["order of rows", "order of nibbles"])
def test_a_wrong_order_shows(wrong: str, tmp_path: Path):
    """The comparisons above must notice such a reader: here the file is written wrong, and the reader is right."""
    path = tmp_path / "model.gguf"
    model = gguf_files.write_gguf(path, "llama", Kind.Q4_0, reorder=wrong != "order of rows", **SMALL)
    if wrong == "order of nibbles":
        swapped_nibbles(path)
    with pytest.raises(AssertionError):
        exact(path, model, tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_as_rounded(path, model, open_checkpoint(path))


def test_the_header_is_read_as_the_package_reads_it(tmp_path: Path):
    path = tmp_path / "model.gguf"
    gguf_files.write_gguf(path, "gemma2", Kind.Q6_K, **gguf_files.MATRICES, head_dim=64)
    theirs, ours = GGUFReader(str(path)), GgufFile(path)
    assert ours.metadata == {key: each.contents() for key, each in theirs.fields.items() if not key.startswith("GGUF.")}
    assert {tensor.name for tensor in theirs.tensors} == ours.entries.keys()
    for tensor in theirs.tensors:
        entry = ours.entries[tensor.name]
        assert (entry.kind, entry.start) == (tensor.tensor_type.name, tensor.data_offset)
        assert list(entry.shape) == tensor.shape.tolist()[::-1] and entry.rows * entry.row == tensor.n_bytes


def written(path: Path, **keys: object) -> bytes:
    """Return a file of a small model with further metadata."""
    writer = gguf_files.gguf.GGUFWriter(str(path), "llama")
    for key, value in keys.items():
        writer.add_key_value(key.replace("__", "."), value, gguf_files.gguf.GGUFValueType.get_type(value))
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path.read_bytes()


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "other format": lambda whole: b"PK" + whole[2:],
    "version": lambda whole: whole[:4] + number(9, 4) + whole[8:],
    "tensors without end": lambda whole: whole[:8] + number(1 << 60) + whole[16:],
    "keys without end": lambda whole: whole[:16] + number(1 << 60) + whole[24:],
    "keys beyond the file": lambda whole: whole[:16] + number(1 << 20) + whole[24:],
    "text beyond the file": lambda whole: whole[:24] + number(1 << 62) + whole[32:],
    "array without end": lambda whole: whole[:24] + number(1) + b"a" + number(9, 4) + number(0, 4) + number(1 << 60),
    "array of arrays": lambda whole: whole[:24] + number(1) + b"a" + number(9, 4) + number(9, 4) + number(1 << 20),
    "cut in the header": lambda whole: whole[:60],
    "cut in the tensors": lambda whole: whole[:-40],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGE[damage](written(path)))
    with pytest.raises(ValueError, match=r"model\.gguf .*download it again"):
        GgufFile(path)


def test_what_is_not_honoured_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "model.gguf"
    sizes = {"llama__embedding_length": 32, "llama__attention__head_count": 2}
    for keys, words in (
        ({"llama__attention__temperature": 2.0}, "llama.attention.temperature = 2.0"),
        ({"llama__attention__value_length": 8}, "llama.attention.value_length"),
        ({"llama__rope__scaling__type": "other"}, "'other'"),
        ({"split__count": 3}, "merge them"),
        ({"llama__attention__key_length": "x"}, "key_length is 'x', expected a positive whole number"),
        ({"llama__attention__head_count_kv": [1, 2]}, "the same for all layers"),
    ):
        written(path, **sizes, **keys)
        with pytest.raises(ValueError, match=words):
            open_source(path, "auto")
    written(path)
    with pytest.raises(ValueError, match="embedding_length is None"):
        open_source(path, "auto")
    writer = gguf_files.gguf.GGUFWriter(str(path), "mamba")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(ValueError, match="'mamba', expected one of llama, "):
        open_source(path, "auto")


def test_a_folder_with_one_file_will_do_and_with_two_will_not(tmp_path: Path):
    model = gguf_files.write_gguf(tmp_path / "one.gguf", "llama", **SMALL)
    assert distance(logits(tmp_path), model) < 1e-4
    (tmp_path / "two.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several GGUF files \(one.gguf, two.gguf\)"):
        open_source(tmp_path, "auto")


def test_the_vocabulary_is_left_out_unless_asked_for(tmp_path: Path):
    path = tmp_path / "model.gguf"
    written(path, tokenizer__ggml__tokens=["a", "bc"], tokenizer__ggml__scores=[0.0, 1.0])
    assert read_header(path).metadata["tokenizer.ggml.tokens"] == 2
    found = read_header(path, vocabulary=True).metadata
    assert (found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"]) == (["a", "bc"], [0.0, 1.0])
