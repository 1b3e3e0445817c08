"""The matrix of token equality: exact recipe x parameters x company x weights x cache, held against plain decoding.

    PYTHONPATH=src python tests/matrix.py [--out docs/results/equality.md] [--cover]

runs all of it (``--cover``: the pairwise cover that the suite runs) and writes a summary. Cells of the same company,
weights and cache that do not run alone are run eight at a time, beside each other in one engine.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from cases import LENGTH, PROMPTS
from cases import PARAMS as SHARED
from helpers import request, run
from pairwise import cover
from renumbered import renumbered

from stretto.core.batch import PassPrice
from stretto.core.masks import register_mask
from stretto.core.request import Request
from stretto.decoding.method import Load
from stretto.decoding.speculative.ledger import Ledger
from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.paying import Paying
from stretto.engine.asking import switch
from stretto.engine.llm import LLM
from stretto.kernels import native
from stretto.recipes.table import RECIPES
from stretto.weights.resolve import embedded, resolve

COMPANY, MAX_ROWS = 8, 96
PREEMPTED = (3, 7)
"""Eighths of its text behind which a request loses its cached rows."""


class Verse:
    """A mask automaton: lines of ``line`` tokens in which no two tokens divisible by 5 meet, then the refrain.

    The tokens of the refrain are forced.
    """

    def __init__(self, vocab_size: int, eos_ids: frozenset[int], line: int, refrain: Sequence[int]) -> None:
        self.line, self.refrain = line, tuple(refrain)
        self.any = torch.ones(vocab_size, dtype=torch.bool)
        self.dull = torch.arange(vocab_size) % 5 != 0
        self.lines = [torch.arange(vocab_size) == token for token in self.refrain]

    def start(self) -> tuple[int, bool]:
        return 0, False

    def advance(self, state: tuple[int, bool], token: int) -> tuple[int, bool]:
        return (state[0] + 1) % (self.line + len(self.refrain)), token % 5 == 0

    def allowed(self, state: tuple[int, bool]) -> torch.Tensor:
        place, rich = state
        return self.lines[place - self.line] if place >= self.line else self.dull if rich else self.any


register_mask("verse", Verse)

PARAMS: dict[str, dict[str, Any]] = {
    "greedy": SHARED["greedy"],
    "nucleus": SHARED["nucleus"],
    "all": {**SHARED["all"], "mask": ("verse", {"line": 9, "refrain": [300, 301, 302, 303]})},
}
FACTORS = {
    "params": tuple(PARAMS),
    "company": ("alone", "mixed", "switching"),
    "weights": ("fp32", "bf16", "int8") if native.load() is not None else ("fp32",),
    "cache": ("hit", "preempted"),
}
"""Beside the method. "switching": at every step each request is moved by a random method."""


class Cell(NamedTuple):
    """One combination."""

    method: str
    params: str
    company: str
    weights: str
    cache: str


@dataclass(slots=True)
class Tally:
    """What the cells of one method came to."""

    cells: int = 0
    texts: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Found:
    """What a run of the matrix came to."""

    methods: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    wrong: list[str] = field(default_factory=list)
    preempted: int = 0
    hits: int = 0
    switches: int = 0


def load(weights: str, draft: Path | str) -> LLM:
    """Return the embedded model with its matrices in one format, and a draft aboard."""
    dtype = "bf16" if weights == "bf16" else "fp32"
    room = COMPANY * (LENGTH + 64)
    llm = LLM("stretto-tiny", draft=str(draft), dtype=dtype, weights=weights, cache_tokens=room, max_rows=MAX_ROWS)
    llm.engine.methods.clear()
    return llm


def draft_name() -> str:
    """Return the embedded draft; where there is none, the target drafts for itself."""
    return "stretto-tiny-draft" if "stretto-tiny-draft" in embedded() else "stretto-tiny"


def exact_methods(foreign: bool | None = None) -> list[str]:
    """Return the exact recipes that run with the embedded pair, or (``foreign``) only those that want a draft with
    another vocabulary, or only the others.
    """
    aboard = {"draft", "foreign-draft", "tokenizer"}
    found = {n: r for n, r in RECIPES.items() if r.fidelity == "exact" and r.needs - r.brings.keys() <= aboard}
    return [name for name, each in found.items() if foreign in (None, "foreign-draft" in each.needs)]


def whole(methods: Sequence[str]) -> list[Cell]:
    """Return every cell."""
    return [Cell(*values) for values in product(methods, *FACTORS.values())]


def covering(methods: Sequence[str]) -> list[Cell]:
    """Return cells in which every two values of different factors meet."""
    return [Cell(*row) for row in cover({"method": methods, **FACTORS})]


def play(choose: Callable[[Sequence[str]], list[Cell]], formats: Sequence[str] = FACTORS["weights"]) -> Found:
    """Run the chosen cells, format by format, those that want a draft with another vocabulary apart."""
    found, cells = Found(), choose(exact_methods())
    with TemporaryDirectory() as folder:
        other = renumbered(resolve(draft_name()), Path(folder) / "renumbered")
        for weights, foreign in product(formats, (False, True)):
            methods = exact_methods(foreign)
            mine = [cell for cell in cells if cell.weights == weights and cell.method in methods]
            if mine:
                llm = load(weights, other if foreign else draft_name())
                Matrix(llm, ["plain", *methods] if foreign else methods, found).go(mine)
                print(f"{weights}: {len(mine)} combinations, {len(found.wrong)} things wrong so far", flush=True)
    return found


class Eager(Ledger):
    """By the true books `auto` would rest on a model this small. In these all steps take 50 ms, whoever drafts."""

    def plain_ms(self, price: PassPrice, load: Load) -> float:
        return 50.0

    def drafted_extra(self) -> float:
        return 0.0

    def pause(self, steps: int) -> None:
        pass


class Matrix:
    """Runs cells of one weights format."""

    def __init__(self, llm: LLM, methods: Sequence[str], found: Found, length: int = LENGTH, seed: int = 0) -> None:
        """``methods``: those aboard, of which company and switches are drawn."""
        self.llm, self.engine, self.methods, self.found, self.length = llm, llm.engine, methods, found, length
        for name in methods:
            method = llm.method(name)
            if isinstance(method, Speculative):
                method.patience = 600.0  # a loaded machine must not drop a drafter
                if isinstance(method.allocator, Paying):
                    method.allocator.ledger = Eager(count(step=0.05).__next__)
        self.chance = random.Random(seed)
        self.prompts = [llm.tokenizer.encode(text) for text in PROMPTS.values()]
        self._plain: dict[tuple[int, str], list[int]] = {}

    def plain(self, prompt: int, params: str) -> list[int]:
        """Return the plain text of a prompt, computed once, alone and without what others left in the cache."""
        if (prompt, params) not in self._plain:
            self._forget()
            (text,) = run(self.engine, self._request(prompt, "plain", params))
            self._plain[prompt, params] = text
        return self._plain[prompt, params]

    def go(self, cells: Sequence[Cell]) -> None:
        """Run the cells, and note what is not as it should be."""
        groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
        for cell in cells:
            groups[cell.company, cell.cache].append(cell)
        for (company, cache), group in groups.items():
            size = 1 if company == "alone" else COMPANY
            for first in range(0, len(group), size):
                with warnings() as warned:
                    self._together(group[first : first + size], company, cache)
                self.found.wrong += [f"{group[first : first + size]}: {text}" for text in warned]

    def _together(self, cells: Sequence[Cell], company: str, cache: str) -> None:
        """Run some cells beside each other, in company filled up to its size by requests of random methods."""
        asked = [(cell.method, cell.params) for cell in cells]
        while company != "alone" and len(asked) < COMPANY:
            asked.append((self.chance.choice(self.methods), self.chance.choice(FACTORS["params"])))
        prompts = [(number + self.chance.randrange(3)) % len(self.prompts) for number in range(len(asked))]
        expected = [self.plain(prompt, params) for prompt, (_, params) in zip(prompts, asked, strict=True)]
        self._forget()
        if cache == "hit":
            run(self.engine, *(self._request(prompt, "plain", "greedy", 1) for prompt in set(prompts)))
        requests = [self._request(prompt, *each) for prompt, each in zip(prompts, asked, strict=True)]
        self._play(requests, [method for method, _ in asked], company, cache)
        for number, (each, text) in enumerate(zip(requests, expected, strict=True)):
            self._judge(each, text, asked[number], company, cache)
        for cell in cells:
            self.found.methods[cell.method].cells += 1

    def _play(self, requests: Sequence[Request], homes: Sequence[str], company: str, cache: str) -> None:
        losses = {each.id: [self.length * part // 8 for part in PREEMPTED] for each in requests}
        for each in requests:
            self.engine.submit(each)
        while any(each.finish is None for each in requests):
            for each, home in zip(requests, homes, strict=True):
                if each.finish is not None:
                    continue
                if company == "switching":
                    method = home if self.chance.random() < 0.5 else self.chance.choice(self.methods)
                    self.found.switches += method != each.method
                    switch(self.engine, each, method)
                left = losses[each.id]
                if cache == "preempted" and left and each.state.generated >= left[0]:
                    left.pop(0)
                    if each in self.engine.scheduler.running:
                        self.engine.scheduler.preempt(each)
                        self._forget()
            before = [(each.stats.drafted, each.stats.accepted) for each in requests]
            self.engine.step()
            for each, (drafted, accepted) in zip(requests, before, strict=True):
                tally = self.found.methods[each.method]
                tally.drafted += each.stats.drafted - drafted
                tally.accepted += each.stats.accepted - accepted

    def _judge(self, each: Request, expected: list[int], asked: tuple[str, str], company: str, cache: str) -> None:
        tally, stats, text = self.found.methods[asked[0]], each.stats, each.tokens[len(each.prompt) :]
        tally.texts += 1
        tally.tokens += len(text)
        self.found.hits += stats.cached > 0
        self.found.preempted += stats.preemptions
        if text != expected:
            pairs = zip(text, expected, strict=False)
            same = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), len(text))
            what = each.error or f"differs from token {same} on, of {len(text)}"
            self.found.wrong.append(f"{asked}, {company}, {cache}: {what}")
        if cache == "hit" and self.engine.methods[asked[0]].facts.reuse and not stats.cached:
            self.found.wrong.append(f"{asked}, {company}: no prefix hit")
        if cache == "preempted" and not stats.preemptions:
            self.found.wrong.append(f"{asked}, {company}: was never preempted")

    def _request(self, prompt: int, method: str, params: str, length: int | None = None) -> Request:
        made = request(self.engine, self.prompts[prompt], method, max_tokens=length or self.length, **PARAMS[params])
        made.reuse = self.engine.methods[method].facts.reuse
        return made

    def _forget(self) -> None:
        for cache in self.engine.caches.values():
            cache.forget()


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Collect the engine's warnings: a drafter that is dropped keeps the text and fails the matrix."""
    log, kept = logging.getLogger("stretto"), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())
    log.addHandler(handler)
    try:
        yield kept
    finally:
        log.removeHandler(handler)


