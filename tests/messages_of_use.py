"""Ways to meet the messages of ``docs/troubleshooting.md`` on text, parameters, devices and commands."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import healthy
from llguidance import LLParserLimits
from messages import PROVOKED, Provoke, hostile, made, meets, raised, warned
from small_tokenizers import byte_level
from test_gguf_tokens import byte_level as write_tokens

from stretto import LLM, SamplingParams
from stretto.cli.bench import serve as load
from stretto.cli.chat import Conversation, Wrong, obey
from stretto.cli.main import main
from stretto.core import grammar
from stretto.engine.llm import pick_device
from stretto.kernels import native
from stretto.serving.keys import read_keys
from stretto.serving.records import read_record
from stretto.serving.server import listen
from stretto.serving.settings import Settings
from stretto.tokens import Tokenizer
from stretto.tokens.chat import render
from stretto.training.corpus import read_documents

__all__ = ["PROVOKED"]

HELLO = [{"role": "user", "content": "Hello"}]


@cache
def tiny() -> LLM:
    """Return the embedded model with a small cache."""
    return LLM("stretto-tiny", cache_tokens=64)


def mute(folder: Path) -> LLM:
    """Return a model without a tokenizer."""
    healthy(folder)
    (folder / "tokenizer.json").unlink()
    return LLM(str(folder), cache_tokens=64)


def asking(prompt: Any = "Once", **params: Any) -> Provoke:
    """Meet what a request is refused with."""
    return lambda place, patch: raised(lambda: tiny().generate(prompt, SamplingParams.from_dict(params)))


def refusing(ids: list[int], **params: Any) -> Provoke:
    """Meet the error of one prompt among several."""
    return lambda place, patch: str(tiny().generate([ids], SamplingParams.from_dict(params))[0].error)


def rendering(template: str, **limits: Any) -> Provoke:
    """Meet what a chat template ends with."""
    return lambda place, patch: raised(lambda: render(template, HELLO, bos_token="", eos_token="", **limits))


def running(*arguments: str, **files: str) -> Provoke:
    """Meet what a command writes to standard error, without the name before it; ``files`` are in its folder."""

    def provoke(place: Path, patch: pytest.MonkeyPatch) -> str:
        for name, content in files.items():
            (place / name).write_text(content)
        patch.chdir(place)
        patch.setattr(sys, "argv", ["stretto", *arguments])
        patch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        with redirect_stderr(io.StringIO()) as written, pytest.raises(SystemExit):
            main()
        return written.getvalue().splitlines()[-1].removeprefix("Error: ").removeprefix("stretto: ")

    return provoke


# ---- text and templates ----

meets("An unreadable tokenizer")(hostile("tokenizer is cut off"))
meets("An unreadable SentencePiece model")(hostile("sentencepiece is cut off"))
meets("A tokenizer that explodes")(hostile("tokenizer explodes text"))
meets("A chat template that is no Jinja")(rendering("{% for %}"))
meets("The template refuses the messages")(rendering("{{ raise_exception('roles must alternate') }}"))
meets("The template fails")(rendering("{{ messages[0].content + 1 }}"))
meets("The template writes too much")(rendering("{{ 'hello' * 100 }}", max_characters=100))
meets("The template takes too long")(
    rendering("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", max_seconds=0.05)
)
meets("The template builds too much")(rendering("{{ ('0123456789' * 40000000) | length }}"))
meets("No chat template")(lambda place, patch: raised(lambda: byte_level().encode_chat(HELLO)))
meets("Half a character")(lambda place, patch: raised(lambda: byte_level().encode("ab\ud83e")))
meets("Messages in another form")(lambda place, patch: raised(lambda: tiny().chat("Hello")))
meets("Text for a model without a tokenizer")(
    lambda place, patch: raised(lambda: mute(place / "model").generate("Once"))
)
meets("Talking without a tokenizer")(lambda place, patch: raised(lambda: mute(place / "model").chat(HELLO)))
meets("Stop texts without a tokenizer")(
    lambda place, patch: mute(place / "model").generate([[1]], SamplingParams(stop=("x",)))[0].error or ""
)


@meets("An older kind of tokenizer")
def older_tokenizer(place: Path, patch: pytest.MonkeyPatch) -> str:
    made(place / "vocab.txt")
    return raised(lambda: Tokenizer.load(place))


@meets("The package for it is missing")
def no_sentencepiece(place: Path, patch: pytest.MonkeyPatch) -> str:
    made(place / "tokenizer.model")
    patch.setitem(sys.modules, "sentencepiece", None)
    return raised(lambda: Tokenizer.load(place))


@meets("An unknown way to cut text")
def unknown_pre(place: Path, patch: pytest.MonkeyPatch) -> str:
    return raised(lambda: Tokenizer.load(write_tokens(place / "a.gguf", "other")))


@meets("An unknown GGUF tokenizer")
def unknown_gguf_tokenizer(place: Path, patch: pytest.MonkeyPatch) -> str:
    return raised(lambda: Tokenizer.load(write_tokens(place / "a.gguf", model="t5")))


# ---- prompts and parameters ----

meets("A parameter beyond its limits")(asking(temperature=-1))
meets("A misspelt parameter")(asking(temprature=0.5))
meets("More at least than at most")(asking(min_tokens=20, max_tokens=10))
meets("Nothing is left to say")(refusing([5], max_tokens=4, banned=[[token] for token in range(4096)]))
meets("A form that cannot be met")(asking(max_tokens=4, mask=["regex", {"pattern": "a("}]))
meets("A form for a model without a tokenizer")(
    lambda place, patch: mute(place / "m").generate([[1]], SamplingParams(mask=("json_object", {})))[0].error or ""
)


@meets("A form that grows beyond its limits")
def beyond(place: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(grammar, "LIMITS", LLParserLimits(max_lexer_states=50, verbose_errors=False))
    return refusing([5], max_tokens=40, mask=["regex", {"pattern": "[xy](ab){500}"}])(place, patch)


meets("An empty prompt")(refusing([]))
meets("A wrong token id")(refusing([5, 5000]))
meets("A prompt longer than the context")(refusing([5] * 2048))
meets("More than the cache holds")(asking(max_tokens=200))
meets("One prompt of token ids")(lambda place, patch: raised(lambda: tiny().generate([5, 6])))
meets("Unequal lists")(lambda place, patch: raised(lambda: tiny().generate(["a"], [SamplingParams()] * 2)))
meets("Parameters as a dictionary")(lambda place, patch: raised(lambda: tiny().generate("a", {"seed": 1})))
meets("An unknown method")(lambda place, patch: raised(lambda: tiny().generate("a", method="plane")))
meets("A wrong number of something")(lambda place, patch: raised(lambda: LLM("stretto-tiny", threads=0)))


# ---- devices and the native library ----


def child(code: str, **variables: str) -> str:
    """Return what a new interpreter writes to standard error."""
    environment = os.environ | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    return done.stderr


@meets("The native library is missing")
def no_library(place: Path, patch: pytest.MonkeyPatch) -> str:
    code = "import sys; sys.modules['stretto.kernels._native'] = None; from stretto.kernels import native; "
    return child(code + "native.notice_once()", XDG_CACHE_HOME=str(place), LOCALAPPDATA=str(place))


@meets("A native library of another version")
def old_library(place: Path, patch: pytest.MonkeyPatch) -> str:
    code = (
        "import sys, types; sys.modules['stretto.kernels._native'] = types.SimpleNamespace(abi_version=lambda: 1); "
        "from stretto.kernels import native; sys.stderr.write(native.reason)"
    )
    return child(code)


@meets("A path that this machine does not run")
def no_such_path(place: Path, patch: pytest.MonkeyPatch) -> str:
    if native.load() is None:
        pytest.skip(f"no native library here: {native.reason}")
    said = child("from stretto import LLM; LLM('stretto-tiny')", STRETTO_ISA="amx")
    return said.splitlines()[-1].removeprefix("ValueError: ")


@meets("No GPU")
def no_gpu(place: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    return raised(lambda: LLM("stretto-tiny", device="cuda"))


@meets("A GPU, without kernels of its own")
def slow_gpu(place: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    return warned(lambda: pick_device("cuda"))


meets("An unknown device")(lambda place, patch: raised(lambda: pick_device("tpu")))


# ---- commands ----

meets("A demonstration model")(running("generate", "Once", "--max-tokens", "1"))
meets("Several forms at once")(running("generate", "Once", "--regex", "a", "--json-schema", "{}"))
meets("A form that cannot be read")(running("generate", "Once", "--grammar", "none.lark"))
meets("Half of a batch")(running("generate", "--file", "prompts.jsonl"))
meets("No prompt")(running("generate"))
meets("A line that is not JSON")(
    running("generate", "--file", "p.jsonl", "--out", "o.jsonl", **{"p.jsonl": '{"prompt": "a"}\n{\n'})
)
meets("A line that is no prompt")(
    running("generate", "--file", "p.jsonl", "--out", "o.jsonl", **{"p.jsonl": '{"promt": "a"}\n'})
)
meets("The file of results holds something else")(
    running("generate", "--file", "p.jsonl", "--out", "o.jsonl", **{"p.jsonl": "", "o.jsonl": "Roses\nare red\n"})
)


def commanding(line: str) -> Provoke:
    """Meet what a conversation answers to a command."""

    def provoke(place: Path, patch: pytest.MonkeyPatch) -> str:
        with pytest.raises(Wrong) as wrong:
            obey(Conversation(tiny(), {}, "plain"), line)
        return str(wrong.value)

    return provoke


meets("No such command in a chat")(commanding("/nonsense"))
meets("Nothing to save to")(commanding("/save"))
meets("The conversation cannot be saved")(commanding("/save no/such/folder/talk.json"))


@meets("A line of another kind of file")
def no_document(place: Path, patch: pytest.MonkeyPatch) -> str:
    (place / "texts.jsonl").write_text('{"content": "a"}\n')
    return raised(lambda: read_documents(place / "texts.jsonl"))


# ---- the server ----

meets("A server without keys")(running("serve", "--host", "0.0.0.0"))
meets("A short key")(lambda place, patch: raised(lambda: read_keys(written(place / "keys", "me:secret\n"))))
meets("A file without keys")(lambda place, patch: raised(lambda: read_keys(written(place / "keys", "# none\n"))))
meets("No such record")(lambda place, patch: raised(lambda: read_record(place, "cmpl-1")))


@meets("A port in use")
def port_in_use(place: Path, patch: pytest.MonkeyPatch) -> str:
    with listen(Settings("stretto-tiny", port=0)) as taken:
        return raised(lambda: listen(Settings("stretto-tiny", port=taken.getsockname()[1])))


@meets("Nobody answers")
def nobody_answers(place: Path, patch: pytest.MonkeyPatch) -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return raised(lambda: load(f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
