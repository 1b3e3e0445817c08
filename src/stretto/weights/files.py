"""Writing files whole or not at all: under a temporary name, synced, renamed."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""What the names of unfinished files end with."""


@contextmanager
def whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` for a file to be written under; behind the block, sync and rename it.

    ``private``: readable for its owner alone, from the start. Whoever reads ``path``, whenever this process ends, finds
    the old content or the new one. Raises ``OSError``.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        partial.touch(mode=0o600 if private else 0o666)
        usual = partial.stat().st_mode & 0o777
        yield partial
        partial.chmod(usual)  # some libraries write files that only their owner may read
        put(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Write ``text`` (UTF-8) as ``path``, whole or not at all; arguments and errors are those of ``whole``."""
    with whole(path, private=private) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def put(partial: Path, path: Path) -> None:
    """Give the finished file ``partial`` the name ``path`` in the same folder, once its content is on the disk."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    if sys.platform != "win32":  # there a folder cannot be opened, nor need it be
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
