"""The answers of ``/v1/completions``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from stretto.serving.answers import Completion, Envelope, Offsets, Spelling, costs, ended, ranked, usage
from stretto.serving.wanted import Wanted

Places = Sequence[Mapping[int, float] | None]


class Texts:
    """Makes the answer of one request: whole, or piece by piece."""

    def __init__(self, wanted: Wanted, spelling: Spelling, model: str, fingerprint: str) -> None:
        self.envelope = Envelope("text_completion", "cmpl", model, fingerprint)
        self._wanted, self._spelling = wanted, spelling
        self._samples = int(wanted.params.get("n", 1))
        self._begun: set[int] = set()
        self._offsets = defaultdict[int, Offsets](spelling.offsets)

    def whole(self, done: Sequence[Completion]) -> dict[str, Any]:
        """Return the answer; ``done``: the samples of the first prompt, those of the next, and so on."""
        wanted = self._wanted
        choices = [self._choice(index, completion) for index, completion in enumerate(done)]
        return self.envelope.whole(choices, usage(wanted.prompts, done, wanted.silent), costs(done, wanted.seed))

    def piece(self, index: int, event: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return the fields that a step added to a choice, as JSON, and why it ended if it has."""
        wanted = self._wanted
        completion = event.get("completion")
        finish = None if completion is None else "length" if wanted.silent else ended(completion)
        text, tokens, places = event["text"], event["token_ids"], event.get("logprobs") or []
        if wanted.silent:
            text, tokens, places = "", [], []
        echoed = 0
        if wanted.echo and index not in self._begun:
            self._begun.add(index)
            prompt = index // self._samples
            echoed = len(wanted.prompts[prompt])
            text = wanted.texts[prompt] + text
            tokens = [*wanted.prompts[prompt], *tokens]
            places = [*(event.get("prompt_logprobs") or []), *places]
        logprobs = "null" if wanted.alternatives is None else json.dumps(self._logprobs(tokens, places, index, echoed))
        return f'"text": {json.dumps(text)}, "logprobs": {logprobs}', finish

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        wanted = self._wanted
        prompt = index // self._samples
        text, tokens = completion["text"], list(completion["token_ids"])
        places: list[Mapping[int, float] | None] = list(completion["logprobs"] or [])
        finish = ended(completion)
        if wanted.silent:
            text, tokens, places, finish = "", [], [], "length"
        if wanted.echo:
            text = wanted.texts[prompt] + text
            tokens = wanted.prompts[prompt] + tokens
            places = list(completion["prompt_logprobs"] or []) + places
        echoed = len(wanted.prompts[prompt]) if wanted.echo else 0
        logprobs = None if wanted.alternatives is None else self._logprobs(tokens, places, index, echoed)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[int], places: Places, index: int, echoed: int) -> dict[str, Any]:
        """Return what is told of tokens, of which the first ``echoed`` are the whole prompt."""
        most = self._wanted.alternatives or 0
        offset = self._offsets[index]
        names: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for number, (token, found) in enumerate(zip(tokens, places, strict=False), 1):
            names.append(self._spelling.of(token)[0])
            offsets.append(offset.of(token))
            if number == echoed:
                offset.begin()
            values.append(None if found is None else found[token])
            # Two tokens may be written alike; the likelier one stands. The token itself is always among them.
            told: dict[str, float] = {}
            for other, value in ranked(found or {}, most):
                told.setdefault(self._spelling.of(other)[0], value)
            if found is not None:
                told.setdefault(names[-1], found[token])
            tops.append(told if found is not None else None)
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
