"""``stretto race``: methods side by side on somebody's own prompts."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stretto.cli.generate import checked, demonstration
from stretto.cli.outputs import check_places, write_each
from stretto.cli.progress import EverySecond
from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM
from stretto.race.contest import PLAIN, Contest
from stretto.race.picture import picture
from stretto.race.prompts import Course, read_course
from stretto.race.record import Record, read_records, write_records
from stretto.race.replay import replay as replayed
from stretto.race.report import agreement, html
from stretto.race.result import Result, conclude
from stretto.race.standing import Row, standing
from stretto.recipes.table import RECIPES, find_recipe, missing
from stretto.weights.files import write_whole

FIDELITY = "fidelity"
"""Stands behind the name of a method that is not exact."""
SPARE = (FIDELITY, "runs", "TTFT ms", "at a time", "TPOT ms", "tokens a step")
"""What a narrow terminal goes without, the first of it first; report and JSON hold it all."""
MAX_TOKENS = 128
"""Tokens of an answer, unless something else is asked for."""
HEADS = ("method", "at a time", "runs", "tokens/s", "speed-up", "TTFT ms", "TPOT ms", "tokens a step", "text")


def run(
    model: str,
    *,
    prompts: list[Path],
    methods: str | None,
    concurrency: str,
    params: dict[str, Any],
    pairs: int,
    limit: int | None,
    draft: str | None,
    weights: str,
    draft_weights: str,
    threads: int | None,
    device: str,
    out: Path | None,
    json_file: Path | None,
    picture_file: Path | None,
    replay: Path | None,
    record: Path | None,
) -> None:
    """Race, then print the table and the advice and write what was asked for. Ctrl-C keeps what was measured.

    Raises ``RuntimeError`` at the end where a method broke its promise or requests failed.
    """
    if bool(prompts) == (replay is not None):
        raise typer.BadParameter("give --prompts FILE, or --replay FILE with recorded texts", param_hint="--prompts")
    for name in ("seed", "max_tokens") if replay else ():
        if params[name] is not None:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter("a recorded text has its own; leave this out with --replay", param_hint=option)
    page, data = _places(out, json_file)
    # What cannot be written should be known before hours of measuring.
    check_places({"--out": page, "--json": data, "--picture": picture_file, "--record": record})
    params["seed"] = secrets.randbits(31) if params["seed"] is None else params["seed"]
    params["max_tokens"] = params["max_tokens"] or MAX_TOKENS
    sampling = checked(params, PLAIN, device)
    places, names = _numbers(concurrency), _names(methods)
    llm = LLM(
        model,
        draft=draft,
        draft_weights=draft_weights,
        weights=weights,
        threads=threads,
        device=device,
        progress=EverySecond(),
    )
    demonstration(model)
    course = _course(llm, prompts, replay, sampling, limit)
    contest = Contest(llm, course.asked, _lineup(llm, names, replay), places, pairs, lambda contest, text: None)
    with Board() as board:
        contest.watch = board
        contest.go()
    if not contest.runs:
        print("stretto: interrupted before the first run was finished; nothing was measured", file=sys.stderr)
        raise KeyboardInterrupt
    loaded = {"draft": draft, "draft-weights": draft_weights, "weights": weights}
    asked = {**loaded, **({"replay": str(replay)} if replay else params), "rounds": pairs}
    result = conclude(contest, course, asked, {name: _flags(name, loaded) for name in contest.methods})
    Board.print(result)
    write_each(
        [
            ("report", page, lambda path: write_whole(path, html(result))),
            ("JSON", data, lambda path: write_whole(path, result.to_json())),
            ("picture", picture_file, lambda path: write_whole(path, picture(result))),
            ("record", record, lambda path: _record(path, contest)),
        ]
    )
    if contest.interrupted:
        raise KeyboardInterrupt
    if broken := dict.fromkeys(row.method for row in result.rows if row.errors):
        raise RuntimeError(f"requests failed or texts were wrong with {', '.join(broken)}: see what stands above")


def _course(llm: LLM, prompts: list[Path], replay: Path | None, params: SamplingParams, limit: int | None) -> Course:
    """Return the prompts; with recorded texts to replay, make the model say them."""
    if replay is None:
        return read_course(prompts, llm, params, limit=limit)
    records = read_records(replay, llm, params)
    room = min(llm.model.context, llm.engine.caches["target"].capacity)
    fitting = [each for each in records if len(each.asked.ids) + len(each.tokens) <= room]
    course = Course()
    if len(fitting) < len(records):
        course.notes.append(f"{len(records) - len(fitting)} recorded texts are left out: longer than {room} tokens")
    if limit is not None and limit < len(fitting):
        course.notes.append(f"{limit} of {len(fitting)} recorded texts are taken, evenly over the file")
        fitting = [fitting[place * len(fitting) // limit] for place in range(limit)]
    if not fitting:
        raise ValueError(f"{replay}: no recorded text fits into {room} tokens of context and cache")
    replayed(llm, fitting)
    course.asked = [each.asked for each in fitting]
    return course


# ---- options ----


def _numbers(text: str) -> list[int]:
    """Return the numbers between commas, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r}: expected numbers of at least 1 between commas", param_hint="--concurrency")
    return list(dict.fromkeys(map(int, parts)))


