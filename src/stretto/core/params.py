"""What a caller may ask of one request, as plain data that can cross a process border."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, NoReturn

# name: (smallest, largest or None, may be None, what to do instead)
INTEGERS: dict[str, tuple[int | None, int | None, bool, str]] = {
    "top_k": (0, None, False, "use 0 to switch it off"),
    "min_tokens": (0, None, False, "use 0 for no minimum"),
    "max_tokens": (1, None, True, "use None to write until the context is full"),
    "logprobs": (0, None, True, "use None to get no log-probabilities"),
    "prompt_logprobs": (0, None, True, "use None to get no log-probabilities"),
    "n": (1, 1024, False, "use 1 for a single sample"),
    "seed": (0, 2**64 - 1, True, "use None to have one drawn and reported"),
    "priority": (None, None, False, "higher runs first; use 0 for the ordinary"),
}
# name: (smallest, smallest itself allowed, largest, may be None, what to do instead)
NUMBERS: dict[str, tuple[float, bool, float, bool, str]] = {
    "top_p": (0.0, False, 1.0, False, "use 1.0 to switch it off"),
    "min_p": (0.0, True, 1.0, False, "use 0.0 to switch it off"),
    "repetition_penalty": (0.01, True, 100.0, False, "use 1.0 to switch it off"),
    "frequency_penalty": (-100.0, True, 100.0, False, "use 0.0 to switch it off"),
    "presence_penalty": (-100.0, True, 100.0, False, "use 0.0 to switch it off"),
    "ttft_ms": (0.0, False, 1e12, True, "give milliseconds, or None for no goal"),
    "tpot_ms": (0.0, False, 1e12, True, "give milliseconds, or None for no goal"),
}
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e4
MAX_BIAS = 1e4
"""Of a token's logit, up or down: more than decides anything, and far from what float32 cannot hold."""


