"""The house keeps its order: who may import whom, what the runtime may not import, how long files may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top floor down. On one floor, a folder may import from the folders after its own in the row.
FLOORS = [
    ["cli", "serving", "race", "training"],
    ["engine", "recipes"],
    ["decoding"],
    ["models", "cache"],
    ["core"],
    ["weights", "tokens"],
    ["kernels"],
]
PLACE = {folder: (floor, seat) for floor, row in enumerate(FLOORS) for seat, folder in enumerate(row)}

LOOP = ["core/chunk.py", "core/choose.py", "engine/scheduler.py", "engine/step.py"]
CODE_FOLDERS = ["src", "native", "tests", "tools", "benchmarks"]
CODE_SUFFIXES = {".py", ".cpp", ".hpp"}


def imported(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import in ``tree``, wherever it stands, relative ones resolved in ``package``.

    ``from a import b`` yields ``a.b``, since b may be a module; so does ``import_module`` with a literal name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = [*base, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*home, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                name = node.args[0].value
                base = package[: len(package) - (len(name) - len(name.lstrip("."))) + 1] if name.startswith(".") else []
                yield node.lineno, ".".join([*base, name.lstrip(".")])


def objection(importer: str, name: str) -> str | None:
    """Return why a module in the folder ``importer`` may not import ``name``, or None if it may."""
    parts = name.split(".")
    if parts[0] == "transformers":
        return "the runtime does not import transformers"
    if parts[0] != "stretto" or name == "stretto.__version__":
        return None
    target = parts[1] if len(parts) > 1 else ""
    if target not in PLACE:
        return f"{name} lies on no floor: name the folder of what is imported"
    if target == importer or PLACE[target] > PLACE[importer]:
        return None
    return f"{importer}/ may not import {target}/"


def violations(package: Path) -> list[str]:
    """Return one line per import below ``package`` that breaks the rule, and per module that lies on no floor."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside.parts == ("__init__.py",):  # the roof: hands out the public names
            continue
        folder = inside.parts[0]
        if folder not in PLACE:
            found.append(f"{inside}: lies on no floor")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, name in imported(tree, ["stretto", *inside.parts[:-1]]):
            if reason := objection(folder, name):
                found.append(f"{inside}:{line}: {reason}")
    return found


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_modules_import_from_their_own_floor_and_below():
    assert violations(ROOT / "src" / "stretto") == []


@pytest.mark.parametrize(
    ("place", "statement", "blame"),
    [
        ("core/a.py", "from stretto.engine.step import Step", "core/ may not import engine/"),
        ("core/a.py", "import stretto.cache.pool", "core/ may not import cache/"),
        ("core/a.py", "def f():\n    from stretto.models import spec", "core/ may not import models/"),
        ("core/a.py", "from ..decoding import plain", "core/ may not import decoding/"),
        ("core/a/b.py", "from ...decoding.plain import Plain", "core/ may not import decoding/"),
        ("core/a.py", "from stretto import cli", "core/ may not import cli/"),
        ("core/a.py", "import importlib\nimportlib.import_module('stretto.engine')", "core/ may not import engine/"),
        ("core/a.py", "from importlib import import_module\nimport_module('..engine')", "core/ may not import engine/"),
        ("cache/a.py", "from stretto.models import spec", "cache/ may not import models/"),
        ("recipes/a.py", "from stretto.engine import llm", "recipes/ may not import engine/"),
        ("race/a.py", "from stretto.serving import app", "race/ may not import serving/"),
        ("training/a.py", "from stretto.cli import main", "training/ may not import cli/"),
        ("cli/a.py", "from stretto import LLM", "lies on no floor"),
        ("cli/a.py", "import stretto", "lies on no floor"),
        ("zoo/a.py", "", "lies on no floor"),
        ("a.py", "", "lies on no floor"),
        ("weights/a.py", "def f():\n    import transformers.utils", "does not import transformers"),
    ],
)
def test_a_bad_import_is_reported(tmp_path: Path, place: str, statement: str, blame: str):
    module = tmp_path / place
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(statement)
    assert len(violations(tmp_path)) == 1
    assert blame in violations(tmp_path)[0]


@pytest.mark.parametrize(
    ("place", "statement"),
    [
        ("cli/a.py", "from stretto.race import run\nfrom stretto.training.tiny import train_tiny"),
        ("cli/a.py", "from stretto import __version__\nfrom stretto.kernels import native"),
        ("engine/a.py", "from stretto.recipes import table\nfrom . import step\nfrom .step import Step"),
        ("models/a.py", "from stretto.cache.pool import Pool\nfrom ..kernels import reference"),
        ("__init__.py", "from stretto.engine.llm import LLM"),
    ],
)
def test_a_good_import_is_not_reported(tmp_path: Path, place: str, statement: str):
    module = tmp_path / place
    module.parent.mkdir(exist_ok=True)
    module.write_text(statement)
    assert violations(tmp_path) == []


def test_no_file_is_longer_than_400_lines():
    files = [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in CODE_SUFFIXES]
    assert len(files) > 10, "looked in the wrong place"
    assert {str(path.relative_to(ROOT)): lines(path) for path in files if lines(path) > 400} == {}


def test_the_loop_stays_readable():
    present = [path for name in LOOP if (path := ROOT / "src" / "stretto" / name).exists()]
    assert sum(map(lines, present)) < 1000
