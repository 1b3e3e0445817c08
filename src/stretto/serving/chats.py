"""The answers of ``/v1/chat/completions``: messages, with thinking and tool calls taken apart as they are written."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from stretto.serving.answers import Completion, Envelope, Spelling, costs, ended, ranked, usage
from stretto.serving.wanted import Wanted
from stretto.tokens.detokenize import TextStream
from stretto.tokens.replies import Reply, ReplyParser, ToolCall, marker_ids
from stretto.tokens.tokenizer import Tokenizer


class Speech:
    """One sample of a reply as it grows.

    Where markers are special tokens, which the engine's text leaves out, the text is made anew from the tokens.
    """

    def __init__(self, wanted: Wanted, tokenizer: Tokenizer, reveal: frozenset[int]) -> None:
        self._parser = ReplyParser(wanted.thinking, bool(wanted.tools), wanted.tools)
        self._single = wanted.single
        params = wanted.params
        self._stream = (
            TextStream(
                tokenizer,
                tuple(params.get("stop", ())),
                params.get("include_stop", False),
                min_tokens=params.get("min_tokens", 0),
                reveal=reveal,
            )
            if reveal
            else None
        )
        self.begun = False
        self.calls = 0
        """Told so far."""

    def push(self, event: Mapping[str, Any]) -> Reply:
        """Return what an event of the engine adds to the reply."""
        text, last = event["text"], event.get("completion") is not None
        if self._stream is not None:
            text = "".join(self._stream.push(token)[0] for token in event["token_ids"])
            text += self._stream.flush() if last else ""
        found = self._parser.push(text)
        if last:
            found.add(self._parser.finish())
        if self._single:
            del found.tool_calls[0 if self.calls else 1 :]
        self.calls += len(found.tool_calls)
        return found


class Chats:
    """Makes the answer of one request: whole, or piece by piece."""

    def __init__(
        self, wanted: Wanted, spelling: Spelling, tokenizer: Tokenizer, model: str, fingerprint: str, stream: bool
    ) -> None:
        kind = "chat.completion.chunk" if stream else "chat.completion"
        self.envelope = Envelope(kind, "chatcmpl", model, fingerprint)
        self._wanted, self._spelling, self._tokenizer = wanted, spelling, tokenizer
        self._reveal = marker_ids(tokenizer)
        self._speeches: dict[int, Speech] = {}

    def whole(self, done: Sequence[Completion]) -> dict[str, Any]:
        """Return the answer."""
        choices = [self._choice(index, completion) for index, completion in enumerate(done)]
        return self.envelope.whole(choices, usage(self._wanted.prompts, done), costs(done, self._wanted.seed))

    def piece(self, index: int, event: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return the fields that a step added to a choice, as JSON, and why it ended if it has."""
        speech = self._speeches.get(index)
        if speech is None:
            speech = self._speeches[index] = Speech(self._wanted, self._tokenizer, self._reveal)
        completion = event.get("completion")
        finish = None if completion is None else ended(completion)
        found = speech.push(event)
        fields = []
        if found.text or not speech.begun:
            fields.append(f'"content": {quoted(found.text)}')
        if not speech.begun:
            speech.begun = True
            fields.insert(0, '"role": "assistant"')
        if found.thinking:
            fields.append(f'"reasoning_content": {quoted(found.thinking)}')
        if found.tool_calls:
            numbered = enumerate(found.tool_calls, speech.calls - len(found.tool_calls))
            calls = json.dumps([{"index": place, **_call(call)} for place, call in numbered])
            fields.append(f'"tool_calls": {calls}')
        if finish == "stop" and speech.calls:
            finish = "tool_calls"
        logprobs = "null"
        if self._wanted.alternatives is not None:
            logprobs = json.dumps(self._logprobs(event["token_ids"], event.get("logprobs") or []))
        return f'"delta": {{{", ".join(fields)}}}, "logprobs": {logprobs}', finish

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        finish = ended(completion)
        speech = Speech(self._wanted, self._tokenizer, self._reveal)
        reply = speech.push({**completion, "completion": completion})
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.thinking:
            message["reasoning_content"] = reply.thinking
        if reply.tool_calls:
            message["tool_calls"] = [_call(call) for call in reply.tool_calls]
            message["content"] = reply.text.strip() or None
            finish = "tool_calls" if finish == "stop" else finish
        logprobs = None
        if self._wanted.alternatives is not None:
            logprobs = self._logprobs(completion["token_ids"], completion["logprobs"] or [])
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[int], places: Sequence[Mapping[int, float]]) -> dict[str, Any]:
        told = []
        for token, found in zip(tokens, places, strict=False):
            tops = [self._spelled(other, value) for other, value in ranked(found, self._wanted.alternatives or 0)]
            told.append({**self._spelled(token, found[token]), "top_logprobs": tops})
        return {"content": told, "refusal": None}

    def _spelled(self, token: int, value: float) -> dict[str, Any]:
        text, held = self._spelling.of(token)
        return {"token": text, "logprob": value, "bytes": held}


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
    }
