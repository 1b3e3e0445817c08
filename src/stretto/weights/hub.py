"""Models of the Hugging Face hub: which files a name asks for, brought to the hub's own cache, or why they cannot be.

An id may choose a revision and a GGUF file: ``owner/name@revision:FILE``, where FILE is a file's name or a part of it
that only one has, such as ``Q4_K_M``. Weights are fetched one file after another, so that Ctrl-C ends it at once;
files that are complete stay.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.weights.checkpoint import INDEX, PICKLES, SINGLE, read_config, read_index

_ID = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([\w./-]+))?(?::([^\\]+))?", re.ASCII)
_PART = re.compile(r"-\d+-of-0*(?:[2-9]|[1-9]\d+)\.gguf", re.IGNORECASE)
_BESIDE = ("mmproj", "imatrix")
"""What the names of GGUF files begin with that are no language models, but lie beside one."""
_SECONDS = 10.0
"""How long the hub may take to say what a repository holds."""

Accept = Callable[[Mapping[str, Any]], object]
"""Called with the content of a ``config.json``; raises ``ValueError`` where such a model cannot be run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model as a person asks for it."""

    id: str
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""
    file: str | None = None
    """A part of the GGUF's name; None: the safetensors, or the only GGUF where there are none."""

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "")


def parse(name: str) -> HubModel | None:
    """Return the model that ``name`` may stand for on the hub, None where it cannot be an id."""
    match = _ID.fullmatch(name)
    return HubModel(*match.groups()) if match else None


def fetch(model: HubModel, companions: Collection[str], accept: Accept) -> Path:
    """Return the folder of a model in the hub's cache, or its GGUF file there, having downloaded what was missing.

    ``companions`` are the names of the files wanted beside configuration and weights. ``accept`` is called with the
    configuration before anything else is fetched, and raises if it is of no use. Where the hub does not answer, the
    cache serves if it holds all that is needed.

    Raises ``FileNotFoundError`` for a repository or revision that does not exist, ``PermissionError`` where the hub
    grants no access, ``ConnectionError`` where it cannot be reached, ``OSError`` where the disk does not take the
    files, ``ValueError`` for a repository without weights that are read here, and whatever ``accept`` raises.
    """
    try:
        with _explained(model):
            sizes = _listing(model)
    except OSError as reason:
        return _cached(model, reason)
    entry = entry_of(model, sizes)
    if entry.endswith(".gguf"):
        return _download(model, [entry], sizes, model.revision)
    _check_whole(model, ["config.json"], sizes)
    # The cache learns from the first file which commit the revision is now, and the others are of that commit.
    folder = _download(model, ["config.json"], sizes, model.revision).parent
    accept(read_config(folder))
    _download(model, [name for name in (INDEX, *companions) if name in sizes], sizes, folder.name)
    files = sorted(set(read_index(folder / INDEX).values())) if entry == INDEX else [entry]
    _check_whole(model, files, sizes)
    _download(model, files, sizes, folder.name)
    return folder


def _check_whole(model: HubModel, needed: Iterable[str], files: Collection[str]) -> None:
    if lacking := [name for name in needed if name not in files]:
        raise ValueError(f"{model} lacks {', '.join(lacking)}, without which it is incomplete; use another copy of it")


def entry_of(model: HubModel, files: Collection[str]) -> str:
    """Return the file by which weights are read, out of the names a repository holds: index, safetensors or GGUF.

    Raises ``ValueError`` where there is none, or several and none is chosen.
    """
    ggufs = [name for name in sorted(files) if name.endswith(".gguf") and not Path(name).name.startswith(_BESIDE)]
    if model.file is None and (INDEX in files or SINGLE in files):
        return INDEX if INDEX in files else SINGLE
    asked = (model.file or "").lower()
    found = [name for name in ggufs if name == model.file] or [name for name in ggufs if asked in name.lower()]
    if len(found) == 1 and _PART.search(found[0]):
        raise ValueError(
            f"{model} holds {found[0]}, one of several parts of a GGUF; a model is read from one file: join them with "
            "llama.cpp's `llama-gguf-split --merge` and give the file"
        )
    if len(found) == 1:
        return found[0]
    if ggufs:
        what = f"{len(found) or 'no'} GGUF files with {model.file!r} in their names" if asked else "several GGUF files"
        raise ValueError(f"{model} holds {what}; choose one as {model}:FILE, with FILE one of {', '.join(ggufs)}")
    if pickles := sorted((name for name in files if name.endswith(PICKLES)), key=lambda name: "model" not in name):
        raise ValueError(
            f"{model} holds its weights only as {pickles[0]}, a pickle, which can run any code when it is read; look "
            "for a copy of the model as safetensors or GGUF"
        )
    raise ValueError(
        f"{model} holds neither {SINGLE} nor {INDEX} nor a GGUF file, only: {', '.join(sorted(files)) or 'nothing'}"
    )


