"""The floors that the native kernels are held to, as rows of a table, and what a run says about each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

NEAR_LIMIT = 1.15
"""A pass that takes at most this times its limit has little left to win, whatever its ratio."""
TOO_GOOD = 0.95
"""A pass that takes less than this times its limit was not measured: something disturbed what the limit is made of."""
FAST_READ = 50.0
"""GB/s of a streaming read beyond which int4 is held to its higher floor: one row is no longer bound by the memory."""

Cell = Mapping[str, Any]
Key = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class Floor:
    """One demand on one measured cell."""

    what: str
    key: Key
    """Section, weights format, rows and peer of the cell."""
    value: float
    field: str = "ratio"
    """What of the cell is demanded to be at least ``value``: ``ratio`` is the peer's time over ours."""
    at_most: bool = False
    fast: float | None = None
    """In place of ``value`` where the streaming read exceeds ``FAST_READ``."""
    or_ms: str | None = None
    """A field of the cell, in milliseconds, that the second of a pair may take whatever the first one took: in each
    pair the larger of the two bounds holds, because memory that changes its speed moves the first and not the field."""

    def bound(self, cell: Cell) -> float:
        """Return the floor as it applies to what was measured."""
        value = self.fast if self.fast is not None and cell["read_gb_s"] > FAST_READ else self.value
        return value if self.or_ms is None else max(value, cell[self.or_ms] / cell["ms"])

    def reached(self, cell: Cell) -> bool:
        """Return whether the cell keeps the floor."""
        if self.or_ms is not None:
            pairs = zip(cell["samples"]["first_ms"], cell["samples"]["second_ms"], strict=True)
            return median(b / max(self.value * a, cell[self.or_ms]) for a, b in pairs) <= 1
        measured, bound = cell[self.field], self.bound(cell)
        return bool(measured <= bound if self.at_most else measured >= bound)

    def judge(self, cells: Mapping[Key, Cell]) -> dict[str, Any]:
        """Return a row of the report: floor, measured value and verdict."""
        _, weights, _, peer = self.key
        row = {"what": self.what, "weights": weights, "peer": peer or "-"}
        cell = cells.get(self.key)
        measured = None if cell is None else cell[self.field]
        sign = "<=" if self.at_most else ">="
        if cell is None or measured is None:
            return row | {"measured": "not run", "floor": f"{sign} {self.value:.3g}", "verdict": "not run"}
        bound, reached = self.bound(cell), self.reached(cell)
        near = cell.get("to_limit") is not None and TOO_GOOD <= cell["to_limit"] <= NEAR_LIMIT
        verdict = "ratio reached" if reached else "missed"
        if near and not reached:
            verdict = f"within 15 % of the limit ({cell['limit']})"
        return row | {"measured": measured, "floor": f"{sign} {bound:.3g}", "verdict": verdict}


def _against_llama(what: str, section: str, rows: int, ratios: Mapping[str, float]) -> list[Floor]:
    return [
        Floor(what, (section, weights, rows, "llama.cpp"), ratio, fast=1.6 if (rows, weights) == (1, "int4") else None)
        for weights, ratio in ratios.items()
    ]


FLOORS: Sequence[Floor] = (
    *(
        Floor("one row: bytes/s over the streaming read", ("rows", weights, 1, "llama.cpp"), share, "of_read")
        for weights, share in {"int8": 0.87, "bf16": 0.87, "int4": 0.75}.items()
    ),
    *_against_llama("one row against llama.cpp", "rows", 1, {"int8": 1.35, "int4": 1.3, "bf16": 1.0}),
    *(
        Floor("8 rows / 1 row", ("eight to one", weights, 8, ""), ratio, at_most=True, or_ms="arithmetic_ms")
        for weights, ratio in {"int8": 1.25, "int4": 1.5, "bf16": 1.45}.items()
    ),
    *_against_llama("8 rows against llama.cpp", "rows", 8, {"int8": 3.6, "int4": 4.0, "bf16": 1.7}),
    *_against_llama("16 rows against llama.cpp", "rows", 16, {"int8": 4.3}),
    *_against_llama("32 rows against llama.cpp", "rows", 32, {"int8": 4.3}),
    *_against_llama("prompt of 512 against llama.cpp", "prompt", 512, {"int8": 2.7, "bf16": 1.2}),
    Floor("prompt of 512 against transformers bf16", ("prompt", "int8", 512, "transformers"), 2.0),
    Floor("8,000 positions, 1 row: attention over a streaming read", ("attention", "int8", 1, ""), 0.6, "of_read"),
    Floor("8,000 positions, 8 rows: attention over bf16 peak", ("attention", "int8", 8, ""), 0.55, "of_peak"),
    Floor("Python's share of a step", ("python", "int8", 1, ""), 0.05, "share", at_most=True),
    Floor("Python's share of a step, stretto-tiny", ("python", "auto", 1, ""), 0.60, "share", at_most=True),
    Floor("one row beside a busy process per core / quiet", ("busy", "int8", 1, ""), 3.0, at_most=True),
    Floor("one row beside a busy process per core", ("busy", "int8", 1, "llama.cpp"), 1.0),
)


def judge(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Return the table of floors for the cells of one run."""
    by_key = {(cell["section"], cell["weights"], cell["rows"], cell["peer"]): cell for cell in cells}
    return [floor.judge(by_key) for floor in FLOORS]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with equal keys as a markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "not run"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
