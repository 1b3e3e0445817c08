"""API keys: read from a file, compared in constant time, read anew when the file has changed."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("stretto.serving")
METRICS = "metrics"
"""The key of this name may read ``/metrics``, where what all others do shows, and nothing else."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is: the key's name for logs, and the salt of all that requests share in the engine."""

    name: str = ""
    tenant: str = ""


def read_keys(path: Path) -> dict[bytes, str]:
    """Return the names of keys by the keys' SHA-256.

    A line is ``name:key`` or a key alone, which is called by the number of its line; empty lines and those that begin
    with ``#`` say nothing. Raises ``ValueError`` for a file without keys or with a short one, ``OSError``.
    """
    keys: dict[bytes, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        name, key = (name.strip(), key.strip()) if colon else (f"line {number}", line)
        if len(key) < 16:
            raise ValueError(
                f"{path}, line {number}: a key of {len(key)} characters can be guessed, expected 16 or more; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        keys[_digest(key)] = name
    if not keys:
        raise ValueError(f"{path} holds no key; expected one a line, as name:key or the key alone")
    return keys


class Keys:
    """The keys of a running server. Without a file everyone is welcome, and all are one tenant."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._stamp, self._trouble = path, (0, 0), ""
        self._secret = secrets.token_bytes(32)
        self._keys = {} if path is None else read_keys(path)
        if path is not None:
            self._stamp = self._now()

    @property
    def needed(self) -> bool:
        """Whether callers need a key."""
        return self._path is not None

    def caller(self, authorization: str) -> Caller | None:
        """Return whose key the header ``Authorization`` carries, None for nobody's.

        Every key is compared in full, so that the time says neither which is close nor how many there are before it.
        """
        if self._path is None:
            return Caller()
        self._reload()
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        found = [digest for digest in self._keys if hmac.compare_digest(digest, given)]
        if scheme.lower() != "bearer" or not found:
            return None
        return Caller(self._keys[found[0]], hmac.new(self._secret, found[0], hashlib.sha256).hexdigest()[:24])

    def _reload(self) -> None:
        """Take a changed file over; a broken one changes nothing, or nobody could get in to say so."""
        assert self._path is not None
        try:
            stamp = self._now()
            if stamp != self._stamp:
                self._stamp = stamp
                self._keys = read_keys(self._path)
                log.info("keys read", extra={"fields": {"keys": len(self._keys)}})
            self._trouble = ""
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:  # once, not with every request
                self._trouble = str(error)
                log.warning("the file of keys cannot be read, the old keys stay: %s", error)

    def _now(self) -> tuple[int, int]:
        assert self._path is not None
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
