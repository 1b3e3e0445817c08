"""Turns what a caller asks, a prompt and parameters, into requests, or says what is wrong with it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import stretto.core.structured  # noqa: F401  # registers the masks of structured output
from stretto.core.batch import Model
from stretto.core.params import SamplingParams
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.decoding.method import DecodingMethod
from stretto.engine.mask_store import MaskStore
from stretto.tokens.detokenize import TextStream
from stretto.tokens.tokenizer import Tokenizer
from stretto.tokens.words import Words

Prompt = str | Sequence[int]


@dataclass(slots=True)
class Written:
    """What a sample had written when its engine was lost: with prompt, parameters and seed, all that it was."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    """Of each token, where they were asked for."""


@dataclass(slots=True)
class Intake:
    """Checks and builds the requests of one model."""

    model: Model
    tokenizer: Tokenizer | None
    eos_ids: frozenset[int]
    capacity: int
    """Tokens that the cache holds."""
    numbers: count[int]
    words: Words | None = field(init=False)
    """What the model's tokens spell, for masks that read text."""
    masks: MaskStore = field(init=False)

    def __post_init__(self) -> None:
        self.words = None if self.tokenizer is None else Words(self.tokenizer, self.model.vocab_size, self.eos_ids)
        self.masks = MaskStore(self.model.vocab_size, self.eos_ids, self.words)

    def requests(
        self,
        prompt: Prompt,
        params: SamplingParams,
        method: DecodingMethod,
        *,
        reuse: bool = True,
        generate: bool = True,
        resume: Mapping[int, Written] | None = None,
    ) -> list[Request]:
        """Return the ``n`` requests of one prompt, sample 0 first; those of the samples in ``resume`` go on from there.

        ``resume`` leaves out the samples that have ended; it needs the seed that they began with. Raises ``ValueError``
        naming the parameter, its value, what was expected and what to do.
        """
        params.validate(self.model.vocab_size)
        self._check_method(params, method)
        ids = self.encode(prompt)
        if not ids:
            raise ValueError("the prompt is empty: give at least one token (many models begin with their BOS token)")
        room = self.model.context - len(ids)
        if room < (1 if generate else 0):
            raise ValueError(
                f"prompt has {len(ids)} tokens, the model's context is {self.model.context}: "
                "shorten the prompt so that at least one token can follow"
            )
        limit = min(room, params.max_tokens or room) if generate else 0
        needed = len(ids) + limit + method.facts.rows - 1
        if needed > self.capacity:
            raise ValueError(
                f"prompt of {len(ids)} and max_tokens of {limit} tokens need {needed} tokens of cache, "
                f"cache_tokens is {self.capacity}: raise cache_tokens or lower max_tokens"
            )
        if params.stop and self.tokenizer is None:
            raise ValueError(f"stop={params.stop!r} needs a tokenizer and this checkpoint has none: use stop_token_ids")
        if resume is not None and params.seed is None:
            raise ValueError("seed=None: what is resumed needs the seed it began with; give that seed")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        mask = self.masks.of(params)
        requests: list[Request] = []
        for sample in range(params.n) if resume is None else sorted(resume):
            state = SamplerState.begin(
                params,
                ids,
                sample=sample,
                seed=seed,
                vocab_size=self.model.vocab_size,
                eos_ids=self.eos_ids,
                limit=limit,
                mask=mask,
            )
            request = Request(
                next(self.numbers),
                ids,
                params,
                state,
                seed,
                sample,
                method.name,
                leader=requests[0] if requests else None,
                reuse=reuse and method.facts.reuse and params.prompt_logprobs is None,
            )
            if self.tokenizer is not None and generate:
                request.text = TextStream(
                    self.tokenizer, params.stop, params.include_stop, min_tokens=params.min_tokens
                )
            if resume is not None:
                self._go_on(request, resume[sample])
            requests.append(request)
        return requests

    def _go_on(self, request: Request, written: Written) -> None:
        """Bring a new request to where it stood when ``written`` was all its text."""
        for place, token in enumerate(written.token_ids):
            if not 0 <= token < self.model.vocab_size or request.state.ends(token) is not None:
                raise ValueError(
                    f"sample {request.sample} cannot be resumed: its token {place}, {token}, is none of the model's or "
                    "ends the text; expected the tokens of a text that had not ended"
                )
            request.state.commit(token)
            if request.text is not None:
                request.text.push(token)
        request.tokens = [*request.prompt, *written.token_ids]
        request.logprobs = list(written.logprobs)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, text or ids. Raises ``ValueError`` for an id that is none of the model's,
        and for text where there is no tokenizer."""
        vocabulary = self.model.vocab_size
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("the prompt is text and this checkpoint has no tokenizer: give a list of token ids")
            ids = self.tokenizer.encode(prompt)
        else:
            ids = list(prompt)
        for place, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
                raise ValueError(
                    f"prompt token {place} is {token!r}, expected a whole number from 0 to {vocabulary - 1}"
                )
        return ids

    def _check_method(self, params: SamplingParams, method: DecodingMethod) -> None:
        default: dict[str, Any] = SamplingParams().to_dict()
        for name, reason in method.facts.refuses.items():
            if getattr(params, name) != default[name]:
                raise ValueError(
                    f"method={method.name!r} does not go with {name}={getattr(params, name)!r}: {reason}; "
                    "use another method or leave the parameter out"
                )
