"""Plain decoding: prompt slices and one token at a time. Every other exact method is measured against its text."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.core.choose import choose
from stretto.core.chunk import Chunk, Output
from stretto.core.request import Committed, Request
from stretto.decoding.known import choice_error, known_chunk, prompt_logprobs
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
        done: list[Committed] = []
        choosing: list[Committed] = []
        places: list[int] = []
        for request, chunk, output in zip(requests, chunks, outputs, strict=True):
            stop = chunk.index[-1] + 1
            committed = Committed(request, filled=stop)
            done.append(committed)
            if request.params.prompt_logprobs is not None:
                committed.prompt_logprobs = prompt_logprobs(request, chunk, output)
            if stop == len(request.tokens):
                choosing.append(committed)
                places.append(output.row(len(chunk.tokens) - 1))
        if choosing:
            logits = outputs[0].logits
            chosen = choose(logits, [c.request.state for c in choosing], rows=places)
            for place, committed, token in zip(places, choosing, chosen, strict=True):
                if token < 0:
                    committed.error = choice_error(token)
                    continue
                committed.tokens = (token,)
                committed.finish = committed.request.state.ends(token)
                if committed.request.params.logprobs is not None:
                    committed.logits = logits[place : place + 1]
        return done

    def preempted(self, request: Request) -> None:
        """Nothing is remembered."""

    def end(self, request: Request) -> None:
        """Nothing is remembered."""
