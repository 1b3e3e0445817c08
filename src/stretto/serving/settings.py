"""What a server is started with, and the limits that it holds its clients to."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for at most. Sizes of text are in characters, of bodies in bytes."""

    body: int = 8 << 20
    body_seconds: float = 30.0
    """Time to send a body in."""
    prompts: int = 64
    samples: int = 128
    """Of all prompts together: their number times ``n``."""
    messages: int = 4096
    tools: int = 128
    stop: int = 16
    stop_length: int = 1024
    logit_bias: int = 1024
    logprobs: int = 20
    """Alternatives at each place."""
    schema: int = 65_536
    schema_nesting: int = 32
    regex: int = 2_000
    grammar: int = 65_536
    choices: int = 1_024
    """Texts of which the answer may be one; all together are no longer than a grammar."""
    places: int = 1 << 19
    """Log-probabilities of prompts: their tokens, times their samples, times the alternatives and the token itself."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one server; ``engine`` holds those of the engine itself."""

    model: str
    name: str = ""
    """What clients call the model; its last path component where nothing is given."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    insecure: bool = False
    max_waiting: int = 256
    """Requests that may wait for a place; further ones are answered with 429."""
    record: Path | None = None
    log_prompts: bool = False
    drain_seconds: int = 600
    """How long running requests may take to end after SIGTERM."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", called(self.model))
        if not loopback(self.host) and self.api_key_file is None and not self.insecure:
            raise ValueError(
                f"host={self.host!r} is reachable from other machines, and without keys anyone there could use the "
                "server: name a file of keys with --api-key-file, or say --insecure"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """Names that a ``Host`` header may hold."""
        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        return frozenset(name.lower() for name in (*LOOPBACK, *own, *self.allowed_hosts))


def called(model: str) -> str:
    """Return the public name of a model: paths of this machine are nobody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
