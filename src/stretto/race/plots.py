"""Plots as inline SVG: no library, no script, colours from the page's style sheet (``race/report.css``).

Every plot is one ``<svg>`` element. Colours are the classes ``c0`` to ``c7``, and ``plain``; what a mark stands for in
figures is in its ``<title>``, which browsers show under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH = 760
LABELS = 150
"""Room for names left of bars."""

Point = tuple[float, float]
Bar = tuple[str, str, float, float, float]
"""Label, class, median, low end and high end of the interval."""


def nice(most: float, least: float = 0.0, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from ``least`` to ``most``, for the ticks of an axis."""
    span = max(most - least, 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(least / step - 1e-6)
    return [step * number for number in range(first, math.floor(most / step + 1e-6) + 1)]


def number(value: float) -> str:
    """Return a number with three significant digits, without trailing zeros."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def svg(height: float, parts: Sequence[str], title: str) -> str:
    """Return the element around some marks; ``title`` is what is read out for it."""
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">\n{body}\n</svg>'


def text(x: float, y: float, what: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text at its baseline."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(what)}</text>'


def line(a: Point, b: Point, kind: str) -> str:
    """Return a straight line."""
    return f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" class="{kind}"/>'


def bar(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    """Return a filled rectangle with a figure under the pointer."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{height:.1f}"'
    return f'<rect {place} rx="2" class="fill {kind}"><title>{escape(title)}</title></rect>'


def speedups(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Return bars that grow from 1 (plain) to the right where a method is faster, to the left where it is slower."""
    parts, height = speedup_marks(groups)
    return svg(height, parts, "Speed-up over plain decoding by category")


def speedup_marks(groups: Sequence[tuple[str, Sequence[Bar]]]) -> tuple[list[str], float]:
    """Return the marks of ``speedups`` and their height. ``groups``: a name each, and its bars."""
    bars = [each for _, group in groups for each in group]
    most = max(1.0, *(high for *_, high in bars)) * 1.02
    least = min(1.0, *(low for _, _, _, low, _ in bars))
    least = max(0.0, math.floor(least * 10 - 0.5) / 10)
    most = max(most, least + 0.2)
    left, right, thick, gap = LABELS + 10.0, WIDTH - 52.0, 11.0, 16.0
    x = _scale(least, most, left, right)
    height = sum(len(group) * (thick + 3) + gap for _, group in groups) + 34
    parts = []
    for tick in nice(most, least, 6):
        parts.append(line((x(tick), 6), (x(tick), height - 26), "grid"))
        parts.append(text(x(tick), height - 10, f"{number(tick)}×", "tick", "middle"))
    parts.append(line((x(1), 6), (x(1), height - 26), "base"))
    y = 12.0
    for name, group in groups:
        middle = y + len(group) * (thick + 3) / 2 + 3
        parts.append(text(LABELS, middle, _short(name), "name", "end"))
        for label, kind, median, low, high in group:
            title = f"{name}, {label}: {median:.2f} times plain ({low:.2f} to {high:.2f})"
            parts.append(bar(min(x(1), x(median)), y, abs(x(median) - x(1)), thick, kind, title))
            parts.append(line((x(low), y + thick / 2), (x(high), y + thick / 2), "whisker"))
            parts.append(text(max(x(high), x(1)) + 5, y + thick - 1.5, f"{median:.2f}", "value"))
            y += thick + 3
        y += gap
    return parts, height


def stacks(bars: Sequence[tuple[str, Sequence[tuple[str, str, float]]]], unit: str) -> str:
    """Return stacked bars from 0. ``bars``: a name each, and its pieces: label, class, size."""
    most = max(sum(size for *_, size in pieces) for _, pieces in bars) * 1.01 or 1.0
    left, right, thick, step = LABELS + 10.0, WIDTH - 110.0, 18.0, 28.0
    x = _scale(0, most, left, right)
    height = step * len(bars) + 40
    parts = []
    for tick in nice(most):
        parts.append(line((x(tick), 6), (x(tick), height - 30), "grid"))
        parts.append(text(x(tick), height - 12, number(tick), "tick", "middle"))
    y = 12.0
    for name, pieces in bars:
        parts.append(text(LABELS, y + 13, _short(name), "name", "end"))
        at = 0.0
        for label, kind, size in pieces:
            title = f"{name}, {label}: {number(size)} {unit}"
            parts.append(bar(x(at), y, x(at + size) - x(at), thick, kind, title))
            at += size
        parts.append(text(x(at) + 6, y + 13, f"{number(at)} {unit}", "value"))
        y += step
    return svg(height, parts, f"{unit} by part")


def lines(
    series: Sequence[tuple[str, str, Sequence[Point]]],
    *,
    across: str,
    up: str,
    title: str,
    most: float | None = None,
    log: bool = False,
    mark: float | None = None,
    words: Callable[[float], str] = number,
) -> str:
    """Return lines with a dot at each point, each named at its end. ``series``: label, class, points by rising x.

    ``log``: the horizontal axis doubles from tick to tick. ``mark``: a value with a line of its own, such as plain's.
    """
    points = [point for *_, each in series for point in each]
    xs = sorted({x for x, _ in points})
    top = most if most is not None else max(max(y for _, y in points) * 1.08, mark or 0.0, 1e-9)
    left, right, high, low, height = 56.0, WIDTH - 150.0, 30.0, 278.0, 322.0
    place = math.log2 if log else float
    x_of = _scale(place(xs[0]), max(place(xs[-1]), place(xs[0]) + 1e-9), left + 8, right - 8)
    y_of = _scale(0.0, top, low, high)
    parts = []
    for tick in nice(top):
        parts.append(line((left, y_of(tick)), (right, y_of(tick)), "grid"))
        parts.append(text(left - 8, y_of(tick) + 4, words(tick), "tick", "end"))
    if mark is not None:
        parts.append(line((left, y_of(mark)), (right, y_of(mark)), "base"))
    shown = xs if len(xs) <= 16 else [x for x in xs if x % 2 == 1 or x == xs[-1]]
    for tick in shown:
        parts.append(text(x_of(place(tick)), low + 18, number(tick), "tick", "middle"))
    parts.append(text((left + right) / 2, height - 6, across, "axis", "middle"))
    parts.append(text(left - 8, high - 16, up, "axis", "start"))
    ends: list[tuple[float, str, str]] = []
    for label, kind, each in series:
        path = " ".join(f"{x_of(place(x)):.1f},{y_of(y):.1f}" for x, y in each)
        parts.append(f'<polyline points="{path}" class="stroke {kind}"/>')
        for x, y in each:
            shown_title = escape(f"{label}, {across} {number(x)}: {words(y)}")
            spot = f'cx="{x_of(place(x)):.1f}" cy="{y_of(y):.1f}" r="3.2"'
            parts.append(f'<circle {spot} class="fill {kind}"><title>{shown_title}</title></circle>')
        ends.append((y_of(each[-1][1]), label, kind))
    for y, label, kind in _apart(ends, 15.0, low):
        parts.append(text(right + 6, y + 4, _short(label, 22), f"name fill {kind}"))
    return svg(height, parts, title)


def legend(entries: Mapping[str, str]) -> str:
    """Return names with a spot of their colour: label to class."""
    spots = "".join(
        f'<span class="entry"><i class="spot {kind}"></i>{escape(label)}</span>' for label, kind in entries.items()
    )
    return f'<p class="legend">{spots}</p>'


def _scale(least: float, most: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - least) / (most - least) * (stop - start)


def _apart(ends: list[tuple[float, str, str]], gap: float, low: float) -> list[tuple[float, str, str]]:
    """Return the labels with heights moved so far down, then up, that none lies on another."""
    placed: list[tuple[float, str, str]] = []
    for y, label, kind in sorted(ends):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, label, kind))
    bottom = low
    for number_ in range(len(placed) - 1, -1, -1):
        y, label, kind = placed[number_]
        placed[number_] = (min(y, bottom), label, kind)
        bottom = placed[number_][0] - gap
    return placed


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
