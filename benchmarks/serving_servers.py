"""Servers of OpenAI's protocol as the benchmark starts them: Stretto's, llama.cpp's and transformers'."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from gguf_llama import write_gguf

LOADING = 300.0
"""Seconds that a server may take until it answers."""


@dataclass(frozen=True, slots=True)
class Place:
    """What servers that stand beside each other are started with."""

    checkpoint: Path
    """Folder with a tokenizer."""
    models: Path
    """Where what is made of it is kept."""
    threads: int
    slots: int
    """Requests at once."""
    tokens: int
    """Of a request, prompt and answer."""


@dataclass(slots=True)
class Server:
    """One that answers."""

    name: str
    url: str
    """With ``/v1``."""
    model: str
    pid: int
    params: Callable[[int], dict[str, Any]]
    """Fields of a request for an answer of so many tokens, greedy and never shorter."""

    def cpu_seconds(self) -> float | None:
        """Return the processor time of this process alone, None where the system does not say."""
        try:
            told = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        used = told.rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one server is started."""

    command: Callable[[Place, int], list[str]]
    params: Callable[[int], dict[str, Any]]
    ready: str
    """The path that answers with 200 once it serves."""
    environment: dict[str, str] = field(default_factory=dict)


def stretto(place: Place, port: int) -> list[str]:
    return [
        *(sys.executable, "-c", "from stretto.cli.main import main; main()", "serve", str(place.checkpoint)),
        *("--port", str(port), "--weights", "int8", "--method", "plain", "--threads", str(place.threads)),
        *("--cache-tokens", str(place.slots * (place.tokens + 32)), "--max-waiting", "4096"),
    ]


def llama(program: Path) -> Callable[[Place, int], list[str]]:
    def command(place: Place, port: int) -> list[str]:
        """Continuous batching and the prefix cache are its defaults; they are named so that they stay."""
        target = place.models / f"{place.checkpoint.name}-speaks-q8_0.gguf"
        if not target.is_file():
            write_gguf(place.checkpoint, target, kind="Q8_0", speaks=True)
        return [
            *(str(program), "--model", str(target), "--host", "127.0.0.1", "--port", str(port), "--jinja"),
            *("--parallel", str(place.slots), "--ctx-size", str(place.slots * (place.tokens + 32))),
            *("--threads", str(place.threads), "--threads-batch", str(place.threads)),
            *("--cont-batching", "--cache-prompt"),
        ]

    return command


def transformers(program: Path) -> Callable[[Place, int], list[str]]:
    def command(place: Place, port: int) -> list[str]:
        return [
            *(str(program), "serve", str(place.checkpoint), "--host", "127.0.0.1", "--port", str(port)),
            *("--device", "cpu", "--dtype", "bfloat16", "--continuous-batching"),
        ]

    return command


def forced(tokens: int) -> dict[str, Any]:
    """Return the fields of transformers: it knows no ``ignore_eos``."""
    config = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
    return {"max_tokens": tokens, "generation_config": json.dumps(config)}


def greedy(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}


class Servers:
    """The kinds that can be started, and why others cannot."""

    def __init__(self, llama_server: Path | None, transformers_program: Path | None) -> None:
        self.absent: dict[str, str] = {}
        self.kinds = {"stretto": Kind(stretto, greedy, "/ready")}
        for name, program, kind in (
            ("llama-server", llama_server, lambda path: Kind(llama(path), greedy, "/health")),
            ("transformers serve", transformers_program, lambda path: Kind(transformers(path), forced, "/health")),
        ):
            if program is None or not program.is_file():
                self.absent[name] = "no path was given" if program is None else f"{program} is not there"
            else:
                self.kinds[name] = kind(program)

    @contextmanager
    def started(self, place: Place, names: Sequence[str] | None = None) -> Iterator[dict[str, Server]]:
        """Yield those of ``names`` (default: all) that come up, by name; of the others ``absent`` tells why."""
        with ExitStack() as stack:
            found: dict[str, Server] = {}
            for name in [name for name in self.kinds if names is None or name in names]:
                try:
                    found[name] = stack.enter_context(self._start(name, place))
                except (OSError, RuntimeError) as error:
                    self.absent[f"{name}, {place.checkpoint.name}, {place.slots} slots"] = str(error)
            yield found

    @contextmanager
    def _start(self, name: str, place: Place) -> Iterator[Server]:
        kind, port = self.kinds[name], _free_port()
        log = place.models / f"{name.replace(' ', '-')}.log"
        threads = {"OMP_NUM_THREADS": str(place.threads), "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as out:
            process = subprocess.Popen(
                kind.command(place, port), stdout=out, stderr=subprocess.STDOUT, env=os.environ | threads
            )
        try:
            root = f"http://127.0.0.1:{port}"
            _await(process, f"{root}{kind.ready}", log)
            listed = httpx.get(f"{root}/v1/models", timeout=60).json()["data"]
            model = listed[0]["id"] if name != "transformers serve" else str(place.checkpoint)
            yield Server(name, f"{root}/v1", model, process.pid, kind.params)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when it answers. Raises ``RuntimeError`` with its last words when it ends before, or takes too long."""
    until = time.monotonic() + LOADING
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    raise RuntimeError(f"does not answer (exit code {process.returncode}): {lines[-1]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
