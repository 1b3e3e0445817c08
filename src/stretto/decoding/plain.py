"""Plain decoding: prompt slices and one token at a time. Every other exact method is measured against its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stretto.core.chunk import Chunk, Output
from stretto.core.request import Committed, Request
from stretto.decoding.known import commit_known, known_chunk
from stretto.decoding.method import Facts, Services


class Plain:
    """One row a step behind the prompt, chosen by ``choose``."""

    name = "plain"
    facts = Facts()

    def bind(self, services: Services) -> None:
        """Plain decoding needs no services."""

    def extra(self, request: Request) -> int:
        """Plain decoding drafts nothing."""
        return 0

    def propose(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Chunk]:
        """Return each request's next known tokens."""
        return [known_chunk(request, count) for request, count in zip(requests, rows, strict=True)]

    def commit(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]
    ) -> list[Committed]:
        """Choose at the last row of every request whose known tokens are all computed."""
        return commit_known(requests, chunks, outputs)

    def preempted(self, request: Request) -> None:
        """Nothing is remembered."""

    def end(self, request: Request) -> None:
        """Nothing is remembered."""

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Nothing outlives a request."""
        return {}
