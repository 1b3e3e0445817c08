"""What drafting is worth: ``auto`` beside plain decoding, beside the best single method, and beside llama.cpp.

    python benchmarks/speculation.py --data DIR [--quick] [--only SECTION ...] [--json OUT] [--markdown OUT]
                                     [--peer-python PATH] [--models DIR]

DIR holds ``corpus/<stories|math|code|chat>.test.jsonl[.xz]`` and ``eval/spec_bench.jsonl``. Two targets: (a) the
embedded pair; (b) random int8 weights of the 1 G shape with the embedded model's vocabulary, which compute in full and
say recorded texts (``stretto.race.replay``), the embedded draft aboard. Every figure is the median over pairs played in
alternation, but for a server's life, which is played once; every text is held against plain decoding's. llama.cpp runs
in a process of ``--peer-python``; where it is not installed it is "not run". Run it on a machine that does nothing
else: the load is part of the record.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from checkpoints import speaking_checkpoint
from floors import markdown
from peers import Loaded, Peers
from report import environment, save, table
from speculation_floors import judge
from speculation_parts import (
    Course,
    exact_methods,
    measure_alone,
    measure_crowd,
    measure_life,
    measure_pairs,
    measure_synthetic,
)
from speculation_play import Target, replayed
from speculation_texts import CATEGORIES, COPYING, CORPORA, GREEDY, Texts, head

from stretto import LLM
from stretto.kernels import native
from stretto.race.record import Record
from stretto.weights.resolve import embedded

SECTIONS = ("pairs", "alone", "life", "crowd", "synthetic", "human", "greedy")
CROWDS = (4, 16, 64)
TITLES = {
    "pairs": "auto from a cold start over the best single method, which was picked on other texts",
    "alone": "batch 1: auto over plain decoding",
    "life": "a server's life: texts of all kinds in turns, each method once through them from a cold start",
    "crowd": "many at once: auto over plain decoding",
    "synthetic": "(b) a drafter that errs at a set rate",
    "human": "(b) human texts, retrieval only: auto over plain decoding",
    "greedy": "greedy texts, which loop and count for no floor: auto over plain decoding",
}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is played."""

    pairs: int
    courses: int
    """Pairs of courses through the texts of a category on (b),"""
    small_courses: int
    """and on (a), where they and many texts at once take a tenth of a second each."""
    records: int
    """Texts of a category for the pairs, half of them to pick on."""
    small: int
    """Texts of a category on (a), each of which is played once by either: they take a tenth of a second each."""
    tokens: int
    """Of a text on (a)."""
    large: int
    """Of a text on (b); an edited one has up to three times as many."""
    life: int
    """Texts of each category that are played in turns on (b),"""
    small_life: int
    """and on (a)."""
    crowd: int
    """Of each of many texts at once."""
    beside: int
    """Greedy and human texts of a category."""
    synthetic: int
    """Tokens of a text with the drafter that errs."""


WHOLE = Size(
    pairs=9,
    courses=10,
    small_courses=36,
    records=12,
    small=36,
    tokens=128,
    large=96,
    life=3,
    small_life=12,
    crowd=40,
    beside=3,
    synthetic=192,
)
QUICK = Size(
    pairs=3,
    courses=3,
    small_courses=3,
    records=4,
    small=4,
    tokens=48,
    large=48,
    life=1,
    small_life=2,
    crowd=12,
    beside=1,
    synthetic=96,
)


