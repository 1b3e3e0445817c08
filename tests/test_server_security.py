"""The server's lines of defence, each beside what gets through: docs/security.md names the tests."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import ValidationError
from server import client, post, served
from typer.testing import CliRunner

from stretto.cli.main import app
from stretto.serving.fields import ChatBody, CompletionBody, DetokenizeBody, Whole
from stretto.serving.keys import Keys, read_keys
from stretto.serving.logs import Lines
from stretto.serving.settings import Limits, Settings

KEYS = {"ann": "a" * 20, "bob": "b" * 20, "cho": "c" * 20, "metrics": "m" * 20}
ASKED: dict[str, Any] = {"model": "stretto-tiny", "max_tokens": 24, "seed": 3, "temperature": 0}
SECRET = "The treasure lies under the third birch behind the mill, said the old fox, and only you and I know of it."
LIMITS = Limits(body=20_000, body_seconds=1.0, schema=500)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# ours\n\n" + "".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    return path


@pytest.fixture(scope="module")
def address(file: Path) -> Iterator[str]:
    with served(api_key_file=file, allowed_hosts=("box.example",), limits=LIMITS) as found:
        yield found


def auth(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def test_a_key_is_needed_and_is_read_anew_without_a_restart(address: str, file: Path):
    for key in ("wrong-key-of-20-chars", "", KEYS["ann"][:-1], KEYS["ann"] + "a"):
        with pytest.raises(openai.AuthenticationError):
            client(address, key or "-").models.list()
    assert client(address, KEYS["ann"]).models.list().data
    before = file.read_text()
    file.write_text(before + "new:" + "n" * 30 + "\n")
    assert client(address, "n" * 30).models.list().data
    file.write_text("broken\n")  # a mistake in the file locks nobody out, and lets nobody in
    assert client(address, KEYS["ann"]).models.list().data
    file.write_text(before)
    with pytest.raises(openai.AuthenticationError):
        client(address, "n" * 30).models.list()
    assert httpx.get(f"{address}/health").status_code == httpx.get(f"{address}/ready").status_code == 200
    assert httpx.get(f"{address}/openapi.json").status_code == 401


def test_all_keys_are_compared_in_full(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Whichever matches: the number of comparisons tells nothing."""
    keys, compared = Keys(file), []
    monkeypatch.setattr("stretto.serving.keys.hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    for name in KEYS:
        compared.clear()
        found = keys.caller(f"Bearer {KEYS[name]}")
        assert found is not None and found.name == name and len(compared) == len(KEYS)
    assert len({keys.caller(f"Bearer {key}").tenant for key in KEYS.values()}) == len(KEYS)
    assert Keys(file).caller(f"Bearer {KEYS['ann']}").tenant != keys.caller(f"Bearer {KEYS['ann']}").tenant


@pytest.mark.parametrize("text", ["", "# none\n", "short\n"])
def test_a_file_without_good_keys_is_refused(tmp_path: Path, text: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match="key"):
        read_keys(tmp_path / "keys")


def test_metrics_are_for_one_key_that_can_do_nothing_else(address: str):
    assert httpx.get(f"{address}/metrics", headers=auth("metrics")).status_code == 200
    assert httpx.get(f"{address}/metrics", headers=auth("ann")).status_code == 403
    with pytest.raises(openai.PermissionDeniedError):
        client(address, KEYS["metrics"]).completions.create(prompt="Once", **ASKED)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("localhost", "127.0.0.1:1", "[::1]:80", "box.example", "BOX.example:9")),
        *((name, 403) for name in ("evil.example", "", "localhost.evil.example", "box.example.")),
    ],
)
def test_the_host_must_be_a_configured_name(address: str, host: str, status: int):
    assert httpx.get(f"{address}/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_must_say_that_it_is_json(address: str, kind: str):
    """What a page of another origin can send without asking first."""
    body = json.dumps({"prompt": "Once", **ASKED})
    headers = {**auth("ann"), "content-type": kind}
    assert httpx.post(f"{address}/v1/completions", content=body, headers=headers).status_code == 415


def test_pages_of_other_origins_are_let_in_only_where_configured(address: str):
    asking = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{address}/v1/models", headers=asking).headers
    assert "access-control-allow-origin" not in httpx.get(f"{address}/health", headers=asking).headers
    with served(cors_origins=("https://page.example",)) as other:
        found = httpx.options(f"{other}/v1/models", headers=asking)
        assert found.headers["access-control-allow-origin"] == "https://page.example"
        found = httpx.get(f"{other}/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in found.headers


DEEP: Any = "x"
for _ in range(70):
    DEEP = [DEEP]


def schema(inner: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": inner}}}


LARGE: dict[str, dict[str, Any]] = {
    "regex": {"regex": "a" * 2001},
    "grammar": {"grammar": "b" * 65_537},
    "schema": schema({"enum": ["c" * 600]}),
    "depth of a schema": schema({"allOf": [{"not": DEEP[0][0][0]}]}),
    "depth of a body": {"prompt": DEEP},
    "samples": {"n": 129},
    "samples of all prompts": {"prompt": ["a"] * 33, "n": 4},
    "prompts": {"prompt": ["a"] * 65},
    "stop texts": {"stop": ["a"] * 17},
    "length of a stop text": {"stop": "a" * 1025},
    "logit bias": {"logit_bias": {str(token): 1 for token in range(1025)}},
    "alternatives": {"logprobs": 21},
    "choices": {"structured_outputs": {"choice": [str(number) for number in range(1025)]}},
    "length of choices": {"structured_outputs": {"choice": ["d" * 65_537]}},
    "log-probabilities of prompts": {"prompt": [1] * 400, "n": 128, "logprobs": 20, "echo": True},
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_refused(address: str, name: str):
    asked = {"prompt": "Once", **ASKED, **LARGE[name]}
    found = post(address, "/v1/completions", asked, **auth("ann"))
    too_long = len(json.dumps(asked)) > LIMITS.body
    assert found.status_code == (413 if too_long else 400), found.text
    assert "expected at most" in found.text or "nested deeper" in found.text or too_long


WRONG: dict[str, tuple[type[Whole], dict[str, Any]]] = {
    "prompt": (CompletionBody, {"prompt": [1.5] * 1000}),
    "prompts": (CompletionBody, {"prompt": [[1.5]] * 1000}),
    "stop": (CompletionBody, {"prompt": "a", "stop": [1] * 1000}),
    "stop tokens": (CompletionBody, {"prompt": "a", "stop_token_ids": ["1"] * 1000}),
    "logit bias": (CompletionBody, {"prompt": "a", "logit_bias": {str(token): "x" for token in range(5000)}}),
    "choices": (CompletionBody, {"prompt": "a", "structured_outputs": {"choice": [1] * 1000}}),
    "unknown fields": (CompletionBody, {"prompt": "a", **{f"x{number}": 1 for number in range(1000)}}),
    "messages": (ChatBody, {"messages": [{}] * 1000}),
    "fields of a message": (ChatBody, {"messages": [{f"x{number}": 1 for number in range(1000)}]}),
    "parts": (ChatBody, {"messages": [{"role": "user", "content": [{}] * 1000}]}),
    "tools": (ChatBody, {"messages": [], "tools": [{}] * 1000}),
    "tokens": (DetokenizeBody, {"tokens": ["1"] * 1000}),
}


@pytest.mark.parametrize("name", WRONG)
def test_of_a_long_wrong_list_few_errors_are_made(name: str):
    """One for each of a million items would take gigabytes, and minutes in which nobody is served."""
    body, told = WRONG[name]
    with pytest.raises(ValidationError) as raised:
        body.model_validate({"model": "a", **told})
    assert raised.value.error_count() < 20


def test_what_strangers_make_up_is_neither_counted_nor_logged(address: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG, "stretto"):
        assert httpx.get(f"{address}/made-up").status_code == 401
        assert httpx.get(f"{address}/made-up", headers={"host": "made-up.example"}).status_code == 403
        assert post(address, "/v1/made-up", {}, **auth("ann")).status_code == 404
        assert post(address, "/v1/completions", {}).status_code == 401
    told = httpx.get(f"{address}/metrics", headers=auth("metrics")).text
    assert "made-up" not in told + logged(caplog) and 'path="/v1/completions",status="401"' in told


def test_a_head_without_end_and_a_second_host_are_refused(address: str):
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        with contextlib.suppress(ConnectionError):  # closed under our hands
            for number in range(1000):
                connection.sendall(b"x-%d: " % number + b"y" * 1000 + b"\r\n")
                time.sleep(0.001)
            connection.sendall(b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in connection.recv(1000)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nhost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_a_body_too_deep_to_be_read_is_refused(address: str):
    for body in (b"[" * 9_000, b'{"prompt":' + b"[" * 5_000 + b"]" * 5_000 + b"}"):
        found = httpx.post(
            f"{address}/v1/completions", content=body, headers={**auth("ann"), "content-type": "application/json"}
        )
        assert found.status_code == 400


def test_a_body_that_is_too_large_or_too_slow_is_refused(address: str):
    headers = {**auth("ann"), "content-type": "application/json"}
    found = httpx.post(f"{address}/v1/completions", content=b" " * 20_001, headers=headers)
    assert found.status_code == 413
    found = httpx.post(f"{address}/v1/completions", content=(b" " * 1000 for _ in range(21)), headers=headers)
    assert found.status_code == 413

    def slow() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1.5)
        yield b"}"

    assert httpx.post(f"{address}/v1/completions", content=slow(), headers=headers).status_code == 408


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "my-machine"])
def test_other_machines_are_not_let_in_without_keys(host: str, file: Path):
    with pytest.raises(ValueError, match="--insecure"):
        Settings("stretto-tiny", host=host)
    assert Settings("stretto-tiny", host=host, insecure=True).host == host
    assert Settings("stretto-tiny", host=host, api_key_file=file).host == host
    assert "0.0.0.0" not in Settings("stretto-tiny", host="0.0.0.0", insecure=True).hosts
    found = CliRunner().invoke(app, ["serve", "--host", host])
    assert found.exit_code == 2 and "reachable from other machines" in found.output.replace("\n", " ")


def seen(address: str, name: str) -> dict[str, Any]:
    """Return what a key learns of its request beside the text, whose times are the machine's."""
    told = post(address, "/v1/completions", {"prompt": SECRET, "method": "suffix-decoding", **ASKED}, **auth(name))
    found: dict[str, Any] = told.json()
    made = {key: value for key, value in found["stretto"].items() if not key.endswith("_ms")}
    return {**made, **found["usage"], "text": found["choices"][0]["text"]}


def test_no_key_sees_anothers_prompt_in_counters_or_drafts(address: str):
    """Bob, who asks what Ann has asked before, learns what Cho learnt, who was the first of all to ask."""
    first = seen(address, "cho")
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert seen(address, "ann") == first
    again = seen(address, "ann")
    assert again["prompt_tokens_details"]["cached_tokens"] >= 16, "the control: one's own prompt is in the cache"
    assert again["accepted"] > first["accepted"], "the control: one's own answers are drafted"
    assert again["text"] == first["text"]
    assert seen(address, "bob") == first


def test_without_keys_all_are_one_tenant(caplog: pytest.LogCaptureFixture):
    """The control of the test above: a server that did not salt would show it. And logs tell texts where asked."""
    with caplog.at_level(logging.INFO, "stretto.serving"), served(log_prompts=True) as address:
        asked = {"prompt": SECRET, **ASKED}
        post(address, "/v1/completions", asked)
        used = post(address, "/v1/completions", asked).json()["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] >= 16
    assert "third birch" in logged(caplog)


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return all that went into the log, as it is written."""
    return "\n".join(Lines().format(record) for record in caplog.records)


def test_logs_hold_no_texts_and_no_keys(address: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG, "stretto"):
        answer = post(address, "/v1/completions", {"prompt": SECRET, **ASKED}, **auth("ann"))
        post(address, "/v1/completions", {"prompt": SECRET, "third birch": 1}, **auth("ann"))
        post(address, "/v1/completions", {"prompt": SECRET, **ASKED}, authorization="Bearer third birch")
    lines = [json.loads(line) for line in logged(caplog).splitlines()]
    told = next(line for line in lines if line.get("answer") == answer.json()["id"])
    assert told["request_id"] == answer.headers["x-request-id"] and told["key"] == "ann" and told["prompt_tokens"] > 0
    text = logged(caplog)
    assert "birch" not in text and answer.json()["choices"][0]["text"].strip()[:12] not in text
    assert not any(key in text for key in KEYS.values())


def test_nothing_is_recorded_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.chdir(tmp_path)
    post(address, "/v1/completions", {"prompt": SECRET, **ASKED}, **auth("ann"))
    assert list(tmp_path.iterdir()) == []
