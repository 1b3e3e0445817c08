"""The load generator's reading of streams, from servers that answer as they like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from stretto.serving.load import Load, Taken, ask

TEXT = "a\u2028b\u0085c\x1cd\u2029e\nf"
"""What strings take for the end of a line, and JSON and events do not."""


class Pieces(httpx.AsyncByteStream):
    """A body that arrives in pieces of one size."""

    def __init__(self, data: bytes, size: int) -> None:
        self._pieces = [data[start : start + size] for start in range(0, len(data), size)]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def asked(body: bytes, size: int) -> tuple[Taken, str]:
    """Return what a request to a server that sends this body took, and its text."""

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Pieces(body, size))

    async def run() -> tuple[Taken, str]:
        async with httpx.AsyncClient(base_url="http://x/v1", transport=httpx.MockTransport(answer)) as client:
            return await ask(client, Load("http://x/v1", "any", "none", {}), [])

    return asyncio.run(run())


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_texts_are_read_whole_wherever_they_are_cut(size: int, newline: str):
    events = [json.dumps({"choices": [{"delta": {"content": each}}]}, ensure_ascii=False) for each in (TEXT, "end")]
    events += [json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}), "[DONE]"]
    body = "".join(f"data: {each}{newline}{newline}" for each in events).encode()
    taken, text = asked(body, size)
    assert (text, taken.error) == (TEXT + "end", "") and (taken.prompt_tokens, taken.tokens) == (3, 2)


def test_an_event_that_is_no_json_fails_its_request_alone():
    taken, text = asked(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"cho\n\n', 1000)
    assert text == "a" and "no JSON" in taken.error
