"""The report of a race as one HTML file: styles and plots inside, no script, nothing that is fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from stretto.race import plots
from stretto.race.contest import PLAIN
from stretto.race.result import Result, Sample
from stretto.race.standing import Row

MOST_SHOWN = 6
"""Methods in a plot with a bar for each; the table holds all."""
LEAST_CHECKED = 8
"""Checked tokens below which an acceptance is chance and not drawn."""
PARTS = {"pass": "c0", "draft": "c1", "commit": "c2", "schedule": "c4", "emit": "c5", "other": "plain"}


def html(result: Result) -> str:
    """Return the page."""
    colours = colours_of(result)
    sections = [
        _section("Standing", _table_words(result), f'<div class="wide">{_table(result)}</div>'),
        _by_category(result, colours),
        _by_concurrency(result, colours),
        _by_depth(result, colours),
        _parts(result),
        _cost(result),
        _sample(result.sample, colours) if result.sample else "",
        _section("Left out and noticed", "", _list(result.notes)) if result.notes else "",
        _section("Conditions", "", _conditions(result.conditions)),
    ]
    style = files("stretto.race").joinpath("report.css").read_text(encoding="utf-8")
    model = escape(str(result.conditions["model"]))
    prompts = sum(result.categories.values())
    said = re.sub(r"--[\w-]+ [^\s)]*[^\s):;.,]", lambda flag: f"<code>{flag[0]}</code>", escape(result.advice))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Race: {model}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>Stretto race · {model}</h1>
<p class="advice">{said}</p>
<p class="facts">{prompts} prompts in {_count(len(result.categories), "category", "categories")}, {_rounds(result)}.</p>
</header>
{"".join(sections)}
<footer>Made by stretto race, {escape(str(result.conditions["date"]))}. What every figure means: docs/race.md.</footer>
</main>
</body>
</html>
"""


