"""What happens around answers: a full queue, clients that go away, a dying engine, records, forms that are kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server import client, post, served
from typer.testing import CliRunner

from stretto.cli.main import app
from stretto.serving.settings import Settings
from stretto.weights.resolve import resolve

MODEL = "stretto-tiny"
ASKED: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "seed": 3}
LONG: dict[str, Any] = {**ASKED, "max_tokens": 1500, "ignore_eos": True, "method": "plain"}
FOX: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": FOX}},
    {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "additionalProperties": False}}},
]
TALK: list[Any] = [{"role": "user", "content": "Tell me of a fox."}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose engine has a process of its own, and that keeps records."""
    with served(process=True, record=tmp_path_factory.getbasetemp() / "record") as found:
        yield found


@pytest.fixture
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "record"


def gauge(address: str, name: str) -> float:
    """Return a metric without labels."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def soon(true: Any) -> None:
    """Wait until it is."""
    until = time.monotonic() + 240
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_forms_are_kept(address: str):
    form = {"type": "json_schema", "json_schema": {"name": "fox", "schema": FOX}}
    ask = client(address)
    for asked in ({"response_format": form}, {"extra_body": {"structured_outputs": {"json": FOX}}}):
        (choice,) = ask.chat.completions.create(model=MODEL, messages=TALK, max_tokens=200, seed=1, **asked).choices
        told = json.loads(choice.message.content)
        assert told.keys() == {"name", "age"} and 0 <= told["age"] <= 99 and choice.finish_reason == "stop"
    for asked, texts in (
        ({"regex": "(ab|cd){3}!"}, None),
        ({"grammar": 'start: "yes" | "no"'}, {"yes", "no"}),
        ({"structured_outputs": {"choice": ["red fox", "badger"]}}, {"red fox", "badger"}),
    ):
        (choice,) = ask.completions.create(**ASKED, max_tokens=40, extra_body=asked).choices
        assert choice.text in texts if texts else set(choice.text) <= set("abcd!") and len(choice.text) == 7
        assert choice.finish_reason == "stop"
    (choice,) = ask.completions.create(**ASKED, max_tokens=3, extra_body={"regex": "(ab|cd){30}!"}).choices
    assert choice.finish_reason == "length" and set(choice.text) <= set("abcd")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_where_it_must(address: str, choice: Any, stream: bool):
    asked: dict[str, Any] = {"model": MODEL, "messages": TALK, "tools": TOOLS, "max_tokens": 200, "seed": 2}
    found = client(address).chat.completions.create(**asked, tool_choice=choice, stream=stream)
    if stream:
        calls = [call for piece in found for each in piece.choices for call in each.delta.tool_calls or []]
    else:
        calls = found.choices[0].message.tool_calls
        assert found.choices[0].finish_reason == "tool_calls"
    (call,) = calls
    assert call.function.name == "look" or choice == "required"
    assert json.loads(call.function.arguments).keys() == ({"name", "age"} if call.function.name == "look" else set())
    with pytest.raises(openai.BadRequestError, match="the tools are: look, run"):
        client(address).chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "fly"}})


def test_a_client_that_goes_away_frees_its_rows(address: str):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/completions", json={**LONG, "n": 8}, timeout=0.3)
    soon(lambda: gauge(address, "stretto_requests_open") == 0)
    with client(address).completions.create(**{**ASKED, "max_tokens": 1500}, stream=True) as pieces:
        next(iter(pieces))
    soon(lambda: gauge(address, "stretto_requests_open") == 0)


def test_a_stream_survives_the_death_of_its_engine(address: str):
    asked = {**LONG, "max_tokens": 60}
    expected = post(address, "/v1/completions", asked).json()["choices"][0]["text"]
    pid = int(gauge(address, "stretto_engine_pid"))
    text, killed, told = "", False, None
    for piece in client(address).completions.create(
        model=MODEL,
        prompt=asked["prompt"],
        seed=3,
        max_tokens=60,
        stream=True,
        extra_body={"ignore_eos": True, "method": "plain"},
    ):
        text += piece.choices[0].text
        told = piece.model_dump().get("stretto") or told
        if text and not killed:
            killed = True
            os.kill(pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    assert text == expected and told["resumed"] == 1
    soon(lambda: httpx.get(f"{address}/ready").status_code == 200)


def test_a_recorded_answer_is_made_again(address: str, record: Path):
    asked = {**ASKED, "prompt": ["Once upon", "The fox"], "n": 2, "max_tokens": 10}
    name = post(address, "/v1/completions", asked).json()["id"]
    path = record / f"{name}.json"
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o077 == record.stat().st_mode & 0o077 == 0
    found = CliRunner().invoke(app, ["replay", name, "--record", str(record)])
    assert found.exit_code == 0 and "the same 40 tokens" in found.stderr
    told = json.loads(path.read_text())
    told["answers"][2]["tokens"][4] += 1
    path.write_text(json.dumps(told))
    found = CliRunner().invoke(app, ["replay", name, "--record", str(record)])
    assert str(found.exception) == "not the same: sample 2 differs, from token 4 on"
    for wrong in ("cmpl-" + "0" * 24, "../keys"):
        found = CliRunner().invoke(app, ["replay", wrong, "--record", str(record)])
        assert "is no answer recorded in" in str(found.exception)


def test_an_answer_that_cannot_be_recorded_stands(tmp_path: Path):
    with served(record=tmp_path / "record") as address:
        (tmp_path / "record").rmdir()
        asked = {**ASKED, "max_tokens": 4}
        assert post(address, "/v1/completions", asked).status_code == 200
        assert streamed(address, {**asked, "n": 1})[1]["method"]


def test_a_full_queue_says_when_to_come_back():
    engine = {"dtype": "fp32", "weights": "fp32", "cache_tokens": 2048}
    with served(max_waiting=1, engine=engine) as address:
        ask = client(address)
        with ask.completions.create(
            model=MODEL, prompt="Once", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        ) as first:
            next(iter(first))
            with pytest.raises(openai.RateLimitError) as raised:
                ask.completions.create(model=MODEL, prompt=["a", "b", "c", "d"], max_tokens=1500)
            assert raised.value.body["code"] == "queue_full" and int(raised.value.response.headers["retry-after"]) >= 1
        soon(lambda: gauge(address, "stretto_requests_open") == 0)
        assert ask.completions.create(**ASKED, max_tokens=4).choices


@contextmanager
def own_process(*options: str, model: str = MODEL) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield ``stretto serve`` as it is run, and its address, once it listens."""
    code = "from stretto.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", model, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as server:
        try:
            yield server, f"http://127.0.0.1:{logged(server, 'listening')['port']}"
        finally:
            server.kill()