class Bench:
    """The targets, made when first needed, and their texts."""

    def __init__(self, asked: argparse.Namespace, models: Path, peers: Peers) -> None:
        self.asked, self.models, self.peers = asked, models, peers
        self.size = QUICK if asked.quick else WHOLE
        self.small = self._load("stretto-tiny", draft=True)
        self.texts = Texts(self.small, asked.data)
        begun = perf_counter()
        size = self.size
        self.records = {name: self.texts.sampled(name, size.small, size.tokens) for name in asked.categories}
        crowds = asked.crowds if "crowd" in asked.only else ()
        self.crowds = {many: self.texts.crowd(many, size.small_courses + 1, size.crowd) for many in crowds}
        self.long = self.texts.sampled("stories", size.pairs, size.synthetic) if "synthetic" in asked.only else []
        beside = {name: size.beside for name in asked.categories}
        greedy = "greedy" in asked.only
        self.greedy = {n: self.texts.sampled(n, c, size.tokens, GREEDY) for n, c in beside.items() if greedy}
        human = [name for name in CORPORA if name in asked.categories and "human" in asked.only]
        self.human = {name: self.texts.human(name, size.beside, size.large) for name in human}
        print(f"texts: {perf_counter() - begun:.0f} s; left out: {dict(self.texts.left_out)}", flush=True)
        self.targets: list[Target] = []

    def _load(self, model: str | Path, *, draft: bool, weights: str = "auto") -> LLM:
        name = "stretto-tiny-draft" if "stretto-tiny-draft" in embedded() else "stretto-tiny"
        options: dict[str, Any] = {"weights": weights, "threads": self.asked.threads, "cache_tokens": 8192}
        if draft:
            options |= {"draft": name, "draft_weights": "int8"}
        return LLM(str(model), **options)

    def course_a(self) -> tuple[Course, Course]:
        """Return the embedded pair, which says its own texts, and a second one that replays them and edited ones."""
        own = Target("a", self.small)
        texts = [*(record for found in self.records.values() for record in found), *self.greedy.get(COPYING, ())]
        other = replayed("a", self._load("stretto-tiny", draft=True), texts)
        self.targets += [own, other]
        return Course(own, self.records), Course(other, self.records)

    def course_b(self) -> Course:
        """Return the large target, with everything that it is to say."""
        everything = [record for group in (self.records, self.greedy) for each in group.values() for record in each]
        everything += [record for rounds in self._few_crowds() for each in rounds for record in each] + self.long
        large = replayed("b", self._load(self._large(), draft=True, weights="int8"), everything)
        self.targets.append(large)
        return Course(
            large, {name: self._shorter(name, found[: self.size.records]) for name, found in self.records.items()}
        )

    def _few_crowds(self) -> list[list[list[Record]]]:
        """Return the rounds of many texts that are played on the large target."""
        return [rounds[: self.size.pairs + 1] for rounds in self.crowds.values()]

    def _shorter(self, category: str, records: Sequence[Record]) -> list[Record]:
        """Return the beginnings that are played on the large target."""
        most = self.size.large * (3 if category == COPYING else 1)
        return [head(each, most) for each in records]

    def course_human(self) -> Course:
        """Return the large target without a draft, saying human texts."""
        everything = [record for each in self.human.values() for record in each]
        large = replayed("b", self._load(self._large(), draft=False, weights="int8"), everything)
        self.targets.append(large)
        return Course(large, self.human)

    def _large(self) -> Path:
        """Return the folder of the random target, with the embedded model's tokenizer in it."""
        return speaking_checkpoint(self.asked.shape, self.models)

    def peer(self) -> Loaded | None:
        """Return llama.cpp with the large target's weights, None where it is not there."""
        return self.peers.open("llama.cpp", self._large(), "int8", 1024)

    def run(self) -> Iterator[tuple[str, Row]]:
        """Yield sections and their rows."""
        only, size = set(self.asked.only), self.size
        own, copying = self.course_a()
        small = {name: copying if name == COPYING else own for name in self.asked.categories}
        if "pairs" in only:
            methods = exact_methods(own.target)
            for name, course in small.items():
                raced = Course(course.target, {name: course.records[name][: size.records]})
                yield "pairs", measure_pairs(raced, name, methods, size.small_courses)
        if "alone" in only:
            for name, course in small.items():
                yield "alone", measure_alone(course, name, size.small, None)
        for row in measure_life(copying, size.small_life) if "life" in only else ():
            yield "life", row
        for rounds in self.crowds.values():
            yield "crowd", measure_crowd(own.target, rounds)
        for name, records in self.greedy.items():
            course = Course(small[name].target, {name: records})
            yield "greedy", measure_alone(course, name, size.beside, None)
        if only - {"human"}:
            yield from self._run_large(self.course_b())
        if self.human:
            course = self.course_human()
            for name in self.human:
                yield "human", measure_alone(course, name, size.beside, None)

    def _run_large(self, course: Course) -> Iterator[tuple[str, Row]]:
        only, size, target = set(self.asked.only), self.size, course.target
        peer = self.peer() if only & {"alone", "synthetic"} else None
        if "alone" in only:
            for name in course.records:
                yield "alone", measure_alone(course, name, size.pairs, peer)
        if "pairs" in only:
            methods = exact_methods(target)
            for name in course.records:
                yield "pairs", measure_pairs(course, name, methods, size.courses)
        for row in measure_life(course, size.life) if "life" in only else ():
            yield "life", row
        for rounds in self._few_crowds():
            yield "crowd", measure_crowd(target, rounds)
        for row in measure_synthetic(target, self.long, size.pairs, peer) if self.long else ():
            yield "synthetic", row
        for name, records in self.greedy.items():
            course = Course(target, {name: self._shorter(name, records)})
            yield "greedy", measure_alone(course, name, size.beside, None)


