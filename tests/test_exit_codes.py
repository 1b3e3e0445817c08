"""Every command ends with 0, with 1 on failure, with 2 on wrong usage and with 130 on Ctrl-C, and says why."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stretto.cli.main import main


class Command(NamedTuple):
    good: list[str]
    fails: list[str]
    why: str
    wrong: list[str]
    """Usage, for which Typer's own message stands."""
    inside: str
    """What it calls, where Ctrl-C may come."""


# {folder} is a folder that holds a document and a prompt, {new} a name in it that is not taken.
COMMANDS = {
    "generate": Command(
        ["Once", "--max-tokens", "2"], ["Once", "--model", "no-such-model"], "no-such-model",
        ["Once", "--top-p", "2"], "stretto.engine.llm.LLM.stream",
    ),
    "generate --file": Command(
        ["--file", "{folder}/prompts.jsonl", "--out", "{new}", "--max-tokens", "2"],
        ["--file", "{folder}/missing.jsonl", "--out", "{new}"], "missing.jsonl",
        ["--file", "{folder}/prompts.jsonl"], "stretto.cli.batch.answer",
    ),
    "chat": Command(
        ["--max-tokens", "2"], ["--model", "no-such-model"], "no-such-model", ["--method", "plane"],
        "stretto.cli.chat._turn",
    ),
    "eval": Command(
        ["stretto-tiny", "{folder}/documents.jsonl"], ["stretto-tiny", "{folder}/missing.jsonl"], "missing.jsonl",
        ["stretto-tiny"], "stretto.cli.evaluate.bits_per_byte",
    ),
    "info": Command(["stretto-tiny"], ["no-such-model"], "no-such-model", [], "stretto.cli.info.examine"),
    "quantize": Command(
        ["stretto-tiny", "{new}"], ["stretto-tiny", "{folder}"], "not an empty folder",
        ["stretto-tiny", "{new}", "--weight", "int8"], "stretto.cli.quantize.quantize",
    ),
    "train tiny": Command(
        ["--data", "{folder}", "--out", "{new}"], ["--data", "{folder}/missing"], "no file named",
        ["--data", "{folder}", "--steps", "0"], "stretto.training.tiny.train_tiny",
    ),
    "doctor": Command([], [], "", ["--jason"], "stretto.cli.doctor.examine"),
}  # fmt: skip


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs a command and returns its exit code and what it wrote to standard error."""
    (tmp_path / "documents.jsonl").write_text(json.dumps({"text": "Once upon a time"}) + "\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    monkeypatch.chdir(tmp_path)
    numbers = count()

    def run(name: str, arguments: list[str]) -> tuple[int, str]:
        new = tmp_path / f"new-{next(numbers)}"
        given = [each.format(folder=tmp_path, new=new) for each in arguments]
        monkeypatch.setattr(sys, "argv", ["stretto", *name.removesuffix(" --file").split(), *given])
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n"))
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException | None) -> None:
    """Let a function raise ``error``, or do nothing."""

    def instead(*_: Any, **__: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(name, instead)


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_codes(name: str, ends: Any, monkeypatch: pytest.MonkeyPatch):
    command = COMMANDS[name]
    with monkeypatch.context() as patch:
        if name == "train tiny":  # takes minutes, and has tests of its own
            replaced(patch, command.inside, None)
        code, said = ends(name, command.good)
        assert code == 0, said
    if command.fails:
        code, said = ends(name, command.fails)
        assert code == 1 and command.why in said and said.startswith("stretto") and "Traceback" not in said
    code, said = ends(name, command.wrong)
    assert code == 2 and said and "Traceback" not in said
    for error, expected in ((KeyboardInterrupt(), 130), (MemoryError("no room"), 1)):
        with monkeypatch.context() as patch:
            replaced(patch, command.inside, error)
            code, said = ends(name, command.good)
            assert code == expected and "Traceback" not in said
            assert ("stretto: no room" in said) == (expected == 1)


def test_ctrl_c_within_an_import_is_not_lost(tmp_path: Path):
    """The module stands for one whose C code clears the exception."""
    (tmp_path / "swallows.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    script = (
        f"import sys; from stretto.cli import main; sys.path.insert(0, {str(tmp_path)!r}); "
        "main.app = lambda **_: __import__('swallows'); main.main()"
    )
    for told, code in ((script, 130), (script.replace("main.main()", "main.app()"), 0)):  # the control: it is lost
        done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
        assert done.returncode == code and not done.stderr
