"""What commands write is there whole or not at all, whenever they are killed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stretto
from stretto.models.quantize import quantize
from stretto.weights import files
from stretto.weights.files import write_whole

KILLED = 9
SOURCE = Path(stretto.__file__).parent

WRITE = """
import os, sys
from pathlib import Path
from stretto.weights import files

class Torn:  # a text whose second half never comes
    def __init__(self, file): self.file = file
    def write(self, text):
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        os._exit(9)

def torn(path):
    with files.whole(path) as partial, partial.open("w") as file:
        Torn(file).write("new" * 1000)

def late(path):
    files.os.replace = lambda *names: os._exit(9)
    files.write_whole(path, "new" * 1000)

def plain(path):
    with path.open("w") as file:
        Torn(file).write("new" * 1000)

{"torn": torn, "late": late, "plain": plain}[sys.argv[1]](Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kill", ["torn", "late", "plain"])
def test_a_kill_leaves_the_old_file(kill: str, tmp_path: Path):
    """Control: a file that is written in its place is torn."""
    path = tmp_path / "talk.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", WRITE, kill, str(path)], capture_output=True)
    assert done.returncode == KILLED, done.stderr
    assert (path.read_text() == "old") == (kill != "plain")


@pytest.mark.skipif(sys.platform == "win32", reason="files have no owner's mode there")
def test_others_may_read_what_they_may_read_of_any_new_file(tmp_path: Path):
    (tmp_path / "usual").touch()
    with files.whole(tmp_path / "weights") as partial:
        partial.unlink()
        partial.touch(0o600)  # as safetensors does
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "talk.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# The command line, killed when it is about to give a file its name for the time that the first argument says.
COMMAND = """
import os, sys
from stretto.cli.main import main
from stretto.weights import files
rename, left = os.replace, [int(sys.argv.pop(1))]

def replace(*names):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    rename(*names)

files.os.replace = replace
main()
"""


def stretto_killed(before: int, *arguments: object, text: str = "") -> int:
    command = [sys.executable, "-c", COMMAND, str(before), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=300).returncode


def test_commands_leave_the_old_file(tmp_path: Path):
    talk, out, prompts = tmp_path / "talk.json", tmp_path / "out.jsonl", tmp_path / "prompts.jsonl"
    talk.write_text("old")
    old = json.dumps({"number": 0, "prompt": "a", "completions": []}) + "\n"
    out.write_text(old)
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert stretto_killed(0, "chat", text=f"/save {talk}\n") == KILLED
    assert talk.read_text() == "old"
    batch = ["generate", "--file", prompts, "--out", out, "--max-tokens", "2"]
    for before in (0, 1):  # at the copy of what is there, and at the end
        assert stretto_killed(before, *batch) == KILLED
        assert out.read_text() == old
    assert stretto_killed(9, *batch) == 0
    assert out.read_text().startswith(old) and len(out.read_text().splitlines()) == 2


class End(BaseException):
    """Stands in for the end of the process."""


def test_a_quantized_folder_is_whole_or_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quantize("stretto-tiny", tmp_path / "whole", "int8")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    rename = os.replace
    for before in range(len(whole) + 1):  # config.json is written twice
        left = iter(range(before))

        def replace(partial: Path, path: Path, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise End
            rename(partial, path)

        monkeypatch.setattr(files.os, "replace", replace)
        folder = tmp_path / str(before)
        with pytest.raises(End):
            quantize("stretto-tiny", folder, "int8")
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        unfinished = found.pop("config.json", b"unfinished")
        assert len(found) == min(before, len(whole) - 1) and b"unfinished" in unfinished
        assert all(whole[name] == content for name, content in found.items())


WRITERS = ("write_text", "write_bytes", "save_file", "savez", "copyfile")
TEMPORARY = {"partial", "copy", "file"}
"""How modules call what ``whole`` yields, and a file opened under it."""


def writes(module: Path) -> list[str]:
    """Return the calls of a module that write to anything but a temporary name, or a file opened under one."""
    found = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITERS and not TEMPORARY & {each.id for each in node.args if isinstance(each, ast.Name)}:
            found.append(f"{module.relative_to(SOURCE)}:{node.lineno}")
    return found


def test_nothing_is_written_in_its_place():
    assert [each for module in SOURCE.rglob("*.py") for each in writes(module)] == []
