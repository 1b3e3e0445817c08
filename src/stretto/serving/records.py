"""Recorded requests: what it takes to get an answer again, and the answer's tokens to compare with. Off by default."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.serving.answers import Completion
from stretto.serving.settings import Settings
from stretto.serving.wanted import Wanted
from stretto.weights.files import write_whole

NAME = re.compile(r"(?:chat)?cmpl-[0-9a-f]{24}")
KEPT = ("model", "engine", "method", "numerics", "params", "prompts", "answers")


class Recorder:
    """Writes a file for each answered request, readable for its owner alone."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self._model, self._engine = settings.model, dict(settings.engine)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, name: str, wanted: Wanted, done: Sequence[Completion]) -> None:
        """Write a request and its answer. Raises ``OSError``."""
        params = {key: value for key, value in wanted.params.items() if key != "tenant"}
        path = self.folder / f"{name}.json"
        told = {
            "model": self._model,
            "engine": self._engine,
            "method": wanted.method,
            "numerics": done[0]["fingerprint"],
            "params": params,
            "prompts": wanted.prompts,
            "answers": [{"tokens": list(each["token_ids"]), "finish_reason": each["finish_reason"]} for each in done],
        }
        write_whole(path, json.dumps(told) + "\n", private=True)


@dataclass(frozen=True, slots=True)
class Record:
    """A request as it was recorded. ``engine``: options of the engine; ``answers``: prompt after prompt."""

    model: str
    engine: dict[str, Any]
    method: str
    numerics: str
    params: dict[str, Any]
    prompts: list[list[int]]
    answers: list[dict[str, Any]]


def read_record(folder: Path, name: str) -> Record:
    """Return a record by its answer's id. Raises ``ValueError`` where there is none, or something else."""
    path = folder / f"{name}.json"
    if not NAME.fullmatch(name) or not path.is_file():
        raise ValueError(
            f"{name!r} is no answer recorded in {folder}; expected the id of one, such as chatcmpl- and 24 digits, "
            "given while the server ran with --record"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{key: found[key] for key in KEPT})
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a record of this version; expected the keys {', '.join(KEPT)}") from None
