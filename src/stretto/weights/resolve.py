"""From the name a person gives to the folder of a model."""

from __future__ import annotations

import re
from pathlib import Path

_ZOO = Path(__file__).parent.parent / "zoo"

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)
"""Files beside the weights: of tokenizer, chat and generation. The legacy tokenizer is taken along so that its refusal
can be told."""

# What a checkpoint needs and no more: other formats of the same weights are left on the hub.
_WANTED = ["config.json", "model*.safetensors", "model.safetensors.index.json", *COMPANIONS]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def embedded() -> list[str]:
    """The names of the models that come with Stretto."""
    return sorted(path.parent.name for path in _ZOO.glob("*/config.json"))


def resolve(model: str | Path) -> Path:
    """The folder of a model: an embedded one by its name, a local folder, or one of the Hugging Face hub by its id.

    Looked up in this order; write ``./name`` for a folder that is named like an embedded model. A hub model is
    downloaded to the hub's own cache on first use.

    Raises FileNotFoundError that says what was tried when there is no such model.
    """
    name = str(model)
    if name in embedded():
        return _ZOO / name
    folder = Path(model).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"model is {name!r}, a file; expected the folder it lies in, with its config.json")
    tried = f"no folder {folder.absolute()}"
    if _HUB_ID.fullmatch(name):
        try:
            return _download(name)
        except Exception as error:  # whatever it was, the person asked for a model and gets to know why there is none
            reason = str(error).strip().splitlines()
            tried += f", and the Hugging Face hub said: {type(error).__name__}: {reason[0] if reason else ''}"
    raise FileNotFoundError(
        f"model is {name!r}, which was not found: not embedded (those are: {', '.join(embedded()) or 'none'}), {tried}"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
