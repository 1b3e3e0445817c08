"""Scoring: a request that generates nothing and keeps the logits of all its prompt's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stretto.core.chunk import ALL_ROWS, Chunk, Output
from stretto.core.request import Committed, Request
from stretto.decoding.known import known_chunk
from stretto.decoding.method import Facts, Services


class Score:
    """Feeds the prompt in slices like any other request; what it returns are its rows' logits."""

    name = "score"
    facts = Facts()

    def bind(self, services: Services) -> None:
        """Scoring needs no services."""

    def extra(self, request: Request) -> int:
        """Scoring drafts nothing."""
        return 0

    def propose(self, requests: Sequence[Request], rows: Sequence[int]) -> list[Chunk]:
        """Return each request's next prompt slice, logits wanted at every row."""
        chunks = [known_chunk(request, count) for request, count in zip(requests, rows, strict=True)]
        for chunk in chunks:
            chunk.logits = (ALL_ROWS,)
        return chunks

    def commit(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]
    ) -> list[Committed]:
        """Keep the rows' logits; finish behind the last row."""
        done: list[Committed] = []
        for request, chunk, output in zip(requests, chunks, outputs, strict=True):
            stop = chunk.index[-1] + 1
            rows = output.logits[output.first : output.first + len(chunk)].clone()
            finish = "stop" if stop == len(request.tokens) else None
            done.append(Committed(request, filled=stop, scores=(chunk.index[0], rows), finish=finish))
        return done

    def preempted(self, request: Request) -> None:
        """All rows are computed again, in slices that may begin elsewhere."""
        request.scores.clear()

    def end(self, request: Request) -> None:
        """Nothing is remembered."""

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Nothing outlives a request."""
        return {}
