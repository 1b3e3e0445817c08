"""All that a race found out, as one object: what the report shows and the JSON holds."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from stretto.engine.llm import LLM
from stretto.kernels import native
from stretto.race.advice import advice, best
from stretto.race.contest import PLAIN, Contest, Run
from stretto.race.memory import peak_bytes
from stretto.race.prompts import Course
from stretto.race.standing import Row, standing
from stretto.tokens.detokenize import TextStream

COST_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
COST_CONTEXTS = (0, 512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class Sample:
    """One text, token by token, with the drafters that proposed each (the empty string: the model itself)."""

    method: str
    category: str
    prompt: str
    tokens: list[tuple[str, str]]
    """(text, origin)."""


@dataclass(slots=True)
class Result:
    """What was raced, on what, and how it went."""

    conditions: dict[str, Any]
    notes: list[str]
    categories: dict[str, int]
    """Prompts by category."""
    rows: list[Row]
    advice: str
    best: dict[int, str]
    """By concurrency the method that is advised, where there were rounds enough to tell."""
    cost: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """By context: (rows, milliseconds) of a pass of the target, as priced here; empty where nothing is priced."""
    sample: Sample | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Every run: method, concurrency, round, seconds, milliseconds by part, and each request's figures."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return that as a file's text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"


def conclude(
    contest: Contest, course: Course, conditions: Mapping[str, Any], flags: Mapping[str, str] | None = None
) -> Result:
    """Return what the finished runs of a contest say. ``flags``: see ``advice``."""
    rows, llm = standing(contest), contest.llm
    notes = [*course.notes]
    if contest.interrupted:
        notes.insert(0, f"Interrupted: {len(contest.runs)} runs were finished, the report is made of these")
    notes += [f"{row.method}: {warning}" for row in rows for warning in row.warnings]
    categories = {name: sum(each.category == name for each in course.asked) for name in course.categories}
    result = Result({**environment(llm), **conditions}, list(dict.fromkeys(notes)), categories, rows, "", {})
    result.advice = advice(rows, flags)
    result.best = {row.concurrency: method for row in rows if (method := best(rows, row.concurrency))}
    result.cost = cost_curve(llm)
    result.sample = _sample(contest, rows)
    result.runs = [_plain_data(run) for run in contest.runs]
    return result


def environment(llm: LLM) -> dict[str, Any]:
    """Return what the figures depend on beside what was asked for."""
    library = native.load()
    peak = peak_bytes()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "model": llm.name,
        "numerics": llm.fingerprint,
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "kernels": "PyTorch" if library is None else library.instruction_set(),
        "threads": torch.get_num_threads(),
        "versions": f"Stretto {version('stretto')}, Python {platform.python_version()}, PyTorch {torch.__version__}",
        "peak_memory_mb": None if peak is None else round(peak / 1e6),
    }


def cost_curve(llm: LLM) -> dict[int, list[tuple[int, float]]]:
    """Return by context what a pass of the target costs over its rows; empty for a backend that has no price."""
    price = getattr(llm.engine.models["target"], "price", None)
    contexts = [context for context in COST_CONTEXTS if context < llm.model.context]
    return {} if price is None else {c: [(rows, price.ms(rows, c)) for rows in COST_ROWS] for c in contexts}


def _sample(contest: Contest, rows: list[Row]) -> Sample | None:
    """Return the text of which the fastest drafting method drafted a middling share."""
    tokenizer = contest.llm.tokenizer
    drafting = [row for row in rows if row.drafts and row.sound]
    if not drafting or tokenizer is None:
        return None
    first = max(drafting, key=lambda row: row.speedup.median if row.speedup else 0.0)
    run = next(run for run in contest.runs if (run.method, run.concurrency) == (first.method, first.concurrency))
    shares = [sum(map(bool, answer.origins)) / max(1, len(answer.tokens)) for answer in run.answers]
    place = sorted(range(len(shares)), key=lambda place: shares[place])[len(shares) // 2]
    answer, stream = run.answers[place], TextStream(tokenizer, ())
    tokens = [
        (stream.push(token)[0], origin)
        for token, origin in zip(answer.tokens, answer.origins + [""] * len(answer.tokens), strict=False)
    ]
    asked = contest.asked[place]
    return Sample(first.method, asked.category, asked.text, tokens)


def _plain_data(run: Run) -> dict[str, Any]:
    data = asdict(run)
    for answer in data["answers"]:
        if run.round or run.method != PLAIN:  # plain's first texts are the ones that all others are held against
            del answer["tokens"], answer["origins"]
    return data
