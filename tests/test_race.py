"""Races: what is measured and checked, the advice, the report, what the command writes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from math import comb
from xml.etree import ElementTree

import pytest
from drafters import GarbageDrafter
from rich.console import Console

from stretto import LLM, SamplingParams
from stretto.cli.main import main
from stretto.cli.outputs import write_each
from stretto.cli.race import _flags, fitting
from stretto.core.tree import DraftTree
from stretto.decoding.method import Facts
from stretto.decoding.plain import Plain
from stretto.decoding.speculative.method import Speculative
from stretto.race.advice import advice, best
from stretto.race.contest import Contest
from stretto.race.picture import picture
from stretto.race.prompts import Asked, Course
from stretto.race.report import html
from stretto.race.result import conclude
from stretto.race.standing import Row, Spread, standing
from stretto.recipes.recipe import Recipe
from stretto.recipes.table import RECIPES

PARAMS = SamplingParams(temperature=0.8, top_p=0.95, seed=4, max_tokens=12)
COPYING = [
    "The cat sat on the mat. The dog sat on the mat. The cat sat on the mat. The dog sat on the",
    "one two three four five one two three four five one two three four",
    "Question: 1 + 1?\nAnswer: 2\nQuestion: 2 + 2?\nAnswer: 4\nQuestion: 1 + 1?\nAnswer:",
]


class Tail(GarbageDrafter):
    """Drafts what followed the last token where it stood before."""

    name = "tail"

    def tree(self, request, rows):
        tokens = request.tokens
        places = [i for i in range(len(tokens) - 1) if tokens[i] == tokens[-1]]
        return DraftTree.run(tokens[places[-1] + 1 :][:rows] if places else [], owner=self.name)


class Liar(Plain):
    """Says that it is exact, and changes every fifth token."""

    name = "liar"
    facts = Facts()

    def commit(self, requests, chunks, outputs):
        done = super().commit(requests, chunks, outputs)
        for committed in done:
            if committed.tokens and len(committed.request.tokens) % 5 == 0:
                committed.tokens = (committed.tokens[0] ^ 1,)
        return done


class Lossy(Liar):
    """The same, and says so."""

    name = "lossy"
    facts = Facts(fidelity="approximate")


@pytest.fixture(scope="module")
def recipes():
    """Three methods beside plain; what is returned grows by a word each time the first of them is built."""
    before, built = dict(RECIPES), []
    parts = {
        "tail": lambda _: built.append("tail") or Speculative("tail", [Tail(4096)], rows=6),
        "liar": lambda _: Liar(),
        "lossy": lambda _: Lossy(),
    }
    for name, build in parts.items():
        RECIPES[name] = Recipe(name, build, "retrieval", "approximate" if name == "lossy" else "exact")
    yield built
    RECIPES.clear()
    RECIPES.update(before)


@pytest.fixture(scope="module")
def llm():
    return LLM("stretto-tiny", cache_tokens=2048)


def course_of(llm, prompts=COPYING, params=PARAMS):
    return Course(
        [Asked(tuple(llm.tokenizer.encode(text)), params, f"group {text.startswith('Q'):d}", text) for text in prompts]
    )


def raced(llm, methods, *, rounds=2, concurrency=(1, 2), watch=lambda contest, text: None):
    course = course_of(llm)
    contest = Contest(llm, course.asked, methods, concurrency, rounds, watch)
    contest.go()
    return contest, course


@pytest.fixture(scope="module")
def four(llm, recipes):
    """A race of plain, a sound method, a liar and a lossy one; how often the sound one was built."""
    contest, course = raced(llm, ["plain", "tail", "liar", "lossy"])
    return contest, course, len(recipes)


# ---- measuring and checking ----


def test_runs_alternate_start_cold_and_are_checked(four):
    contest, _, built = four
    order = [run.method for run in contest.runs if run.concurrency == 1]
    assert order == ["plain", "tail", "liar", "lossy", "tail", "liar", "lossy", "plain"]
    plain = {run.concurrency: run.rows for run in contest.runs if run.method == "plain"}
    for run in contest.runs:
        expected = sum(len(each.ids) + len(a.tokens) - 1 for each, a in zip(contest.asked, run.answers, strict=True))
        if run.method == "plain":
            assert run.rows == expected == plain[run.concurrency], "a run found rows of an earlier one"
        assert run.seconds > 0 and run.cache_bytes > 0 and sum(run.parts.values()) <= 1e3 * run.seconds
        assert all(sum(answer.gains) == len(answer.tokens) for answer in run.answers)
    assert built == 1 + 4, "each run has a method of its own, and so has the first look"
    rows = {(row.method, row.concurrency): row for row in standing(contest)}
    assert len(rows) == 8
    for concurrency in (1, 2):
        plain_row, tail, liar, lossy = (rows[m, concurrency] for m in ("plain", "tail", "liar", "lossy"))
        assert plain_row.acceptance == 1 and plain_row.speedup is None and plain_row.equal == plain_row.texts == 6
        assert tail.acceptance > 1 and not tail.errors and tail.equal == 6 and tail.speedup.count == 2
        checked, accepted = tail.drafts["tail"][0]
        assert 0 < accepted < checked
        assert liar.equal < 6 and "liar promises plain's text" in liar.errors[0] and not liar.sound
        assert lossy.equal < 6 and not lossy.errors and 0 < lossy.agreement < 1
        assert set(tail.groups) == {"group 0", "group 1"}
    assert "liar" not in advice(list(rows.values())) and "lossy" not in advice(list(rows.values()))


def test_without_a_cold_start_later_runs_are_served_by_earlier_ones(llm, monkeypatch):
    """The control."""
    monkeypatch.setattr(Contest, "_cold", lambda self, method: "always the same")
    contest, _ = raced(llm, ["plain"], concurrency=(1,))
    assert contest.runs[1].rows < contest.runs[0].rows


def test_intervals_hold_the_median():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 1, False)
    assert not Spread.of([1.0, 2.0, 3.0, 4.0]).sure
    for count in range(5, 40):
        spread = Spread.of(list(range(count)))
        cut = spread.low
        outside = [2 * sum(comb(count, heads) for heads in range(int(c) + 1)) / 2**count for c in (cut, cut + 1)]
        assert spread.sure and outside[0] <= 0.1 < outside[1] and spread.high == count - 1 - cut


def row(method, low, fidelity="exact", concurrency=1, errors=()):
    spread = Spread(low + 0.1, low, low + 0.2, 9, True)
    none = dict(ttft_ms=1.0, tpot_ms=1.0, acceptance=1.0, drafts={}, parts={}, rows_per_step=1.0, cache_bytes=1)
    rest = dict(runs=9, speeds=[1.0], texts=1, equal=1, agreement=1.0, errors=list(errors), warnings=[])
    return Row(method=method, fidelity=fidelity, concurrency=concurrency, speedup=spread, **none, **rest)


def test_the_advice_names_the_fastest_that_keeps_the_text():
    rows = [row("a", 1.5), row("b", 2.5), row("c", 9.0, "approximate"), row("d", 9.0, errors=["wrong"])]
    assert advice(rows, {"b": "--draft X"}).startswith("Use --method b --draft X: 2.60 (2.50 to 2.70) times plain's")
    assert advice([row("a", 0.99)]) == "Plain is best here (--method plain)."
    both = advice([*rows, row("a", 0.7, concurrency=4), row("b", 0.8, concurrency=4)])
    assert "--method b at concurrency 1" in both and "plain is best here at concurrency 4" in both
    assert "no other method" in advice([replace(row("plain", 1.0), speedup=None)])


def few(row):
    return replace(row, speedup=replace(row.speedup, count=4, sure=False))


@pytest.mark.parametrize(
    ("rows", "told", "chosen"),
    [
        ([few(row("a", 1.5))], "Too few rounds to advise: it takes 5 (--pairs 5).", {1: None}),
        ([few(row("a", 0.5))], "Too few rounds to advise: it takes 5 (--pairs 5).", {1: None}),
        ([few(row("a", 9.5)), row("b", 1.5)], "Use --method b: 1.60", {1: "b"}),
        ([few(row("a", 1.5)), row("b", 0.5)], "Too few rounds", {1: None}),
        ([few(row("a", 1.5, "approximate")), row("b", 0.5)], "Plain is best here", {1: "plain"}),
        ([few(row("a", 1.5, "approximate"))], "Too few rounds", {1: None}),
        (
            [row("a", 1.5), few(row("a", 1.5, concurrency=4))],
            "Use --method a at concurrency 1: 1.60 (1.50 to 1.70) times plain's speed, the same text; "
            "too few rounds to advise at concurrency 4: it takes 5 (--pairs 5).",
            {1: "a", 4: None},
        ),
        (
            [row("a", 0.5), replace(row("plain", 1.0, concurrency=4), speedup=None)],
            "Plain is best here at concurrency 1 (--method plain); too few rounds to advise at concurrency 4",
            {1: "plain", 4: None},
        ),
    ],
)
def test_the_advice_waits_for_rounds_enough(rows, told, chosen):
    assert advice(rows).startswith(told)
    assert {place: best(rows, place) for place in chosen} == chosen


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("plain", "--weights int8"),
        ("suffix-decoding", "--weights int8"),
        ("auto", "--draft D --weights int8"),
        ("draft-model", "--draft D --weights int8"),
        ("slem", "--draft D --weights int8"),
    ],
)
def test_a_draft_is_advised_to_those_who_use_it(method, flags):
    assert _flags(method, {"draft": "D", "draft-weights": "auto", "weights": "int8"}) == flags
    assert _flags(method, {"draft": None, "draft-weights": "int8", "weights": "auto"}) == ""
    told = _flags("auto", {"draft": "D", "draft-weights": "bf16", "weights": "auto"})
    assert told == "--draft D --draft-weights bf16"


def test_a_plain_run_without_a_token_leaves_its_error_in_the_table(llm, recipes, monkeypatch):
    def fails(self, *_):
        raise RuntimeError("no pass today")

    monkeypatch.setattr(type(llm.model), "forward", fails)
    contest, course = raced(llm, ["plain", "tail"], rounds=1, concurrency=(1,))
    result = conclude(contest, course, {})
    assert [row.speedup for row in result.rows] == [None, None]
    assert all("no pass today" in row.errors[0] for row in result.rows)
    assert "plain wrote nothing" in result.advice and result.best == {} and "no pass today" in html(result)


def test_ctrl_c_keeps_the_finished_runs(llm, recipes):
    def watch(contest, text):
        if len(contest.runs) == 3:
            raise KeyboardInterrupt

    contest, course = raced(llm, ["plain", "tail"], watch=watch)
    assert contest.interrupted and len(contest.runs) == 3
    result = conclude(contest, course, {})
    assert [(r.method, r.concurrency) for r in result.rows] == [("plain", 1), ("tail", 1), ("plain", 2)]
    assert "Interrupted" in result.notes[0]
    assert not llm.engine.requests


# ---- the report ----


class Page(HTMLParser):
    """Collects what a page would fetch, its text, and whether its elements are closed in order."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.elements, self.words = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_report_is_whole_and_asks_nobody(llm, four):
    contest, course, _ = four
    course.notes.append("a note with <b>marks</b>")
    text = html(conclude(contest, course, {"seed": 4}))
    page = Page(text)
    assert page.fetched == [] and not re.search(r"https?:|//\w|url\(|@import", text)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.elements}
    assert sum(tag == "svg" for tag, _ in page.elements) >= 4
    for title in ("Speed-up by category", "Acceptance by depth", "Where the time goes", "Who drafted what"):
        assert title in page.words
    assert "liar promises plain" in page.words and "a note with <b>marks</b>" in page.words
    tail = next(run for run in contest.runs if run.method == "tail")
    texts = [llm.tokenizer.decode(answer.tokens) for answer in tail.answers]
    assert any(each in page.words for each in texts), "the sample is one of the texts"
    drafted = sum(tag == "b" and attributes.get("title") == "tail" for tag, attributes in page.elements)
    assert drafted in [sum(map(bool, answer.origins)) for answer in tail.answers]