def summary(found: Found, seconds: float) -> str:
    """Return the result as Markdown."""
    total, cells = (sum(getattr(each, name) for each in found.methods.values()) for name in ("texts", "cells"))
    factors = "; ".join(f"{name}: {', '.join(values)}" for name, values in FACTORS.items())
    lines = [
        "# Token equality, the whole matrix",
        "",
        f"`python tests/matrix.py`, {time.strftime('%Y-%m-%d')}: {cells} combinations of every exact recipe that runs",
        f"with the embedded pair and {factors}.",
        f"{total} texts of {LENGTH} tokens were compared with plain decoding token by token; {found.hits} began in",
        f"the prefix cache, {found.preempted} times one lost its rows on the way, and",
        f"{found.switches} times one passed to another method. It took {seconds / 60:.0f} minutes.",
        "",
        f"**{len(found.wrong)} things are wrong**, the first of them below." if found.wrong else "**All are equal.**",
        "",
        *(f"- {line}" for line in found.wrong[:20]),
        "",
        "Texts are counted for the method that they began with, drafted and accepted tokens for the one that drafted.",
        "",
        "| method | combinations | texts | tokens | drafted | accepted |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{name}` | {t.cells} | {t.texts} | {t.tokens} | {t.drafted} | {t.accepted} |"
            for name, t in sorted(found.methods.items())
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the summary goes; it is printed too")
    parser.add_argument("--cover", action="store_true", help="the pairwise cover alone")
    asked = parser.parse_args()
    began = time.monotonic()
    found = play(covering if asked.cover else whole)
    text = summary(found, time.monotonic() - began)
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    raise SystemExit(bool(found.wrong))


if __name__ == "__main__":
    main()
