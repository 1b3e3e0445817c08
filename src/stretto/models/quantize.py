"""From a checkpoint to a folder of quantized weights that loads without it."""

from __future__ import annotations

from pathlib import Path

from stretto.models.gguf import GgufCheckpoint
from stretto.models.loader import open_source
from stretto.models.sources import CheckpointParameters, Progress
from stretto.tokens.gguf import load_gguf_tokenizer
from stretto.weights import dtype_name
from stretto.weights.formats import FORMATS
from stretto.weights.storage import write_folder


def quantize(model: str | Path, folder: Path, weights: str, progress: Progress | None = None) -> str:
    """Write the checkpoint ``model`` in the format ``weights`` to ``folder``; return a line on what that took.

    Loading ``folder`` gives the same bits and the same fingerprint as loading ``model`` in that format.

    Raises ``ValueError`` for a format that is not quantized, a checkpoint that is already, and a folder with content;
    else as ``load_model`` does.
    """
    if weights not in FORMATS or not FORMATS[weights].quantized:
        known = ", ".join(each.name for each in FORMATS.values() if each.quantized)
        raise ValueError(f"weights is {weights!r}, expected one of {known}")
    source = open_source(model, weights)
    if not isinstance(source.parameters, CheckpointParameters):
        raise ValueError(f"{source.checkpoint.folder} holds {weights} already; use it as it is")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name a new one")
    form = FORMATS[weights]
    facts = {
        "format": form.name,
        "version": form.version,
        "source": source.content(),
        "dtype": dtype_name(source.own()),
    }
    source.parameters.progress = progress
    tokenizer = None
    if isinstance(source.checkpoint, GgufCheckpoint):
        tokenizer = load_gguf_tokenizer(source.checkpoint.folder)
    files = {} if tokenizer is None else tokenizer.files()
    write_folder(folder, source.checkpoint, source.parameters.items(), facts, files)
    return source.parameters.summary()
