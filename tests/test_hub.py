"""Models of the hub: only what is needed is fetched, what breaks off goes on, and each failure says what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_server import Hub, Repository, serve
from huggingface_hub import save_torch_state_dict

from stretto.weights import Checkpoint, resolve
from stretto.weights.hub import HubModel, entry_of, parse

SMALL = {
    name: b'{"of": "%s"}' % name.encode()  # the cache keeps files of the same content once
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
} | {"chat_template.jinja": b"{{ messages }}", "config.json": b'{"model_type": "gpt2"}'}
OTHER = {
    **dict.fromkeys(["README.md", "adapter.json", "pytorch_model.bin", "consolidated.safetensors"], b"not wanted"),
    **dict.fromkeys(["model.fp16.safetensors", "model.onnx", "tf_model.h5", "model-q4.gguf"], b"not wanted"),
    **dict.fromkeys(["original/consolidated.00.pth", "onnx/model.safetensors"], b"not wanted"),
}
QUANTS = {f"tiny-{kind}.gguf": kind.encode() * 9 for kind in ("Q4_K_M", "Q4_K_S", "Q8_0")}
SINGLE = SMALL | {"model.safetensors": bytes(100_000)}
LARGE = bytes(range(250)) * 100_000
GATED = (403, {"X-Error-Code": "GatedRepo"})

ASK = """
import json, sys
from stretto.models.families import family_of
from stretto.weights import resolve
for name in sys.argv[1:]:
    try:
        found = {"path": str(resolve(name, accept=family_of))}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(found), flush=True)
"""


@dataclass
class Visit:
    """What came of a row of names, asked for by one process."""

    found: dict[str, dict[str, str]]
    stderr: str


def environ(home: Path, endpoint: str, **variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **variables}


def ask(home: Path, endpoint: str, *names: str, **variables: str) -> Visit:
    environment = environ(home, endpoint, **variables)
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return Visit(dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True)), done.stderr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in two files."""
    folder = tmp_path_factory.mktemp("whole")
    state = {name: torch.randn(64, 64) for name in ("a", "b", "c")}
    save_torch_state_dict(state, folder, max_shard_size="40KB")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="module")
def visited(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Visit, Path]]:
    """The server, what each repository came to, and the cache."""
    home = tmp_path_factory.mktemp("home")
    sharded = SMALL | {path.name: path.read_bytes() for path in whole.iterdir()}
    last = max(name for name in sharded if name.startswith("model-"))
    repositories = {
        "some/sharded": Repository(sharded | OTHER),
        "some/cut": Repository(SINGLE | {"model.safetensors": LARGE}, cut={"model.safetensors"}),
        "some/quants": Repository(QUANTS | {"mmproj-tiny.gguf": b"a", "README.md": b""}),
        "some/half": Repository(sharded, refused_files={last: GATED}),
        "some/gated": Repository(SINGLE, refused_files=dict.fromkeys(SINGLE, GATED)),
        "some/private": Repository(refused=(401, {})),
        "some/token": Repository(refused=(401, {"X-Error-Message": "Invalid credentials in Authorization header"})),
        "some/forbidden": Repository(refused=(403, {})),
        "some/broken": Repository(refused=(503, {})),
        "some/large": Repository(SINGLE, claimed={"model.safetensors": 10**18}),
        "some/pickle": Repository(SMALL | {"training_args.bin": b"", "pytorch_model.bin": b""}),
        "some/foreign": Repository(SINGLE | {"config.json": b'{"model_type": "mamba"}'}),
        "some/lacking": Repository({name: sharded[name] for name in sharded if name != last}),
    }
    with serve(repositories) as hub:
        names = [
            *repositories,
            "some/none",
            "some/sharded@v2",
            "some/quants:Q4_K_M",
            "some/quants:q8",
            "some/quants:Q4",
        ]
        yield hub, ask(home, hub.endpoint, *names, "some/quants:Q5", "some/cut:Q4", "no--name", "nameless"), home


def test_only_what_is_needed_is_fetched(visited: tuple[Hub, Visit, Path], whole: Path) -> None:
    hub, visit, _ = visited
    folder = Path(visit.found["some/sharded"]["path"])
    wanted = {*SMALL, *(path.name for path in whole.iterdir())}
    assert sorted(hub.files_of("some/sharded")) == sorted(wanted)
    assert {path.name for path in folder.iterdir()} == wanted
    assert Checkpoint(folder).fingerprint() == Checkpoint(whole).fingerprint()
    assert any(path.is_symlink() for path in folder.iterdir()) or sys.platform == "win32", "else links go untested"


