"""The engine's side of the border: plain dictionaries in, plain dictionaries out.

In: ``{"op": "submit", "id", "prompt" | "messages", "tools", "reply", "params": {...}, "method", "resume"}``,
``{"op": "abort", "id", "reason"}``, ``{"op": "stop"}``. Out: ``{"id", "index", "text", "token_ids"}`` per step and
sample, with ``"logprobs"`` of each token where they were asked for and ``"prompt_logprobs"`` with the first token of
all samples, the last one of a sample with ``"completion"``, which does not tell the prompt's again; ``{"id", "error"}``
for a request that was refused.

``resume`` lists ``[index, token_ids, logprobs]`` of the samples that go on where another engine was lost: what they had
written is not told again. ``reply`` asks for the completion's ``reply`` where the prompt is a rendered conversation;
``messages`` implies it. ``reason`` is the finish reason that an abort gives, ``abort`` by default.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from stretto.core.params import SamplingParams
from stretto.core.request import Delta, Request
from stretto.engine.completion import complete, places_of_prompt, reply_of
from stretto.engine.intake import Written
from stretto.engine.llm import LLM

Message = dict[str, Any]


class Inbox(Protocol):
    """What ``queue.Queue`` and ``queue.SimpleQueue`` share."""

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """Return the next message; raise ``queue.Empty`` when there is none."""
        ...

    def put(self, item: Message) -> None:
        """Add a message behind the others."""
        ...


class Host:
    """Runs one ``LLM`` for a client on the other side of two queues."""

    def __init__(self, llm: LLM, send: Callable[[Message], None]) -> None:
        self.llm, self.send = llm, send
        self._origin: dict[int, tuple[Message, Request]] = {}
        self._numbers: dict[Any, list[int]] = {}
        self._untold: set[Any] = set()
        """The submissions whose prompt's log-probabilities go out with their first token."""

    def serve(self, inbox: Inbox) -> None:
        """Handle messages and step until told to stop."""
        while True:
            try:
                message = inbox.get(block=not self.llm.engine.busy)
            except queue.Empty:
                self.step()
                continue
            if message.get("op") == "stop":
                return
            self.handle(message)

    def handle(self, message: Message) -> None:
        """Take one ``submit`` or ``abort``; whatever is wrong with it is answered, not raised."""
        name = message.get("id")
        try:
            if message.get("op") == "abort":
                for number in self._numbers.get(name, []):
                    self.llm.engine.abort(number, message.get("reason", "abort"))
            elif message.get("op") == "submit":
                self._submit(name, message)
            else:
                raise ValueError(f"op={message.get('op')!r}: expected 'submit', 'abort' or 'stop'")
        except Exception as error:
            self.send({"id": name, "error": str(error)})

    def step(self) -> None:
        """Run one step and send what it added."""
        self.tell(self.llm.engine.step())

    def tell(self, deltas: Sequence[Delta]) -> None:
        """Send what a step added."""
        for delta in deltas:
            if delta.request in self._origin:
                self._tell(delta)

    def _submit(self, name: Any, message: Message) -> None:
        if name in self._numbers:
            raise ValueError(f"id={name!r} is in use: give every request its own")
        params = SamplingParams.from_dict(message.get("params") or {})
        prompt = (
            self.llm.encode_chat(message["messages"], message.get("tools"))
            if "messages" in message
            else message["prompt"]
        )
        resume = message.get("resume")
        written = None if resume is None else {index: Written(ids, logprobs) for index, ids, logprobs in resume}
        requests = self.llm.submit(prompt, params, message.get("method"), written)
        self._numbers[name] = [request.id for request in requests]
        self._origin.update({request.id: (message, request) for request in requests})
        if params.prompt_logprobs is not None:
            self._untold.add(name)

    def _tell(self, delta: Delta) -> None:
        message, request = self._origin[delta.request]
        name = message.get("id")
        event: Message = {"id": name, "index": request.sample, "text": delta.text, "token_ids": list(delta.tokens)}
        if request.params.logprobs is not None:
            event["logprobs"] = request.logprobs[len(request.logprobs) - len(delta.tokens) :]
        if delta.tokens and name in self._untold:
            self._untold.remove(name)
            event["prompt_logprobs"] = places_of_prompt(request)
        if delta.finish is not None:
            fidelity = self.llm.engine.methods[request.method].facts.fidelity
            done = complete(request, self.llm.fingerprint, fidelity, places=name in self._untold)
            if "messages" in message or message.get("reply"):
                done.reply = reply_of(request, self.llm.tokenizer, message.get("tools"))
            event["completion"] = done.to_dict()
            del self._origin[delta.request]
            self._numbers[name].remove(delta.request)
            if not self._numbers[name]:
                del self._numbers[name]
                self._untold.discard(name)
        self.send(event)
