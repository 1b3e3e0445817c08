"""What an installation promises: public names, data files, a quick start, and the native library or a word about it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import stretto
from stretto.kernels import native

ROOT = Path(__file__).parent.parent


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)


def test_public_names_are_there():
    for name in stretto.__all__:
        assert getattr(stretto, name) is not None
    assert set(stretto.__all__) <= set(dir(stretto))
    with pytest.raises(AttributeError, match=r"Sampler.*SamplingParams"):
        stretto.Sampler  # noqa: B018


def test_the_version_is_the_one_of_the_project_file():
    assert f'\nversion = "{stretto.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("module", ["stretto", "stretto.cli.main"])
def test_starting_does_not_import_torch(module: str):
    loaded = run_python(f"import sys, {module}; print('torch' in sys.modules, 'transformers' in sys.modules)").stdout
    assert loaded.split() == ["False", "False"]


def test_data_files_are_installed():
    source = ROOT / "src" / "stretto"
    wanted = [path for path in (source / "zoo").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in wanted)
    for path in [*wanted, source / "py.typed"]:
        assert files("stretto").joinpath(*path.relative_to(source).parts).read_bytes() == path.read_bytes()


def test_the_native_library_speaks_our_version_and_knows_its_machine():
    library = native.load()
    if library is None:
        assert native.reason
        pytest.skip(f"no native library here: {native.reason}")
    assert native.reason == ""
    assert library.abi_version() == native.ABI_VERSION
    assert library.instruction_set() in ("avx512", "avx2", "generic")
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "avx2" in (text := flags.read_text()):
        widest = "avx512" if all(f"avx512{part}" in text for part in ("f", "bw", "dq", "vl")) else "avx2"
        assert library.instruction_set() == widest


def test_a_library_of_another_age_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Stale:
        @staticmethod
        def abi_version() -> int:
            return native.ABI_VERSION + 1

    monkeypatch.setitem(sys.modules, "stretto.kernels._native", Stale)  # type: ignore[arg-type]  # stands in for a module
    try:
        changed = importlib.reload(native)
        assert changed.load() is None
        assert re.search("ABI version.*reinstall", changed.reason)
    finally:
        monkeypatch.undo()
        importlib.reload(native)


MISSING = "import sys; sys.modules['stretto.kernels._native'] = None; "
SPEAK = "from stretto.kernels import native; native.notice_once(); native.notice_once()"


def test_a_missing_library_is_told_once(tmp_path: Path):
    home = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    first, second = (run_python(MISSING + SPEAK, **home).stderr for _ in range(2))
    assert first == native.NOTICE
    assert second == ""


def test_where_nothing_can_be_remembered_it_is_told_once_a_process(tmp_path: Path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    home = {"XDG_CACHE_HOME": str(occupied / "x"), "LOCALAPPDATA": str(occupied / "x")}
    assert run_python(MISSING + SPEAK, **home).stderr == native.NOTICE


def test_a_present_library_is_not_worth_a_word(tmp_path: Path):
    if native.load() is None:
        pytest.skip(f"no native library here: {native.reason}")
    assert run_python(SPEAK, XDG_CACHE_HOME=str(tmp_path), LOCALAPPDATA=str(tmp_path)).stderr == ""
