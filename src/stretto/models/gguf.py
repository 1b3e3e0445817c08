"""GGUF files as checkpoints of the families there are: an architecture is a row of ``gguf_table``."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import KeysView, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.models.gguf_rope import describe_rope
from stretto.models.gguf_table import ARCHITECTURES, KEYS, LAYER, TOP, Architecture
from stretto.weights.gguf import FLOATS, READABLE, GgufFile
from stretto.weights.stored import StoredQuantized, select_rows

_CONSUMED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration speaks of."""

# Keys that say nothing about the logits, or what the tensors' shapes tell as well.
_SILENT = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "rope.dimension_count"}
_OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.dimension_count")
_WHOLE = ("embedding_length", "attention.head_count", *_OPTIONAL)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the checkpoint lies in the file, and what was done to it when it was written."""

    tensor: str
    rows: range | None = None
    heads: int = 0
    offset: float = 0.0


class GgufCheckpoint(StoredQuantized):
    """A GGUF file under the names that its family has elsewhere, its metadata under the keys of ``config.json``."""

    lookups = frozenset({"model.embed_tokens.weight"})

    def __init__(self, path: Path) -> None:
        """Raises ``ValueError`` for a damaged file, and for one that says what its family does not honour."""
        self.folder = path
        self._file = GgufFile(path)
        name = self._file.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise ValueError(
                f"{path}: general.architecture is {name!r}, expected one of {', '.join(ARCHITECTURES)}; use the "
                "checkpoint that the file was made from"
            )
        row = ARCHITECTURES["mixtral" if name == "llama" and self._file.metadata.get("llama.expert_count") else name]
        self.config = configuration(self._file, name, row)
        self._places: dict[str, _Place] = {}
        for tensor in self._file.entries:
            if tensor not in _CONSUMED:
                self._places |= _places(self._file, tensor, row, self.config)
        stored = {ours: self._file.entries[place.tensor].kind for ours, place in self._places.items()}
        self.kinds = {ours: kind for ours, kind in stored.items() if kind not in FLOATS}
        self.readable = {ours: "int4" for ours, kind in self.kinds.items() if kind == READABLE}

    def names(self) -> KeysView[str]:
        """The names of all tensors, as in the family's other checkpoints."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        place = self._places[name]
        shape = self._file.entries[place.tensor].shape
        return shape if place.rows is None else (len(place.rows), shape[-1])

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor as floating point, converted to ``dtype`` if given."""
        place = self._places[name]
        tensor = self._file.read(place.tensor, place.rows)
        if place.heads:
            tensor = tensor[_halves(len(tensor), place.heads)]
        if place.offset:
            tensor = tensor.float() - place.offset
        return tensor if dtype is None else tensor.to(dtype)

    def matrix(self, name: str) -> Quantized:
        """Return a matrix of ``keeps`` as it is stored."""
        place = self._places[name]
        matrix = self._file.matrix(place.tensor, place.rows)
        return select_rows(matrix, _halves(len(matrix.values), place.heads)) if place.heads else matrix

    def floating(self) -> Counter[torch.dtype]:
        """Return how many weights of matrices are stored in each floating-point precision."""
        found: Counter[torch.dtype] = Counter()
        for entry in self._file.entries.values():
            if entry.kind in FLOATS and len(entry.shape) > 1:
                found[FLOATS[entry.kind]] += math.prod(entry.shape)
        return found

    def content(self) -> str:
        """A hash of the tensors, as of any checkpoint: all of small ones, beginning and end of the others."""
        digest = hashlib.sha256()
        for name, entry in sorted(self._file.entries.items()):
            digest.update(json.dumps([name, entry.shape, entry.kind]).encode())
            digest.update(self._file.sample(name))
        return digest.hexdigest()[:16]


def configuration(file: GgufFile, name: str, row: Architecture) -> dict[str, Any]:
    """Return what ``config.json`` would say about the model in ``file``, whose architecture ``name`` is.

    Raises ``ValueError`` that names every key of the architecture which is not honoured.
    """
    told = {key.removeprefix(f"{name}."): each for key, each in file.metadata.items() if key.startswith(f"{name}.")}
    facts = {key: _shortest(each) for key, each in told.items()}
    if "token_embd.weight" not in file.entries:
        raise ValueError(f"{file.path} has no tensor token_embd.weight, expected a model of text")
    config: dict[str, Any] = {
        "model_type": row.model_type,
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.entries,
        **row.fixed,
        **{flag: f"blk.0.{stem}.bias" in file.entries for flag, stem in row.biases.items()},
    }
    for key, ours in {**KEYS, **row.keys}.items():
        if key in facts:
            config[ours] = _same(facts.pop(key), f"{file.path}: {name}.{key}")
    for key in _WHOLE:
        value = config.get(KEYS[key]) if key in KEYS else facts.get(key)
        if not (isinstance(value, int) and value > 0) and (value is not None or key not in _OPTIONAL):
            raise ValueError(f"{file.path}: {name}.{key} is {value!r}, expected a positive whole number")
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None
    heads, turned = config["num_attention_heads"], facts.get("rope.dimension_count")
    config.setdefault("num_key_value_heads", heads)
    size = config.setdefault("head_dim", turned or config["hidden_size"] // heads)
    if facts.pop("attention.value_length", size) != size:
        raise ValueError(f"{file.path}: {name}.attention.value_length is not {name}.attention.key_length ({size})")
    if turned not in (None, size):
        config["partial_rotary_factor"] = turned / size
    if row.model_type in ("gemma2", "gemma3_text"):
        config["query_pre_attn_scalar"] = _score_scale(config)
    describe_rope(facts, file, config)
    ends = (f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
    config["eos_token_id"] = sorted({file.metadata[key] for key in ends if key in file.metadata})
    left = {key: value for key, value in facts.items() if key not in _SILENT and value not in (0, False)}
    if left:
        listed = ", ".join(f"{name}.{key} = {value!r}" for key, value in left.items())
        raise ValueError(
            f"{file.path}: {listed} not known for this architecture, expected no such key because it may change the "
            "result; use the checkpoint that the file was made from"
        )
    return config


def _shortest(value: Any) -> Any:
    """Return a number of fp32, in which files hold them, as the shortest decimal that means it: 1e-5 as it was."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _same(value: Any, place: str) -> Any:
    """Return a value that may be written once for each layer. Raises ``ValueError`` where layers differ."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{place} is {value}, expected the same for all layers")
    return value[0]


def _score_scale(config: Mapping[str, Any]) -> float:
    """Return what Gemma divides scores by (its square root): the files do not say, but the 27 B models alone differ."""
    largest = {"gemma2": 46, "gemma3_text": 62}[config["model_type"]]
    if config["num_hidden_layers"] == largest:
        return float(config["hidden_size"] / config["num_attention_heads"])
    return float(config["head_dim"])


def _places(file: GgufFile, tensor: str, row: Architecture, config: Mapping[str, Any]) -> dict[str, _Place]:
    """Return the checkpoint's tensors that lie in ``tensor``; one whose name is not known keeps it."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor)
    layer, stem, part = match.groups() if match else (None, "", "")
    known = TOP.get(stem) if layer is None else {**LAYER, **row.layer}.get(stem)
    if known is None:
        return {tensor: _Place(tensor)}
    name = f"{known}.{part}" if layer is None else f"model.layers.{layer}.{known}.{part}"
    offset = row.offset if stem.endswith("norm") and part == "weight" else 0.0
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(stem, 0)
    shape = file.entries[tensor].shape
    if "{e}" not in name:
        return {name: _Place(tensor, None, heads if row.neighbours else 0, offset)}
    experts, outputs = shape[0], math.prod(shape[1:-1])
    return {name.format(e=e): _Place(tensor, range(e * outputs, (e + 1) * outputs)) for e in range(experts)}


def _halves(outputs: int, heads: int) -> Tensor:
    """Return where the rows of a head's first entries, then those of its second ones lie, which alternate in files.

    Vectors and matrices of ``outputs`` entries or rows; int64 [outputs].
    """
    return torch.arange(outputs).view(heads, -1, 2).transpose(1, 2).flatten()
