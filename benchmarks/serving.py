"""The server beside llama.cpp's and transformers': throughput and goodput, a long arrival, and what HTTP costs.

    python benchmarks/serving.py [--llama-server PATH] [--transformers PATH] [--quick] [--only SECTION ...]
                                 [--models DIR] [--json OUT] [--markdown OUT]

The servers are started here, on the same int8 (llama.cpp: Q8_0, transformers: bf16) weights, as many slots as requests
at once, and are put under the same load alternately by ``stretto bench serve``'s own client. Answers are greedy, of
plain decoding and of full length. A server that is not there is "not run". Run it on a machine that does nothing else:
the load is part of the record.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import speaking_checkpoint
from floors import markdown
from report import environment, save, table
from serving_floors import LARGE, MIDDLE, PROMPT, SHARED, SHORT, SMALL, Row, judge
from serving_servers import Place, Server, Servers
from serving_streams import GOAL, long_arrival, overhead, run

from stretto.serving.load import Load, put, summary
from stretto.serving.workload import WORDS, Talk
from stretto.tokens.tokenizer import Tokenizer
from stretto.weights.resolve import resolve

SECTIONS = ("load", "arrival", "overhead")
SHAPES = {SMALL: None, MIDDLE: "135m-tinyvocab", LARGE: "1b-tinyvocab"}
GOALS = {SMALL: (250.0, 25.0), MIDDLE: (1000.0, 75.0), LARGE: (5000.0, 300.0)}
"""Milliseconds for the first token and for each further one that goodput counts by."""
ARRIVING = 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of one request."""

    shared: int
    own: int
    out: int

    @property
    def tokens(self) -> int:
        return self.shared + self.own + self.out


WORKLOADS = {SHORT: Workload(0, 64, 256), PROMPT: Workload(0, 512, 128), SHARED: Workload(512, 64, 128)}


class Prompts:
    """Random words that come to a number of tokens, give or take one; the chat template is among them."""

    def __init__(self, folder: Path) -> None:
        tokenizer = Tokenizer.load(folder)
        assert tokenizer is not None, f"{folder} has no tokenizer"
        self._tokenizer = tokenizer
        self._sizes = {word: len(tokenizer.encode_plain(f" {word}")) for word in WORDS}
        self._frame = len(self.ids([""]))

    def ids(self, talk: Talk) -> list[int]:
        """Return what a model reads of it."""
        return self._tokenizer.encode_chat([{"role": "user", "content": talk[0]}])

    def talks(self, work: Workload, count: int, seed: int) -> list[Talk]:
        """Return conversations of one message; what is shared is the same for every seed."""
        rng = random.Random(seed)
        shared = self._words(work.shared, random.Random(0))
        return [[" ".join([*shared, *self._words(work.own - self._frame, rng)])] for _ in range(count)]

    def _words(self, tokens: int, rng: random.Random) -> list[str]:
        words: list[str] = []
        while (left := tokens - sum(self._sizes[word] for word in words)) > 0:
            fitting = [word for word in WORDS if self._sizes[word] <= left]
            if not fitting:
                break
            words.append(rng.choice(fitting))
        return words