def _listing(model: HubModel) -> dict[str, int]:
    """Return the files of a repository and their sizes in bytes."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(model.id, revision=model.revision or "main", files_metadata=True, timeout=_SECONDS)
    return {each.rfilename: each.size or 0 for each in info.siblings or ()}


def _download(model: HubModel, files: Collection[str], sizes: Mapping[str, int], revision: str | None) -> Path:
    """Bring ``files`` into the cache, each with a progress bar on a terminal; return where the last one lies."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    needed = sum(sizes[file] for file in files if not try_to_load_from_cache(model.id, file, revision=revision))
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    if needed > (free := shutil.disk_usage(place).free):
        raise OSError(
            f"{model} needs {needed / 1e9:.2f} GB more on the disk of {cache}, where {free / 1e9:.2f} GB are free; "
            "make room, or set HF_HOME to a folder on a larger disk"
        )
    with _explained(model):
        places = [Path(hf_hub_download(model.id, file, revision=revision)) for file in files]
    return places[-1] if places else cache


def _cached(model: HubModel, reason: OSError) -> Path:
    """Return what the cache holds of ``model``; raise ``reason``, for which the hub could not be asked, if not all."""
    from huggingface_hub import constants, errors, snapshot_download

    try:
        folder = Path(snapshot_download(model.id, revision=model.revision, local_files_only=True, allow_patterns=[]))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        raise type(reason)(f"{reason}; the cache holds nothing of it") from None
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        entry = entry_of(model, files)
    except ValueError:
        raise type(reason)(f"{reason}; the cache lacks the weights") from None
    if entry.endswith(".gguf"):
        needed = {entry}
    else:
        needed = {"config.json", *(read_index(folder / INDEX).values() if entry == INDEX else ())}
    if lacking := sorted(needed - files):
        raise type(reason)(f"{reason}; the cache lacks {', '.join(lacking)}")
    if not constants.HF_HUB_OFFLINE:
        log.warning("%s; taken from the cache, as it was when last downloaded", reason)
    return folder / entry if entry.endswith(".gguf") else folder


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Turn what the hub's library raises, and those below it, into one sentence that says what to do."""
    try:
        yield
    except Exception as error:  # of a dozen kinds, most of which are no part of the library's interface
        raise _explanation(model, error) from None


def _explanation(model: HubModel, error: Exception) -> OSError:
    from huggingface_hub import constants, errors, get_token

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the library looked into the cache instead, and why is what a person needs
    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{model.id}"
    token = "log in with `hf auth login`" if get_token() is None else "use a token that may read it (`hf auth login`)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return FileNotFoundError(
            f"{model.id} cannot be an id, expected owner/name in letters, digits, dots and single dashes"
        )
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{model} is gated: its owners give access on request; ask for it at {page}, then {token}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{model.id} has no revision {model.revision or 'main'!r}, expected a branch, tag or commit; "
            f"{page}/commits lists them"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return FileNotFoundError(
            f"{model.id} does not exist, or is private; compare the spelling with {page}, and if it is private {token}"
        )
    if status == 401:
        return PermissionError(
            f"the token was not accepted (401), expected a valid one or none; renew it with `hf auth login`, or "
            f"correct HF_TOKEN (while asking for {model})"
        )
    if status == 403:
        return PermissionError(f"access to {model} was refused (403); ask for it at {page}, then {token}")
    if status is not None:
        return ConnectionError(f"{hub} answered {status} when asked for {model}; try again later")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(f"HF_HUB_OFFLINE is set, so {model} is not looked for; unset it to download")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(
            f"{model} cannot be kept in {constants.HF_HUB_CACHE} ({error.strerror}); make room there, or set HF_HOME "
            "to a folder on another disk"
        )
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return ConnectionError(
        f"the connection to {hub} failed while asking for {model} ({said}); check the network and HF_ENDPOINT, then "
        "run it again: files that are complete are kept"
    )
