"""Record a terminal session as a picture: run commands in a pseudo-terminal and draw what they wrote as an SVG.

Usage: python tools/record_session.py docs/session.svg COMMAND...

What is drawn is what the commands wrote, bold and dim included; nothing is edited. Needs pseudo-terminals, which
Windows does not have.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from html import escape
from pathlib import Path

COLUMNS = 118
WIDTH, HEIGHT, MARGIN = 7.2, 18, 20
"""Of a character and a line, and around them, in units of the picture."""
PROMPT = "\x1b[2m$\x1b[0m "
STYLES = {"0": "", "1": "bold", "2": "dim"}
"""What an escape sequence turns on; the commands use no other."""
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>{title}</title>
<style>
text {{ font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d8dbe2 }}
.bold {{ font-weight: bold; fill: #fff }}
.dim {{ fill: #8a90a0 }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#1b1d22"/>
"""


def record(command: str) -> str:
    """Return what ``command`` writes to a terminal. Raises ``CalledProcessError`` if it fails."""
    screen, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(command, shell=True, stdin=child, stdout=child, stderr=child)
    os.close(child)
    written = b""
    while True:
        try:
            piece = os.read(screen, 4096)
        except OSError:  # how Linux says that nobody has the other end open
            break
        if not piece:
            break
        written += piece
    os.close(screen)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, written)
    return written.decode()


def cells(text: str) -> Iterator[tuple[str, str]]:
    """Yield the characters of ``text`` with their style; escape sequences are taken out."""
    style = ""
    for sequence, character in re.findall(r"\x1b\[([\d;]*)m|(.)", text, re.DOTALL):
        if character:
            yield character, style
        else:
            style = STYLES[sequence or "0"]


def lines(text: str) -> list[list[tuple[str, str]]]:
    """Return the lines of a terminal that shows ``text``: what is longer than its width goes on below."""
    shown: list[list[tuple[str, str]]] = [[]]
    for character, style in cells(text.replace("\r\n", "\n").rstrip()):
        if character == "\n" or len(shown[-1]) == COLUMNS:
            shown.append([])
        if character != "\n":
            shown[-1].append((character, style))
    return shown


def draw(text: str, title: str) -> str:
    """Return ``text``, as a terminal shows it, as an SVG."""
    shown = lines(text)
    width, height = round(COLUMNS * WIDTH + 2 * MARGIN), len(shown) * HEIGHT + 2 * MARGIN
    parts = [HEAD.format(width=width, height=height, title=escape(title))]
    for number, line in enumerate(shown):
        if not line:
            continue
        spans, styles = [""], [line[0][1]]
        for character, style in line:
            if style != styles[-1]:
                spans.append("")
                styles.append(style)
            spans[-1] += escape(character).replace(" ", "\xa0")
        inner = "".join(
            f'<tspan class="{style}">{span}</tspan>' if style else span
            for span, style in zip(spans, styles, strict=True)
        )
        place = f'x="{MARGIN}" y="{MARGIN + HEIGHT * (number + 0.75):g}" textLength="{len(line) * WIDTH:g}"'
        parts.append(f"<text {place}>{inner}</text>\n")
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    out, *commands = sys.argv[1:]
    session = "\n\n".join(f"{PROMPT}\x1b[1m{command}\x1b[0m\n{record(command).rstrip()}" for command in commands)
    Path(out).write_text(draw(session, "; ".join(commands)), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
