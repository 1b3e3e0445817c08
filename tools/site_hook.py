"""What ``mkdocs`` changes on a page before it is built, so that the same files also read well in a repository."""

from __future__ import annotations

import re
from typing import Any

_SOURCE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:src|native|tests|tools|benchmarks)\b[^)]*\)")
_RUN = re.compile(r"^```python run$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to source files, which are no part of the site, into their text; show executed blocks as Python."""
    return _RUN.sub("```python", _SOURCE.sub(r"\1", markdown))
