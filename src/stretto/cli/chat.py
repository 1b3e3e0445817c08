"""``stretto chat``: a conversation in the terminal, or with a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stretto.cli.generate import checked, demonstration, summary
from stretto.cli.progress import EverySecond
from stretto.core.params import SamplingParams
from stretto.engine.completion import Completion
from stretto.engine.llm import LLM
from stretto.tokens.replies import ReplyStream
from stretto.weights.files import write_whole

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Wrong(Exception):
    """A command that cannot be followed; its text says why."""


class Leave(Exception):
    """The person wants to leave."""


@dataclass(slots=True)
class Conversation:
    """What was said so far, and how the next answer is made."""

    llm: LLM
    params: dict[str, Any]
    method: str
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    stats: bool = False
    last: Completion | None = None

    def whole(self) -> list[dict[str, Any]]:
        """Return the messages, the system's first."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.messages

    def answer(self, text: str, show: Callable[[str, bool], None]) -> None:
        """Say ``text``; pass the answer on as it is written (thinking or not) and keep it, cut by Ctrl-C or whole.

        Raises ``ValueError`` when the template or the engine refuses the conversation, which then stays as it was.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self.llm.encode_chat(self.whole())
        except ValueError:
            self.messages.pop()
            raise
        assert self.llm.tokenizer is not None
        params, said, self.last = SamplingParams.from_dict(self.params), "", None
        reply = ReplyStream(self.llm.tokenizer, prompt, stop=params.stop, min_tokens=params.min_tokens)
        try:
            for piece in self.llm.stream(prompt, params, method=self.method):
                found = reply.push(piece.token_ids)
                show(found.thinking, True)
                show(found.text, False)
                said += found.text
                self.last = piece.completion or self.last
        except KeyboardInterrupt:
            pass
        rest = reply.finish()
        show(rest.thinking, True)
        show(rest.text, False)
        self.messages.append({"role": "assistant", "content": (said + rest.text).strip()})
        if self.last is not None and self.last.finish_reason == "error":
            del self.messages[-2:]
            raise ValueError(self.last.error)


# ---- commands ----


def _method(chat: Conversation, name: str) -> str:
    if name:
        try:
            chat.method = chat.llm.method(name).name
        except ValueError as error:
            raise Wrong(str(error)) from None
    return f"method {chat.method}"


def _system(chat: Conversation, text: str) -> str:
    chat.system = text or None
    return "system message set" if text else "no system message"


def _save(chat: Conversation, name: str) -> str:
    if not name:
        raise Wrong("/save needs the name of a file: /save talk.json")
    path = Path(name).expanduser()
    try:
        write_whole(path, json.dumps(chat.whole(), ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise Wrong(f"{path} cannot be written: {error.strerror}; name another file") from None
    return f"{len(chat.messages)} messages written to {path}"


def _stats(chat: Conversation, _: str) -> str:
    chat.stats = not chat.stats
    return f"statistics {'on' if chat.stats else 'off'}" + (f"\n{summary(chat.last, chat.llm)}" if chat.last else "")


def _reset(chat: Conversation, _: str) -> str:
    chat.messages.clear()
    return "a new conversation"


def _help(chat: Conversation, _: str) -> str:
    return "\n".join(f"{name:8} {text}" for name, (_, text) in COMMANDS.items())


def _leave(chat: Conversation, _: str) -> str:
    raise Leave


COMMANDS: dict[str, tuple[Callable[[Conversation, str], str], str]] = {
    "/method": (_method, "NAME: decode by this method; without a name, say which"),
    "/system": (_system, "TEXT: what the model is told beforehand; without a text, nothing"),
    "/save": (_save, "FILE: write the conversation as JSON"),
    "/stats": (_stats, "show what each answer took, or stop to"),
    "/reset": (_reset, "begin anew; the system message stays"),
    "/help": (_help, "this list"),
    "/exit": (_leave, "leave, as Ctrl-D does"),
}


def obey(chat: Conversation, line: str) -> str:
    """Follow a command, a line that begins with a slash; return what to tell. Raises ``Wrong`` and ``Leave``."""
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise Wrong(f"{name} is no command: expected one of {', '.join(COMMANDS)}")
    return COMMANDS[name][0](chat, rest.strip())


# ---- reading lines ----


def typed() -> Iterator[str]:
    """Yield what a person types: lines are edited, remembered, and may be pasted several at once. Ctrl-D ends."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    history: History = InMemoryHistory()
    try:
        folder = _state()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chat-history").touch(mode=0o600)
        history = FileHistory(str(folder / "chat-history"))
    except OSError:
        pass  # nothing can be remembered here
    session: PromptSession[str] = PromptSession(history=history)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue  # an empty line: Ctrl-C drops what was typed
        except EOFError:
            return


def _state() -> Path:
    """Return the folder for what the command line remembers."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "stretto"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "stretto"


def run(
    model: str,
    *,
    draft: str | None,
    method: str,
    weights: str,
    draft_weights: str,
    threads: int | None,
    device: str,
    params: dict[str, Any],
    system: str | None,
    stats: bool,
) -> None:
    """Talk until the input ends. Through a pipe every line is a message, and only the answers are written."""
    checked(params, method, device)
    llm = LLM(
        model,
        draft=draft,
        draft_weights=draft_weights,
        method=method,
        weights=weights,
        threads=threads,
        device=device,
        progress=EverySecond(),
    )
    llm.encode_chat([{"role": "user", "content": "Hello"}])  # a model that cannot talk says so now
    demonstration(model)
    chat = Conversation(llm, params, llm.default_method, system, stats=stats)
    screen = sys.stdin.isatty() and sys.stdout.isatty()
    if screen:
        print(f"{DIM}{model}. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.{PLAIN}")
    for line in typed() if screen else (line.rstrip("\r\n") for line in sys.stdin):
        if not line.strip():
            continue
        try:
            _turn(chat, line.strip(), screen)
        except Leave:
            return
        except (Wrong, ValueError) as error:
            print(f"stretto: {error}", file=sys.stderr, flush=True)


def _turn(chat: Conversation, line: str, screen: bool) -> None:
    if line.startswith("/"):
        told = obey(chat, line)
        print(f"{DIM}{told}{PLAIN}" if screen else told, file=sys.stdout if screen else sys.stderr, flush=True)
        return

    def show(text: str, thinking: bool) -> None:
        if text and (screen or not thinking):
            print(f"{DIM}{text}{PLAIN}" if thinking else text, end="", flush=True)

    chat.answer(line, show)
    print(flush=True)
    if chat.stats and chat.last is not None:
        print(summary(chat.last, chat.llm), file=sys.stderr, flush=True)
