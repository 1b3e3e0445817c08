"""What a caller gets back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stretto.core.request import Request
from stretto.tokens.replies import Reply, read_reply
from stretto.tokens.tokenizer import Tokenizer


@dataclass(slots=True)
class Completion:
    """One sample of one prompt, finished.

    ``seed``, ``method``, ``fidelity`` and ``fingerprint`` (of the numerics: checkpoint, formats, kernels) are what it
    takes to get the same text again.
    """

    prompt_index: int
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    """``stop`` (end token, stop id or string), ``length``, ``abort`` or ``error``."""
    seed: int
    fingerprint: str
    method: str
    fidelity: str
    logprobs: list[dict[int, float]] | None = None
    """Per token: token id to log-probability of the unmodified distribution, best first, the chosen one included."""
    prompt_logprobs: list[dict[int, float] | None] | None = None
    """Per prompt token; None for the first."""
    stats: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    wrong: bool = False
    """Whether the error lies in what was asked: no checkpoint could have answered it."""
    reply: Reply | None = None
    """Of an answer in a conversation: its thinking, text and tool calls."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, its lists not copied: a prompt's log-probabilities take seconds to."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        return told | {"reply": None if self.reply is None else asdict(self.reply)}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to one sample of a stream; ``completion`` comes with the last piece."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    completion: Completion | None = None

    @property
    def finish_reason(self) -> str | None:
        """Why the sample ended, with its last piece."""
        return None if self.completion is None else self.completion.finish_reason


def complete(
    request: Request, fingerprint: str, fidelity: str, prompt_index: int = 0, places: bool = True
) -> Completion:
    """Return the finished request as its caller sees it; ``places``: with the prompt's log-probabilities, if asked."""
    asked = places and request.params.prompt_logprobs is not None
    return Completion(
        prompt_index=prompt_index,
        index=request.sample,
        text="" if request.text is None else request.text.text,
        token_ids=request.tokens[len(request.prompt) :],
        finish_reason=request.finish or "",
        seed=request.seed,
        fingerprint=fingerprint,
        method=request.method,
        fidelity=fidelity,
        logprobs=request.logprobs if request.params.logprobs is not None else None,
        prompt_logprobs=places_of_prompt(request) if asked else None,
        stats=request.stats.to_dict(),
        error=request.error,
        wrong=request.wrong,
    )


def places_of_prompt(request: Request) -> list[dict[int, float] | None]:
    """Return the log-probabilities at each place of the prompt; None for the first and for what was not computed."""
    found = {**(request.leader.prompt_logprobs if request.leader else {}), **request.prompt_logprobs}
    return [found.get(place) for place in range(len(request.prompt))]


def reply_of(request: Request, tokenizer: Tokenizer | None, tools: Sequence[Mapping[str, Any]] | None) -> Reply | None:
    """Return the fields of a finished answer in a conversation; ``tools``: what was offered."""
    if tokenizer is None:
        return None
    params, written = request.params, request.tokens[len(request.prompt) :]
    return read_reply(
        tokenizer,
        request.prompt,
        written,
        stop=params.stop,
        include_stop=params.include_stop,
        min_tokens=params.min_tokens,
        tools=tools,
    )


def refused(prompt_index: int, error: Exception, method: str) -> Completion:
    """Return the completion of a request that was wrong from the start."""
    return Completion(prompt_index, 0, "", [], "error", 0, "", method, "exact", error=str(error), wrong=True)