def test_one_gguf_of_several_is_fetched(visited: tuple[Hub, Visit, Path]) -> None:
    hub, visit, _ = visited
    assert Path(visit.found["some/quants:Q4_K_M"]["path"]).read_bytes() == QUANTS["tiny-Q4_K_M.gguf"]
    assert Path(visit.found["some/quants:q8"]["path"]).name == "tiny-Q8_0.gguf"
    assert hub.files_of("some/quants") == ["tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"]


def test_a_broken_download_goes_on_where_it_broke(visited: tuple[Hub, Visit, Path]) -> None:
    hub, visit, _ = visited
    content = (Path(visit.found["some/cut"]["path"]) / "model.safetensors").read_bytes()
    assert content == LARGE
    ranges = [asked for method, _, file, asked in hub.requests if (method, file) == ("GET", "model.safetensors")]
    assert [asked for asked in ranges if asked] == ["bytes=10485760-"], "it goes on in steps of 10 MiB"


@pytest.mark.skipif(sys.platform == "win32", reason="sends the signal of Ctrl-C to one process")
def test_an_interrupted_download_ends_at_once_and_keeps_whole_files(whole: Path, tmp_path: Path) -> None:
    files = SMALL | {path.name: path.read_bytes() for path in whole.iterdir()}
    first, last = sorted(name for name in files if name.startswith("model-"))
    with serve({"some/slow": Repository(files, stalled={last})}) as hub:
        child = subprocess.Popen([sys.executable, "-c", ASK, "some/slow"], env=environ(tmp_path, hub.endpoint))
        while last not in hub.files_of("some/slow"):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) != 0
        found = ask(tmp_path, hub.endpoint, "some/slow").found["some/slow"]
    assert Checkpoint(found["path"]).fingerprint() == Checkpoint(whole).fingerprint()
    fetched = hub.files_of("some/slow")
    assert (fetched.count(first), fetched.count(last)) == (1, 2)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("some/none", "FileNotFoundError", r"does not exist, or is private; compare the spelling with http.*some/none"),
        ("some/private", "FileNotFoundError", "does not exist, or is private; .* log in with `hf auth login`"),
        ("some/sharded@v2", "FileNotFoundError", "has no revision 'v2', expected a branch, tag or commit"),
        ("some/gated", "PermissionError", "is gated: .* ask for it at http.*some/gated, then log in with"),
        ("some/half", "PermissionError", "is gated"),
        ("some/forbidden", "PermissionError", r"was refused \(403\); ask for it at"),
        ("some/broken", "ConnectionError", "answered 503 .* try again later; the cache holds nothing of it"),
        ("some/large", "OSError", "needs 1000000000.00 GB more on the disk of .* make room, or set HF_HOME"),
        ("some/pickle", "ValueError", "only as pytorch_model.bin, a pickle, which can run any code"),
        ("some/foreign", "ValueError", "model_type is 'mamba', expected one of llama, "),
        ("some/lacking", "ValueError", "lacks model-00002-of-00002.safetensors, without which it is incomplete"),
        ("some/quants", "ValueError", "holds several GGUF files; choose one as some/quants:FILE, .* tiny-Q4_K_M.gguf"),
        ("some/quants:Q4", "ValueError", "holds 2 GGUF files with 'Q4' in their names"),
        ("some/quants:Q5", "ValueError", "holds no GGUF files with 'Q5' in their names; .* tiny-Q8_0.gguf"),
        ("some/cut:Q4", "ValueError", "holds neither model.safetensors"),
        ("nameless", "FileNotFoundError", "not embedded .*stretto-tiny.* no folder .* answered 404"),
        ("no--name", "FileNotFoundError", "cannot be an id, expected owner/name"),
    ],
)
def test_each_failure_says_what_to_do(name: str, error: str, said: str, visited: tuple[Hub, Visit, Path]) -> None:
    found = visited[1].found[name]
    assert found["error"] == error, found
    assert re.search(said, found["message"]), found["message"]
    assert "\n" not in found["message"]


