"""Count the comparisons with other implementations that the tests make, and print them as a table.

Usage: python tools/parity_count.py [--write]     --write puts the table into docs/families.md

Tests are counted as pytest collects them, altered keys as the test alters them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
HEADING = "## What was compared"

CELLS = {
    "test_parity.py::test_logits_equal": "logits behind 48 tokens, as one pass and in slices of 7",
    "test_parity.py::test_greedy_text_equals": "64 tokens of greedy text",
    "test_parity.py::test_harmless_keys_change_nothing": "all keys altered that may not matter",
    "test_parity.py::test_other_settings_are_honoured": "logits with other settings",
    "test_parity.py::test_half_precision_shards_widen_exactly": "logits of bf16 and fp16 in several files",
    "test_parity.py::test_the_reference_kernels_agree": "logits by the PyTorch kernels",
    "test_longrope.py::test_logits_equal_on_both_sides_of_the_border": "logits on either side of LongRoPE's border",
    "test_longrope.py::test_text_that_crosses_the_border_equals_however_it_is_drafted": "text that crosses that border",
    "test_longrope.py::test_every_altered_key_is_noticed": "keys of LongRoPE altered",
    "test_gguf.py::test_every_architecture_is_the_same_model": "GGUF architectures: weights, logits, greedy text",
    "test_gguf.py::test_every_kind_stands_for_what_the_package_says": "GGUF kinds: weights and logits",
    "test_gguf.py::test_no_key_is_overlooked": "GGUF files, each of whose keys is altered",
    "test_packed.py::test_every_layout_is_the_same_model": "AWQ, GPTQ, compressed-tensors: weights and logits",
    "test_every_checkpoint.py::test_every_family": "`stretto eval`, and `quantize`, of a family",
    "test_every_checkpoint.py::test_every_kind_of_gguf": "`stretto eval`, and `quantize`, of a GGUF kind",
    "test_every_checkpoint.py::test_every_packed_layout": "`stretto eval`, and `quantize`, of a packed layout",
    "test_whole_checkpoints.py::test_text_in_text_out": "text in, text out, of `save_pretrained`'s defaults",
    "test_chat.py::test_ids_of_ten_formats_equal_transformers": "token ids of a conversation's format",
}
"""What each test compares, once for each of its parameters."""


def collected() -> Counter[str]:
    """Return how often each test runs, by ``file::name``."""
    files = sorted({f"tests/{name.partition('::')[0]}" for name in CELLS})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *files]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"^tests/(\w+\.py::\w+)", listed, re.MULTILINE))


def altered_keys() -> int:
    """Return how many changes to a ``config.json`` must be refused or change the logits, of all cases together."""
    sys.path.insert(0, str(ROOT / "tests"))
    import checkpoints
    import test_parity

    found = sum(map(len, test_parity.FURTHER.values()))
    for case in checkpoints.CASES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.configure(case).save_pretrained(folder)
            found += len(test_parity.alterations(Path(folder))[0])
    return found


def section() -> str:
    """Return the part of ``docs/families.md`` that holds the table."""
    counts = collected()
    rows = {told: counts[name] for name, told in CELLS.items()}
    rows["keys of `config.json` altered, one at a time"] = altered_keys()
    if missing := [told for told, count in rows.items() if not count]:
        raise LookupError(f"nothing was collected for {', '.join(missing)}; was a test renamed?")
    lines = [
        HEADING,
        "",
        f"{sum(rows.values())} comparisons with transformers and with what formats are published to hold, as",
        "`python tools/parity_count.py` counts them.",
        "",
        "| compared | times |",
        "| --- | --- |",
        *(f"| {told} | {count} |" for told, count in sorted(rows.items(), key=lambda row: -row[1])),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    found = section()
    if sys.argv[1:] == ["--write"]:
        before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0].rstrip("\n")
        PAGE.write_text(f"{before}\n\n{found}", encoding="utf-8", newline="\n")
    print(found, end="")


if __name__ == "__main__":
    main()
