"""``stretto generate --file prompts.jsonl --out results.jsonl``: many prompts in one batch, resumable."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from stretto.core.params import SamplingParams
from stretto.core.request import Request
from stretto.engine.completion import complete, refused
from stretto.engine.llm import LLM
from stretto.weights.files import PARTIAL, put, whole

AT_ONCE = 64
"""Prompts in the engine at a time; it queues what its cache does not hold."""


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of the file: its number, from 0, and what it asks for."""

    number: int
    prompt: str | list[int]
    params: dict[str, Any]


def read_lines(path: Path, usual: dict[str, Any]) -> list[Line]:
    """Return the prompts of a JSON Lines file: each line an object with ``prompt`` (text or token ids) and perhaps
    ``params``, which go before the ``usual`` ones.

    Raises ``ValueError`` that names the line.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number + 1} is not JSON ({error}); expected one object a line") from None
        known = isinstance(found, dict) and isinstance(found.get("prompt"), str | list)
        if not known or not isinstance(found.get("params", {}), dict) or set(found) - {"prompt", "params"}:
            raise ValueError(
                f'{path}, line {number + 1} is {text:.60}, expected {{"prompt": ...}} with a text or a list of token '
                'ids, and perhaps "params", an object of sampling parameters'
            )
        lines.append(Line(number, found["prompt"], usual | found.get("params", {})))
    return lines


def unfinished(out: Path) -> Path:
    """Return where the results of a run that has not ended are."""
    return out.with_name(out.name + PARTIAL)


def finished(path: Path) -> set[int]:
    """Return the numbers of the prompts that an earlier run has answered; what it left of a last line is cut off."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data.rpartition(b"\n")[0]
    if len(whole) + 1 < len(data) or (data and not whole):
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    try:
        return {int(json.loads(line)["number"]) for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds something else than results; name another file with --out") from None


def answer(llm: LLM, lines: list[Line], method: str | None) -> Iterator[dict[str, Any]]:
    """Yield a result for each prompt as it is done: its number, and its completions as plain data.

    A wrong prompt or parameter is the result of its own line and harms no other.
    """
    waiting = iter(lines)
    running: dict[int, tuple[Line, list[Request]]] = {}
    while True:
        while len(running) < AT_ONCE and (line := next(waiting, None)) is not None:
            try:
                requests = llm.submit(line.prompt, SamplingParams.from_dict(line.params), method)
            except ValueError as error:
                yield _result(line, [refused(line.number, error, method or llm.default_method).to_dict()])
                continue
            for request in requests:
                running[request.id] = (line, requests)
        if not running:
            return
        for delta in llm.engine.step():
            if delta.finish is None or delta.request not in running:
                continue
            line, requests = running[delta.request]
            if any(request.finish is None for request in requests):
                continue
            for request in requests:
                running.pop(request.id, None)
            fidelity = llm.engine.methods[requests[0].method].facts.fidelity
            yield _result(line, [complete(each, llm.fingerprint, fidelity, line.number).to_dict() for each in requests])


def _result(line: Line, completions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"number": line.number, "prompt": line.prompt, "completions": completions}


def run(llm: LLM, prompts: Path, out: Path, params: dict[str, Any], method: str | None) -> None:
    """Answer what ``out`` does not hold yet; say on a terminal how far it is.

    Result after result goes to disk beside it, under the name of ``unfinished``, where a second run goes on; ``out`` is
    replaced when all are there.
    """
    partial = unfinished(out)
    lines, done = read_lines(prompts, params), finished(partial if partial.exists() else out)
    left = [line for line in lines if line.number not in done]
    if not left and out.exists() and not partial.exists():
        return
    if not partial.exists() and out.exists():
        with whole(partial) as copy:
            shutil.copyfile(out, copy)
    with partial.open("a", encoding="utf-8", newline="\n") as file:
        progress = Progress(len(lines), len(lines) - len(left))
        for result in answer(llm, left, method):
            _write(file, result)
            progress.add(sum(len(each["token_ids"]) for each in result["completions"]))
    put(partial, out)
    progress.end()


def _write(file: TextIO, result: dict[str, Any]) -> None:
    file.write(json.dumps(result, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


class Progress:
    """How far a batch is, on standard error if that is a terminal."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._done, self._tokens = total, before, 0
        self._began, self._screen = time.monotonic(), sys.stderr.isatty()

    def add(self, tokens: int) -> None:
        """Count one more prompt as done."""
        self._done += 1
        self._tokens += tokens
        if self._screen:
            print(f"\r{self._line()}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Say the last word."""
        if self._screen:
            print(f"\r{self._line()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        pace = self._tokens / max(time.monotonic() - self._began, 1e-9)
        return f"{self._done} of {self._total} prompts, {pace:.0f} tokens/s"
