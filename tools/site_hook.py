"""What ``mkdocs`` changes on a page before it is built, so that the same files also read well in a repository."""

from __future__ import annotations

import re
from typing import Any

_SOURCE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:src|native|tests|tools|benchmarks)\b[^)]*\)")
_RUN = re.compile(r"^```python run$", re.MULTILINE)
_MESSAGE = re.compile(r"^```message\n.*?^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to source files, which are no part of the site, into their text; show executed blocks as Python; let
    the browser wrap messages."""
    markdown = _RUN.sub("```python", _SOURCE.sub(r"\1", markdown))
    return _MESSAGE.sub(_unwrapped, markdown)


def _unwrapped(block: re.Match[str]) -> str:
    """Join the lines of a message, but for those that are indented in the message itself; name it for ``site.css``."""
    _, *lines, last = block[0].split("\n")
    return "\n".join(["``` { .text .message }", re.sub(r"\n(?=\S)", " ", "\n".join(lines)), last])