def test_the_picture_is_one_file_that_says_what_the_report_says(four):
    contest, course, _ = four
    result = conclude(contest, course, {"seed": 4})
    text = picture(result)
    root = ElementTree.fromstring(text)
    said = "".join(root.itertext())
    assert not re.search(r"(href|src)=|url\(|@import", text)
    assert result.advice.replace(" ", "") in said.replace(" ", "").replace("\n", "")
    marked = [
        mark for mark in root.iter("{http://www.w3.org/2000/svg}rect") if mark.get("class", "").startswith("behind")
    ]
    assert result.sample is not None and any(origin for _, origin in result.sample.tokens) == bool(marked)
    bars = [mark for mark in root.iter("{http://www.w3.org/2000/svg}title") if "times plain" in (mark.text or "")]
    first = [row for row in result.rows if row.concurrency == 1 and row.method != "plain"]
    assert len(bars) == sum(len(row.groups) for row in first)


def test_the_command_writes_what_it_was_asked_for(recipes, tmp_path, capsys, monkeypatch):
    (tmp_path / "p.txt").write_text("\n".join(COPYING[:2]))
    out, again = tmp_path / "out", tmp_path / "r.jsonl"
    options = ["--methods", "tail,lossy", "--pairs", "1", "--max-tokens", "8", "--concurrency", "1,2", "--seed", "4"]

    def stretto(*arguments):
        monkeypatch.setattr(sys, "argv", ["stretto", "race", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    code, said, _ = stretto("--prompts", f"{tmp_path}/p.txt", *options, "--out", str(out), "--record", str(again))
    assert code == 0 and "lossy (approximate)" in said and "Too few rounds to advise" in said
    data = json.loads((out / "race.json").read_text())
    assert [(r["method"], r["concurrency"]) for r in data["rows"]][:2] == [("plain", 1), ("tail", 1)]
    assert len(data["runs"]) == 6 and data["conditions"]["seed"] == 4 and data["advice"] in said.replace("\n", " ")
    assert "<svg" in (out / "race.html").read_text()
    replay = ["--replay", str(again), "--pairs", "1"]
    code, said, _ = stretto(*replay, "--methods", "tail", "--json", f"{tmp_path}/again.json")
    assert code == 0 and "tail" in said
    conditions = json.loads((tmp_path / "again.json").read_text())["conditions"]
    assert conditions["replay"] == str(again) and not conditions.keys() & {"seed", "max_tokens", "temperature"}
    for option in ("--seed", "--max-tokens"):
        code, _, errors = stretto(*replay, option, "4")
        assert code == 2 and option in errors
    code, _, errors = stretto(*replay, "--methods", "lossy")
    assert code == 1 and "lossy decides by the target's probabilities" in errors
    code, said, errors = stretto("--prompts", f"{tmp_path}/p.txt", *options, "--methods", "tail,liar")
    assert code == 1 and "WRONG: liar promises plain's text" in said and "texts were wrong with liar" in errors
    for wrong, told in [
        (["--methods", "taill"], "tail"),
        (["--concurrency", "0"], "concurrency"),
        (["--temperature", "-1"], "temperature"),
        (["--replay", str(again)], "--prompts FILE, or --replay"),
        *(([option, str(out)], option) for option in ("--json", "--picture", "--record")),
        (["--out", f"{again}/report.html"], "--out"),
    ]:
        code, _, errors = stretto("--prompts", f"{tmp_path}/p.txt", *options, *wrong)
        assert code == 2 and told in errors and "round 1" not in errors


@pytest.mark.parametrize("width", [200, 80, 60])
def test_a_narrow_terminal_loses_columns_and_no_figures(width):
    screen = Console(width=width, file=StringIO())
    screen.print(fitting(screen, [row("speculative-decoding", 1.5, "exact-distribution"), row("auto", 2.25)]))
    heads, *lines = screen.file.getvalue().splitlines()
    assert not any("…" in line for line in (heads, *lines)) and max(map(len, lines)) <= width
    assert ("runs" in heads) == (width == 200) and "2.35 (2.25-2.45)" in lines[-1]


def test_a_file_that_cannot_be_written_costs_no_other(tmp_path):
    def write(path):
        path.write_text("whole")

    gone = [tmp_path / "gone" / name for name in "ab"]
    with pytest.raises(OSError, match=r"report .*gone/a cannot be written .*; picture .*gone/b cannot"):
        write_each([("report", gone[0], write), ("JSON", tmp_path / "c", write), ("picture", gone[1], write)])
    assert (tmp_path / "c").read_text() == "whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child of this kind")
def test_ctrl_c_writes_the_report_and_exits_130(tmp_path):
    (tmp_path / "p.txt").write_text(COPYING[0])
    command = "from stretto.cli.main import main; main()"
    options = ["--methods", "plain", "--pairs", "100000", "--max-tokens", "4", "--out", str(tmp_path / "r.html")]
    child = subprocess.Popen(
        [sys.executable, "-c", command, "race", "--prompts", str(tmp_path / "p.txt"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("round 2"):
            break
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in errors and "plain" in said
    assert "Interrupted" in (tmp_path / "r.html").read_text()
