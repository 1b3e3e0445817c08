"""From a checkpoint to a transformer: tensor by tensor, so that memory peaks at the final size plus one tensor."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stretto.models.backend import AnyTransformer, build, numerics
from stretto.models.bounds import check_bounds
from stretto.models.families import family_of, specify
from stretto.models.footprint import check_room
from stretto.models.sources import CheckpointParameters, Parameters, Progress, QuantizedParameters, own_precision
from stretto.models.spec import ModelSpec
from stretto.models.stored import StoredParameters, open_checkpoint
from stretto.tokens.folder import end_ids
from stretto.weights import Checkpoint, dtype_name, parse_dtype, resolve
from stretto.weights.formats import FORMATS, WeightFormat, own_format
from stretto.weights.storage import KEY, Record, read_record
from stretto.weights.stored import StoredQuantized

_log = logging.getLogger(__name__)


def load_model(
    model: str | Path,
    *,
    name: str = "target",
    dtype: str = "auto",
    weights: str = "auto",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> AnyTransformer:
    """Return the transformer of the checkpoint ``model``: a folder, or a name that ``resolve`` knows.

    ``name`` is what chunks call it. ``dtype`` (auto, fp32, bf16) is the precision of activations and cache, ``weights``
    (auto or a key of ``FORMATS``) the format of the matrices; auto keeps the checkpoint's own, fp16 being widened to
    fp32. ``progress`` hears how many weights are loaded, and of how many.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` for a configuration that is not honoured in full,
    for tensors that are missing, left over or of another shape than the configuration implies.
    """
    source = open_source(model, weights)
    activations = _precision(dtype) or source.own()
    if source.record is None and "auto" in (dtype, weights) and source.checkpoint.dtype is torch.float16:
        _log.warning("%s is stored in fp16, which is widened to fp32", source.checkpoint.folder)
    if weights == "auto" and isinstance(source.checkpoint, StoredQuantized) and source.checkpoint.kinds:
        _log.warning("%s", source.checkpoint.note())
    spec = source.spec
    if spec.rounds_scale:
        spec = replace(spec, embedding_scale=float(torch.tensor(spec.embedding_scale, dtype=activations)))
    device = torch.device(device)
    fingerprint = _fingerprint(source.content(), spec, activations, source.parameters.matrices, device)
    if device.type == "cpu":
        check_room(spec, source.parameters.matrices, own_format(source.own()), activations, str(model))
    source.parameters.progress = progress
    loaded = build(spec, source.parameters, name=name, dtype=activations, fingerprint=fingerprint, device=device)
    if source.parameters.matrices.quantized:
        _log.info("%s: %s", source.checkpoint.folder, source.parameters.summary())
    return loaded


@dataclass(frozen=True, slots=True)
class Source:
    """A model on disk, opened: what it is, and its weights, each read and encoded when it is asked for."""

    checkpoint: Checkpoint
    record: Record | None
    """What a folder of quantized weights says about the checkpoint that it was made from."""
    spec: ModelSpec
    parameters: Parameters

    def own(self) -> torch.dtype:
        """Return the checkpoint's own precision, fp16 widened."""
        return own_precision(self.checkpoint) if self.record is None else parse_dtype(self.record.dtype)

    def content(self) -> str:
        """Return the fingerprint of the checkpoint, or of the one that it was made from."""
        return self.checkpoint.fingerprint() if self.record is None else self.record.source


def open_source(model: str | Path, weights: str) -> Source:
    """Open the checkpoint ``model`` for the weights format asked for; raises as ``load_model`` does."""
    folder = model if isinstance(model, Path) else resolve(model, accept=family_of)
    asked = _format(weights)
    checkpoint = open_checkpoint(folder)
    record = read_record(checkpoint)
    known = record is not None or isinstance(checkpoint, StoredQuantized)
    config = {key: value for key, value in checkpoint.config.items() if not known or key != KEY}
    check_bounds(config, len(checkpoint.names()), folder)
    spec, family = specify(config), family_of(config)
    spec = replace(spec, eos_ids=spec.eos_ids | end_ids(folder))
    if record is None:
        if asked is None and isinstance(checkpoint, StoredQuantized):
            return Source(checkpoint, None, spec, StoredParameters(checkpoint, family, spec))
        form = asked or own_format(own_precision(checkpoint))
        return Source(checkpoint, None, spec, CheckpointParameters(checkpoint, family, spec, form))
    form = FORMATS[record.format]
    if asked not in (None, form):
        raise ValueError(
            f"weights is {weights!r}, but {folder} holds {form.name}; ask for auto, or use the checkpoint that it was "
            "made from"
        )
    return Source(checkpoint, record, spec, QuantizedParameters(checkpoint, spec, form))


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


def _fingerprint(content: str, spec: ModelSpec, dtype: torch.dtype, weights: WeightFormat, device: torch.device) -> str:
    """Hash what decides the bits of the logits; the specification holds the rope variant."""
    form = f"{weights.name}-{weights.version}"
    rest = [repr(replace(spec, eos_ids=frozenset())), dtype_name(dtype), form, numerics(device)]
    return hashlib.sha256("\n".join([content, *rest]).encode()).hexdigest()[:16]
