"""The fields of request bodies. A field that is not here is refused by name: none is silently ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stretto.decoding.method import Fidelity
from stretto.serving.bounds import nesting

Int = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]


NESTING = 64
"""Levels of arrays and objects that lie in each other in a body, at most."""
ENTRIES = 4096
"""Entries of an object whose keys are the client's own, at most."""
FIELDS = 64
"""Fields of an object whose fields are named here, at most: each unknown one would be an error of its own."""


class Body(BaseModel):
    """No field beyond those named; one that is null is left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        """Null says what leaving a field out says."""
        if not isinstance(data, dict):
            return data
        if len(data) > FIELDS:
            raise ValueError(f"{len(data)} fields, expected at most {FIELDS}")
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: value for key, value in data.items() if value is not None or key not in names}


Item = TypeVar("Item")
# Of a list the first wrong item is told: an error for each of a million takes minutes and gigabytes.
Items = Annotated[list[Item], Field(fail_fast=True)]


def _short(value: Any) -> Any:
    """Refuse what is an object with very many entries before each of them is looked at."""
    if isinstance(value, dict) and len(value) > ENTRIES:
        raise ValueError(f"{len(value)} entries, expected at most {ENTRIES}")
    return value


class Whole(Body):
    """The body of a request itself."""

    @model_validator(mode="before")
    @classmethod
    def _shallow(cls, data: Any) -> Any:
        if not nesting(data, NESTING):
            raise ValueError(f"nested deeper than {NESTING} levels")
        return data


class StreamOptions(Body):
    include_usage: Flag = False
    include_obfuscation: Flag = False
    """Accepted; nothing is padded."""


class JsonSchema(Body):
    name: Text = ""
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Flag | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's name for the same: exactly one of them."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Text | None = None
    grammar: Text | None = None
    choice: Items[Text] | None = None
    json_object: Flag | None = None


class Sampling(Whole):
    """What text and chat completions share; the names are OpenAI's, and vLLM's where OpenAI has none."""

    model: Text
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Annotated[Int | None, Field(description="0 and -1 switch it off.")] = None
    min_p: Number | None = None
    n: Int | None = None
    max_tokens: Int | None = None
    min_tokens: Int | None = None
    stop: Text | Items[Text] | None = None
    stop_token_ids: Items[Int] | None = None
    include_stop_str_in_output: Flag | None = None
    ignore_eos: Flag | None = None
    seed: Int | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logit_bias: Annotated[dict[str, Number] | None, BeforeValidator(_short)] = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    regex: Annotated[Text | None, Field(description="The text must match it as a whole.")] = None
    grammar: Annotated[Text | None, Field(description="A grammar in Lark's notation.")] = None
    structured_outputs: StructuredOutputs | None = None
    user: Text | None = None
    method: Annotated[Text | None, Field(description="A decoding method by name, or auto.")] = None
    fidelity: Annotated[Fidelity, Field(description="The least that is accepted of the method.")] = "exact"
    priority: Annotated[Int | None, Field(description="Higher runs first.")] = None
    ttft_ms: Annotated[Number | None, Field(description="Goal for the first token.")] = None
    tpot_ms: Annotated[Number | None, Field(description="Goal for each further token.")] = None
    deadline_ms: Annotated[Number | None, Field(gt=0, description="The request ends with an error behind it.")] = None


class CompletionBody(Sampling):
    """``POST /v1/completions``."""

    prompt: Text | Items[Text] | Items[Int] | Items[Items[Int]]
    add_special_tokens: Annotated[Flag, Field(description="Text begins as the tokenizer begins it.")] = True
    echo: Flag | None = None
    logprobs: Int | None = None
    best_of: Annotated[Int | None, Field(description="Refused, unless it is what n is.")] = None
    suffix: Annotated[Text | None, Field(description="Refused.")] = None


class Function(Body):
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class CalledFunction(Body):
    name: Text
    arguments: Text | dict[str, Any] = "{}"


class Call(Body):
    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Int | None = None


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A message as clients send it, and as they got it from an earlier answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Items[TextPart] | None = None
    name: Text | None = None
    tool_calls: Items[Call] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    refusal: Text | None = None
    annotations: Items[Any] | None = None
    audio: None = None
    function_call: None = None


class NamedFunction(Body):
    name: Text


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class ChatBody(Sampling):
    """``POST /v1/chat/completions``."""

    messages: Items[ChatMessage]
    tools: Items[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Flag | None = None
    max_completion_tokens: Int | None = None
    logprobs: Flag | None = None
    top_logprobs: Int | None = None
    reasoning_effort: Annotated[Text | None, Field(description="Handed to the chat template.")] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Field(description="Further variables of the chat template.")
    ] = None


class TokenizeBody(Whole):
    """``POST /tokenize``: of a text, or of a conversation."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Items[ChatMessage] | None = None
    tools: Items[Tool] | None = None
    add_special_tokens: Flag = True
    add_generation_prompt: Flag = True
    return_token_strs: Flag = False


class DetokenizeBody(Whole):
    """``POST /detokenize``."""

    model: Text | None = None
    tokens: Items[Int]
