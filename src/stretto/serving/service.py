"""Requests on their way through the engine: opened, followed, counted, kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stretto.engine.aio import AsyncEngine
from stretto.engine.errors import EngineDied, Overloaded
from stretto.serving.answers import Completion, Spelling, costs, usage
from stretto.serving.chats import Chats
from stretto.serving.errors import JSON, ApiError, refused
from stretto.serving.fields import ChatBody, CompletionBody
from stretto.serving.keys import Caller
from stretto.serving.logs import tell
from stretto.serving.metrics import Metrics
from stretto.serving.records import Recorder
from stretto.serving.settings import Settings
from stretto.serving.streaming import Event, EventStream, Stream, Writer, listening, side_by_side
from stretto.serving.texts import Texts
from stretto.serving.wanted import Model, Wanted, chat_wanted, check_model, completion_wanted

LONG = 20_000
"""Characters of text from which on reading it is left to a thread, so that it holds up nobody's stream."""


class Service:
    """One engine, asked by clients."""

    def __init__(self, settings: Settings, engine: AsyncEngine) -> None:
        self.settings, self.engine = settings, engine
        self.metrics = Metrics(engine.stats, engine.info)
        self.recorder = None if settings.record is None else Recorder(settings.record, settings)
        self._model: Model | None = None
        self._spelling = Spelling(None)

    @property
    def model(self) -> Model:
        """Return what is known of the model. Raises ``ApiError`` (503) as long as it cannot be asked."""
        if (why := self.engine.why_not_ready) is not None and not self.engine.alive:
            raise unavailable(why)
        if self._model is None:
            if why is not None:
                raise unavailable(why)
            info, tokenizer = self.engine.info(), self.engine.tokenizer
            self._model = Model(self.settings.name, tokenizer, info["method"], self.settings.limits, info["context"])
            self._spelling = Spelling(tokenizer)
        return self._model

    async def complete(self, request: Request, body: CompletionBody) -> Response:
        """Answer ``/v1/completions``. Raises ``ApiError``."""
        model = self.model
        check_model(body.model, (model.name,))
        if len(body.prompt) > LONG or not isinstance(body.prompt, str):
            wanted = await asyncio.to_thread(completion_wanted, body, model)
        else:
            wanted = completion_wanted(body, model)
        answer = Texts(wanted, self._spelling, model.name, self._fingerprint)
        return await self._answer(request, body, wanted, answer)

    async def chat(self, request: Request, body: ChatBody) -> Response:
        """Answer ``/v1/chat/completions``. Raises ``ApiError``."""
        model = self.model
        check_model(body.model, (model.name,))
        wanted = await asyncio.to_thread(chat_wanted, body, model)
        assert model.tokenizer is not None  # without one, chat_wanted refuses
        stream = bool(body.stream)
        answer = Chats(wanted, self._spelling, model.tokenizer, model.name, self._fingerprint, stream)
        return await self._answer(request, body, wanted, answer)

    @property
    def _fingerprint(self) -> str:
        return str(self.engine.info()["fingerprint"])

    async def _answer(
        self, request: Request, body: CompletionBody | ChatBody, wanted: Wanted, answer: Texts | Chats
    ) -> Response:
        state = request.scope["state"]
        caller: Caller = state["caller"]
        wanted = replace(wanted, params=wanted.params | {"tenant": caller.tenant})
        state["told"] = {"answer": answer.envelope.id}
        streams = self._open(wanted)
        if body.stream:
            counted = body.stream_options is not None and body.stream_options.include_usage
            pieces = self._pieces(streams, wanted, answer, counted, state)
            return EventStream(pieces, partial(_follow, streams[0], answer) if len(streams) == 1 else None)
        done = await listening(request.receive, self._gather(streams, wanted))
        told = answer.whole(done)
        await self._keep(answer.envelope.id, wanted, done, state)
        return JSON(told)

    def _open(self, wanted: Wanted) -> list[Stream]:
        """Hand the prompts to the engine: all, or none. Raises ``ApiError``."""
        opened: list[Stream] = []
        try:
            for prompt in wanted.prompts:
                opened.append(
                    self.engine.open(prompt, wanted.params, method=wanted.method, timeout_ms=wanted.deadline_ms)
                )
        except Exception as error:
            for stream in opened:
                stream.close()
            raise self._failed(error, wanted) from None
        return opened

    async def _gather(self, streams: Sequence[Stream], wanted: Wanted) -> list[Completion]:
        """Return the samples of each stream in their order. Raises ``ApiError``."""
        done: list[list[Completion]] = [[] for _ in streams]
        try:
            async with aclosing(side_by_side(streams)) as events:
                async for number, event in events:
                    if (completion := event.get("completion")) is not None:
                        done[number].append(completion)
        except (ValueError, RuntimeError) as error:
            raise self._failed(error, wanted) from None
        return [each for samples in done for each in sorted(samples, key=lambda each: int(each["index"]))]

    async def _pieces(
        self,
        streams: Sequence[Stream],
        wanted: Wanted,
        answer: Texts | Chats,
        counted: bool,
        state: MutableMapping[str, Any],
    ) -> AsyncGenerator[str, None]:
        """Yield the events of a stream. Raises ``ApiError``."""
        samples = int(wanted.params.get("n", 1))
        left, done = samples * len(streams), dict[int, Completion]()
        envelope = answer.envelope
        try:
            async with aclosing(side_by_side(streams)) as events:
                async for number, event in events:
                    index = number * samples + event["index"]
                    content, finish = answer.piece(index, event)
                    told = None
                    if finish is not None:
                        done[index] = event["completion"]
                        left -= 1
                        if not left:
                            told = costs([done[each] for each in sorted(done)], wanted.seed)
                    yield envelope.piece(index, content, finish, told)
        except (ValueError, RuntimeError) as error:
            raise self._failed(error, wanted) from None
        ordered = [done[each] for each in sorted(done)]
        if counted:
            yield envelope.usage(usage(wanted.prompts, ordered, wanted.silent))
        await self._keep(envelope.id, wanted, ordered, state)

    async def _keep(
        self, name: str, wanted: Wanted, done: Sequence[Completion], state: MutableMapping[str, Any]
    ) -> None:
        """Count and record an answer, and say what it took for the log."""
        for completion in done:
            self.metrics.finished(completion)
        self.metrics.prompt_tokens.inc(sum(map(len, wanted.prompts)))
        state["told"] |= {**costs(done, wanted.seed), **_counts(usage(wanted.prompts, done, wanted.silent))}
        if self.settings.log_prompts:
            tokenizer = self.model.tokenizer
            decode = (lambda ids: ids) if tokenizer is None else (lambda ids: tokenizer.decode(ids, False))
            state["told"]["prompts"] = [decode(prompt) for prompt in wanted.prompts]
            state["told"]["answers"] = [completion["text"] for completion in done]
        if self.recorder is not None:
            try:
                await asyncio.to_thread(self.recorder.keep, name, wanted, done)
            except OSError as error:  # the answer stands all the same
                tell("not recorded", request=name, why=str(error))

    def _failed(self, error: Exception, wanted: Wanted) -> ApiError:
        """Return what the engine raised as an error of HTTP."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, Overloaded):
            self.metrics.rejected.labels("queue").inc()
            return ApiError(
                429,
                "too many requests are waiting; try again later",
                code="queue_full",
                headers={"Retry-After": str(max(1, round(error.retry_after)))},
            )
        if isinstance(error, EngineDied):
            return ApiError(500, str(error), code="engine_died")
        if isinstance(error, ValueError):
            self.metrics.rejected.labels("refused").inc()
            return refused(error, wanted.form)
        return unavailable(self.engine.why_not_ready or str(error))


def unavailable(why: str) -> ApiError:
    """Return the error of a server that cannot serve now."""
    return ApiError(503, f"the server cannot serve now: {why}", code="not_ready", headers={"Retry-After": "5"})


def _follow(stream: Stream, answer: Texts | Chats, writer: Writer) -> None:
    """Let a stream's events be written as they come, all but the last of each sample."""

    def take(event: Event) -> bool:
        if "completion" in event or writer.held is not None:
            return False
        content, _ = answer.piece(event["index"], event)
        writer.send_now(answer.envelope.piece(event["index"], content))
        return True

    stream.follow(take)


def _counts(used: Mapping[str, Any]) -> dict[str, Any]:
    return {name: used[name] for name in ("prompt_tokens", "completion_tokens")} | used["prompt_tokens_details"]
