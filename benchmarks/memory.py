"""What loading takes of memory: the measured peak beside what ``stretto info`` says, and beside the file's size.

    python benchmarks/memory.py [--models DIR] [--shapes 135m 1b] [--formats bf16 int8 ...]

Random weights of published shapes; each case is a process of its own (Linux only: it reads /proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoints import random_checkpoint
from report import environment

CHILD = """
import json, sys
from pathlib import Path
from stretto.kernels import native
from stretto.models.footprint import footprint
from stretto.models.loader import load_model, open_source
from stretto.weights.formats import FORMATS, own_format

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

model, form = sys.argv[1:]
native.set_threads(2)
source = open_source(model, form)
told = footprint(source.spec, FORMATS[form], own_format(source.own()), source.own())
load_model("stretto-tiny", weights=form)  # everything that is imported late is there
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
loaded = load_model(model, weights=form)
print(json.dumps({"told": told.peak, "peak": status("VmHWM") - before, "resident": status("VmRSS") - before}))
"""


def measure(checkpoint: Path, form: str) -> dict[str, float]:
    """Return bytes: the peak that was told, the measured one, and what stays."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(checkpoint), form], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, metavar="DIR", help="where models are written once and kept")
    parser.add_argument("--shapes", nargs="+", default=["135m", "1b"], metavar="SHAPE")
    parser.add_argument("--formats", nargs="+", default=["fp32", "bf16", "int8", "int8x2", "int4"], metavar="FORMAT")
    asked = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    print("\n| shape | weights | told, MB | peak, MB | told / peak | peak / file | resident / file |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as fresh:
        for shape in asked.shapes:
            checkpoint = random_checkpoint(shape, asked.models or Path(fresh))
            size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
            for form in asked.formats:
                found = measure(checkpoint, form)
                told, peak, resident = found["told"], found["peak"], found["resident"]
                print(
                    f"| {shape} | {form} | {told / 1e6:.0f} | {peak / 1e6:.0f} | {told / peak:.2f} "
                    f"| {peak / size:.2f} | {resident / size:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
