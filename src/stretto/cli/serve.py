"""``stretto serve`` and ``stretto replay``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from stretto.cli.generate import checked
from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM
from stretto.serving import server
from stretto.serving.logs import write_lines
from stretto.serving.records import read_record
from stretto.serving.settings import Settings


def run(model: str, *, name: str | None, engine: Mapping[str, Any], **options: Any) -> None:
    """Serve until a signal; the log goes to standard error, a JSON object a line."""
    checked({}, engine["method"], engine["device"])
    try:
        settings = Settings(model, name=name or "", engine=engine, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--host") from None
    write_lines()
    server.run(settings)


def again(answer: str, folder: Path, *, model: str | None, method: str | None) -> None:
    """Write a recorded answer as it comes now; end with 1 where it is another one, and say what is different."""
    record = read_record(folder, answer)
    llm = LLM(model or record.model, **record.engine)
    params = SamplingParams.from_dict(record.params)
    done = [
        each for prompt in record.prompts for each in llm.generate([prompt], params, method=method or record.method)
    ]
    for each in done:
        print(each.text, flush=True)
    was = [each["tokens"] for each in record.answers]
    cut = [each["finish_reason"] == "timeout" for each in record.answers]
    found = [
        each.token_ids[: len(then)] if short else each.token_ids
        for each, then, short in zip(done, was, cut, strict=True)
    ]
    if found == was:
        print(f"the same {sum(map(len, found))} tokens", file=sys.stderr)
        return
    place = next(i for i, pair in enumerate(zip(was, found, strict=True)) if pair[0] != pair[1])
    same = next((i for i, pair in enumerate(zip(was[place], found[place], strict=False)) if pair[0] != pair[1]), None)
    numerics = "" if llm.fingerprint == record.numerics else f"; numerics {llm.fingerprint}, then {record.numerics}"
    where = "one of them ends sooner" if same is None else f"from token {same} on"
    raise RuntimeError(f"not the same: sample {place} differs, {where}{numerics}")
