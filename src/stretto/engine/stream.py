"""One request on its caller's side: what was asked, what has come back, and what has not been read yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stretto.core.request import Stats
from stretto.engine.completion import Completion
from stretto.engine.intake import Written
from stretto.tokens.detokenize import TextStream
from stretto.tokens.tokenizer import Tokenizer

Message = dict[str, Any]

MOST_SAMPLES = 1024
"""Samples that are kept account of; whoever asks for more is refused by the engine."""


@dataclass(slots=True)
class Sample(Written):
    """What one sample has written so far."""

    first: float | None = None
    """When its first token came."""


class Stream:
    """An asynchronous iterator over the events of one request, for one reader.

    Events that nobody has read yet are merged, sample by sample: a slow reader holds nobody back, and what is kept for
    it is never more than its text. Close it, or use it in a ``with`` block, to end the request early.
    """

    def __init__(self, number: int, message: Message, closed: Callable[[Stream], None]) -> None:
        self.id, self.message = number, message
        params = message["params"]
        asked = params.get("n", 1)
        count = min(max(1, asked), MOST_SAMPLES) if isinstance(asked, int) else 1
        self.samples = {index: Sample() for index in range(count)}
        """Those that have not ended."""
        self.opened = time.monotonic()
        self.began: float | None = None
        """When it first was in a step's batch."""
        self.sent = False
        """Whether the engine at hand has it."""
        self.resumed = 0
        """In how many further engines it went on."""
        self.strikes = 0
        """Deaths running at which it was in the batch, without a token of its own in between."""
        self.ending: str | None = None
        """The finish reason that it was told to end for."""
        self.timer: asyncio.TimerHandle | None = None
        self._closed = closed
        self._take: Callable[[Message], bool] | None = None
        self._places: list[dict[int, float] | None] | None = None
        self._unread: dict[int, Message] = {}
        self._error: Exception | None = None
        self._refused: Exception | None = None
        """What ``take`` raised: the reader gets it before whatever has come since, and closes the stream for it."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def seed(self) -> int | None:
        """The seed of its text."""
        seed: int | None = self.message["params"].get("seed")
        return seed

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Message:
        while not self._unread or self._refused is not None:
            if self._refused is not None:
                raise self._refused
            if self._error is not None:
                raise self._error
            if not self.samples:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._unread.pop(next(iter(self._unread)))

    def follow(self, take: Callable[[Message], bool]) -> None:
        """Hand events to ``take`` at once while the reader waits for one: that is cheaper than to wake it for each.

        Those for which it returns False the reader gets as ever, and the error where it raises one.
        """
        self._take = take

    def close(self) -> None:
        """Read no more; what has not ended is aborted."""
        self._closed(self)

    def put(self, event: Message) -> None:
        """Take an event of the engine."""
        index = event["index"]
        sample = self.samples.get(index)
        if sample is None:
            return  # it was ended on this side while the event was under way
        self._place(event, sample)
        if event["token_ids"]:
            sample.token_ids += event["token_ids"]
            sample.logprobs += event.get("logprobs", ())
            self.strikes = 0
            if sample.first is None:
                sample.first = time.monotonic()
        if "completion" in event:
            self._book(event["completion"]["stats"], self.samples.pop(index))
        if self._taken(event):
            return
        before = self._unread.get(index)
        if before is None:
            self._unread[index] = event
        else:
            before["text"] += event["text"]
            for name in ("token_ids", "logprobs"):
                if name in event:
                    before[name] += event[name]
            if "completion" in event:
                before["completion"] = event["completion"]
        self._wake()

    def _taken(self, event: Message) -> bool:
        if self._take is None or self._waiter is None or self._waiter.done():
            return False
        try:
            return self._take(event)
        except Exception as error:
            self._refused = error
            self._wake()
            return True

    def _place(self, event: Message, sample: Sample) -> None:
        """Add the prompt's log-probabilities, which the engine tells once, to what each sample is told."""
        told = event.pop("prompt_logprobs", None)
        if told is not None:
            self._places = told
        if self._places is not None and event["token_ids"] and sample.first is None:
            event["prompt_logprobs"] = self._places
        if "completion" in event and event["completion"]["prompt_logprobs"] is None:
            event["completion"]["prompt_logprobs"] = self._places

    def fail(self, error: Exception) -> None:
        """End it by an error, which its reader gets behind the events that came before."""
        self.samples.clear()
        self._error = error
        self._wake()

    def conclude(self, finish: str, info: Message, tokenizer: Tokenizer | None) -> None:
        """End what has not ended on this side, with completions made of what has come back."""
        for index, sample in list(self.samples.items()):
            method = self.message.get("method") or info["method"]
            done = Completion(
                prompt_index=0,
                index=index,
                text=self._text(sample, tokenizer),
                token_ids=list(sample.token_ids),
                finish_reason=finish,
                seed=self.seed or 0,
                fingerprint=info["fingerprint"],
                method=method,
                fidelity=info["available"].get(method, "exact"),
                logprobs=list(sample.logprobs) if self.message["params"].get("logprobs") is not None else None,
                stats=Stats().to_dict(),
            )
            event = {"id": self.id, "index": index, "text": "", "token_ids": [], "completion": done.to_dict()}
            self.put(event)

    def resumption(self) -> list[tuple[int, list[int], list[dict[int, float]]]]:
        """Return what the samples that have not ended had written, as a ``submit`` message holds it."""
        return [(index, sample.token_ids, sample.logprobs) for index, sample in self.samples.items()]

    def _text(self, sample: Sample, tokenizer: Tokenizer | None) -> str:
        if tokenizer is None:
            return ""
        params = self.message["params"]
        stop = params.get("stop") or ()
        text = TextStream(
            tokenizer,
            (stop,) if isinstance(stop, str) else tuple(stop),
            params.get("include_stop", False),
            min_tokens=params.get("min_tokens", 0),
        )
        for token in sample.token_ids:
            text.push(token)
        return text.text

    def _book(self, stats: Message, sample: Sample) -> None:
        """Add to the statistics of a completion what the last engine cannot know."""
        stats["resumed"] = self.resumed
        stats["queued_ms"] = None if self.began is None else (self.began - self.opened) * 1e3
        if self.resumed or stats["total_ms"] is None:
            stats["ttft_ms"] = None if sample.first is None else (sample.first - self.opened) * 1e3
            stats["total_ms"] = (time.monotonic() - self.opened) * 1e3

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
