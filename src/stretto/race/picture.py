"""A race as one picture: the advice, the speed-ups by category, and a text coloured by who drafted each token.

A stand-alone SVG for a page of somebody's own; it follows the reader's light or dark setting and asks no host for
anything.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from stretto.race import plots
from stretto.race.report import category_bars, colours_of
from stretto.race.result import Result, Sample

MARGIN, LINE = 24.0, 22.0
COLUMNS = 92
"""Characters of a line of the sample, whose width is set: 92 of a monospaced font."""
STEP = (plots.WIDTH - 2 * MARGIN) / COLUMNS
MOST_LINES = 7


def picture(result: Result) -> str:
    """Return the file's text."""
    colours = colours_of(result)
    parts, y = [], MARGIN + 8
    for line in textwrap.wrap(result.advice, 84):
        parts.append(plots.text(MARGIN, y, line, "said"))
        y += LINE
    groups = category_bars(result, colours)
    if groups:
        names = {label: kind for _, bars in groups for label, kind, *_ in bars}
        parts.append(_legend(names, y := y + 8))
        plot, height = plots.speedup_marks(groups)
        parts.append(f'<g transform="translate(0 {y + 8:.0f})">{"".join(plot)}</g>')
        y += height + LINE
    if result.sample is not None:
        marks, names, height = _sample(result.sample, colours, y)
        parts += [_legend(names, y), *marks]
        y += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {plots.WIDTH} {y + 8:.0f}" role="img" '
        f'aria-label="{escape(result.advice)}">\n<style>\n{_style()}</style>\n'
        f'<rect width="100%" height="100%" rx="12" class="card"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _style() -> str:
    """Return the rules of the report that its plots need, and those of this picture."""
    report = files("stretto.race").joinpath("report.css").read_text(encoding="utf-8")
    rules = report[report.index(":root") : report.index("* { box-sizing")]
    lines = [line for line in report.splitlines() if line.startswith(("svg ", ".plain", ".c4"))]
    own = """svg .card { fill: var(--card); } svg .said { font-size: 15px; font-weight: 600; }
svg .mono { font: 12.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre; }
svg .behind { fill: var(--c); fill-opacity: .25; }
"""
    return rules + "\n".join(lines) + "\n" + own


def _legend(names: Mapping[str, str], y: float) -> str:
    """Return names with a spot of their colour in one line at ``y``."""
    x, marks = MARGIN, []
    for label, kind in names.items():
        marks.append(plots.bar(x, y - 9, 11, 11, kind, label) + plots.text(x + 16, y, label))
        x += 34 + 6.6 * len(label)
    return "".join(marks)


def _sample(sample: Sample, colours: Mapping[str, str], y: float) -> tuple[list[str], dict[str, str], float]:
    """Return the marks of the first lines of a text below ``y``, the colours used, and the height they take."""
    names: dict[str, str] = {}
    marks: list[str] = []
    column, row = 0, 0
    for written, origin in sample.tokens:
        first, *others = origin.split("+") if origin else ("",)
        kind = "c6" if others else colours.get(first, "c7")
        for piece in _lines(written):
            if piece == "\n" or column + len(piece) > COLUMNS:
                column, row = 0, row + 1
            if row == MOST_LINES:
                return marks, names, MOST_LINES * LINE + LINE
            shown = piece.strip("\n")
            if not shown:
                continue
            x, base = MARGIN + column * STEP, y + LINE * (row + 1.2)
            if origin:
                names.setdefault(origin.replace("+", " and "), kind)
                marks.append(
                    f'<rect x="{x:.1f}" y="{base - 13:.1f}" width="{len(shown) * STEP:.1f}" height="18" '
                    f'class="behind {kind}"/>'
                )
            marks.append(
                f'<text x="{x:.1f}" y="{base:.1f}" class="mono" textLength="{len(shown) * STEP:.1f}" '
                f'xml:space="preserve">{escape(shown)}</text>'
            )
            column += len(shown)
    return marks, names, (row + 2) * LINE


def _lines(text: str) -> Sequence[str]:
    """Return the text in pieces that hold no line break, with each break as a piece of its own."""
    pieces: list[str] = []
    for place, part in enumerate(text.split("\n")):
        if place:
            pieces.append("\n")
        if part:
            pieces.append(part)
    return pieces
