"""The command line as a shell sees it: streams, pipes, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from stretto import LLM, SamplingParams

STRETTO = [sys.executable, "-c", "from stretto.cli.main import main; main()"]


def stretto(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STRETTO, *arguments], input=text or "", capture_output=True, text=True, timeout=300)


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['stretto', '--help']\n"
        "from stretto.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules or 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "generate" in done.stdout and done.stderr.strip().endswith("False")


@pytest.mark.parametrize(
    ("typed", "offered"), [("stretto gen", ["generate"]), ("stretto generate --we", ["--weights"])]
)
def test_the_shell_completes_commands_and_options(typed, offered):
    code = "import sys; sys.argv = ['stretto']; from stretto.cli.main import main; main()"
    asked = {"_STRETTO_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == offered, done.stderr


def test_generate_streams_into_a_pipe_and_speaks_json(tiny):
    options = ["--seed", "3", "--max-tokens", "12", "--temperature", "0.7"]
    text = stretto("generate", "Once upon a time", *options, "--stats")
    assert text.returncode == 0, text.stderr
    assert "seed 3" in text.stderr and "tokens/s" in text.stderr
    done = stretto("generate", *options, "--json", text="Once upon a time")
    answer = json.loads(done.stdout)
    assert answer["text"] == text.stdout[:-1] and answer["seed"] == 3 and len(answer["token_ids"]) == 12
    params = SamplingParams(seed=3, max_tokens=12, temperature=0.7, top_p=0.95)
    assert tiny.generate("Once upon a time", params)[0].prompt_logprobs is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "x", "--no-such-option"], 2, "no-such-option"),
        (["generate", "x", "--max-tokens", "many"], 2, "max-tokens"),
        (["generate", "x", "--model", "stretto-tinny"], 1, "stretto-tiny"),
        (["generate", "x", "--temperature", "-1"], 2, "temperature"),
        (["generate", "x", "--method", "plane"], 2, "plain"),
        (["generate", "--file", "p.jsonl", "--out", "r.jsonl", "--stats"], 2, "leave --stats out"),
    ],
)
def test_exit_codes_and_messages(arguments, code, message):
    done = stretto(*arguments)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr


def test_quantize_writes_a_folder_that_speaks(tmp_path):
    folder = str(tmp_path / "int4")
    done = stretto("quantize", "stretto-tiny", folder, "--weights", "int4")
    assert done.returncode == 0 and "s per G" in done.stderr, done.stderr
    text = stretto("generate", "Once upon a time", "--model", folder, "--seed", "3", "--max-tokens", "12", "--json")
    params = SamplingParams(seed=3, max_tokens=12, temperature=0.8, top_p=0.95)
    (expected,) = LLM("stretto-tiny", weights="int4", cache_tokens=256).generate("Once upon a time", params)
    answer = json.loads(text.stdout)
    assert (answer["text"], answer["fingerprint"]) == (expected.text, expected.fingerprint)
    again = stretto("quantize", "stretto-tiny", folder)
    assert again.returncode == 1 and "not an empty folder" in again.stderr


@pytest.fixture(scope="module")
def endless() -> list[str]:
    """Arguments of a text that goes on for long: a seed with which the model does not end it early."""
    llm = LLM("stretto-tiny", cache_tokens=2048)
    for seed in range(50):
        params = SamplingParams(seed=seed, temperature=0.8, top_p=0.95, max_tokens=300)
        if llm.generate("Once upon a time", params)[0].finish_reason == "length":
            return ["generate", "Once upon a time", "--max-tokens", "2000", "--seed", str(seed)]
    raise AssertionError("the model always ends early")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child of this kind")
def test_ctrl_c_ends_cleanly(endless):
    child = subprocess.Popen([*STRETTO, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and b"Traceback" not in errors


def test_a_reader_that_leaves_ends_it_quietly(endless):
    child = subprocess.Popen([*STRETTO, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None and child.stdout.read(1)
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = errors.decode().splitlines()
    assert child.returncode is not None and len(lines) == 1 and "demonstration" in lines[0], errors