def _section(title: str, words: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{f'<p>{words}</p>' if words else ''}\n{body}\n</section>\n"


def colours_of(result: Result) -> dict[str, str]:
    """Return the class of each method, and of each drafter that is no method."""
    methods = list(dict.fromkeys(row.method for row in result.rows if row.method != PLAIN))
    names = [*methods, *dict.fromkeys(name for row in result.rows for name in row.drafts if name not in methods)]
    return {PLAIN: "plain", "": "plain"} | {name: f"c{place % 8}" for place, name in enumerate(names)}


def _places(result: Result) -> list[int]:
    return list(dict.fromkeys(row.concurrency for row in result.rows))


def _rounds(result: Result) -> str:
    runs = max((row.runs for row in result.rows), default=0)
    most = " and ".join(map(str, _places(result)))
    return f"{_count(runs, 'run', 'runs')} of each method in alternation, {most} at a time"


# ---- the table ----


def _table_words(result: Result) -> str:
    spreads = [row.speedup for row in result.rows if row.speedup is not None]
    sure = all(spread.sure for spread in spreads)
    interval = "the 90 % interval" if sure else "the whole range (too few pairs for a 90 % interval)"
    return (
        f"Speed-up: median over pairs with the plain run of the same round, in small print {interval}. TTFT and TPOT: "
        "milliseconds to the first token and for each further one, medians. Tokens a step: 1 is plain decoding."
    )


def _table(result: Result) -> str:
    heads = ("method", "speed-up", "tokens/s", "TTFT ms", "TPOT ms", "tokens a step", "text", "cache MB")
    lines = ["<table>", "<tr>" + "".join(f"<th>{name}</th>" for name in heads) + "</tr>"]
    for place in _places(result):
        if len(_places(result)) > 1:
            lines.append(f'<tr><td colspan="{len(heads)}"><small>concurrency {place}</small></td></tr>')
        for row in (row for row in result.rows if row.concurrency == place):
            kind = "error" if row.errors else "best" if result.best.get(place) == row.method else ""
            cells = "".join(f"<td>{cell}</td>" for cell in _cells(row))
            lines.append(f'<tr class="{kind}">{cells}</tr>')
            for message in row.errors:
                lines.append(f'<tr><td class="message" colspan="{len(heads)}">{escape(message)}</td></tr>')
    return "\n".join([*lines, "</table>"])


def _cells(row: Row) -> list[str]:
    spread = row.speedup
    kind = "no" if row.errors else "yes" if row.equal == row.texts else ""
    return [
        f"{escape(row.method)}" + ("" if row.fidelity == "exact" else f" <small>{row.fidelity}</small>"),
        "" if spread is None else f"{spread.median:.2f} <small>{spread.low:.2f} to {spread.high:.2f}</small>",
        f"{row.speed:,.1f}",
        "" if row.ttft_ms is None else f"{row.ttft_ms:,.1f}",
        "" if row.tpot_ms is None else f"{row.tpot_ms:.2f}",
        f"{row.acceptance:.2f}",
        f'<span class="{kind}">{escape(agreement(row))}</span>',
        f"{row.cache_bytes / 1e6:,.1f}",
    ]


def agreement(row: Row) -> str:
    """Return in few words how a method's texts compare with plain's."""
    if row.equal == row.texts:
        return "equal"
    share = f"{100 * row.agreement:.0f} % agrees"
    return f"{row.texts - row.equal} of {row.texts} differ" if row.fidelity == "exact" else share


# ---- plots ----


def category_bars(result: Result, colours: Mapping[str, str]) -> list[tuple[str, list[plots.Bar]]]:
    """Return by category the speed-ups of the fastest methods, at the first concurrency that was raced."""
    place = _places(result)[0] if result.rows else 0
    rows = _fastest([row for row in result.rows if row.concurrency == place and row.speedup is not None])
    groups = []
    for category in result.categories:
        found = [(row, row.groups[category].speedup) for row in rows if category in row.groups]
        bars = [(r.method, colours[r.method], s.median, s.low, s.high) for r, s in found if s is not None]
        if bars:
            groups.append((category, bars))
    return groups


def _by_category(result: Result, colours: dict[str, str]) -> str:
    groups = category_bars(result, colours)
    if not groups:
        return ""
    place = _places(result)[0]
    words = f"Times plain's speed, by the requests' own time at concurrency {place}; the thin line is the interval."
    names = plots.legend({label: kind for _, bars in groups for label, kind, *_ in bars})
    return _section("Speed-up by category", words, names + plots.speedups(groups))


def _by_concurrency(result: Result, colours: dict[str, str]) -> str:
    if len(_places(result)) < 2:
        return ""
    found: dict[str, list[plots.Point]] = {}
    for row in _fastest([row for row in result.rows if row.speedup is not None]):
        same = [r for r in result.rows if r.method == row.method and r.speedup is not None]
        found[row.method] = [(r.concurrency, r.speedup.median) for r in same if r.speedup is not None]
    series = [(name, colours[name], points) for name, points in found.items()]
    if not series:
        return ""
    drawn = plots.lines(
        series, across="requests at a time", up="times plain", title="Speed-up by concurrency", log=True, mark=1.0
    )
    return _section("Speed-up by concurrency", "The more requests share a pass, the less there is to gain.", drawn)


def _by_depth(result: Result, colours: dict[str, str]) -> str:
    place = _places(result)[0] if result.rows else 0
    series = []
    drafting = _fastest([row for row in result.rows if row.concurrency == place and row.drafts])
    for number, row in enumerate(drafting):
        for drafter, depths in row.drafts.items():
            points = [
                (float(depth), accepted / checked)
                for depth, (checked, accepted) in enumerate(depths, 1)
                if checked >= LEAST_CHECKED
            ]
            label = row.method if drafter == row.method or len(row.drafts) == 1 else f"{row.method}: {drafter}"
            if points:
                colour = colours[row.method if len(row.drafts) == 1 else drafter]
                series.append((label, f"{colour} dash{number}" if len(drafting) > 1 else colour, points))
    if not series:
        return ""
    drawn = plots.lines(
        series,
        across="depth of the drafted token",
        up="accepted",
        title="Acceptance by depth",
        most=1.0,
        words=lambda share: f"{100 * share:.0f} %",
    )
    words = "Of the drafted tokens whose predecessors were accepted, the share that the model would have said itself."
    return _section("Acceptance by depth", words, drawn)


def _parts(result: Result) -> str:
    place = _places(result)[0] if result.rows else 0
    rows = [row for row in result.rows if row.concurrency == place]
    plain = [row for row in rows if row.method == PLAIN]
    bars = [
        (row.method, [(part, kind, row.parts.get(part, 0.0)) for part, kind in PARTS.items()])
        for row in plain + _fastest([row for row in rows if row.method != PLAIN])
    ]
    if not bars:
        return ""
    words = f"Milliseconds for each generated token at concurrency {place}: the target's pass, drafting, and the rest."
    return _section("Where the time goes", words, plots.legend(PARTS) + plots.stacks(bars, "ms a token"))


def _cost(result: Result) -> str:
    if not result.cost:
        return ""
    series = [
        (
            f"behind {context} tokens" if context else "at the beginning",
            f"c{number}",
            [(float(r), ms) for r, ms in curve],
        )
        for number, (context, curve) in enumerate(result.cost.items())
    ]
    one, eight = (dict(result.cost[0])[rows] for rows in (1, 8))
    words = (
        f"Milliseconds of a pass of the target over its rows. Checking eight tokens at once costs {eight / one:.2f} "
        "times what one costs: the flatter this curve begins, the more drafting can pay."
    )
    drawn = plots.lines(series, across="rows of a pass", up="ms", title="Cost of a pass over its rows", log=True)
    return _section("Cost of a pass", words, drawn)


def _sample(sample: Sample, colours: dict[str, str]) -> str:
    """Return the text with the tokens that were drafted in the colour of who drafted them."""
    entries: dict[str, str] = {}
    written = []
    for text, origin in sample.tokens:
        if not origin:
            written.append(escape(text))
            continue
        first, *others = origin.split("+")
        kind = entries[origin.replace("+", " and ")] = colours.get(first, "c7") if not others else "c6"
        written.append(f'<b class="{kind}" title="{escape(origin)}">{escape(text)}</b>')
    asked = sample.prompt if len(sample.prompt) < 700 else "… " + sample.prompt[-700:]
    body = f'<p class="sample"><span class="asked">{escape(asked)}</span>{"".join(written)}</p>'
    share = sum(bool(origin) for _, origin in sample.tokens) / max(1, len(sample.tokens))
    words = (
        f"A text of {escape(sample.method)} ({escape(sample.category)}) that is neither its best nor its worst: "
        f"{100 * share:.0f} % of the tokens were drafted, the others the model chose at the end of a step."
    )
    return _section("Who drafted what", words, plots.legend(entries) + body)


def _fastest(rows: Sequence[Row]) -> list[Row]:
    """Return the first row of each method, of the ``MOST_SHOWN`` fastest methods, in their order."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.method, row)
    by_speed = sorted(first, key=lambda name: -(spread.median if (spread := first[name].speedup) else 0.0))
    return [row for name, row in first.items() if name in by_speed[:MOST_SHOWN]]


# ---- words ----


def _list(entries: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(entry)}</li>" for entry in entries) + "</ul>"


def _conditions(conditions: dict[str, Any]) -> str:
    shown = {name.replace("_", " "): value for name, value in conditions.items() if value is not None}
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(str(v))}</dd>" for n, v in shown.items()) + "</dl>"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
