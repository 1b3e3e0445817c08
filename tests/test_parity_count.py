"""The count of comparisons in the documents is the one that the tool makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_holds_what_is_counted():
    command = [sys.executable, str(ROOT / "tools" / "parity_count.py")]
    counted = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert page.endswith(counted) and "comparisons with transformers" in counted, "run it with --write"
