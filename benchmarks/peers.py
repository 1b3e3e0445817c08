"""The other engines, each in the worker process that this module starts and asks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

GGUF = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
"""llama.cpp's counterpart of each weights format."""


class PeerError(RuntimeError):
    """A peer could not do what it was asked for."""


class Peers:
    """A worker in ``python``; use as a context manager."""

    def __init__(self, python: str, models: Path, threads: int) -> None:
        self._models, self._threads = models, threads
        program = Path(__file__).with_name("peer_worker.py")
        # Its threads are told how many they are; what this process was told about its own does not bind them.
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.versions: dict[str, dict[str, str] | str] = self.ask("versions")
        self.flags: dict[str, dict[str, Any]] = {}
        """By engine and model: how it was opened."""
        self.absent: dict[str, str] = {}
        """By engine, or engine and model: why it was not run."""

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Return the worker's answer to one command. Raises ``PeerError`` with what it says went wrong."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the peers' process ended while it was asked to {do}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def open(self, engine: str, checkpoint: Path, weights: str, context: int) -> Loaded | None:
        """Load a checkpoint into an engine, in its counterpart of ``weights``.

        None where that cannot be: ``absent`` then holds the reason.
        """
        form = {"llama.cpp": GGUF[weights], "transformers": "bf16", "openvino": weights}[engine]
        name = f"{engine} {form}, {checkpoint.name}"
        versions = self.versions[engine]
        if isinstance(versions, str):
            self.absent[engine] = versions
            return None
        try:
            path = {"llama.cpp": self._gguf, "openvino": self._openvino}.get(engine, _as_it_is)(checkpoint, weights)
            opened = self.ask("open", engine=engine, path=str(path), threads=self._threads, context=context)
        except PeerError as error:
            self.absent[name] = str(error)
            return None
        self.flags[name] = opened
        return Loaded(self)

    def close(self) -> None:
        """Give the memory of the model that is open back."""
        self.ask("close")

    def _gguf(self, checkpoint: Path, weights: str) -> Path:
        """Return the checkpoint as GGUF, written once."""
        kind = GGUF[weights]
        path = self._models / f"{checkpoint.name}-{kind}.gguf"
        if not path.is_file():
            if kind == "bf16":
                self.ask("convert", source=str(checkpoint), target=str(path))
            else:
                source = self._gguf(checkpoint, "bf16")
                self.ask("quantize", source=str(source), target=str(path), kind=kind, threads=self._threads)
        return path

    def _openvino(self, checkpoint: Path, weights: str) -> Path:
        """Return the checkpoint as OpenVINO's folder, written once."""
        folder = self._models / f"{checkpoint.name}-openvino-{weights}"
        if not folder.is_dir():
            self.ask("export", source=str(checkpoint), target=str(folder), weights=weights)
        return folder


def _as_it_is(checkpoint: Path, weights: str) -> Path:
    return checkpoint


class Loaded:
    """The model that a peer holds, timed as ``ours.Stretto`` is."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def rows(self, rows: int, context: int, repeats: int = 1) -> float:
        """Return the median seconds of ``repeats`` passes of ``rows`` new rows behind ``context`` positions."""
        return float(self._peers.ask("rows", rows=rows, context=context, repeats=repeats))

    def prompt(self, tokens: int) -> float:
        """Return the seconds of a new prompt."""
        return float(self._peers.ask("prompt", tokens=tokens))
