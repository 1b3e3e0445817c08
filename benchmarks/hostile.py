"""What refusing a hostile checkpoint takes: seconds, and memory above the bare import.

    python benchmarks/hostile.py

Aimed at: a second and 100 MB each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS, BYTES = 1.0, 100e6


def main() -> None:
    """Print a line for each case, the dearest last, and how many keep within what is aimed at."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hostile_cases import CASES

    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "tests" / "refusals.py"), folder, *CASES]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
        )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    found.sort(key=lambda one: (one["seconds"] / SECONDS, one["bytes"] / BYTES))
    print(f"{'seconds':>8} {'MB':>8}  case")
    for one in found:
        print(f"{one['seconds']:8.3f} {one['bytes'] / 1e6:8.1f}  {one['case']}: {one['error']}")
    within = sum(one["seconds"] <= SECONDS and one["bytes"] <= BYTES for one in found)
    print(f"{within} of {len(found)} within {SECONDS:g} s and {BYTES / 1e6:g} MB above the bare import")


if __name__ == "__main__":
    main()