def logged(server: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Return the next line of the log that tells of ``event``."""
    assert server.stderr is not None
    lines = (json.loads(line) for line in server.stderr if line.startswith("{"))
    return next(told for told in lines if told["event"] == event)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal reaches another process there")
def test_sigterm_lets_running_requests_end():
    """The stream goes on to its end, new connections are refused."""
    with own_process("--cache-tokens", "2048") as (server, address):
        logged(server, "ready")
        pieces = iter(client(address).completions.create(**ASKED, max_tokens=200, stream=True))
        text = next(pieces).choices[0].text
        server.send_signal(signal.SIGTERM)
        rest = list(pieces)
        assert text and rest[-1].choices[0].finish_reason in ("length", "stop")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        assert server.wait(60) == 0 and logged(server, "stopped")


@pytest.mark.skipif(sys.platform == "win32", reason="no signal reaches another process there")
@pytest.mark.parametrize("twice", [False, True])
def test_what_does_not_end_in_time_ends_with_an_error(twice: bool):
    """When the time to drain is over, or at a second signal."""
    with own_process("--cache-tokens", "2048", "--drain-seconds", "600" if twice else "0") as (server, address):
        logged(server, "ready")
        lines: list[str] = []
        with httpx.stream("POST", f"{address}/v1/completions", json={**LONG, "stream": True}, timeout=300) as answer:
            for line in answer.iter_lines():
                if len(lines) in (0, 20) if twice else not lines:
                    server.send_signal(signal.SIGTERM)
                lines += [line] if line else []
        assert "the engine was stopped" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]
        assert server.wait(60) == 0 and logged(server, "stopped")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
def test_a_restart_that_fails_says_so_and_changes_nothing(tmp_path: Path):
    folder = shutil.copytree(resolve(MODEL), tmp_path / "model")
    with own_process("--cache-tokens", "2048", model=str(folder)) as (server, address):
        logged(server, "ready")
        (folder / "config.json").unlink()
        server.send_signal(signal.SIGHUP)
        assert logged(server, "restart failed")["why"]
        assert post(address, "/v1/completions", {**ASKED, "model": "model", "max_tokens": 4}).status_code == 200


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
def test_sighup_replaces_the_engine_under_running_streams():
    """Answers are streamed until one has gone on in the second engine; each equals that of an engine undisturbed."""
    asked = {**LONG, "max_tokens": 1500, "n": 4}
    with own_process("--cache-tokens", "8192", "--weights", "fp32") as (server, address):
        logged(server, "ready")
        expected = [choice["text"] for choice in post(address, "/v1/completions", asked).json()["choices"]]
        pid, told = 0.0, {"resumed": 0}
        while not told["resumed"]:
            if (engine := gauge(address, "stretto_engine_pid")) != pid:  # also when it came between answers
                pid = engine
                server.send_signal(signal.SIGHUP)
            texts, told = streamed(address, asked)
            assert texts == expected
        assert logged(server, "restarted") and gauge(address, "stretto_engine_pid") != pid


def streamed(address: str, asked: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the texts of a streamed answer and what it took."""
    texts, told = [""] * asked["n"], {}
    with httpx.stream("POST", f"{address}/v1/completions", json={**asked, "stream": True}, timeout=300) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                piece = json.loads(line.removeprefix("data: "))
                for choice in piece["choices"]:
                    texts[choice["index"]] += choice["text"]
                told = piece.get("stretto", told)
    return texts, told


def test_a_model_is_not_called_by_its_path(tmp_path: Path):
    (tmp_path / "my-model").mkdir()
    assert Settings(str(tmp_path / "my-model")).name == "my-model"
    assert Settings("Qwen/Qwen3-0.6B").name == "Qwen/Qwen3-0.6B"


def test_load_is_measured_in_both_loops(address: str, tmp_path: Path):
    """Every conversation is held, turn behind turn; what the server counts agrees with what was asked."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "A fox"}\n{"turns": ["One?", "Two?", "Three?"]}\n')
    common = ["bench", "serve", f"{address}/v1", "--max-tokens", "4", "--requests", "6", "--ignore-eos"]
    for more, asked in (
        (["--concurrency", "3", "--turns", "2", "--shared", "40"], 12),
        (["--rate", "50", "--prompts", str(tmp_path / "prompts.jsonl"), "--ttft-ms", "60000"], 12),
    ):
        out = tmp_path / "out.json"
        found = CliRunner().invoke(app, [*common, *more, "--json", str(out), "--plot", str(tmp_path / "out.html")])
        assert found.exit_code == 0, found.output
        told = json.loads(out.read_text())
        assert (told["requests"], told["failed"], told["within_goals"]) == (asked, 0, 1.0)
        assert all(each["tokens"] == 4 and 0 < each["ttft_ms"] <= each["total_ms"] for each in told["taken"])
        assert told["ttft_ms"]["p50"] <= told["ttft_ms"]["p99"]
        assert "--shared" not in more or told["cached_share"] > 0.3
        assert "<svg" in (tmp_path / "out.html").read_text()