def test_a_token_that_is_not_valid_is_named(visited: tuple[Hub, Visit, Path], tmp_path: Path) -> None:
    found = ask(tmp_path, visited[0].endpoint, "some/token", "some/gated", HF_TOKEN="hf_expired").found
    assert found["some/token"]["error"] == found["some/gated"]["error"] == "PermissionError"
    assert re.search(r"token was not accepted \(401\).* renew it with `hf auth login`", found["some/token"]["message"])
    assert "then use a token that may read it" in found["some/gated"]["message"]


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*asked: Any, **options: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=1) for name in SINGLE])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *asked, **options: listed)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(
        OSError, match=r"cannot be kept in .* \(No space left on device\); make room there, or set HF_HOME"
    ):
        resolve("some/full")


def test_what_cannot_be_loaded_is_not_downloaded(visited: tuple[Hub, Visit, Path]) -> None:
    hub, _, _ = visited
    assert hub.files_of("some/pickle") == []
    assert hub.files_of("some/foreign") == ["config.json"]
    for name in ("some/large", "some/lacking"):
        assert not any(file.endswith(".safetensors") for file in hub.files_of(name))


def test_the_cache_serves_where_it_is_complete(visited: tuple[Hub, Visit, Path]) -> None:
    """With the hub forbidden, and with nobody at its address."""
    _, visit, home = visited
    names = ("some/sharded", "some/quants:Q4_K_M", "some/half", "some/gated", "some/none")
    offline = ask(home, "http://127.0.0.1:9", *names, HF_HUB_OFFLINE="1")
    refused = ask(home, "http://127.0.0.1:9", *names)
    for later, said in ((offline, "HF_HUB_OFFLINE is set"), (refused, r"connection to http://127.0.0.1:9 failed")):
        for name in names[:2]:
            assert later.found[name] == visit.found[name]
        for name, lacking in (
            ("some/half", "the cache lacks model-00002-of-00002.safetensors"),
            ("some/none", "the cache holds nothing of it"),
        ):
            assert later.found[name]["error"] == "ConnectionError"
            assert re.search(f"{said}.*; {lacking}", later.found[name]["message"]), later.found[name]
    assert "taken from the cache" in refused.stderr and "taken from the cache" not in offline.stderr


def test_progress_is_for_terminals(visited: tuple[Hub, Visit, Path], tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="there is no pseudo-terminal here")
    termios = pytest.importorskip("termios")
    hub, visit, _ = visited
    assert "%" not in visit.stderr and "Fetching" not in visit.stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = environ(tmp_path, hub.endpoint)
    command = [sys.executable, "-c", ASK, "some/quants:Q8_0"]
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True, timeout=300)
    os.close(theirs)
    shown = b""
    while piece := _read(ours):
        shown += piece
    assert b"Q8_0.gguf" in shown and b"100%" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # so ends a pseudo-terminal on Linux
        return b""


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt2", HubModel("gpt2")),
        ("a/b", HubModel("a/b")),
        ("a/b@v1.0", HubModel("a/b", "v1.0")),
        ("a/b:Q4_K_M", HubModel("a/b", None, "Q4_K_M")),
        ("a/b@refs/pr/3:sub/x.gguf", HubModel("a/b", "refs/pr/3", "sub/x.gguf")),
        ("", None),
        ("./a", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("a b", None),
        ("C:\\models\\a", None),
    ],
)
def test_ids_are_read(name: str, model: HubModel | None) -> None:
    assert parse(name) == model


@pytest.mark.parametrize(
    ("files", "asked", "entry"),
    [
        (["model.safetensors", "a.gguf"], None, "model.safetensors"),
        (["model.safetensors", "model.safetensors.index.json"], None, "model.safetensors.index.json"),
        (["a.gguf", "mmproj-a.gguf"], None, "a.gguf"),
        (["model.safetensors", "a.gguf"], "a.gguf", "a.gguf"),
        (["a.gguf", "aa.gguf"], "a.gguf", "a.gguf"),
        (["sub/a-Q4_0.gguf", "b-Q8_0.gguf"], "q4", "sub/a-Q4_0.gguf"),
        (["a-00001-of-00001.gguf"], None, "a-00001-of-00001.gguf"),
        (["a-00001-of-00003.gguf"], None, "one of several parts"),
        (["a-00001-of-00010.gguf", "a-00002-of-00010.gguf"], "00001", "one of several parts"),
        (["README.md"], None, "only: README.md"),
        ([], None, "only: nothing"),
    ],
)
def test_one_file_is_the_way_to_the_weights(files: list[str], asked: str | None, entry: Any) -> None:
    model = HubModel("a/b", None, asked)
    if " " in entry:
        with pytest.raises(ValueError, match=entry):
            entry_of(model, files)
    else:
        assert entry_of(model, files) == entry
