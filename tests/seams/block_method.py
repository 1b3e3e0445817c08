"""What decoding methods that write whole blocks share: a causal prompt, and blocks that are computed again in order."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.core.chunk import Chunk, Output, Role, Segment
from stretto.core.request import Committed, Request
from stretto.decoding.known import known_chunk
from stretto.decoding.method import Facts

MASK, BLOCK = 63, 6


def mutual(
    request: Request, tokens: Sequence[int], first: int, role: Role, spans: Sequence[tuple[int, int]] | None = None
) -> Chunk:
    """Return blocks over the positions from ``first``, each apart: rows that see each other and cached ``spans``."""
    count = len(tokens) // BLOCK
    segments = [Segment(BLOCK, mutual=True, sees=None if spans is None else tuple(spans)) for _ in range(count)]
    index = list(range(first, first + BLOCK)) * count
    return Chunk(request.id, request.model, list(tokens), index, segments, [role] * len(index))


class BlockMethod:
    """Fills the prompt in slices, then lets ``denoise`` and ``denoised`` write block after block.

    A preempted request commits the blocks it has written again. Rows from ``own`` positions behind the prompt's end
    on are never shared.
    """

    def __init__(self, name: str, *, own: int = 0) -> None:
        self.name, self.own = name, own
        self.facts = Facts(fidelity="approximate", rows=BLOCK)
        self.again = 0
        """Blocks that were committed again."""

    def bind(self, services): ...
    def preempted(self, request): ...
    def end(self, request): ...

    def extra(self, request: Request) -> int:
        return 0

    def propose(self, requests, rows):
        return [self.chunk(*each) for each in zip(requests, rows, strict=True)]

    def chunk(self, request: Request, rows: int) -> Chunk:
        filled, prompt = request.filled, len(request.prompt)
        request.shared = prompt + self.own
        if filled < prompt:
            chunk = known_chunk(request, min(rows, prompt - filled))
            chunk.logits = ()
            return chunk
        if filled < len(request.tokens):
            return mutual(request, request.tokens[filled:][:BLOCK], filled, Role.COMMIT, [(0, filled)])
        return self.denoise(request, rows)

    def commit(self, requests, chunks, outputs):
        return [self.settle(*each) for each in zip(requests, chunks, outputs, strict=True)]

    def settle(self, request: Request, chunk: Chunk, output: Output) -> Committed:
        self.learn(request, chunk, output)
        if request.filled == len(request.tokens):
            return self.denoised(request, chunk, output)
        self.again += chunk.roles is not None
        return Committed(request, filled=chunk.index[-1] + 1)

    def denoise(self, request: Request, rows: int) -> Chunk:
        raise NotImplementedError  # what each of the two methods writes for itself

    def denoised(self, request: Request, chunk: Chunk, output: Output) -> Committed:
        raise NotImplementedError  # what each of the two methods writes for itself

    def learn(self, request: Request, chunk: Chunk, output: Output) -> None: ...
