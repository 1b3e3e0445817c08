"""Print the lines of code per folder and the longest files, so that growth is seen with each change.

Usage: python tools/size_report.py [ROOT]
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

CODE = {".py", ".cpp", ".hpp", ".h", ".cu", ".toml", ".txt", ".md"}
LONGEST = 15


def tracked(root: Path) -> list[Path]:
    """Return the files below ``root`` that git tracks, relative to it."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listing.split("\0") if name]


def folder_of(path: Path) -> str:
    """Return the folder under which ``path`` is counted: the package's own folders apart, elsewhere the top one."""
    parts = path.parts[:-1]
    return "/".join(parts[:3] if parts[:2] == ("src", "stretto") else parts[:1]) or "."


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    data, lines = 0, {}
    for path in tracked(root):
        if path.suffix in CODE and "zoo" not in path.parts:
            lines[path] = len((root / path).read_text(encoding="utf-8").splitlines())
        else:
            data += (root / path).stat().st_size
    folders: Counter[str] = Counter()
    for path, count in lines.items():
        folders[folder_of(path)] += count

    print("lines  folder")
    for folder, count in sorted(folders.items()):
        print(f"{count:5}  {folder}")
    print(f"{sum(lines.values()):5}  in all, in {len(lines)} files; other files: {data / 1e6:.1f} MB\n")
    print("lines  longest files")
    for path, count in Counter(lines).most_common(LONGEST):
        print(f"{count:5}  {path.as_posix()}")


if __name__ == "__main__":
    main()
