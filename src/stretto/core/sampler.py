"""The sampler state of one sample of a request: everything `choose` may know about the path before a row."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from stretto.core.masks import TokenMask, advance, build_mask
from stretto.core.noise import NoiseKey, prompt_hash
from stretto.core.params import SamplingParams

Filter = tuple[float, int, float, float]
"""Temperature, top-k, top-p and the least score that min-p keeps, of scores that are shifted and divided."""


def narrowing(params: SamplingParams) -> Filter:
    """Return what the parameters narrow scores to before noise joins them."""
    least = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
    return params.temperature, params.top_k, params.top_p, least


class Committed:
    """What all states of one sample share: its parameters, its prompt and the tokens committed so far."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        base: int,
        mask: TokenMask | None,
        vocab_size: int,
        eos_ids: frozenset[int],
        limit: int,
    ) -> None:
        self.params = params
        self.prompt = prompt
        self.base = base
        self.mask = mask
        self.limit = limit
        self.output: list[int] = []
        self.counts: dict[int, int] = {}
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
        self.stop_ids = frozenset(token for token in stops if token < vocab_size)
        self.penalized = params.repetition_penalty != 1.0 or bool(params.frequency_penalty or params.presence_penalty)
        self.bans = [(ids[:-1], ids[-1]) for ids in params.banned]
        self.plain = not (self.penalized or params.logit_bias or self.bans or mask or params.min_tokens)
        self.filter = narrowing(params)
        self.filtered = 0 < params.top_k < vocab_size or params.top_p < 1.0 or params.min_p > 0.0
        self.longest_ban = max((len(prefix) for prefix, _ in self.bans), default=0)

    @cached_property
    def prompt_ids(self) -> frozenset[int]:
        """The distinct tokens of the prompt."""
        return frozenset(self.prompt)


class SamplerState:
    """A place on a path of one sample: the root is the end of the committed text, forks lie beyond it.

    `advance` forks in time that does not depend on the text's length. `commit`, on the root only, moves the root by one
    token and ends the use of its forks; whoever resumes a request begins anew and commits its tokens again.
    """

    __slots__ = ("committed", "generated", "mask_state", "pending", "shaped")

    def __init__(self, committed: Committed, pending: tuple[int, ...], generated: int, mask_state: Any) -> None:
        self.committed = committed
        self.pending = pending  # the tokens between the committed text and this place
        self.generated = generated  # the number of generated tokens before this place
        self.mask_state = mask_state
        self.shaped = not committed.plain or (committed.filtered and committed.params.temperature > 0.0)

    @classmethod
    def begin(
        cls,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        sample: int,
        seed: int,
        vocab_size: int,
        eos_ids: frozenset[int],
        limit: int,
        mask: TokenMask | None = None,
    ) -> "SamplerState":
        """Return the root state of sample number `sample` before its first token.

        `limit` is the number of generated tokens at which it ends for length. `mask` is what was built for `params`
        already, where it was. Raises ValueError for an unknown mask or arguments that the mask does not take.
        """
        if mask is None and params.mask is not None:
            mask = build_mask(*params.mask, vocab_size, eos_ids)
        base = NoiseKey.base_of(seed, sample, prompt_hash(prompt))
        committed = Committed(params, prompt, base=base, mask=mask, vocab_size=vocab_size, eos_ids=eos_ids, limit=limit)
        return cls(committed, (), 0, None if mask is None else mask.start())

    @property
    def params(self) -> SamplingParams:
        return self.committed.params

    def _mask_after(self, token: int) -> Any:
        mask = self.committed.mask
        return None if mask is None else advance(mask, self.mask_state, token)

    def advance(self, token: int) -> "SamplerState":
        """Return the state after `token`; this state stays as it is."""
        return SamplerState(self.committed, (*self.pending, token), self.generated + 1, self._mask_after(token))

    def commit(self, token: int) -> None:
        """Make `token` part of the committed text. Raises ValueError on a fork."""
        if self.pending:
            beyond = f"expected the root state, got a fork {len(self.pending)} tokens beyond it"
            raise ValueError(f"commit({token}): {beyond}; commit on the state that begin returned")
        self.mask_state = self._mask_after(token)
        self.committed.output.append(token)
        self.committed.counts[token] = self.committed.counts.get(token, 0) + 1
        self.generated += 1

    def ends(self, token: int) -> str | None:
        """Return the finish reason if `token` is generated here ("stop" or "length"), None if the text goes on."""
        committed = self.committed
        if token in committed.stop_ids and self.generated >= committed.params.min_tokens:
            return "stop"
        return "length" if self.generated + 1 >= committed.limit else None

    @property
    def left(self) -> int:
        """How many tokens may still be generated from here, by length alone."""
        return self.committed.limit - self.generated

    def key(self, draw: int = 0, ahead: int = 0) -> NoiseKey:
        """Return the noise key of the token generated here, or so many tokens `ahead`.

        `draw` counts a diffusion request's denoising steps.
        """
        return NoiseKey(self.committed.base, self.generated + ahead, draw)

    def counts(self) -> dict[int, int]:
        """Return how often each token was generated on this path. Not to be changed by the caller."""
        if not self.pending:
            return self.committed.counts
        counts = dict(self.committed.counts)
        for token in self.pending:
            counts[token] = counts.get(token, 0) + 1
        return counts

    def forbidden(self) -> set[int]:
        """Return the tokens that banned sequences and the minimum length forbid here."""
        committed = self.committed
        tokens: set[int] = set()
        if self.generated < committed.params.min_tokens:
            tokens |= committed.stop_ids
        if committed.bans:
            tail = self._tail(committed.longest_ban)
            tokens.update(last for prefix, last in committed.bans if tail[len(tail) - len(prefix) :] == prefix)
        return tokens

    def _tail(self, length: int) -> tuple[int, ...]:
        """Return the last `length` tokens of prompt and output before this place, fewer where the path is shorter."""
        tail = self.pending[-length:] if length else ()
        for earlier in (self.committed.output, self.committed.prompt):
            if len(tail) < length:
                tail = (*earlier[-(length - len(tail)) :], *tail)
        return tail