def _names(text: str | None) -> list[str] | None:
    """Return the names between commas, None for the default; ``all`` stays as it is."""
    names = None if text is None else [part.strip() for part in text.split(",") if part.strip()]
    if names == []:
        raise typer.BadParameter("expected names between commas", param_hint="--methods")
    try:
        for name in names or []:
            if name != "all":
                find_recipe(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--methods") from None
    return names


def _lineup(llm: LLM, names: list[str] | None, replay: Path | None) -> list[str]:
    """Return the methods to race, plain first.

    By default ``auto`` where it is aboard, else every exact method that runs here. Only exact ones can be raced on a
    ``replay``. Raises ``ValueError`` for others.
    """
    here = [recipe for recipe in RECIPES.values() if not missing(recipe, llm.aboard)]
    if replay is not None:
        here = [recipe for recipe in here if recipe.fidelity == "exact"]
        for recipe in map(find_recipe, set(names or ()) - {"all"}):
            if recipe.fidelity != "exact":
                raise ValueError(
                    f"{recipe.name} decides by the target's probabilities, which a recorded text does not hold: "
                    "leave it out, or race it on prompts (--prompts FILE)"
                )
    if names is None:
        auto = [recipe.name for recipe in here if recipe.family == "auto"]
        names = auto[:1] or [recipe.name for recipe in here if recipe.fidelity == "exact"]
    elif "all" in names:
        names = [*names, *(recipe.name for recipe in here)]
    return list(dict.fromkeys([PLAIN, *(name for name in names if name != "all")]))


def _flags(method: str, loaded: Mapping[str, str | None]) -> str:
    """Return the options that a method needs beside its name to be what was raced."""
    drafts = method == "auto" or find_recipe(method).needs & {"draft", "foreign-draft"}
    given = loaded if drafts and loaded["draft"] else {"weights": loaded["weights"]}
    return " ".join(f"--{name} {value}" for name, value in given.items() if value not in (None, "auto"))


def _places(out: Path | None, json_file: Path | None) -> tuple[Path | None, Path | None]:
    """Return where report and JSON go: a folder holds both."""
    if out is None or out.suffix in (".html", ".htm"):
        return out, json_file
    return out / "race.html", json_file or out / "race.json"


def _record(path: Path, contest: Contest) -> None:
    """Write plain's first texts as they can be replayed."""
    first = next(run for run in contest.runs if run.method == PLAIN)
    pairs = zip(contest.asked, first.answers, strict=True)
    records = [Record(asked, tuple(answer.tokens)) for asked, answer in pairs if answer.tokens]
    write_records(path, records, contest.llm)


# ---- what is shown ----


class Board:
    """The table as it grows: live on a terminal, else a line on standard error for every finished run."""

    def __init__(self) -> None:
        self._screen = Console(stderr=True)
        self._live = Live(console=self._screen, auto_refresh=False) if self._screen.is_terminal else None
        self._told, self._began = 0, time.monotonic()

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()

    def __call__(self, contest: Contest, text: str) -> None:
        """Show how far the contest is."""
        done, total = len(contest.runs), contest.rounds * len(contest.methods) * len(contest.concurrency)
        left = f" · {(time.monotonic() - self._began) * (total - done) / done / 60:.1f} min left" if done else ""
        if self._live is not None:
            line = Text(f"{text} · {done} of {total} runs{left} · Ctrl-C keeps what was measured", style="dim")
            self._live.update(Group(fitting(self._screen, standing(contest)), line), refresh=True)
        elif done > self._told:
            self._told, last = done, contest.runs[-1]
            where = f"round {last.round + 1}: {last.method} at {last.concurrency}"
            print(f"{where}: {last.speed:.1f} tokens/s{left}", file=sys.stderr, flush=True)

    @staticmethod
    def print(result: Result) -> None:
        """Print the final table and the advice on standard output."""
        screen = Console(width=None if sys.stdout.isatty() else 160)
        screen.print(fitting(screen, result.rows, result.best))
        for row in result.rows:
            for error in row.errors:
                screen.print(Text(f"WRONG: {error}", style="bold red"))
        for note in result.notes:
            screen.print(Text(note, style="dim"))
        screen.print(Text(result.advice, style="bold"))


def fitting(screen: Console, rows: list[Row], best: dict[int, str] | None = None) -> Table:
    """Return the standing with as many columns as a screen has room for."""
    heads = [*HEADS, FIDELITY]
    shown = table(rows, best, heads)
    for spare in SPARE:
        if screen.measure(shown, options=screen.options.update(max_width=sys.maxsize)).maximum <= screen.width:
            break
        heads.remove(spare)
        shown = table(rows, best, heads)
    return shown


def table(rows: list[Row], best: dict[int, str] | None = None, heads: Sequence[str] = HEADS) -> Table:
    """Return the standing; the method that is advised at each concurrency in bold."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for name in HEADS:
        if name in heads:
            shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        spread = row.speedup
        cells = [
            row.method if row.fidelity == "exact" or FIDELITY not in heads else f"{row.method} ({row.fidelity})",
            str(row.concurrency),
            str(row.runs),
            f"{row.speed:.1f}",
            "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})",
            "" if row.ttft_ms is None else f"{row.ttft_ms:.1f}",
            "" if row.tpot_ms is None else f"{row.tpot_ms:.2f}",
            f"{row.acceptance:.2f}",
            agreement(row),
        ]
        wins = best is not None and best.get(row.concurrency) == row.method
        told = [cell for name, cell in zip(HEADS, cells, strict=True) if name in heads]
        shown.add_row(*told, style="bold red" if row.errors else "bold" if wins else "")
    return shown
