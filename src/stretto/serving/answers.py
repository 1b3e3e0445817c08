"""What text and chat completions share in their answers: usage, costs, log-probabilities, pieces of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stretto.serving.errors import ApiError
from stretto.tokens.detokenize import StreamDecoder
from stretto.tokens.tokenizer import Tokenizer

Completion = dict[str, Any]
"""What the engine says of a finished sample (``engine.completion.Completion`` as plain data)."""
DONE = b"data: [DONE]\n\n"


class Spelling:
    """Tokens as text and bytes, for log-probabilities."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def of(self, token: int) -> tuple[str, list[int]]:
        """Return the text of a token and its bytes; one that holds part of a character is written ``bytes:\\xe2``."""
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._spelled(token)
        return known

    def offsets(self) -> Offsets:
        """Return what counts the characters of a text that begins."""
        return Offsets(self._tokenizer)

    def _spelled(self, token: int) -> tuple[str, list[int]]:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return f"token_id:{token}", []
        if tokenizer.byte_level and tokenizer.shows(token, skip_special=True):
            held = tokenizer.token_bytes(token)
            try:
                return held.decode(), list(held)
            except UnicodeDecodeError:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in held), list(held)
        text = tokenizer.decode([token], skip_special=False)
        return text, list(text.encode())


class Offsets:
    """Where in a text its tokens begin, in characters: parts of a character where that does, special ones add none."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._decoder = self._begun()
        self._at = 0

    def of(self, token: int) -> int:
        """Return where the next token begins."""
        begin = self._at
        if self._decoder is not None:
            self._at += len(self._decoder.push((token,)))
        return begin

    def begin(self) -> None:
        """Let the text end, half a character included, and another one stand behind it."""
        if self._decoder is not None:
            self._at += len(self._decoder.finish())
        self._decoder = self._begun()

    def _begun(self) -> StreamDecoder | None:
        return None if self._tokenizer is None else StreamDecoder(self._tokenizer)


def ranked(found: Mapping[int, float], most: int) -> list[tuple[int, float]]:
    """Return the ``most`` likeliest tokens with their log-probabilities, best first."""
    return list(found.items())[:most]


def usage(prompts: Sequence[Sequence[int]], done: Sequence[Completion], silent: bool = False) -> dict[str, Any]:
    """Return the counts of tokens; ``silent``: those made are not told, so they do not count."""
    prompt = sum(map(len, prompts))
    made = 0 if silent else sum(len(each["token_ids"]) for each in done)
    cached = sum(each["stats"].get("cached", 0) for each in done if each["index"] == 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def costs(done: Sequence[Completion], seed: int) -> dict[str, Any]:
    """Return ``stretto``, what the samples of one answer took: counts are sums, times those of the longest.

    ``seed``: as it was asked for.
    """
    first, stats = done[0], [each["stats"] for each in done]
    written, writing, steps = (sum(each[name] for each in stats) for name in ("written", "writing", "steps"))
    spans = [spans_of(each) for each in stats]
    return {
        "method": first["method"],
        "fidelity": first["fidelity"],
        "numerics": first["fingerprint"],
        "seed": seed,
        "drafted": sum(each["drafted"] for each in stats),
        "accepted": sum(each["accepted"] for each in stats),
        "acceptance_length": round(written / writing, 3) if writing else None,
        "steps": steps,
        "preemptions": sum(each["preemptions"] for each in stats),
        "resumed": max(each.get("resumed", 0) for each in stats),
        **{name: round(max(span[name] for span in spans), 3) for name in spans[0]},
    }


def spans_of(stats: Mapping[str, Any]) -> dict[str, float]:
    """Return the milliseconds that a sample waited, read its prompt, and wrote."""
    total = stats["total_ms"] or 0.0
    first = total if stats["ttft_ms"] is None else stats["ttft_ms"]
    queued = min(stats.get("queued_ms") or 0.0, first)
    return {"queue_ms": queued, "prefill_ms": first - queued, "decode_ms": total - first}


def ended(completion: Completion) -> str:
    """Return why a sample ended, where that is an answer; raise ``ApiError`` where it is an error."""
    reason = str(completion["finish_reason"])
    if reason == "error":
        status = 400 if completion["wrong"] else 500
        raise ApiError(status, str(completion["error"]), code="generation_failed")
    if reason == "abort":
        raise ApiError(503, "the request was ended before its answer was whole; try again", code="aborted")
    if reason == "timeout" and not completion["token_ids"]:
        raise ApiError(
            429,
            "the deadline passed before the first token; give more time (deadline_ms), or ask when less is asked",
            code="deadline",
            headers={"x-should-retry": "false"},
        )
    return reason


class Envelope:
    """The parts that all pieces of one answer share."""

    def __init__(self, kind: str, prefix: str, model: str, fingerprint: str) -> None:
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self.head: dict[str, Any] = {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._open = "data: " + json.dumps(self.head)[:-1]
        self._heads: dict[int, str] = {}

    def whole(self, choices: list[dict[str, Any]], used: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """Return an answer that does not stream."""
        return {**self.head, "choices": choices, "usage": used, "stretto": told}

    def piece(self, index: int, content: str, finish: str | None = None, told: dict[str, Any] | None = None) -> str:
        """Return an event with what was added to a choice: ``content`` holds its fields in JSON, without braces."""
        head = self._heads.get(index)
        if head is None:
            head = self._heads[index] = f'{self._open}, "choices": [{{"index": {index}, '
        if finish is None:
            return f'{head}{content}, "finish_reason": null}}]}}\n\n'
        more = "" if told is None else f', "stretto": {json.dumps(told)}'
        return f'{head}{content}, "finish_reason": "{finish}"}}]{more}}}\n\n'

    def usage(self, used: dict[str, Any]) -> str:
        """Return the event that says what all choices took."""
        return f'{self._open}, "choices": [], "usage": {json.dumps(used)}}}\n\n'
