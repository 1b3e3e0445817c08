"""A checkpoint folder: ``config.json`` and safetensors files, one or several."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import KeysView
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from stretto.weights.documents import read_document
from stretto.weights.dtypes import DTYPES, dtype_name
from stretto.weights.shard import Entry, Shard

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_READ = (".json", ".jinja", ".model", ".safetensors")  # endings of files that are read in a folder
_MAX_CONFIG = 4_000_000  # bytes
_MAX_INDEX = 50_000_000  # bytes; also of the headers of all files together


class Checkpoint:
    """The configuration and tensors of a model on disk. Opening reads headers only.

    Loading every tensor in turn peaks little above the final size: nothing is mapped, and no file is read as a whole.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises FileNotFoundError when a file is missing, ValueError when one is damaged or of a refused kind."""
        self.folder = Path(folder)
        _refuse_links(self.folder)
        self.config: dict[str, Any] = read_config(self.folder)
        self._home = self._open()

    def names(self) -> KeysView[str]:
        """The names of all tensors; a set-like view."""
        return self._home.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises LookupError when there is none of that name."""
        return self._entry(name).shape

    def dtype_of(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor. Raises LookupError when there is none of that name."""
        return self._entry(name).dtype

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, converted to ``dtype`` if given. Raises LookupError when there is none of that name."""
        self._entry(name)
        return self._home[name].read(name, dtype)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision most of the weights are stored in: fp32, bf16 or fp16.

        Raises ValueError when it is another one (quantized or fp64 checkpoints).
        """
        weights: Counter[torch.dtype] = Counter()
        for name in self._home:
            entry = self._entry(name)
            weights[entry.dtype] += math.prod(entry.shape)
        dominating = max(weights, key=weights.__getitem__)
        if dominating not in DTYPES.values():
            raise ValueError(
                f"{self.folder} stores most of its weights as {dtype_name(dominating)}; expected one of "
                f"{', '.join(DTYPES)}. Use the checkpoint it was made from"
            )
        return dominating

    def fingerprint(self) -> str:
        """A hash of configuration and content, 16 hexadecimal digits, the same however tensors are spread over files.

        Cheap on any size; see ``content`` for what goes unseen.
        """
        configuration = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256(f"{configuration}\n{self.content()}".encode()).hexdigest()[:16]

    def content(self) -> str:
        """A hash of the tensors, 16 hexadecimal digits, the same however they are spread over files.

        It covers the name, shape and dtype of every tensor, and the first and last 4 KiB of each one's bytes (the
        whole of small ones, such as norms). A change in the middle of a large matrix alone goes unseen.
        """
        digest = hashlib.sha256()
        for name in sorted(self._home):
            entry = self._entry(name)
            digest.update(json.dumps([name, entry.shape, dtype_name(entry.dtype)]).encode())
            digest.update(self._home[name].sample(name))
        return digest.hexdigest()[:16]

    def _entry(self, name: str) -> Entry:
        if name not in self._home:
            near = difflib.get_close_matches(name, self._home, n=3)
            raise LookupError(f"{self.folder} holds no tensor named {name!r}; nearest: {', '.join(near) or 'none'}")
        return self._home[name].entries[name]

    def _open(self) -> dict[str, Shard]:
        """The file of every tensor."""
        index, single = self.folder / INDEX, self.folder / SINGLE
        if index.is_file():
            return self._open_shards(index)
        if single.is_file():
            shard = Shard(single)
            if not shard.entries:
                raise ValueError(f"{single} holds no tensor; download it again")
            return dict.fromkeys(shard.entries, shard)
        files = sorted(path.name for path in self.folder.iterdir())
        pickles = [name for name in files if name.endswith(PICKLES)]
        if pickles:
            raise ValueError(
                f"{self.folder} holds its weights only as {pickles[0]}, a pickle, which can run any code when it is "
                "read; Stretto reads safetensors. Convert it where you trust it, with transformers: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
            )
        raise FileNotFoundError(
            f"{self.folder} holds neither {SINGLE} nor {INDEX}, only: {', '.join(files) or 'nothing'}"
        )

    def _open_shards(self, index: Path) -> dict[str, Shard]:
        placed = read_index(index)
        shards: dict[str, Shard] = {}
        headers = 0
        for file in sorted(set(placed.values())):
            if not (self.folder / file).is_file():
                raise FileNotFoundError(f"{self.folder / file} is missing, though {INDEX} names it; download it again")
            shards[file] = Shard(self.folder / file)
            headers += shards[file].header_size
            if headers > _MAX_INDEX:
                raise ValueError(f"{self.folder} has headers of over {_MAX_INDEX} bytes in all, expected no more")
        for name, file in placed.items():
            if name not in shards[file].entries:
                raise ValueError(f"{self.folder / file} lacks the tensor {name!r:.200}, which {INDEX} places there")
        return {name: shards[file] for name, file in placed.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``. Raises ``FileNotFoundError``, and ``ValueError`` if it is no object."""
    return read_document(folder / "config.json", _MAX_CONFIG)


def read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor as an index tells it. Raises ``ValueError`` unless all are names of files."""
    placed = read_document(path, _MAX_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{path} has no weight_map, which says where each tensor lies; download it again")
    for file in set(map(str, placed.values())):
        # As Windows reads paths, both slashes and drive letters lead away from the folder.
        if PureWindowsPath(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{path} names the file {file!r:.200}; expected a *.safetensors file beside it")
    return placed


def _refuse_links(folder: Path) -> None:
    """Refuse links out of the folder, which could pass a private file off as part of a model.

    In the hub's cache each file of ``snapshots/<commit>`` is a link into ``blobs`` beside it: these may stay.
    """
    home = Path(os.path.realpath(folder))
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    for path in home.iterdir() if home.is_dir() else ():
        if not path.is_symlink() or not path.name.endswith(_READ):
            continue
        if not Path(os.path.realpath(path)).is_relative_to(home) and (home / path.readlink()).parent.resolve() != blobs:
            raise ValueError(
                f"{folder / path.name} is a link to {path.readlink()}, which leaves the folder; put a copy of the file "
                "there if it is meant to be part of the model"
            )
