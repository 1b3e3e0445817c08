"""Checkpoints that mean harm are refused in words, before a tensor is read, in little memory and time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import CASES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of forked processes")

CONTROLS = ("healthy", "healthy chat", "greedy reader", "endless reader")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what came of each case: error and message, seconds, bytes above the bare import, tensors read."""
    command = [sys.executable, str(Path(__file__).with_name("refusals.py")), str(tmp_path_factory.mktemp("hostile"))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return {found.pop("case"): found for found in map(json.loads, done.stdout.splitlines())}


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_before_a_tensor_is_read(name: str, refusals: dict[str, dict[str, Any]]) -> None:
    found = refusals[name]
    assert found["error"] in ("ValueError", "FileNotFoundError"), found
    assert re.search(CASES[name].said, found["message"]), found["message"]
    assert found["read"] == 0
    assert found["length"] < 2000, "an answer is for people, whatever the checkpoint says"


def test_the_limits_bite_and_a_healthy_checkpoint_passes(refusals: dict[str, dict[str, Any]]) -> None:
    assert set(refusals) == {*CASES, *CONTROLS}
    assert refusals["healthy"]["error"] is None and refusals["healthy"]["read"] > 0
    assert refusals["healthy chat"]["error"] is None
    assert refusals["greedy reader"]["error"] == "MemoryError"
    assert refusals["endless reader"]["error"].startswith("signal")
