"""``stretto chat`` as a person and as a pipe meet it, and batches from files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stretto import LLM, SamplingParams
from stretto.cli import batch

STRETTO = [sys.executable, "-c", "from stretto.cli.main import main; main()"]
OPTIONS = ["--seed", "3", "--max-tokens", "24"]


def stretto(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STRETTO, *arguments], input=text, capture_output=True, text=True, timeout=300)


def expected(*turns: str, system: str | None = None) -> list[str]:
    """Return the answers of the same conversation through the Python interface."""
    llm = LLM("stretto-tiny", cache_tokens=2048)
    params = SamplingParams.from_dict({"seed": 3, "max_tokens": 24, "temperature": 0.8, "top_p": 0.95})
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        answers.append(llm.chat(messages, params)[0].text.strip())
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_through_a_pipe_only_the_answers_are_written(tmp_path: Path):
    saved = tmp_path / "talk.json"
    lines = ["Hello!", "/nonsense", "And you?", f"/save {saved}", "/method", "/method plane"]
    done = stretto("chat", *OPTIONS, "--system", "Be kind.", text="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    first, second = expected("Hello!", "And you?", system="Be kind.")
    assert [line.strip() for line in done.stdout.split("\n")] == [*f"{first}\n{second}".split("\n"), ""]
    assert "\x1b" not in done.stdout + done.stderr
    assert "/nonsense is no command: expected one of /method" in done.stderr and "plane" in done.stderr
    assert done.stderr.count("demonstration") == 1
    roles = [(message["role"], message["content"]) for message in json.loads(saved.read_text())]
    assert roles[0] == ("system", "Be kind.") and roles[1:3] == [("user", "Hello!"), ("assistant", first)]


READY = "\x1b[?2004h"
"""What a terminal is told when a line may be typed: that pasted text is to be marked."""


class Terminal:
    """A pseudo-terminal with a process on it."""

    def __init__(self, *arguments: str, home: Path) -> None:
        import pty

        self.screen, child = pty.openpty()
        environment = os.environ | {
            "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(home), "COLUMNS": "200",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [*STRETTO, *arguments], stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(child)
        self.seen, self.at = "", 0

    def until(self, text: str) -> None:
        """Read until ``text`` has appeared behind what the last call waited for."""
        import select

        end = time.monotonic() + 120
        while (place := self.seen.find(text, self.at)) < 0:
            ready, _, _ = select.select([self.screen], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[self.at :]!r}"
            self.seen += os.read(self.screen, 4096).decode(errors="replace")
        self.at = place + len(text)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_terminal_lines_are_edited_answers_stopped_and_ctrl_d_leaves(tmp_path: Path):
    terminal = Terminal("chat", "--seed", "3", "--max-tokens", "100000", home=tmp_path)
    terminal.until(READY)
    terminal.type("/methox\x7fd\r")  # a character is deleted
    terminal.until("method auto")
    terminal.until(READY)
    terminal.type("\x1b[200~Tell me\na long story\x1b[201~\r")  # pasted: two lines, one message
    terminal.until("a long story")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.until(READY)
    terminal.type("/save " + str(tmp_path / "talk.json") + "\r")
    terminal.until("2 messages written")
    terminal.until(READY)
    terminal.type("\x1b[A\x1b[A")  # two lines back in the history: the message again
    terminal.until("a long story")
    terminal.type("\x03")
    terminal.until(READY)
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    user, answer = json.loads((tmp_path / "talk.json").read_text())
    assert user["content"] == "Tell me\na long story" and answer["role"] == "assistant"


def prompts(path: Path, count: int, last: int) -> list[dict[str, object]]:
    """Write so many prompts, one absurd and one for two texts; the last one is answered with ``last`` tokens."""
    entries: list[dict[str, object]] = [{"prompt": f"Story {n}:", "params": {"seed": n}} for n in range(count)]
    entries[-1]["params"] = {"seed": count, "max_tokens": last, "ignore_eos": True}
    entries[1] = {"prompt": "x", "params": {"temperature": -1}}
    entries[2] = {"prompt": [1, 5, 9], "params": {"n": 2, "seed": 5}}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return entries


def test_a_file_of_prompts_is_answered_and_resumed(tmp_path: Path):
    """Killed in the middle, with half a line on disk, and begun again: every prompt has its one answer."""
    entries = prompts(tmp_path / "prompts.jsonl", 30, last=1500)
    out = tmp_path / "results.jsonl"
    arguments = ["generate", "--file", str(tmp_path / "prompts.jsonl"), "--out", str(out), "--max-tokens", "40"]
    process = subprocess.Popen([*STRETTO, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = batch.unfinished(out)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert not out.exists()
    with partial.open("a") as file:
        file.write('{"number": 7, "comp')
    done = stretto(*arguments)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    results = {result["number"]: result for result in map(json.loads, out.read_text().splitlines())}
    assert sorted(results) == list(range(30)) and len(out.read_text().splitlines()) == 30
    assert "temperature" in results[1]["completions"][0]["error"]
    assert len(results[2]["completions"]) == 2 and not partial.exists()
    llm = LLM("stretto-tiny", cache_tokens=512)
    params = SamplingParams.from_dict({"temperature": 0.8, "top_p": 0.95, "max_tokens": 40, "seed": 20})
    assert results[20]["completions"][0]["text"] == llm.generate(entries[20]["prompt"], params)[0].text


def test_what_is_wrong_with_a_file_is_named(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    for text, said in (("{", "line 2 is not JSON"), ('{"promt": "x"}', "line 2 is"), ("[]", "line 2 is")):
        path.write_text('{"prompt": "a"}\n' + text + "\n")
        with pytest.raises(ValueError, match=said):
            batch.read_lines(path, {})
    (tmp_path / "poem.txt").write_text("Roses\nare red\n")
    with pytest.raises(ValueError, match="holds something else than results"):
        batch.finished(tmp_path / "poem.txt")
    done = stretto("generate", "x", "--file", str(path))
    assert done.returncode == 2 and "--file and --out go together" in done.stderr
