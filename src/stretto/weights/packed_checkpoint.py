"""Checkpoints that AWQ, GPTQ or compressed-tensors quantized, as their ``quantization_config`` describes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.weights.checkpoint import Checkpoint
from stretto.weights.dtypes import DTYPES
from stretto.weights.packed import Awq, Bytes, Compressed, Gptq, Grid, Layout
from stretto.weights.storage import KEY, METHOD
from stretto.weights.stored import StoredQuantized


class _Parts(Mapping[str, Tensor]):
    """The parts of one matrix, each read when it is asked for; ``names`` are those in the checkpoint, by part."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, part: str) -> Tensor:
        return Checkpoint.get(self._checkpoint, self._names[part])

    def __contains__(self, part: object) -> bool:
        return part in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all parts."""
        return {part: Checkpoint.shape(self._checkpoint, name) for part, name in self._names.items()}


class PackedCheckpoint(StoredQuantized):
    """A folder of safetensors in which matrices are packed: under the names of a plain one, ``*.weight``."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ``ValueError`` for a method or layout that is not implemented, naming it."""
        super().__init__(folder)
        place = f"{self.folder / 'config.json'}: {KEY}"
        self._layout = _layout(self.config[KEY], place)
        self._parts = self._packed(place)
        hidden = {name for parts in self._parts.values() for name in parts.values()}
        self._names = dict.fromkeys([*(name for name in self._home if name not in hidden), *self._parts])
        for name in self._silent_biases():
            del self._names[name]
        self.kinds = dict.fromkeys(self._parts, self._layout.label)
        readers = {name: self._checked(name).reader() for name in self._parts}
        self.readable = {name: reader for name, reader in readers.items() if reader is not None}

    def names(self) -> KeysView[str]:
        """The names of all tensors, those of packed matrices as if they were not."""
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises LookupError when there is none of that name."""
        if name not in self._parts:
            return super().shape(name)
        parts = _Parts(self, self._parts[name])
        return self._layout.shape(parts, parts.shapes())

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor, a packed matrix as the fp32 that it stands for, converted to ``dtype`` if given."""
        if name not in self._parts:
            return super().get(name, dtype)
        tensor = self._checked(name).dequantize(self._values(name))
        return tensor if dtype is None else tensor.to(dtype)

    def matrix(self, name: str) -> Quantized:
        """Return a matrix of ``keeps`` as it is stored."""
        return self._checked(name).quantized(self._values(name))

    def floating(self) -> Counter[torch.dtype]:
        """Return how many weights of matrices are stored in each floating-point precision."""
        found: Counter[torch.dtype] = Counter()
        for name in self._names.keys() - self._parts.keys():
            entry = self._entry(name)
            if entry.dtype in DTYPES.values() and len(entry.shape) > 1:
                found[entry.dtype] += math.prod(entry.shape)
        return found

    def _packed(self, place: str) -> dict[str, dict[str, str]]:
        """Return the names of the parts of every packed matrix, by the name that it would have unpacked."""
        layout = self._layout
        telling = max(layout.needed - {"weight", "scales"})
        found: dict[str, dict[str, str]] = {}
        for name in self._home:
            stem, _, last = name.rpartition(".")
            if last != telling:
                continue
            parts = {
                part: f"{stem}.{part}" for part in layout.needed | layout.further if f"{stem}.{part}" in self._home
            }
            if missing := layout.needed - parts.keys():
                raise ValueError(f"{self.folder} lacks {', '.join(f'{stem}.{part}' for part in sorted(missing))}")
            found[f"{stem}.weight"] = parts
        if not found:
            raise ValueError(
                f"{place} says {layout.label}, but no tensor is named *.{telling}; remove it if none is packed"
            )
        return found

    def _checked(self, name: str) -> Grid:
        """Return the grid of a packed matrix. Raises ``ValueError`` where its parts do not fit each other."""
        parts = _Parts(self, self._parts[name])
        outputs, inputs = shape = self._layout.shape(parts, parts.shapes())
        grid = self._layout.grid(parts, shape)
        groups = grid.scales.shape[1]
        told = grid.scales.shape == grid.zeros.shape == (outputs, groups) and len(grid.group) == inputs
        if not told or not 0 <= int(grid.group.min()) <= int(grid.group.max()) < groups:
            shapes = ", ".join(f"{part} {list(each)}" for part, each in parts.shapes().items())
            raise ValueError(f"{self.folder}: the parts of {name} do not fit each other: {shapes}; download it again")
        return grid

    def _values(self, name: str) -> Tensor:
        parts = _Parts(self, self._parts[name])
        shape = self._layout.shape(parts, parts.shapes())
        values = self._layout.values(parts, shape)
        if values.shape != shape:
            raise ValueError(f"{self.folder}: {name} has {list(values.shape)} numbers, expected {list(shape)}")
        return values

    def _silent_biases(self) -> list[str]:
        """Return biases of nothing but zeros that early tools wrote beside every matrix of models that have none."""
        if self.config.get("model_type") not in ("llama", "mistral", "mixtral") or self.config.get("attention_bias"):
            return []
        names = [f"{name.removesuffix('.weight')}.bias" for name in self._parts]
        return [name for name in names if name in self._names and not Checkpoint.get(self, name).any()]


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` says that another tool than ours has quantized the weights."""
    told = config.get(KEY)
    return bool(told) and not (isinstance(told, dict) and told.get("quant_method") == METHOD)


def _layout(told: Any, place: str) -> Layout:
    """Return the layout that ``quantization_config`` describes."""
    method = told.get("quant_method") if isinstance(told, dict) else None
    triple = frozenset({"qweight", "qzeros", "scales"})
    if method == "awq":
        _only(told, place, bits=(4,), version=("gemm", "GEMM"), zero_point=(True,))
        return Awq("AWQ int4", 4, triple)
    if method == "gptq":
        _only(told, place, bits=(2, 4, 8), checkpoint_format=("gptq", "gptq_v2"))
        bits, first = told.get("bits", 4), told.get("checkpoint_format") != "gptq_v2"
        return Gptq(f"GPTQ int{bits}", bits, triple, frozenset({"g_idx"}), zero_offset=int(first))
    if method == "compressed-tensors":
        return _compressed(told, place)
    raise ValueError(
        f"{place}: quant_method is {method!r}, expected awq, gptq, compressed-tensors or no {KEY}; use the checkpoint "
        "that it was made from"
    )


def _compressed(told: Mapping[str, Any], place: str) -> Layout:
    groups = told.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ValueError(f"{place}: config_groups is {groups!r}, expected one group, the same for all matrices")
    (group,) = groups.values()
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    layout = group.get("format") or told.get("format")
    sparsity = (told.get("sparsity_config") or {}).get("format", "dense")
    _only({"format": layout, "sparsity_config": sparsity}, place, format=("pack-quantized", "int-quantized"),
          sparsity_config=("dense",))  # fmt: skip
    _only(told, place, transform_config=(None, {}), kv_cache_scheme=(None,))
    _only(group, place, output_activations=(None,))
    if inputs is not None:  # with scales made for each row: ours are finer, one for each group of 32 inputs
        _only(inputs, f"{place}: input_activations", dynamic=(True,), num_bits=(8,), type=("int",))
    bits = weights.get("num_bits", 8)
    if layout == "int-quantized":
        _only(weights, f"{place}: weights", type=("int",), num_bits=(8,), strategy=("channel", "tensor"))
        needed = frozenset({"weight", "weight_scale"})
        return Bytes("compressed-tensors int8", 8, needed, frozenset({"weight_zero_point"}))
    _only(weights, f"{place}: weights", type=("int",), num_bits=(2, 4, 8))
    needed = frozenset({"weight_packed", "weight_scale", "weight_shape"})
    further = frozenset({"weight_zero_point", "weight_g_idx"})
    return Compressed(f"compressed-tensors int{bits}", bits, needed, further)


def _only(told: Mapping[str, Any], place: str, **implemented: tuple[Any, ...]) -> None:
    """Refuse every key that is there with a value that is not implemented."""
    for key, values in implemented.items():
        if key in told and told[key] not in values:
            known = " or ".join(map(repr, values))
            raise ValueError(
                f"{place}: {key} is {told[key]!r}, expected {known}; use the checkpoint that it was made from"
            )
