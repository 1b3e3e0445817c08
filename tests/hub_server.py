"""A hub on this machine: as much of its protocol as downloading takes, with faults to order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    files: Mapping[str, bytes] = field(default_factory=dict)
    refused: tuple[int, dict[str, str]] | None = None
    """Status and headers that every question about the repository gets."""
    refused_files: Mapping[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    """Files of which the first answer breaks off half way."""
    stalled: set[str] = field(default_factory=set)
    """Files of which the first answer stops half way, until ``Hub.go_on`` is set."""
    claimed: Mapping[str, int] = field(default_factory=dict)
    """Sizes in the listing that are not the files' own."""


@dataclass
class Hub:
    endpoint: str
    requests: list[tuple[str, str, str, str]]
    """Method, repository, file (empty for questions about the repository) and range, in the order of arrival."""
    go_on: Event

    def files_of(self, repository: str) -> list[str]:
        """Return the files of a repository that were fetched, each as often as it was."""
        return [file for method, asked, file, _ in self.requests if (method, asked) == ("GET", repository) and file]


@contextmanager
def serve(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """Serve ``repositories`` by their ids until the context ends."""
    requests: list[tuple[str, str, str, str]] = []
    go_on = Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.respond()

        def do_GET(self) -> None:
            self.respond()

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

        def respond(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            api = parts[0] == "api"
            if len(parts) < (6 if api else 5):  # of no repository: the library asks whether it is up to date
                return self.give(404, b"", {})
            owner, name, kind, revision, *rest = parts[2:] if api else parts
            identifier, file = f"{owner}/{name}", "/".join(rest)
            requests.append((self.command, identifier, file, self.headers.get("Range", "")))
            known = repositories.get(identifier)
            if known is None:
                self.give(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif known.refused:
                self.give(known.refused[0], b"", known.refused[1])
            elif revision not in ("main", COMMIT):
                self.give(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif api:
                self.give(200, json.dumps(listing(identifier, known, kind)).encode(), {})
            elif file in known.refused_files:
                self.give(known.refused_files[file][0], b"", known.refused_files[file][1])
            else:
                self.give_file(known, file)

        def give_file(self, known: Repository, file: str) -> None:
            content = known.files[file]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cut = self.command == "GET" and file in known.cut | known.stalled
            self.give(
                206 if start else 200, content[start:], headers, sent=(len(content) - start) // 2 if cut else None
            )
            if cut:
                known.cut.discard(file)
                if file in known.stalled:
                    known.stalled.discard(file)
                    go_on.wait()
                self.close_connection = True

        def give(self, status: int, content: bytes, headers: dict[str, str], sent: int | None = None) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[:sent])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", requests, go_on)
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def listing(identifier: str, known: Repository, kind: str) -> Any:
    """Return what the hub says about a repository (``revision``) or its files (``tree``)."""
    sizes = {name: known.claimed.get(name, len(content)) for name, content in known.files.items()}
    if kind == "revision":
        siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        return {"id": identifier, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
    return [
        {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(known.files[name]).hexdigest()}
        for name, size in sizes.items()
    ]
