"""A request as the engine sees it: what was asked, the tokens so far, and what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from stretto.core.params import SamplingParams
    from stretto.core.sampler import SamplerState


class Phase(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True)
class Stats:
    """What one request cost. Times are seconds of a monotonic clock."""

    rows: int = 0
    """Rows computed for it, all passes and models together."""
    prompt_rows: int = 0
    """Rows among them that read its prompt, or read again what a preemption lost."""
    cached: int = 0
    """Tokens found in the prefix cache at the first admission."""
    steps: int = 0
    writing: int = 0
    """Steps among them that wrote tokens,"""
    written: int = 0
    """and those tokens: without the ones that it was resumed with."""
    catch_up: int = 0
    """Rows of known tokens that draft models computed because their lanes lacked them, the last token's not counted."""
    drafted: int = 0
    """Drafted tokens that a pass of its model checked."""
    accepted: int = 0
    drafts: dict[str, list[list[int]]] = field(default_factory=dict)
    """By drafter and depth (the first entry is depth 1): [checked, accepted] tokens. One that several drafters
    proposed counts for each."""
    origins: list[str] = field(default_factory=list)
    """Who drafted each generated token: names joined by ``+``, the empty string for the model itself, which wrote
    those behind the last entry."""
    decoding_ms: float = 0.0
    """Wall time of its steps behind the prompt, as far as an allocator booked them."""
    plain_ms: float = 0.0
    """What plain decoding would have taken for the tokens of those steps, by the allocator's ledger."""
    reason: Callable[[], str] = str
    """Says why it was drafted for as it was, in a few words; asked when its end is told."""
    preemptions: int = 0
    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    finished: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: counts, and milliseconds to the first token and to the end."""
        first = None if self.first_token is None else (self.first_token - self.arrived) * 1e3
        total = None if self.finished is None else (self.finished - self.arrived) * 1e3
        counts = ("rows", "prompt_rows", "cached", "catch_up", "drafted", "accepted", "preemptions")
        steps = ("steps", "writing", "written")
        times = ("decoding_ms", "plain_ms")
        lists = {"drafts": self.drafts, "origins": self.origins, "why": self.reason()}
        return {
            **{name: getattr(self, name) for name in (*counts, *steps, *times)},
            **lists,
            "ttft_ms": first,
            "total_ms": total,
        }

    def count_drafts(self, drafts: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Add one step's [checked, accepted] by drafter and depth."""
        for name, depths in drafts.items():
            mine = self.drafts.setdefault(name, [])
            mine += [[0, 0] for _ in range(len(depths) - len(mine))]
            for total, (checked, accepted) in zip(mine, depths, strict=False):
                total[0] += checked
                total[1] += accepted


@dataclass(slots=True, eq=False)
class Request:
    """One sample of one prompt. The text is a function of prompt, parameters, seed and numerics alone."""

    id: int
    prompt: list[int]
    params: SamplingParams
    state: SamplerState
    seed: int
    sample: int = 0
    method: str = "plain"
    model: str = "target"
    leader: Request | None = None
    """Sample 0 of the same prompt, whose computed prompt the other samples share."""
    reuse: bool = True
    """Whether cached prefixes may serve it: not when every prompt row's logits are wanted."""
    shared: int | None = None
    """Rows from this position on are the request's own: its method computes them in sight of later tokens, or anew,
    so that the prefix cache does not offer them to others. None: all rows are shared."""
    tokens: list[int] = field(default_factory=list)
    """Prompt and generated tokens."""
    views: dict[str, Any] = field(default_factory=dict)
    """By model: where its rows lie in that model's cache. Filled and emptied by the engine."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What methods and drafters remember about it, by their name; gone when the request ends."""
    text: Any = None
    """Incremental detokenizer, or None when token ids alone were asked for."""
    phase: Phase = Phase.WAITING
    finish: str | None = None
    error: str | None = None
    wrong: bool = False
    """Whether the error lies in what was asked, such as a mask and bans that together allow no token."""
    stats: Stats = field(default_factory=Stats)
    order: int = 0
    """Arrival number: lower came first."""
    served: int = 0
    """When it last won a row while there were too few for all, by the scheduler's own clock."""
    deadline: float = float("inf")
    """When its first token is due by its TTFT goal (monotonic seconds)."""
    logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: dict[int, dict[int, float]] = field(default_factory=dict)
    """By position in the prompt; the first token has none."""
    scores: dict[int, Tensor] = field(default_factory=dict)
    """By first position: logits that the ``score`` method keeps, float32 [rows, vocab] each."""

    @property
    def filled(self) -> int:
        """Positions whose rows stand in the target's cache."""
        view = self.views.get(self.model)
        return 0 if view is None else int(view.filled)

    @property
    def pending(self) -> int:
        """Known tokens whose rows are still to be computed: 1 while decoding plainly."""
        return len(self.tokens) - self.filled


@dataclass(slots=True)
class Committed:
    """What a method makes of a pass for one request. Nothing is applied before the engine does so."""

    request: Request
    tokens: Sequence[int] = ()
    filled: int | None = None
    """New watermark of the request's own model; None leaves it."""
    keep: Sequence[tuple[int, int]] = ()
    """(scratch row, position): rows of that model that move from scratch to the request's blocks."""
    finish: str | None = None
    error: str | None = None
    wrong: bool = False
    """Whether the error lies in what was asked (see ``Request.wrong``)."""
    logits: Tensor | None = None
    """float32 [len(tokens), vocab] where logprobs are wanted: the rows at which the tokens were chosen."""
    prompt_logprobs: Sequence[tuple[int, dict[int, float]]] = ()
    """(position, log-probabilities) of prompt tokens."""
    scores: tuple[int, Tensor] | None = None
    """First position and logits float32 [rows, vocab] that the request itself keeps."""
    drafted: int = 0
    accepted: int = 0
    drafts: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    """By drafter and depth: [checked, accepted] (see ``Stats.drafts``)."""
    origins: Sequence[str] = ()
    """Who drafted each of ``tokens`` (see ``Stats.origins``)."""
    feature: str | None = None
    """Feature lane that the chunk wrote, whose watermark rises too; filled in by the engine."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Plain data that leaves the engine: what one step added to one request."""

    request: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    finish: str | None = None
    error: str | None = None
