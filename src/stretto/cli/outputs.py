"""Files that a long command writes when it is done: looked at before it begins, each written for itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryFile

import typer


def check_places(places: Mapping[str, Path | None]) -> None:
    """Make the folders of the files that options name, and see that something can be written there.

    Raises ``typer.BadParameter``.
    """
    for option, path in places.items():
        if path is None:
            continue
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder; name a file in it", param_hint=option)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=path.parent).close()  # asking for permission knows nothing of file systems
        except OSError as error:
            told = f"{path} cannot be written ({error}); name another file"
            raise typer.BadParameter(told, param_hint=option) from None


def write_each(files: Iterable[tuple[str, Path | None, Callable[[Path], None]]]) -> None:
    """Write the files that were asked for, (what, where, how); say where they are on standard error.

    One that cannot be written keeps no other from it. Raises ``OSError`` that names all such, once the rest are there.
    """
    failed = []
    for what, path, write in files:
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            failed.append(f"{what} {path} cannot be written ({error})")
        else:
            print(f"{what}: {path}", file=sys.stderr)
    if failed:
        raise OSError("; ".join(failed))
