"""What every autoregressive method shares: the known tokens of a request as a chunk, and what their rows tell."""

from __future__ import annotations

from collections.abc import Sequence

from stretto.core.choose import choose, logprobs
from stretto.core.chunk import ALL_ROWS, Chunk, Output
from stretto.core.masks import trouble
from stretto.core.picking import NAN_LOGITS, NOTHING_ALLOWED
from stretto.core.request import Committed, Request

CHOICE_ERRORS = {
    NAN_LOGITS: "the model's logits hold NaN or infinity for this request: check the checkpoint, or use dtype='fp32'",
}
NOTHING_LEFT = "no token is allowed: mask, bans, min_tokens and logit bias together forbid the whole vocabulary"


def fail(committed: Committed, code: int) -> None:
    """Write into a commit what a negative result of ``choose`` means, behind the committed text of its request."""
    state = committed.request.state
    committed.wrong = code == NOTHING_ALLOWED
    committed.error = CHOICE_ERRORS.get(code, NOTHING_LEFT)
    if committed.wrong and (met := trouble(state.committed.mask, state.mask_state)):
        committed.error = f"the mask cannot go on from here: {met}; use a simpler one"


def known_chunk(request: Request, rows: int) -> Chunk:
    """Return the next at most ``rows`` known tokens of the request as a chunk.

    Logits are asked for at the last known token, and at every row while prompt logprobs are being collected.
    """
    filled = request.filled
    stop = min(len(request.tokens), filled + rows)
    logits: Sequence[int] = (stop - filled - 1,) if stop == len(request.tokens) else ()
    if request.params.prompt_logprobs is not None and filled < len(request.prompt):
        logits = (ALL_ROWS,)
    return Chunk(request.id, request.model, request.tokens[filled:stop], list(range(filled, stop)), logits=logits)


def prompt_logprobs(request: Request, chunk: Chunk, output: Output) -> list[tuple[int, dict[int, float]]]:
    """Return (position, log-probabilities) of the prompt tokens that this chunk's rows predict, if they are wanted."""
    wanted = request.params.prompt_logprobs
    if wanted is None or chunk.index[0] + 1 >= len(request.prompt):
        return []
    first = chunk.index[0] + 1
    following = request.prompt[first : first + len(chunk)]
    logits = output.logits[output.first : output.first + len(following)]
    return list(enumerate(logprobs(logits, following, wanted), first))


def commit_known(requests: Sequence[Request], chunks: Sequence[Chunk], outputs: Sequence[Output]) -> list[Committed]:
    """Return what chunks of known tokens gain: one chosen token where all known tokens of the request are computed."""
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
                fail(committed, token)
                continue
            committed.tokens = (token,)
            committed.finish = committed.request.state.ends(token)
            if committed.request.params.logprobs is not None:
                committed.logits = logits[place : place + 1]
    return done
