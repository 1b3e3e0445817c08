"""Events written past the task that waits for them: each once, in order, whatever the client's pace. A simulation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest

from stretto.engine.stream import Stream
from stretto.serving import service, streaming
from stretto.serving.errors import ApiError
from stretto.serving.streaming import EventStream, Writer, side_by_side

TOKENS = 60


class Answer:
    """Pieces that say which tokens they hold; like a real one's, its piece of an event can be made only once."""

    def __init__(self, fails_at: int = -1) -> None:
        self.envelope, self.fails_at, self.made, self.told = self, fails_at, 0, ""

    def piece(self, index: int, what: Any) -> Any:
        if isinstance(what, str):
            return what
        self.made += len(what["token_ids"])
        if self.fails_at in what["token_ids"]:
            raise ApiError(400, "no piece can be made of this")
        piece = "".join(f"{token} " for token in what["token_ids"])
        self.told += piece
        return piece, what.get("completion")


class Client:
    """The receiving end of ASGI, which may stop to read."""

    def __init__(self) -> None:
        self.read = asyncio.Event()
        self.read.set()
        self.got = ""

    async def send(self, message: dict[str, Any]) -> None:
        if not self.read.is_set():
            await self.read.wait()
        self.got += message.get("body", b"").decode()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}


async def pieces(stream: Stream, answer: Answer) -> AsyncGenerator[str, None]:
    events = side_by_side([stream])
    try:
        async for _, event in events:
            yield answer.piece(0, event)[0]
    finally:
        await events.aclose()


@dataclass
class Played:
    """What came of one answer."""

    answer: Answer
    client: Client = field(default_factory=Client)
    closed: list[Stream] = field(default_factory=list)


def play(seed: int, fails_at: int = -1) -> Played:
    """Let events come at any pace, for a client that stops to read now and then."""
    chance, played = random.Random(seed), Played(Answer(fails_at))

    async def scene() -> None:
        answer, client, stream = played.answer, played.client, Stream(0, {"params": {}}, played.closed.append)
        body = EventStream(pieces(stream, answer), lambda writer: service._follow(stream, answer, writer))
        sending = asyncio.ensure_future(body({"type": "http"}, client.receive, client.send))
        for token in range(TOKENS):
            event: dict[str, Any] = {"index": 0, "text": "", "token_ids": [token]}
            if token == TOKENS - 1:
                event["completion"] = {"stats": {"total_ms": 1.0}, "prompt_logprobs": None}
            stream.put(event)
            for _ in range(chance.choice([0, 0, 1, 2, 5])):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                client.read.clear() if client.read.is_set() else client.read.set()
        client.read.set()
        await asyncio.wait_for(sending, 5.0)

    asyncio.run(scene())
    return played


WHOLE = "".join(f"{token} " for token in range(TOKENS)) + streaming.DONE.decode()


@pytest.mark.parametrize("seed", range(40))
def test_every_event_is_written_once_and_in_order(seed: int):
    played = play(seed)
    assert played.client.got == WHOLE
    assert played.answer.made == TOKENS


def test_a_writer_that_does_not_hold_what_it_could_not_send_is_noticed(monkeypatch: pytest.MonkeyPatch):
    def forgetful(self: Writer, piece: str) -> None:
        send_now(self, piece)
        self.held = None

    send_now = Writer.send_now
    monkeypatch.setattr(Writer, "send_now", forgetful)
    assert any(play(seed).client.got != WHOLE for seed in range(40))


def test_events_are_written_without_their_reader_while_it_waits(monkeypatch: pytest.MonkeyPatch):
    written = []
    monkeypatch.setattr(Writer, "send_now", lambda self, piece: written.append(piece))
    for seed in range(5):
        play(seed)
    assert len(written) > 30


@pytest.mark.parametrize("seed", range(40))
def test_an_event_of_which_no_piece_can_be_made_ends_its_stream_only(seed: int):
    """It is closed, and with it what the engine still does for it; no piece from before is lost."""
    played = play(seed, fails_at=30)
    told, _, error = played.client.got.partition("data: ")
    assert played.closed
    assert told == played.answer.told and WHOLE.startswith(told)
    assert "no piece" in error