class Bench:
    """Models, their prompts, and the servers that are started on them."""

    def __init__(self, asked: argparse.Namespace, models: Path) -> None:
        self.asked, self.models = asked, models
        self.servers = Servers(asked.llama_server, asked.transformers)
        self.rounds = 1 if asked.quick else asked.rounds

    def run(self) -> Iterator[tuple[str, Row]]:
        """Yield sections and their rows."""
        asked = self.asked
        for model in asked.on:
            shape = SHAPES[model]
            folder = resolve(model) if shape is None else speaking_checkpoint(shape, self.models)
            prompts = Prompts(folder)
            if "load" in asked.only:
                for many in asked.concurrency:
                    yield from (("load", row) for row in self._load(model, folder, prompts, many))
            if "arrival" in asked.only and model == LARGE:
                yield from (("arrival", {"model": model, **row}) for row in self._arrival(folder, prompts))
            if "overhead" in asked.only and model != LARGE:
                yield "overhead", {"model": model, **self._overhead(folder, prompts)}

    def _place(self, folder: Path, slots: int, tokens: int) -> Place:
        return Place(folder, self.models, self.asked.threads, slots, tokens)

    def _load(self, model: str, folder: Path, prompts: Prompts, many: int) -> Iterator[Row]:
        works = {name: WORKLOADS[name] for name in self.asked.workloads}
        with self.servers.started(self._place(folder, many, max(work.tokens for work in works.values()))) as servers:
            for name, work in works.items():
                found: dict[str, list[Row]] = {server: [] for server in servers}
                for turn in range(self.rounds + 1):  # the first does not count
                    talks = prompts.talks(work, many if not turn or self.asked.quick else 2 * many, turn)
                    for server in sorted(servers, reverse=turn % 2 == 1):
                        told = self._put(servers[server], talks, work.out, many, model)
                        found[server] += [told] if turn else []
                ours = [told["tokens_per_second"] for told in found.get("stretto", ())]
                for server, runs in found.items():
                    pairs = zip(ours, (told["tokens_per_second"] for told in runs), strict=True)
                    middle = {field: median(told[field] for told in runs) for field in ("tokens_per_second", "goodput")}
                    yield {
                        "model": model, "workload": name, "at once": many, "server": server,
                        "tokens/s": middle["tokens_per_second"], "goodput": middle["goodput"],
                        **{
                            f"{field} {share}": median(told[f"{field}_ms"].get(share, 0.0) for told in runs)
                            for field in ("ttft", "tpot") for share in ("p50", "p99")
                        },
                        "prompt": runs[0]["prompt"], "cached": f"{median(told['cached_share'] for told in runs):.0%}",
                        "failed": sum(told["failed"] for told in runs),
                        "stretto over it": median(mine / its for mine, its in pairs if its) if ours else None,
                    }  # fmt: skip

    def _put(self, server: Server, talks: list[Talk], out: int, many: int, model: str) -> Row:
        """Return the summary of one load; answers whose tokens a server does not count are taken as full."""
        load = Load(server.url, server.model, "none", server.params(out), many)
        taken, seconds = asyncio.run(put(load, talks))
        for each in taken:
            if not each.error and each.tokens not in (0, out):
                each.error = f"an answer of {each.tokens} tokens, {out} were asked for"
            each.tokens = out
        for error in sorted({each.error for each in taken if each.error})[:3]:
            print(f"{server.name}: {error}", file=sys.stderr)
        ttft, tpot = GOALS[model]
        return {**summary(taken, seconds, ttft=ttft, tpot=tpot), "prompt": max(each.prompt_tokens for each in taken)}

    def _arrival(self, folder: Path, prompts: Prompts) -> Iterator[Row]:
        many = 4 if self.asked.quick else 16
        (newcomer,) = prompts.talks(Workload(0, ARRIVING, 2), 1, 1)
        talks = prompts.talks(WORKLOADS[SHORT], many, 2)
        for name in self.servers.kinds:  # one after the other: each has the machine to itself while it idles
            with self.servers.started(self._place(folder, many + 1, ARRIVING + 256), [name]) as servers:
                for server in servers.values():
                    try:
                        row = run(long_arrival(server, talks, newcomer, {}))
                    except (OSError, RuntimeError) as error:
                        self.servers.absent[f"{name}, long arrival"] = str(error)
                        continue
                    yield row
                    if name == "stretto":
                        (other,) = prompts.talks(Workload(0, ARRIVING, 2), 1, 3)
                        goal = {"tpot_ms": GOAL * row["idle p50 ms"]}
                        row = run(long_arrival(server, prompts.talks(WORKLOADS[SHORT], many, 4), other, goal))
                        yield {**row, "server": "stretto with a goal"}

    def _overhead(self, folder: Path, prompts: Prompts) -> Row:
        many, tokens = (4, 32) if self.asked.quick else (16, 256)
        talks = prompts.talks(WORKLOADS[SHORT], many, 5)
        ids = [prompts.ids(talk) for talk in talks]
        with self.servers.started(self._place(folder, many, 64 + tokens), ["stretto"]) as servers:
            options: dict[str, Any] = {"tokens": tokens, "rounds": self.rounds, "threads": self.asked.threads}
            return run(overhead(servers["stretto"], folder, ids, talks, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's server")
    parser.add_argument(
        "--transformers", type=Path, metavar="PATH", help="the program `transformers`, beside accelerate"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke check: one round of few requests")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, metavar="SECTION", help=str(SECTIONS))
    parser.add_argument("--on", choices=tuple(SHAPES), nargs="+", default=tuple(SHAPES), metavar="MODEL", help="models")
    parser.add_argument("--workloads", choices=tuple(WORKLOADS), nargs="+", default=tuple(WORKLOADS), metavar="WORK")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of every server")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where models are written once and kept")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="also write the tables to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        models = asked.models or Path(fresh)
        models.mkdir(parents=True, exist_ok=True)
        report(asked, models)


def report(asked: argparse.Namespace, models: Path) -> None:
    """Measure what was asked for, print it, judge it, write it."""
    facts = {**environment(), "quick": asked.quick, "server_threads": asked.threads}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    if asked.quick:
        print("\nQUICK: a smoke check; not to be quoted")
    bench = Bench(asked, models)
    facts["rounds"] = bench.rounds
    results: dict[str, list[Row]] = {}
    for section, row in bench.run():
        results.setdefault(section, []).append(row)
        print(f"\n{table([row])}", flush=True)
    verdicts = judge(results)
    absent = [f"{name} is not run: {why}" for name, why in bench.servers.absent.items()]
    print("\n" + "\n".join([*absent, "", table(verdicts)]))
    facts |= {"absent": bench.servers.absent}
    if asked.json:
        save(asked.json, "serving", facts, [{"name": name, "rows": rows} for name, rows in results.items()])
    if asked.markdown:
        told = [f"- {name}: {value}" for name, value in facts.items() if name != "absent"]
        parts = [f"## {name}\n\n{markdown(rows)}" for name, rows in results.items()]
        text = "\n\n".join(["# The server", "\n".join([*told, *(f"- {each}" for each in absent)]), *parts,
                            f"## Floors\n\n{markdown(verdicts)}"])  # fmt: skip
        asked.markdown.parent.mkdir(parents=True, exist_ok=True)
        asked.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
