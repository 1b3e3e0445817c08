"""From a checkpoint to a transformer: tensor by tensor, so that memory peaks at the final size plus one tensor."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stretto.models.families import Family, Stored, family_of, specify
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import ModelSpec
from stretto.models.transformer import Transformer
from stretto.weights import Checkpoint, dtype_name, parse_dtype, resolve

KERNELS = "reference-1"
"""Version of the ops that a transformer runs on; part of the fingerprint."""

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
    activations = _precision("dtype", dtype, checkpoint)
    matrices = _precision("weights", weights, checkpoint)
    if spec.embedding_scale != 1.0:  # a factor in the precision of the activations is what the model was trained with
        spec = replace(spec, embedding_scale=float(torch.tensor(spec.embedding_scale, dtype=activations)))
    device = torch.device(device)
    parameters = {
        ours: _read(checkpoint, stored, shape, matrices if len(shape) > 1 else activations).to(device)
        for ours, (stored, shape) in _plan(checkpoint, family, spec).items()
    }
    fingerprint = _fingerprint(checkpoint.fingerprint(), spec, activations, matrices, device)
    return Transformer(spec, parameters, name=name, dtype=activations, device=device, fingerprint=fingerprint)


def _precision(parameter: str, asked: str, checkpoint: Checkpoint) -> torch.dtype:
    if asked == "fp16":
        raise ValueError(f"{parameter} is 'fp16', expected auto, fp32 or bf16; auto widens fp16 checkpoints to fp32")
    if asked != "auto":
        return parse_dtype(asked, parameter)
    if checkpoint.dtype is torch.float16:
        _log.warning("%s is stored in fp16; its %s is widened to fp32", checkpoint.folder, parameter)
        return torch.float32
    return checkpoint.dtype


def _plan(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> dict[str, tuple[Stored, tuple[int, ...]]]:
    """Return where each parameter lies and its shape, having checked that the checkpoint holds these and no others."""
    names = checkpoint.names()
    root = family.root if any(name.startswith(family.root) for name in names) else ""
    plan = {}
    for ours, shape in parameter_shapes(spec).items():
        stored = family.stored(ours)
        plan[ours] = replace(stored, name=stored.name if ours == "head" else root + stored.name), shape
    needed = {stored.name for stored, _ in plan.values()}
    if missing := needed - names:
        hint = "; set tie_word_embeddings to true if the head is the embedding" if missing == {"lm_head.weight"} else ""
        raise ValueError(f"{checkpoint.folder} lacks {_some(missing)}, which its config.json calls for{hint}")
    left = {name for name in names - needed if not re.search(family.buffers, name)}
    if spec.tied and "lm_head.weight" in left:
        _check_tied(checkpoint, plan["embed"][0].name)
        left.remove("lm_head.weight")
    if left:
        raise ValueError(
            f"{checkpoint.folder} holds {_some(left)}, which no part of its config.json calls for; its model_type or "
            "one of its flags does not describe these weights"
        )
    return plan


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    if not torch.equal(checkpoint.get("lm_head.weight"), checkpoint.get(embedding)):
        raise ValueError(
            f"{checkpoint.folder / 'config.json'}: tie_word_embeddings is true, but lm_head.weight and {embedding} "
            "differ, expected equal tensors; set it to false if the head is a matrix of its own"
        )


def _read(checkpoint: Checkpoint, stored: Stored, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    whole = (shape[0] * stored.parts, *shape[1:])
    expected = whole[::-1] if stored.transposed else whole
    if checkpoint.shape(stored.name) != expected:
        raise ValueError(
            f"{checkpoint.folder}: tensor {stored.name} has shape {list(checkpoint.shape(stored.name))}, expected "
            f"{list(expected)} from config.json; one of its sizes does not describe these weights"
        )
    tensor = checkpoint.get(stored.name, dtype)
    if stored.transposed:
        tensor = tensor.T
    if stored.parts > 1:
        tensor = tensor[stored.part * shape[0] : (stored.part + 1) * shape[0]].clone()
    return tensor.contiguous()


def _end_ids(folder: Path) -> frozenset[int]:
    """Return the ids that end a text according to ``generation_config.json``, which goes before ``config.json``."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _fingerprint(content: str, spec: ModelSpec, dtype: torch.dtype, weights: torch.dtype, device: torch.device) -> str:
    """Hash what decides the bits of the logits; the specification holds the rope variant."""
    unit = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    rest = [repr(replace(spec, eos_ids=frozenset())), dtype_name(dtype), dtype_name(weights), KERNELS, unit]
    return hashlib.sha256("\n".join([content, *rest]).encode()).hexdigest()[:16]


def _some(names: Collection[str], shown: int = 6) -> str:
    rest = len(names) - shown
    return ", ".join(sorted(names)[:shown]) + (f" and {rest} more tensors" if rest > 0 else "")