def report(asked: argparse.Namespace, models: Path) -> bool:
    """Measure what was asked for, print it, judge it, write it; return whether every text was right."""
    begun = perf_counter()
    torch.set_num_threads(asked.threads)
    native.set_threads(asked.threads)
    results: dict[str, list[Row]] = {}
    dropped: list[str] = []
    logging.getLogger("stretto").addFilter(lambda record: dropped.append(record.getMessage()) is None)
    with Peers(asked.peer_python, models, asked.threads) as peers:
        facts: dict[str, Any] = environment() | {"quick": asked.quick, "shape": asked.shape, "peers": peers.versions}
        print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
        bench = Bench(asked, models, peers)
        last = perf_counter()
        for section, row in bench.run():
            results.setdefault(section, []).append(row)
            now = perf_counter()
            print(f"{section}: {_brief(row)} [{now - last:.0f} s]", flush=True)
            last = now
    wrong = [*dropped, *(text for target in bench.targets for text in target.wrong)]
    facts |= {"left_out": dict(bench.texts.left_out), "not_run": peers.absent, "peer_flags": peers.flags}
    facts |= {"wrong": wrong, "seconds": perf_counter() - begun}
    floors = judge(results, wrong, asked.crowds)
    print()
    for section, rows in results.items():
        print(f"{TITLES[section]}\n\n{table([_told(row) for row in rows])}\n")
    print(f"floors (stated for shape 1b-tinyvocab, not quick)\n\n{table(floors)}\n")
    print("\n".join(f"{name}: {facts[name]}" for name in ("left_out", "not_run", "wrong", "seconds")))
    if asked.markdown:
        parts = [
            f"## {TITLES[section]}\n\n{markdown([_told(row) for row in rows])}" for section, rows in results.items()
        ]
        told = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        parts = ["# Speculation", told, f"## Floors\n\n{markdown(floors)}", *parts]
        asked.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if asked.json:
        flat = [{"section": section, **row} for section, rows in results.items() for row in rows]
        save(asked.json, "speculation", facts | {"floors": floors}, flat)
    return not wrong


def _told(row: Row) -> Row:
    return {name: "not run" if value is None else value for name, value in row.items()}


def _brief(row: Row) -> str:
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="corpora and prompts, see above")
    parser.add_argument("--quick", action="store_true", help="3 pairs of short texts: a smoke check, not to be quoted")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, metavar="SECTION", help=str(SECTIONS))
    parser.add_argument("--categories", choices=CATEGORIES, nargs="+", default=CATEGORIES, metavar="NAME")
    parser.add_argument("--crowds", type=int, nargs="+", default=CROWDS, metavar="N", help="requests at once")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="also write the tables to this file")
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help="that has llama-cpp-python and gguf"
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="where models are written once and kept")
    parser.add_argument("--shape", default="1b-tinyvocab", help="of (b); the floors are stated for the default")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        if not report(asked, asked.models or Path(fresh)):
            raise SystemExit("texts differ from plain decoding's")


if __name__ == "__main__":
    main()
