"""From the body of a request to what the engine is asked: token ids, sampling parameters, a method."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stretto.core.params import SamplingParams
from stretto.recipes.table import find_recipe
from stretto.serving.bounds import check_count, check_length
from stretto.serving.errors import ApiError, refused, wrong
from stretto.serving.fields import ChatBody, ChatMessage, CompletionBody, NamedTool, Sampling, Tool
from stretto.serving.masks import calling, mask_of
from stretto.serving.settings import Limits
from stretto.tokens.tokenizer import Tokenizer

ORDER = ("exact", "exact-distribution", "approximate")
"""Fidelities, from the strictest."""
RENAMED = {"include_stop_str_in_output": "include_stop"}
PLAIN = (
    "temperature",
    "top_p",
    "min_p",
    "n",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "priority",
    "ttft_ms",
    "tpot_ms",
)
"""Fields that are sampling parameters as they stand."""
SEED_BITS = 53
"""Of a seed that is drawn: JSON's readers in JavaScript round whole numbers beyond."""
TAKEN = {
    "self",
    "template",
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "max_characters",
    "max_seconds",
}
"""What is handed to the chat template beside its further variables, which may have no such name."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the server itself knows of the model it serves."""

    name: str
    tokenizer: Tokenizer | None
    method: str
    """The default method."""
    limits: Limits
    context: int
    """Tokens that a prompt and what follows it may have."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request as the engine gets it, once for each prompt."""

    prompts: list[list[int]]
    params: dict[str, Any]
    method: str
    deadline_ms: float | None = None
    seed: int = 0
    """As the client gave it, or as it was drawn."""
    form: str | None = None
    """The field that asks for the mask, if one does."""
    tools: frozenset[str] = frozenset()
    """Names of the tools that the answer may call."""
    single: bool = False
    """Whether it may call no more than one."""
    thinking: bool = False
    """Whether the prompt has opened a thinking block."""
    alternatives: int | None = None
    """Likeliest tokens to tell at each place; None: no log-probabilities at all."""
    echo: bool = False
    silent: bool = False
    """No text was asked for (``max_tokens`` is 0): the one token that is made is not told."""
    texts: list[str] = field(default_factory=list)
    """The prompts as text, for ``echo`` and logs that hold prompts."""


def completion_wanted(body: CompletionBody, model: Model) -> Wanted:
    """Return what a text completion asks for. Raises ``ApiError``."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise wrong("best_of: samples are not ranked here; ask for n of them and choose", "best_of")
    if body.suffix:
        raise wrong("suffix: text is not filled in before an end here; leave it out", "suffix")
    tokenizer = model.tokenizer
    prompts = _prompts(body.prompt)
    check_count("prompt", len(prompts), model.limits.prompts, "prompts")
    special = body.add_special_tokens
    ids = [_encoded(prompt, tokenizer, special) if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = (
        [
            prompt if isinstance(prompt, str) else tokenizer.decode(prompt) if tokenizer is not None else ""
            for prompt in prompts
        ]
        if body.echo
        else []
    )
    params, form = _params(body, model, len(prompts))
    silent = body.max_tokens == 0 and bool(body.echo)
    if body.max_tokens is not None:
        params["max_tokens"] = 1 if silent else body.max_tokens
    if body.max_tokens is None:
        params["max_tokens"] = 16
    if body.logprobs is not None:
        check_count("logprobs", body.logprobs, model.limits.logprobs, "alternatives")
        params["logprobs"] = body.logprobs
        if body.echo:
            params["prompt_logprobs"] = body.logprobs
            places = sum(map(len, ids)) * (body.n or 1) * (body.logprobs + 1)
            check_count("echo", places, model.limits.places, "log-probabilities of prompt tokens")
    return _wanted(
        body,
        model,
        ids,
        params,
        form=form,
        alternatives=body.logprobs,
        echo=bool(body.echo),
        silent=silent,
        texts=texts,
    )


def chat_wanted(body: ChatBody, model: Model) -> Wanted:
    """Return what a chat completion asks for; rendering its template may take seconds. Raises ``ApiError``."""
    limits = model.limits
    check_count("messages", len(body.messages), limits.messages, "messages")
    check_count("tools", len(body.tools or ()), limits.tools, "tools")
    if body.tool_choice not in (None, "none") and not body.tools:
        raise wrong("tool_choice: there are no tools to choose from; give tools, or leave it out", "tool_choice")
    if body.top_logprobs is not None and not body.logprobs:
        raise wrong("top_logprobs needs logprobs: true", "top_logprobs")
    tools = None if body.tool_choice == "none" else body.tools or None
    extra = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        extra["reasoning_effort"] = body.reasoning_effort
    prompt = chat_ids(model, body.messages, tools, extra)
    params, form = _params(body, model, 1)
    most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    params["max_tokens"] = most
    if tools is not None and (body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)):
        if form is not None:
            raise wrong("tool_choice and a form of the answer exclude each other: leave one out", "tool_choice")
        name = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
        params["mask"], form = calling(tools, name, limits), "tools"
    elif form is not None:
        tools = None  # what has the client's own form is no call, however much it looks like one
    alternatives = None
    if body.logprobs:
        alternatives = body.top_logprobs or 0
        check_count("top_logprobs", alternatives, limits.logprobs, "alternatives")
        params["logprobs"] = alternatives
    assert model.tokenizer is not None  # without one, chat_ids refuses
    opened = model.tokenizer.decode(prompt[-16:], skip_special=False).rstrip().endswith("<think>")
    return _wanted(
        body,
        model,
        [prompt],
        params,
        form=form,
        alternatives=alternatives,
        tools=frozenset(tool.function.name for tool in tools or ()),
        single=body.parallel_tool_calls is False,
        thinking=opened and form is None,
    )


def chat_ids(
    model: Model,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool] | None,
    extra: Mapping[str, Any],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Return the ids of a conversation in the model's chat template. Raises ``ApiError``."""
    if model.tokenizer is None:
        raise wrong(f"{model.name} has no tokenizer, so it takes token ids at /v1/completions alone", "messages")
    if overlap := sorted(TAKEN & extra.keys()):
        raise wrong(f"chat_template_kwargs may not hold {', '.join(overlap)}", "chat_template_kwargs")
    try:
        return model.tokenizer.encode_chat(
            [_message(message) for message in messages],
            tools=None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools],
            add_generation_prompt=add_generation_prompt,
            **extra,
        )
    except ValueError as error:
        raise wrong(str(error), "messages") from None


