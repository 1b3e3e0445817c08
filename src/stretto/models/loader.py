"""From a checkpoint to a transformer: tensor by tensor, so that memory peaks at the final size plus one tensor."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stretto.kernels.table import REFERENCE
from stretto.models.families import Family, Stored, family_of, specify
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import ModelSpec
from stretto.models.transformer import Transformer
from stretto.weights import Checkpoint, dtype_name, parse_dtype, resolve
from stretto.weights.formats import FORMATS, WeightFormat, own_format

_log = logging.getLogger(__name__)


def load_model(
    model: str | Path,
    *,
    name: str = "target",
    dtype: str = "auto",
    weights: str = "auto",
    device: str | torch.device = "cpu",
) -> Transformer:
    """Return the transformer of the checkpoint ``model``: a folder, or a name that ``resolve`` knows.

    ``name`` is what chunks call it. ``dtype`` (auto, fp32, bf16) is the precision of activations and cache, ``weights``
    (auto, fp32, bf16) that of the matrices; auto keeps the checkpoint's own, fp16 being widened to fp32.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` for a configuration that is not honoured in full,
    for tensors that are missing, left over or of another shape than the configuration implies.
    """
    folder = model if isinstance(model, Path) else resolve(model)
    checkpoint = Checkpoint(folder)
    spec, family = specify(checkpoint.config), family_of(checkpoint.config)
    spec = replace(spec, eos_ids=_end_ids(folder) or spec.eos_ids)
    activations, matrices = _precision(dtype), _format(weights)
    if activations is None or matrices is None:
        own = _own_precision(checkpoint)
        activations, matrices = activations or own, matrices or own_format(own)
    if spec.embedding_scale != 1.0:  # a factor in the precision of the activations is what the model was trained with
        spec = replace(spec, embedding_scale=float(torch.tensor(spec.embedding_scale, dtype=activations)))
    parameters = Parameters(checkpoint, _plan(checkpoint, family, spec), matrices)
    device = torch.device(device)
    fingerprint = _fingerprint(checkpoint.fingerprint(), spec, activations, matrices, device)
    return Transformer(spec, parameters, name=name, dtype=activations, device=device, fingerprint=fingerprint)


class Parameters(Mapping[str, Tensor]):
    """A checkpoint's tensors under the names of ``spec.PARAMETERS``, each read when it is asked for.

    Matrices come in the format ``matrices``, vectors (norms and biases, a few thousandths of the weights) in fp32.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Mapping[str, Stored], matrices: WeightFormat) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._matrices = matrices

    def __getitem__(self, name: str) -> Tensor:
        stored = self._plan[name]
        tensor = self._checkpoint.get(stored.name)
        if stored.transposed:
            tensor = tensor.T
        if stored.parts > 1:
            tensor = tensor.chunk(stored.parts)[stored.part]
        return (self._matrices.encode(tensor) if tensor.ndim > 1 else tensor.float()).contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan)

    def __len__(self) -> int:
        return len(self._plan)


def _precision(asked: str) -> torch.dtype | None:
    """Return the precision of activations asked for, None for the checkpoint's own."""
    if asked not in ("auto", "fp32", "bf16"):
        raise ValueError(f"dtype is {asked!r}, expected auto, fp32 or bf16; auto keeps what the checkpoint has")
    return None if asked == "auto" else parse_dtype(asked)


def _format(asked: str) -> WeightFormat | None:
    """Return the weights format asked for, None for the checkpoint's own precision."""
    if asked != "auto" and asked not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"weights is {asked!r}, expected auto or one of {known}; auto keeps what the checkpoint has")
    return None if asked == "auto" else FORMATS[asked]


def _own_precision(checkpoint: Checkpoint) -> torch.dtype:
    if checkpoint.dtype is not torch.float16:
        return checkpoint.dtype
    _log.warning("%s is stored in fp16, which is widened to fp32", checkpoint.folder)
    return torch.float32


def _plan(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> dict[str, Stored]:
    """Return where each parameter lies, having checked that the checkpoint holds these in their shapes and no more."""
    names = checkpoint.names()
    root = family.root if any(name.startswith(family.root) for name in names) else ""
    shapes = parameter_shapes(spec)
    plan = {ours: family.stored(ours) for ours in shapes}
    plan = {ours: one if ours == "head" else replace(one, name=root + one.name) for ours, one in plan.items()}
    needed = {stored.name for stored in plan.values()}
    if missing := needed - names:
        hint = "; set tie_word_embeddings to true if it is the embedding" if missing == {"lm_head.weight"} else ""
        raise ValueError(f"{checkpoint.folder} lacks {_some(missing)}, which its config.json calls for{hint}")
    left = {name for name in names - needed if not re.search(family.buffers, name)}
    if spec.tied and "lm_head.weight" in left:
        _check_tied(checkpoint, plan["embed"].name)
        left.remove("lm_head.weight")
    if left:
        raise ValueError(
            f"{checkpoint.folder} holds {_some(left)}, which no part of its config.json calls for; its model_type or "
            "one of its flags does not describe these weights"
        )
    for ours, shape in shapes.items():
        _check_shape(checkpoint, plan[ours], shape)
    return plan


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    if not torch.equal(checkpoint.get("lm_head.weight"), checkpoint.get(embedding)):
        raise ValueError(
            f"{checkpoint.folder / 'config.json'}: tie_word_embeddings is true, but lm_head.weight and {embedding} "
            "differ, expected equal tensors; set it to false if the head is a matrix of its own"
        )


def _check_shape(checkpoint: Checkpoint, stored: Stored, shape: tuple[int, ...]) -> None:
    whole = (shape[0] * stored.parts, *shape[1:])
    expected = whole[::-1] if stored.transposed else whole
    if checkpoint.shape(stored.name) != expected:
        raise ValueError(
            f"{checkpoint.folder}: tensor {stored.name} has shape {list(checkpoint.shape(stored.name))}, expected "
            f"{list(expected)} from config.json; one of its sizes does not describe these weights"
        )


def _end_ids(folder: Path) -> frozenset[int]:
    """Return the ids that end a text according to ``generation_config.json``, which goes before ``config.json``."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _fingerprint(content: str, spec: ModelSpec, dtype: torch.dtype, weights: WeightFormat, device: torch.device) -> str:
    """Hash what decides the bits of the logits; the specification holds the rope variant."""
    unit = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    rest = [repr(replace(spec, eos_ids=frozenset())), dtype_name(dtype), weights.name, REFERENCE.name, unit]
    return hashlib.sha256("\n".join([content, *rest]).encode()).hexdigest()[:16]


def _some(names: Collection[str], shown: int = 6) -> str:
    rest = len(names) - shown
    return ", ".join(sorted(names)[:shown]) + (f" and {rest} more tensors" if rest > 0 else "")