def _refuse(name: str, value: object, expected: str, remedy: str) -> NoReturn:
    raise ValueError(f"{name}={value!r}: expected {expected}; {remedy}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request chooses its tokens, when it ends, and how it competes with others.

    Lists are accepted where tuples are written.
    """

    temperature: float = 1.0
    """Divides the logits. 0 is greedy choice: the likeliest token, without noise."""
    top_k: int = 0
    """Choose among the `top_k` likeliest tokens; 0 is off."""
    top_p: float = 1.0
    """Choose among the smallest set of likeliest tokens that has this much probability; 1 is off."""
    min_p: float = 0.0
    """Choose among tokens at least this likely, as a share of the likeliest one's probability; 0 is off."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens in prompt or output are divided by it, negative ones multiplied; 1 is off."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it stands in the output."""
    presence_penalty: float = 0.0
    """Taken once from the logit of every token that stands in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids: the last token of one is forbidden where those before it end prompt and output."""
    min_tokens: int = 0
    """No end token, stop id or stop string ends the text before it has so many tokens."""
    ignore_eos: bool = False
    """Write on behind the model's end tokens."""
    mask: tuple[str, dict[str, Any]] | None = None
    """The name of a registered token mask and its arguments: which tokens may come next along the text."""
    stop: tuple[str, ...] = ()
    """Texts that end the output where they first occur. One string will do for one."""
    stop_token_ids: tuple[int, ...] = ()
    """Further token ids that end the text."""
    include_stop: bool = False
    """Keep the stop text at the end of the output."""
    max_tokens: int | None = 256
    """Tokens to write at most; None: until the context is full."""
    logprobs: int | None = None
    """At each place the log-probabilities of so many likeliest tokens and of the chosen one, before all filters."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt, which then is not taken from the prefix cache."""
    n: int = 1
    """Samples of the same prompt; sample 2 is the same whether three are asked for or ten."""
    seed: int | None = None
    """Same seed, same text. None: one is drawn, and told with the answer."""
    priority: int = 0
    """Higher runs first. Changes nothing in the text."""
    ttft_ms: float | None = None
    """Goal for the time to the first token, in milliseconds. Changes nothing in the text."""
    tpot_ms: float | None = None
    """Goal for the time of each further token, in milliseconds. Changes nothing in the text."""
    tenant: str = ""
    """Whose request it is: cached prefixes are shared within a tenant only."""

    def __post_init__(self) -> None:
        def normalise(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if isinstance(self.stop, str):
            normalise("stop", (self.stop,))
        for name in ("banned", "stop", "stop_token_ids", "mask"):
            value = getattr(self, name)
            if isinstance(value, list):
                normalise(name, tuple(value))
        if isinstance(self.banned, tuple):
            normalise("banned", tuple(tuple(ids) if isinstance(ids, list) else ids for ids in self.banned))

    def validate(self, vocab_size: int) -> None:
        """Raise ValueError that names the first parameter a model with `vocab_size` tokens cannot honour."""
        self._validate_numbers(vocab_size)
        self._validate_token_ids(vocab_size)
        self._validate_rest()

    def _validate_numbers(self, vocab_size: int) -> None:
        value = self.temperature
        if not _is_number(value) or not (value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE):
            expected = f"0 or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}"
            _refuse("temperature", value, expected, "use 0 for greedy choice")
        for name, (low, inclusive, high, optional, remedy) in NUMBERS.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not _is_number(value) or value > high or value < low or (value == low and not inclusive):
                border = "from" if inclusive else "above"
                _refuse(name, value, f"a number {border} {low:g} to {high:g}", remedy)
        for name, (least, most, optional, remedy) in INTEGERS.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if name in ("logprobs", "prompt_logprobs"):
                most = vocab_size
            if not _is_int(value) or (least is not None and value < least) or (most is not None and value > most):
                span = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
                _refuse(name, value, f"a whole number{span}", remedy)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            expected = f"at most max_tokens={self.max_tokens}"
            _refuse("min_tokens", self.min_tokens, expected, "raise max_tokens or lower min_tokens")

    def _validate_token_ids(self, vocab_size: int) -> None:
        def check(name: str, value: object, ids: Sequence[object]) -> None:
            for token in ids:
                if not (isinstance(token, int) and _is_int(token) and 0 <= token < vocab_size):
                    _refuse(name, value, f"token ids from 0 to {vocab_size - 1}", f"remove or correct {token!r}")

        if not isinstance(self.logit_bias, Mapping):
            _refuse("logit_bias", self.logit_bias, "a mapping of token id to number", "use {} for none")
        check("logit_bias", self.logit_bias, list(self.logit_bias))
        for token, bias in self.logit_bias.items():
            if not _is_number(bias) or abs(bias) > MAX_BIAS:
                expected = f"numbers from -{MAX_BIAS:g} to {MAX_BIAS:g}"
                _refuse("logit_bias", self.logit_bias, expected, f"correct that of {token}; ban by `banned`")
        if not isinstance(self.stop_token_ids, tuple):
            _refuse("stop_token_ids", self.stop_token_ids, "a tuple of token ids", "use () for none")
        check("stop_token_ids", self.stop_token_ids, self.stop_token_ids)
        if not isinstance(self.banned, tuple) or not all(isinstance(ids, tuple) and ids for ids in self.banned):
            _refuse("banned", self.banned, "a tuple of tuples of at least one token id", "use () for none")
        for ids in self.banned:
            check("banned", self.banned, ids)

    def _validate_rest(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            _refuse("stop", self.stop, "strings of at least one character", "use () for none")
        for name in ("ignore_eos", "include_stop"):
            if not isinstance(getattr(self, name), bool):
                _refuse(name, getattr(self, name), "True or False", "give one of the two")
        if not isinstance(self.tenant, str):
            _refuse("tenant", self.tenant, "a string", 'use "" for none')
        if self.mask is not None:
            named = isinstance(self.mask, tuple) and len(self.mask) == 2 and isinstance(self.mask[0], str)
            if not named or not isinstance(self.mask[1], dict) or not all(isinstance(key, str) for key in self.mask[1]):
                _refuse("mask", self.mask, "(registered name, {argument: value})", "use None for no mask")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` builds an equal object, also after a trip through JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["logit_bias"] = dict(self.logit_bias)
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SamplingParams":
        """Build parameters from plain data; raise ValueError that names a key which is no parameter."""
        known = [each.name for each in fields(cls)]
        for key in data:
            if key not in known:
                close = get_close_matches(str(key), known, 1)
                remedy = f"did you mean {close[0]}?" if close else "remove it"
                _refuse(str(key), data[key], "the name of a sampling parameter", remedy)
        values = dict(data)
        bias = values.get("logit_bias")
        if isinstance(bias, Mapping):  # the keys of a JSON object are strings
            decimal = {key: int(key) for key in bias if isinstance(key, str) and key.isdecimal()}
            values["logit_bias"] = {decimal.get(key, key): number for key, number in bias.items()}
        return cls(**values)
