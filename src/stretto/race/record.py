"""Recorded texts: what a model said, kept so that another one can be made to say it again (``race.replay``).

A file of JSON Lines, one text a line: ``prompt_ids`` or ``prompt``, ``token_ids`` or ``text``, perhaps ``category`` and
``params``, the sampling parameters under which the text was chosen. A drafter that shares the noise of choice is
accepted as often as it would be beside the model that wrote the text only where these and the seed are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM
from stretto.race.prompts import Asked, json_lines
from stretto.weights.files import write_whole

KEPT = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed")
"""Sampling parameters that a record keeps."""


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and the tokens that were said to it. The parameters of ``asked`` end where the record does."""

    asked: Asked
    tokens: tuple[int, ...]


def read_records(path: Path, llm: LLM, params: SamplingParams) -> list[Record]:
    """Return the records of a file; ``params`` holds what a line does not say itself.

    A line without a seed gets its own number as seed, so that two texts behind one prompt are told apart. Raises
    ``ValueError`` naming the line that is no record, or whose tokens the model does not have.
    """
    records: list[Record] = []
    for number, entry in json_lines(path):
        where = f"{path}, line {number}"
        ids = _ids(llm, entry, "prompt_ids", "prompt", where)
        tokens = _ids(llm, entry, "token_ids", "text", where)
        if max(*ids, *tokens) >= llm.model.vocab_size:
            raise ValueError(
                f"{where}: token {max(*ids, *tokens)}, but {llm.name} has tokens 0 to "
                f"{llm.model.vocab_size - 1}; use a model with the vocabulary of the one that was recorded"
            )
        said = {"seed": number} | _params(entry, where)
        own = replace(params, **said, max_tokens=len(tokens), ignore_eos=True)
        try:
            own.validate(llm.model.vocab_size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        category = str(entry.get("category") or path.name.partition(".")[0])
        text = llm.tokenizer.decode(ids) if llm.tokenizer else ""
        records.append(Record(Asked(tuple(ids), own, category, text), tuple(tokens)))
    if not records:
        raise ValueError(f"{path} holds no recorded text; stretto race --record FILE writes some")
    return records


def write_records(path: Path, records: Sequence[Record], llm: LLM) -> None:
    """Write records as ``read_records`` reads them. Raises ``OSError``."""
    lines = []
    for record in records:
        params, tokenizer = record.asked.params.to_dict(), llm.tokenizer
        line: dict[str, Any] = {"category": record.asked.category}
        line |= {"params": {name: params[name] for name in KEPT}}
        if tokenizer is not None:
            line |= {"prompt": record.asked.text, "text": tokenizer.decode(record.tokens)}
        line |= {"prompt_ids": list(record.asked.ids), "token_ids": list(record.tokens)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def _params(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the sampling parameters that a record says; a seed of null is none."""
    said = {} if entry.get("params") is None else entry["params"]
    strange = sorted(said.keys() - set(KEPT)) if isinstance(said, dict) else [f"{said!r:.60}"]
    if strange:
        raise ValueError(f"{where}: params holds {', '.join(strange)}; expected an object of {', '.join(KEPT)} alone")
    return {name: value for name, value in said.items() if (name, value) != ("seed", None)}


def _ids(llm: LLM, entry: dict[str, Any], key: str, text: str, where: str) -> list[int]:
    """Return the token ids that a record holds under ``key``, or as a text."""
    ids, written = entry.get(key), entry.get(text)
    if ids is None and isinstance(written, str) and llm.tokenizer is not None:
        ids = llm.tokenizer.encode(written) if key == "prompt_ids" else llm.tokenizer.encode_plain(written)
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(
            f"{where}: {key} is {ids!r:.60}; expected a list of token ids, or a text under {text}, not empty; "
            "stretto race --record FILE writes such lines"
        )
    return ids
