"""Requests made up from the server's own schema, with a fixed seed: whatever they ask, none ends in an error of 500."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server import served

from stretto.serving import service

ENGINE = {"dtype": "fp32", "weights": "fp32", "cache_tokens": 2048}


def fuzz(address: str, place: Path, seconds: int) -> None:
    """Let schemathesis ask for so many seconds; raise ``AssertionError`` where it found an error of 500."""
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "run", f"{address}/openapi.json"),
        *("--checks", "not_a_server_error", "--seed", "7", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "1000000", "--max-time", str(seconds), "--request-timeout", "60", "--max-failures", "1"),
        "--no-color",
    ]
    done = subprocess.run(list(map(str, command)), cwd=place, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seconds", [120, pytest.param(600, marks=pytest.mark.long)])
def test_no_request_makes_the_server_fail(tmp_path: Path, seconds: int):
    with served(engine=ENGINE) as address:
        fuzz(address, tmp_path, seconds)


def test_a_server_that_fails_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service, "completion_wanted", broken)
    with served(engine=ENGINE) as address, pytest.raises(AssertionError, match="/v1/completions"):
        fuzz(address, tmp_path, 30)
