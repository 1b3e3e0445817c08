"""A folder of quantized weights: written once, loaded without the checkpoint it was made from.

It is a checkpoint whose tensors bear the names of the specification (``models.spec.PARAMETERS``): a vector or a matrix
of lookups as it is, a quantized one as ``name.values`` and ``name.scales`` (and ``name.zeros``). Values of int4 lie two
in a byte, the first in the low half. ``config.json`` is the original's, with a ``quantization_config`` of our own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stretto.kernels.quantized import GROUP, Quantized
from stretto.weights.checkpoint import Checkpoint
from stretto.weights.dtypes import DTYPES
from stretto.weights.files import whole, write_whole
from stretto.weights.formats import FORMATS, WeightFormat
from stretto.weights.resolve import COMPANIONS

KEY = "quantization_config"
METHOD = "stretto"
_FILE_BYTES = 2 << 30
"""What is gathered in memory before it is written."""


@dataclass(frozen=True, slots=True)
class Record:
    """What ``quantization_config`` says about a folder of ours."""

    format: str
    version: int
    """Of the format: what its ``encode`` gave then."""
    source: str
    """Fingerprint of the checkpoint that it was made from; in the numerics it stands for this folder."""
    dtype: str
    """The checkpoint's own precision: that of the activations, unless another is asked for."""
    content: str
    """Hash of this folder's tensors: whoever changes them changes the numerics, and must not keep ``source``."""


def read_record(checkpoint: Checkpoint) -> Record | None:
    """Return the record of a folder of ours, None for any other checkpoint.

    Raises ``ValueError`` where the record is incomplete, of another version, or not that of these tensors.
    """
    found = checkpoint.config.get(KEY)
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        return None
    place = f"{checkpoint.folder / 'config.json'}: {KEY}"
    expected = {"quant_method", *Record.__dataclass_fields__}
    if wrong := expected.symmetric_difference(found):
        raise ValueError(f"{place}: {', '.join(sorted(wrong))} missing or not known; run stretto quantize again")
    record = Record(**{key: value for key, value in found.items() if key != "quant_method"})
    form = FORMATS.get(record.format)
    if form is None or not form.quantized or record.version != form.version or record.dtype not in DTYPES:
        known = ", ".join(f"{each.name} {each.version}" for each in FORMATS.values() if each.quantized)
        raise ValueError(
            f"{place}: format is {record.format!r}, version {record.version!r}, dtype {record.dtype!r}; expected one "
            f"of {known} of a checkpoint in {', '.join(DTYPES)}; run stretto quantize of this version again"
        )
    if record.content != checkpoint.content():
        raise ValueError(
            f"{place}: content is {record.content!r}, but the tensors give {checkpoint.content()!r}: they were changed "
            "after stretto quantize wrote them; run it again"
        )
    return record


def shapes_of(name: str, shape: tuple[int, ...], form: WeightFormat) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that hold the matrix ``name`` [out, in] in a quantized format."""
    outputs, inputs = shape
    if form.layout == "int8":
        return {f"{name}.values": shape, f"{name}.scales": (outputs,)}
    return {f"{name}.values": (outputs, -(-inputs // 2)), f"{name}.scales": (outputs, -(-inputs // GROUP))}


def read_matrix(checkpoint: Checkpoint, name: str, inputs: int, form: WeightFormat) -> Quantized:
    """Return the matrix that was stored as ``name``; ``inputs`` is the number of its columns."""
    values, scales = checkpoint.get(f"{name}.values"), checkpoint.get(f"{name}.scales")
    if form.layout == "int4":
        values = torch.stack((values & 15, values >> 4), -1).flatten(1)[:, :inputs].contiguous()
    return Quantized(form.layout, form.activations, values, scales)


def write_folder(
    folder: Path,
    source: Checkpoint,
    parameters: Iterable[tuple[str, Tensor | Quantized]],
    facts: Mapping[str, Any],
    files: Mapping[str, str],
) -> None:
    """Write ``parameters``, each read once, to a new ``folder``, with the files that go with ``source`` and ``files``,
    texts by name.

    ``facts`` are the fields of the record but ``content``, which comes last: a folder that an interruption left without
    it does not load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gathered: dict[str, Tensor] = {}
    placed: dict[str, str] = {}

    def flush() -> None:
        file = f"model-{len(set(placed.values())) + 1:05}.safetensors"
        with whole(folder / file) as partial:
            save_file(gathered, partial)
        placed.update(dict.fromkeys(gathered, file))
        gathered.clear()

    for name, value in parameters:
        gathered |= _tensors(name, value)
        if sum(tensor.nbytes for tensor in gathered.values()) > _FILE_BYTES:
            flush()
    if gathered:
        flush()
    _write_json(folder / "model.safetensors.index.json", {"weight_map": placed})
    for file in COMPANIONS:
        if (source.folder / file).is_file():
            with whole(folder / file) as partial:
                shutil.copyfile(source.folder / file, partial)
    for file, text in files.items():
        write_whole(folder / file, text)
    record = Record(**facts, content="unfinished")
    for _ in range(2):
        _write_json(folder / "config.json", source.config | {KEY: {"quant_method": METHOD} | asdict(record)})
        record = replace(record, content=Checkpoint(folder).content())


def _tensors(name: str, value: Tensor | Quantized) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    values = value.values
    if value.layout == "int4":
        even = torch.constant_pad_nd(values, (0, values.shape[1] % 2))
        values = even[:, ::2] | even[:, 1::2] << 4
    return {f"{name}.values": values, f"{name}.scales": value.scales}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")