def fits(method: str, fidelity: str, default: str) -> str:
    """Return the method's name where it keeps what is asked of it. Raises ``ApiError``.

    A client cannot make the server load further weights: methods that bring some serve only where they are the default.
    """
    try:
        recipe = find_recipe(method)
    except ValueError as error:
        raise refused(error) from None
    if ORDER.index(recipe.fidelity) > ORDER.index(fidelity):
        raise wrong(
            f"method={method!r} is {recipe.fidelity}, and fidelity={fidelity!r} is the least that is accepted: "
            f"choose another method or say fidelity={recipe.fidelity!r}",
            "method",
        )
    if recipe.brings and method != default:
        raise wrong(
            f"method={method!r} loads weights of its own; it serves where the server was started with it", "method"
        )
    return method


def _wanted(body: Sampling, model: Model, prompts: list[list[int]], params: dict[str, Any], **rest: Any) -> Wanted:
    method = fits(body.method or model.method, body.fidelity, model.method)
    longest = max(map(len, prompts))
    if longest >= model.context:
        raise wrong(
            f"the prompt has {longest} tokens, the model's context is {model.context}: "
            "shorten it so that at least one token can follow",
            "messages" if isinstance(body, ChatBody) else "prompt",
            "context_length_exceeded",
        )
    seed = params["seed"]
    if -(2**63) <= seed < 0:
        params["seed"] = seed + 2**64  # OpenAI's seeds have a sign, the engine's are the same bits without one
    try:
        SamplingParams.from_dict(params).validate(2**31)
    except ValueError as error:
        raise refused(error) from None
    return Wanted(prompts, params, method, body.deadline_ms, seed, **rest)


def _params(body: Sampling, model: Model, prompts: int) -> tuple[dict[str, Any], str | None]:
    """Return the sampling parameters that a body gives, its seed drawn where it has none, and its mask's field."""
    limits = model.limits
    params: dict[str, Any] = {
        RENAMED.get(name, name): value for name in PLAIN if (value := getattr(body, name)) is not None
    }
    params["seed"] = secrets.randbits(SEED_BITS) if body.seed is None else body.seed
    if body.top_k is not None:
        params["top_k"] = max(body.top_k, 0) if body.top_k >= -1 else body.top_k
    if (n := body.n) is not None:
        check_count("n", n * prompts, limits.samples, "samples of all prompts")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    check_count("stop", len(stops), limits.stop, "texts")
    check_count("stop_token_ids", len(body.stop_token_ids or ()), limits.logit_bias, "tokens")
    for stop in stops:
        check_length("stop", stop, limits.stop_length)
    if stops:
        params["stop"] = stops
    if body.logit_bias:
        check_count("logit_bias", len(body.logit_bias), limits.logit_bias, "tokens")
        params["logit_bias"] = dict(body.logit_bias)
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options needs stream: true", "stream_options")
    tokenizer = model.tokenizer
    asked = mask_of(body, limits, lambda text: _encoded_plain(text, tokenizer))
    if asked is None:
        return params, None
    form, params["mask"] = asked
    return params, form


def _prompts(prompt: str | Sequence[Any]) -> list[str | list[int]]:
    """Return the prompts of a field that holds one or several, as text or as token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise wrong("prompt: empty; give at least one token", "prompt")
    several: list[Any] = list(prompt)
    return [several] if isinstance(prompt[0], int) else several


def _encoded(text: str, tokenizer: Tokenizer | None, special: bool) -> list[int]:
    if tokenizer is None:
        raise wrong("prompt is text and this model has no tokenizer: give a list of token ids", "prompt")
    try:
        return tokenizer.encode(text) if special else tokenizer.encode_plain(text)
    except ValueError as error:
        raise wrong(str(error), "prompt") from None


def _encoded_plain(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise wrong("the model has no tokenizer that could spell choices", "structured_outputs")
    try:
        return tokenizer.encode_plain(text)
    except ValueError as error:
        raise wrong(str(error), "structured_outputs") from None


def _message(message: ChatMessage) -> dict[str, Any]:
    """Return a message as templates read it: its text in one, and the arguments of calls as objects."""
    content = message.content
    told: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": "".join(part.text for part in content) if isinstance(content, list) else content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
    }
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    given = {key: value for key, value in told.items() if value is not None}
    return given if "tool_calls" in given else {"content": "", **given}


def _arguments(arguments: str | dict[str, Any]) -> Any:
    if isinstance(arguments, dict):
        return arguments
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def check_model(asked: str | None, names: Collection[str]) -> None:
    """Raise ``ApiError`` (404) for a model that is not served here."""
    if asked is not None and asked not in names:
        raise ApiError(
            404,
            f"the model {asked!r:.200} is not served here; there is: {', '.join(names)}",
            param="model",
            code="model_not_found",
        )
