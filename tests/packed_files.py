"""Checkpoints of AWQ, GPTQ and compressed-tensors, packed number by number as their layouts are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Made = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The parts of a matrix by their names' last component, and the fp32 [out, in] that they stand for."""

Write = Callable[[torch.Tensor, np.random.Generator], Made]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def write_packed(
    folder: Path, write: Write, described: dict[str, Any], dtype: torch.dtype = torch.float16, **overrides: Any
) -> transformers.PreTrainedModel:
    """Write a random Llama whose layers' matrices ``write`` packs; return transformers' model of the same weights."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = checkpoints.make(folder, "llama", **sizes, head_dim=32, **overrides)
    tensors = {name: each.to(dtype) for name, each in load_file(folder / "model.safetensors").items()}
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter.to(dtype))
            if "_proj.weight" in name:
                parts, values = write(tensors.pop(name).float(), random)
                parameter.copy_(values)
                tensors |= {f"{name.removesuffix('weight')}{part}": each for part, each in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": described}))
    return model


def pack(numbers: NDArray[np.int64], bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Return ``numbers`` [rows, columns] packed along the columns into int32, those of a word in ``order``."""
    each = 32 // bits
    order = order or tuple(range(each))
    rows, columns = numbers.shape
    words = np.zeros((rows, -(-columns // each)), dtype=np.uint32)
    for column in range(words.shape[1]):
        for place, source in enumerate(order):
            if column * each + source < columns:
                words[:, column] |= numbers[:, column * each + source].astype(np.uint32) << np.uint32(place * bits)
    return torch.from_numpy(words.view(np.int32))


def quantized(
    matrix: torch.Tensor, bits: int, group: NDArray[np.int64], zeros: NDArray[np.int64], dtype: torch.dtype
) -> tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]:
    """Return whole numbers [out, in], scales [out, groups] and what they stand for, for given zeros [out, groups]."""
    count = zeros.shape[1]
    peak = np.stack([np.abs(matrix.numpy()[:, group == each]).max(1) for each in range(count)], 1)
    scales = torch.from_numpy(peak / ((1 << (bits - 1)) - 0.5)).to(dtype)
    spread = scales.float().numpy()[:, group]
    numbers = np.clip(np.round(matrix.numpy() / spread) + zeros[:, group], 0, (1 << bits) - 1).astype(np.int64)
    return numbers, scales, torch.from_numpy((numbers - zeros[:, group]).astype(np.float32) * spread)


def groups_of(inputs: int, size: int) -> NDArray[np.int64]:
    return np.arange(inputs) // (size if size > 0 else inputs)


def awq(size: int, order: tuple[int, ...] = AWQ_ORDER) -> Write:
    def write(matrix: torch.Tensor, random: np.random.Generator) -> Made:
        group = groups_of(matrix.shape[1], size)
        zeros = random.integers(0, 16, (len(matrix), group[-1] + 1))
        numbers, scales, values = quantized(matrix, 4, group, zeros, torch.float16)
        parts = {"qweight": pack(numbers.T, 4, order), "qzeros": pack(zeros.T, 4, order), "scales": scales.T}
        return parts, values

    return write


def gptq(
    size: int, *, bits: int = 4, symmetric: bool = True, shift: int = 1, shuffled: bool = False, bias: bool = False
) -> Write:
    """``shift`` is what zeros are stored less: 1 in the layout's first version. ``shuffled``: groups in any order."""

    def write(matrix: torch.Tensor, random: np.random.Generator) -> Made:
        outputs, inputs = matrix.shape
        group = groups_of(inputs, size)
        middle = np.full((outputs, group[-1] + 1), 1 << (bits - 1))
        zeros = middle if symmetric else random.integers(1, 1 << bits, middle.shape)
        group = random.permutation(group) if shuffled else group
        numbers, scales, values = quantized(matrix, bits, group, zeros, torch.float16)
        parts = {
            "qweight": pack(numbers, bits).T,
            "qzeros": pack((zeros - shift).T, bits),
            "scales": scales.T,
            "g_idx": torch.from_numpy(group.astype(np.int32)),
        }
        return parts | ({"bias": torch.zeros(outputs, dtype=torch.float16)} if bias else {}), values

    return write


def compressed(
    size: int, *, bits: int = 4, symmetric: bool = True, dtype: torch.dtype = torch.bfloat16, shuffled: bool = False
) -> Write:
    def write(matrix: torch.Tensor, random: np.random.Generator) -> Made:
        outputs, inputs = matrix.shape
        group = groups_of(inputs, size)
        middle = np.full((outputs, group[-1] + 1), 1 << (bits - 1))
        zeros = middle if symmetric else random.integers(0, 1 << bits, middle.shape)
        group = random.permutation(group) if shuffled else group
        numbers, scales, values = quantized(matrix, bits, group, zeros, dtype)
        parts = {
            "weight_packed": pack(numbers, bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor([outputs, inputs]),
        }
        if not symmetric:
            parts["weight_zero_point"] = pack(zeros.T, bits).T
        if shuffled:
            parts["weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
        return parts, values

    return write


def plain_bytes(*, symmetric: bool = True) -> Write:
    """The layout int-quantized: numbers from -128 to 127, both of which occur."""

    def write(matrix: torch.Tensor, random: np.random.Generator) -> Made:
        group = groups_of(matrix.shape[1], -1)
        middle = np.full((len(matrix), 1), 128)
        zeros = middle if symmetric else random.integers(100, 150, middle.shape)
        numbers, scales, values = quantized(matrix, 8, group, zeros, torch.float32)
        parts = {"weight": torch.from_numpy(numbers - 128).to(torch.int8), "weight_scale": scales}
        return parts | (
            {} if symmetric else {"weight_zero_point": torch.from_numpy(zeros - 128).to(torch.int8)}
        ), values

    return write


def group_described(layout: str, **weights: Any) -> dict[str, Any]:
    """Return the ``quantization_config`` of compressed-tensors with one group."""
    told = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False, **weights}
    group = {"targets": ["Linear"], "weights": told, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed",
    }  # fmt: skip
