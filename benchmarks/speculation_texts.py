"""The texts of ``speculation.py``: prompts by category, and what is recorded to be said behind them.

Sampled texts are the embedded model's own, with seeds; human ones are the rest of a document. A text in which more than
a fifth of the runs of eight tokens stood before is dropped and counted: loops flatter every drafter that copies.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from stretto import LLM, SamplingParams
from stretto.race.prompts import Asked, json_lines
from stretto.race.record import Record

CORPORA = ("stories", "math", "code", "chat")
COPYING, SPEC_BENCH = "copying", "spec-bench"
CATEGORIES = (*CORPORA, COPYING, SPEC_BENCH)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)
GREEDY = SamplingParams(temperature=0.0)

OPENING = 64
"""Tokens of a document that are its prompt."""
COPIED = 640
"""Characters of a document that is to be edited."""
GRAM, MOST_REPEATED = 8, 0.2
SHORTEST = 40
"""Tokens of a text that is worth timing."""


@dataclass(slots=True)
class Texts:
    """Makes records, each with a seed of its own, and counts what it leaves out."""

    llm: LLM
    """The embedded model, which has the tokenizer and writes the sampled texts."""
    data: Path
    """Holds ``corpus/<name>.test.jsonl[.xz]`` and ``eval/spec_bench.jsonl``."""
    left_out: Counter[str] = field(default_factory=Counter)
    """By category and reason."""
    _seeds: Iterator[int] = field(default_factory=lambda: count(1))

    def sampled(self, category: str, wanted: int, length: int, params: SamplingParams = SAMPLED) -> list[Record]:
        """Return ``wanted`` texts of at most ``length`` tokens that the embedded model writes in a category."""
        if category == COPYING:
            return self.copied(wanted, params)
        found: list[Record] = []
        prompts = self._prompts(category, length)
        while len(found) < wanted and (batch := [each for _, each in zip(range(2 * wanted), prompts, strict=False)]):
            found += self._written(category, [ids for ids, _ in batch], length, params)
        return found[:wanted]

    def human(self, category: str, wanted: int, length: int) -> list[Record]:
        """Return documents of ``test``, cut into prompt and rest; the seed only tells them apart."""
        found: list[Record] = []
        for ids, rest in self._prompts(category, length):
            tokens = self.llm.tokenizer.encode_plain(rest)[:length] if rest else []
            if self._keeps(f"human {category}", tokens):
                found.append(self._record(category, ids, tokens, SAMPLED))
            if len(found) == wanted:
                break
        return found

    def copied(self, wanted: int, params: SamplingParams = SAMPLED) -> list[Record]:
        """Return edits of given texts: a document and an instruction as prompt, the edited document as answer."""
        found: list[Record] = []
        for document in self._documents("stories"):
            text = " ".join(document.get("text", "").split())
            for start in range(0, len(text) - COPIED, COPIED):
                passage = text[start : start + COPIED].partition(" ")[2].rpartition(" ")[0]
                prompt, answer = edit(passage, random.Random(len(found)))
                ids, tokens = self.llm.tokenizer.encode(prompt), self.llm.tokenizer.encode_plain(answer)
                if self._keeps(COPYING, tokens):
                    found.append(self._record(COPYING, ids, tokens, params))
                if len(found) == wanted:
                    return found
        return found

    def crowd(self, concurrency: int, rounds: int, length: int, opening: int = 24) -> list[list[Record]]:
        """Return rounds of texts for many requests at once, all of ``length`` tokens, the prompts the same in each."""
        each = -(-concurrency // len(CORPORA))
        prompts = [
            ids[:opening] for name in CORPORA for _, (ids, _) in zip(range(each), self._prompts(name, 0), strict=False)
        ][:concurrency]
        params = replace(SAMPLED, ignore_eos=True)
        return [self._written("crowd", prompts, length, params, keep=True) for _ in range(rounds)]

    # ---- prompts ----

    def _prompts(self, category: str, length: int) -> Iterator[tuple[list[int], str]]:
        """Yield prompts and, of documents, what a human wrote behind them."""
        assert self.llm.tokenizer is not None
        room = self.llm.model.context - length
        for entry in self._entries(category):
            if "text" in entry:
                ids = self.llm.tokenizer.encode(entry["text"])
                prompt, rest = ids[:OPENING], self.llm.tokenizer.decode(ids[OPENING : OPENING + 2 * max(length, 1)])
            else:
                prompt, rest = self.llm.tokenizer.encode(entry["prompt"]), entry.get("completion", "")
            if len(prompt) > room:
                self.left_out[f"{category}: longer than the context"] += 1
            else:
                yield prompt, rest

    def _entries(self, category: str) -> Iterator[dict[str, Any]]:
        if category != SPEC_BENCH:
            yield from self._documents(category)
            return
        lines = [line for _, line in json_lines(self.data / "eval" / "spec_bench.jsonl")]
        random.Random(0).shuffle(lines)  # its categories stand in blocks
        for line in lines:
            yield {"prompt": f"User: {line['turns'][0]}\nAssistant:"}

    def _documents(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.data / "corpus" / f"{name}.test.jsonl"
        packed = path.with_name(f"{path.name}.xz")
        for _, line in json_lines(packed if packed.exists() else path):
            yield line

    # ---- records ----

    def _written(
        self, category: str, prompts: Sequence[list[int]], length: int, params: SamplingParams, keep: bool = False
    ) -> list[Record]:
        """Return what the embedded model writes behind the prompts; ``keep``: whatever it is."""
        asked = [replace(params, max_tokens=length, seed=next(self._seeds)) for _ in prompts]
        done = self.llm.generate(list(prompts), asked, method="plain")
        return [
            self._record(category, ids, completion.token_ids, each)
            for ids, each, completion in zip(prompts, asked, done, strict=True)
            if keep or self._keeps(category, completion.token_ids, greedy=params.temperature == 0)
        ]

    def _keeps(self, category: str, tokens: Sequence[int], greedy: bool = False) -> bool:
        """Whether a text is worth timing; counts it where not. Greedy texts loop, and are kept as they are."""
        if len(tokens) < SHORTEST:
            self.left_out[f"{category}: shorter than {SHORTEST} tokens"] += 1
            return False
        if not greedy and repeated(tokens) > MOST_REPEATED:
            self.left_out[f"{category}: more than a fifth repeated"] += 1
            return False
        return True

    def _record(self, category: str, ids: Sequence[int], tokens: Sequence[int], params: SamplingParams) -> Record:
        seed = next(self._seeds) if params.seed is None else params.seed
        own = replace(params, seed=seed, max_tokens=len(tokens), ignore_eos=True)
        return Record(Asked(tuple(ids), own, category, ""), tuple(tokens))


def head(record: Record, length: int) -> Record:
    """Return the first ``length`` tokens of a record as one of its own."""
    params = replace(record.asked.params, max_tokens=min(length, len(record.tokens)))
    return Record(replace(record.asked, params=params), record.tokens[:length])


def repeated(tokens: Sequence[int]) -> float:
    """Return the share of runs of ``GRAM`` tokens that stood in the text before."""
    grams = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def edit(passage: str, chance: random.Random) -> tuple[str, str]:
    """Return a prompt that asks for some words of a passage to be replaced, and the passage edited so."""
    words = sorted({word for word in passage.split() if word.isalpha() and len(word) > 3})
    edited, told = passage.split(), []
    for word in chance.sample(words, min(3, len(words))):
        other = chance.choice(words)
        edited = [other if each == word else each for each in edited]
        told.append(f"'{other}' for '{word}'")
    return f"{passage}\n\nThe same text again, with {', '.join(told)}:\n\n", " ".join(edited)
