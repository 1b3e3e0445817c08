"""The documents tell the truth: their examples run, and the files they point to exist."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.models.families import FAMILIES
from stretto.recipes.table import RECIPES

ROOT = Path(__file__).parent.parent
GENERATED = runpy.run_path(str(ROOT / "tools" / "pages.py"))["PAGES"]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")
MENTION = re.compile(r"`([\w/-]+\.py)`")


def examples(page: Path) -> list[tuple[int, str]]:
    """Return the line number and text of each block that opens with ``python run``."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python run\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in blocks]


def execute(page: Path) -> None:
    """Run a page's blocks in one namespace, top to bottom; errors point into the page."""
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, block in examples(page):
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


def missing(page: Path) -> list[str]:
    """Return the relative links and the named Python files of a page that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    homes = [ROOT, ROOT / "src" / "stretto", ROOT / "src"]
    return links + [name for name in MENTION.findall(text) if not any((home / name).exists() for home in homes)]


@pytest.fixture
def tables() -> Iterator[None]:
    """Let pages add rows to the tables, and take them out again."""
    before = [(table, dict(table)) for table in (RECIPES, FAMILIES)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.stem)
def test_the_examples_run(page: Path, tables: None):
    execute(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_points_to_exists(page: Path):
    assert missing(page) == []


def test_a_page_that_lies_is_found_out(tmp_path: Path):
    """A wrong example, a dead link and the name of a file that is not there are each noticed."""
    page = tmp_path / "page.md"
    page.write_text(
        "[gone](gone.md), [site](https://example.org), `core/gone.py`\n\n```python run\nassert 1 == 2\n```\n"
    )
    assert missing(page) == ["gone.md", "core/gone.py"]
    with pytest.raises(AssertionError) as raised:
        execute(page)
    assert (Path(raised.traceback[-1].path).name, raised.traceback[-1].lineno + 1) == ("page.md", 4)


def test_there_is_something_to_run():
    assert {page.stem: len(examples(page)) for page in PAGES if examples(page)} == {
        "adding-a-method": 3,
        "adding-a-model": 3,
        "determinism": 2,
        "python": 9,
        "README": 1,
        "structured": 2,
    }


@pytest.mark.parametrize("page", GENERATED)
def test_generated_pages_are_what_the_code_says(page: str):
    """Otherwise run ``python tools/pages.py``."""
    assert (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").startswith(GENERATED[page]())


def test_every_page_is_in_the_site_and_pictures_bring_all_they_need():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in listed} == set()
    for picture in (ROOT / "docs").rglob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert not re.search(r"(href|src)=|@import|url\((?!#)", text), picture
