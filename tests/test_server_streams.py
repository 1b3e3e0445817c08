"""Bytes that are no request, requests that end anywhere, and clients that leave anywhere in an answer: raw sockets."""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from server import post, served

from stretto.engine.stream import Stream
from stretto.serving.settings import Limits

ASKED: dict[str, Any] = {"model": "stretto-tiny", "seed": 3, "max_tokens": 8}
PROMPT: dict[str, Any] = {**ASKED, "prompt": "Once upon a time"}
TALK: dict[str, Any] = {**ASKED, "messages": [{"role": "user", "content": "Tell me of a föx."}], "stream": True}
LONG: dict[str, Any] = {**PROMPT, "max_tokens": 600, "ignore_eos": True, "stream": True, "method": "plain"}
HEADERS = "Host: localhost\r\nContent-Type: application/json\r\n"


def request(path: str, body: dict[str, Any], headers: str = HEADERS) -> bytes:
    content = json.dumps(body, ensure_ascii=False).encode()
    return f"POST {path} HTTP/1.1\r\n{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content


def chunked(*chunks: bytes) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(chunks)


WHOLE = [request("/v1/completions", PROMPT), request("/v1/chat/completions", TALK)]
MALFORMED = [
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # a client that speaks TLS
    b"GET /health\r\n\r\n",  # HTTP 0.9
    b"GET /health HTTP/1.1\r\n\r\n",  # no host
    b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /%00%ff%zz/../..//etc/passwd?%ff=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    b"GET /health HTTP/1.1\r\nHost: local\x00host\r\nX: \xff\xfe\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    WHOLE[0].replace(b"Content-Length: ", b"Content-Length: -"),
    WHOLE[0].replace(b"Content-Length: ", b"Content-Length: 99999999999999999999"),
    WHOLE[0].replace(b"Content-Length: ", b"Content-Length: 5\r\nContent-Length: "),
    WHOLE[0].replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nContent-Length: "),
    WHOLE[0].replace(b"Content-Length: ", b"Content-Encoding: gzip\r\nContent-Length: "),
    WHOLE[0].replace(b"Content-Length: ", b"Expect: 100-continue\r\nContent-Length: "),
    request("/v1/completions", PROMPT)[:-10] + b"\xc3\x28\xff\xfe\x00\x80!!}}",
    WHOLE[0] * 3 + b"and more",  # pipelined
    chunked(b"zz\r\n{}\r\n0\r\n\r\n"),
    chunked(b"ffffffffffffffff\r\n{"),
    chunked(b"-2\r\n{}\r\n0\r\n\r\n"),
    chunked(b"2\r\n{}garbage", b"0\r\n\r\n"),
    chunked(b"2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    engine = {"dtype": "fp32", "weights": "fp32", "cache_tokens": 2048}
    with served(engine=engine, limits=Limits(body_seconds=0.3)) as found:
        yield found


def send(address: str, data: bytes, *, most: int, rude: bool, wait: float = 0.4) -> bytes:
    """Send bytes, read at most so many of the answer, and leave: with a reset where ``rude``."""
    place = urlsplit(address)
    read = b""
    with socket.create_connection((place.hostname, place.port)) as client:
        client.settimeout(wait)
        if rude:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if _WINDOWS else "ii", 1, 0))
        try:
            client.sendall(data)
            while len(read) < most and (more := client.recv(min(4096, most - len(read)))):
                read += more
        except (TimeoutError, ConnectionError):
            pass  # it waits for more, or has had enough
    return read


_WINDOWS = hasattr(socket, "SIO_RCVALL")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the request with some of its bytes changed, left out, doubled or put in."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(found)), chance.randint(1, 8)
        part = chance.choice([b"", chance.randbytes(length), found[place : place + length] * 2, b"\r\n", b"\x00"])
        found[place : place + chance.choice([0, length])] = part
    return bytes(found)


def storm(address: str, rounds: int, seed: int) -> list[str]:
    """Send malformed requests, cut requests and changed requests, leave in answers; return what is wrong behind it."""
    chance, wrong = random.Random(seed), []
    before = post(address, "/v1/completions", PROMPT).json()["choices"]
    for number in range(rounds):
        rude, data = chance.random() < 0.5, chance.choice(WHOLE)
        send(address, data[: chance.randrange(len(data))], most=0, rude=rude)
        send(address, request("/v1/completions", LONG), most=chance.randrange(1, 6000), rude=rude, wait=300)
        send(address, request("/v1/completions", {**LONG, "stream": False}), most=0, rude=rude)
        odd = MALFORMED[number] if number < len(MALFORMED) else mutated(data, chance)
        answer = send(address, odd, most=1 << 20, rude=rude)
        if answer and not answer.startswith((b"HTTP/1.1 1", b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4")):
            wrong.append(f"{odd[:200]!r} was answered with {answer[:200]!r}")
    lines: list[str] = []
    for _ in range(600):
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        if {"stretto_requests_open 0.0", "stretto_running 0.0"} <= set(lines):
            break
        time.sleep(0.05)
    counts = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
    answered = {name: value for name, value in counts.items() if name.startswith("stretto_requests_total")}
    wrong += [f"{name} is {value}" for name, value in answered.items() if re.search('path="/v1.*status="5', name)]
    capacity, free, cached = (
        float(counts[f'stretto_cache_{what}{{model="target"}}']) for what in ("capacity", "free", "cached")
    )
    if free + 16 * cached != capacity:
        wrong.append(f"{capacity - free - 16 * cached} positions are lost")
    if float(counts["stretto_requests_aborted_total"]) < rounds:
        wrong.append(f"only {counts['stretto_requests_aborted_total']} of {2 * rounds} that left were aborted")
    if post(address, "/v1/completions", PROMPT).json()["choices"] != before:
        wrong.append("the text is another one than before")
    return wrong


def test_no_bytes_harm_the_server(address: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR):
        assert not storm(address, len(MALFORMED) + 25, seed=1)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_more(address: str, seed: int):
    assert not storm(address, 300, seed)


def test_who_left_and_is_answered_all_the_same_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The control: a server that goes on writing for nobody."""
    monkeypatch.setattr(Stream, "close", lambda self: None)
    with served(engine={"dtype": "fp32", "weights": "fp32", "cache_tokens": 2048}) as address:
        assert "were aborted" in "\n".join(storm(address, 2, seed=1))
