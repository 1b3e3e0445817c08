"""``stretto info``: what a model is, and what it needs in each weights format."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stretto.cache.memory import free_memory
from stretto.kernels import native
from stretto.models.footprint import footprint
from stretto.models.loader import Source, open_source
from stretto.models.stored import StoredParameters
from stretto.weights import dtype_name
from stretto.weights.formats import FORMATS, own_format
from stretto.weights.stored import StoredQuantized

READ_BYTES = 256 << 20
SHARE = 0.9
"""Of a streaming read that a pass of one row reaches."""


def examine(model: str) -> dict[str, Any]:
    """Return what is known of ``model`` without loading it: sizes, and by weights format what it takes (bytes)."""
    source = open_source(model, "auto")
    spec, own = source.spec, own_format(source.own())
    free = free_memory()
    speed = native.streaming_read(READ_BYTES, 3) * 1e9 if native.load() is not None else None
    formats: dict[str, Any] = {}
    stored = isinstance(source.parameters, StoredParameters)
    for form in [*([source.parameters.matrices] if stored else []), *FORMATS.values()]:
        needs = footprint(spec, form, own, source.own())
        per_token = needs.read_per_token
        formats[form.name if form.name in FORMATS else "auto"] = asdict(needs) | {
            "tokens_per_second": None if speed is None else SHARE * speed / per_token,
            "fits": needs.peak + 1000 * needs.cache_per_token <= free,
        }
    attention = spec.layers[0].attention
    return {
        "model": model,
        "folder": str(source.checkpoint.folder),
        "family": spec.family,
        "weights": sum(_size(shape) for shape in source.parameters.shapes().values()),
        "stored_as": _stored_as(source),
        "layers": len(spec.layers),
        "width": spec.width,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_size": attention.head_size,
        "vocabulary": spec.vocab_size,
        "context": spec.context,
        "free_memory": free,
        "disk": _disk(source.checkpoint.folder),
        "formats": formats,
    }


def _stored_as(source: Source) -> str:
    if isinstance(source.checkpoint, StoredQuantized):
        return source.checkpoint.stored_as()
    return source.parameters.matrices.name if source.record else dtype_name(source.checkpoint.dtype)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def _disk(folder: Path) -> int:
    files = [folder] if folder.is_file() else [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    return sum(file.stat().st_size for file in files)


def run(model: str, *, as_json: bool) -> None:
    """Print what ``examine`` finds."""
    found = examine(model)
    if as_json:
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    print(
        f"{model}: {found['family']}, {found['weights'] / 1e9:.3f} G weights stored as {found['stored_as']} "
        f"({_gigabytes(found['disk'])} on disk)\n"
        f"{found['layers']} layers of width {found['width']}, {found['heads']} heads and {found['kv_heads']} K/V heads "
        f"of {found['head_size']}, vocabulary {found['vocabulary']}, context {found['context']}\n"
        f"{_gigabytes(found['free_memory'])} of memory are free\n"
    )
    print(f"{'weights':<10}{'resident':>10}{'peak':>10}{'1,000 tokens':>14}{'tokens/s':>10}  fits")
    for name, needs in found["formats"].items():
        pace = "-" if needs["tokens_per_second"] is None else f"{needs['tokens_per_second']:.1f}"
        print(
            f"{name:<10}{_gigabytes(needs['weights']):>10}{_gigabytes(needs['peak']):>10}"
            f"{_gigabytes(1000 * needs['cache_per_token']):>14}{pace:>10}  {'yes' if needs['fits'] else 'no'}"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
