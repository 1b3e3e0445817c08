"""``stretto quantize``."""

from __future__ import annotations

import sys
from pathlib import Path

from stretto.cli.progress import EverySecond
from stretto.models.quantize import quantize


def run(model: str, out: Path, *, weights: str) -> None:
    """Write the folder; say once a second how far it is."""
    print(f"{out}: {quantize(model, out, weights, EverySecond())}", file=sys.stderr)
