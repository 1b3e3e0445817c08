"""The floors that the server is held to, and what a run says about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
LARGE, MIDDLE, SMALL = "random 1 G", "random 135 M", "stretto-tiny"
SHORT, PROMPT, SHARED = "64 in, 256 out", "512 in, 128 out", "512 shared, 64 in, 128 out"
OVER_LLAMA = {SHORT: 3.0, PROMPT: 2.0, SHARED: 3.0}
"""Tokens a second over llama-server's, on the large model with 16 at once."""


def judge(results: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return the floors as rows: what was asked for, what was measured, and whether it holds."""
    ratios = {
        row["workload"]: row["stretto over it"]
        for row in results.get("load", ())
        if (row["model"], row["at once"], row["server"]) == (LARGE, 16, "llama-server")
    }
    arrival = {row["server"]: row["p99 / idle p99"] for row in results.get("arrival", ()) if row["model"] == LARGE}
    lost = {row["model"]: row["lost"] for row in results.get("overhead", ())}
    used = {row["model"]: row["server's CPU, us/token"] for row in results.get("overhead", ())}
    return [
        *(
            _row(f"{LARGE}, 16 at once, {workload}: over llama-server", ratios.get(workload), least)
            for workload, least in OVER_LLAMA.items()
        ),
        _row(
            f"{LARGE}: p99 between tokens while 4,096 tokens arrive, over its idle value",
            arrival.get("stretto with a goal"),
            2.0,
            at_most=True,
        ),
        _row(f"{MIDDLE}: throughput that the server loses to AsyncEngine", lost.get(MIDDLE), 0.05, at_most=True),
        _row(f"{SMALL}: the server's CPU, microseconds a token", used.get(SMALL), 60.0, at_most=True),
    ]


def _row(what: str, measured: float | None, bound: float, *, at_most: bool = False) -> Row:
    row: Row = {
        "what": what,
        "measured": "not run" if measured is None else measured,
        "floor": f"{'<=' if at_most else '>='} {bound:g}",
    }
    if measured is None:
        return row | {"verdict": "not run"}
    return row | {"verdict": "holds" if (measured <= bound if at_most else measured >= bound) else "missed"}
