"""From the name a person gives to the folder of a model."""

from __future__ import annotations

from pathlib import Path

from stretto.weights.hub import Accept, fetch, parse

_ZOO = Path(__file__).parent.parent / "zoo"

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files beside the weights: of tokenizer, chat and generation. Legacy tokenizers are taken along so that their refusal
can be told."""


def embedded() -> list[str]:
    """The names of the models that come with Stretto."""
    return sorted(path.parent.name for path in _ZOO.glob("*/config.json"))


def resolve(model: str | Path, accept: Accept = lambda config: None) -> Path:
    """The folder of a model, or its GGUF file: an embedded one by its name, a local one, or one of the Hugging Face hub
    by its id, ``owner/name``, if need be with a revision and a GGUF file: ``owner/name@revision:FILE``.

    Looked up in this order; write ``./name`` for a folder that is named like an embedded model. A hub model is
    downloaded to the hub's own cache on first use, if ``accept`` does not object to its configuration.

    Raises ``FileNotFoundError`` where there is no such model, and for a hub id what ``hub.fetch`` raises; each says
    what was tried.
    """
    name = str(model)
    if name in embedded():
        return _ZOO / name
    path = Path(model).expanduser()
    if name and (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        return path
    if path.is_file():
        raise FileNotFoundError(
            f"model is {name!r}, a file; expected the folder it lies in, with its config.json, or a .gguf file"
        )
    tried = (
        f"model is {name!r}: not embedded (those are: {', '.join(embedded()) or 'none'}), no folder {path.absolute()}"
    )
    asked = parse(name)
    if asked is None:
        raise FileNotFoundError(f"{tried}, and no id of the Hugging Face hub, which looks like owner/name")
    try:
        return fetch(asked, COMPANIONS, accept)
    except OSError as error:
        # Of the hub's models hardly any has no owner: without one it is rather a misspelt name or folder.
        kind = type(error) if "/" in name else FileNotFoundError
        raise kind(f"{tried}; on the Hugging Face hub, {error}") from None
