"""Ways to meet the messages of ``docs/troubleshooting.md``: what goes wrong, and what is then said, word for word.

Here those on models and their files; ``messages_of_use`` has the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gguf_files
import pytest
import torch
from hostile import config, healthy
from hostile_cases import CASES
from hostile_gguf import STRING, gguf, text
from hub_server import Repository, serve
from safetensors.torch import load_file, save_file
from test_gguf import SMALL, written
from test_hub import GATED, QUANTS, SINGLE, ask
from test_packed import AWQ, Case, awq, write
from test_packed import CASES as PACKED

from stretto import LLM
from stretto.models import footprint
from stretto.models.loader import load_model, open_source
from stretto.models.quantize import quantize
from stretto.weights import resolve

Provoke = Callable[[Path, pytest.MonkeyPatch], str]
PROVOKED: dict[str, Provoke] = {}
"""By the heading under which the page has the message."""


def meets(title: str) -> Callable[[Provoke], Provoke]:
    """Keep a way to meet the message under the heading ``title``."""

    def keep(provoke: Provoke) -> Provoke:
        assert title not in PROVOKED, title
        PROVOKED[title] = provoke
        return provoke

    return keep


def raised(does: Callable[[], object]) -> str:
    """Return what the exception says that ``does`` raises."""
    try:
        does()
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return str(error)
    raise AssertionError("nothing was said")


def warned(does: Callable[[], object]) -> str:
    """Return the one warning that ``does`` logs."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("stretto")
    logger.addHandler(handler)
    try:
        does()
    finally:
        logger.removeHandler(handler)
    (line,) = said
    return line


def hostile(name: str) -> Provoke:
    """Meet what a checkpoint of the hostile corpus is refused with."""

    def provoke(place: Path, patch: pytest.MonkeyPatch) -> str:
        healthy(place / "model")
        CASES[name].spoil(place / "model")
        return raised(lambda: LLM(str(place / "model"), threads=1, cache_tokens=64))

    return provoke


def changed(**changes: Any) -> Provoke:
    """Meet what a changed ``config.json`` is refused with."""

    def provoke(place: Path, patch: pytest.MonkeyPatch) -> str:
        healthy(place / "model")
        config(place / "model", **changes)
        return raised(lambda: load_model(place / "model"))

    return provoke


def retensored(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Provoke:
    """Meet what is said where ``change`` has been made to the tensors."""

    def provoke(place: Path, patch: pytest.MonkeyPatch) -> str:
        healthy(place / "model")
        path = place / "model" / "model.safetensors"
        save_file(change(load_file(path)), path)
        try:
            return warned(lambda: load_model(place / "model"))
        except ValueError as error:
            return str(error)

    return provoke


def made(path: Path) -> Path:
    path.touch()
    return path


# ---- finding a model ----

meets("Not found")(lambda place, patch: raised(lambda: resolve("./nowhere")))
meets("A file of another kind")(lambda place, patch: raised(lambda: resolve(made(place / "a.safetensors"))))
meets("No configuration")(hostile("config is missing"))
meets("Only a pickle")(hostile("weights are a pickle"))


@meets("No weights")
def no_weights(place: Path, patch: pytest.MonkeyPatch) -> str:
    healthy(place / "model")
    (place / "model" / "model.safetensors").unlink()
    return raised(lambda: load_model(place / "model"))


@meets("Several GGUF files in a folder")
def several_files(place: Path, patch: pytest.MonkeyPatch) -> str:
    for name in ("a.gguf", "b.gguf"):
        made(place / name)
    return raised(lambda: load_model(place))


# ---- the hub ----

HUB = {
    "No such repository": "some/none",
    "No such revision": "some/quants@v2",
    "Not an id": "no--name",
    "Gated": "some/gated",
    "Access refused": "some/forbidden",
    "The hub has trouble": "some/broken",
    "The disk is too small": "some/large",
    "A repository of pickles": "some/pickle",
    "Several GGUF files in a repository": "some/quants",
    "No such GGUF file": "some/quants:Q5",
    "One part of a GGUF file": "some/parts",
    "A repository without weights": "some/empty",
    "An incomplete repository": "some/lacking",
}
NOBODY = "http://127.0.0.1:9"


@cache
def visited() -> dict[str, str]:
    """Ask a hub for every name, then the same without one; return what was said about each, by heading."""
    home = Path(mkdtemp())
    repositories = {
        "some/quants": Repository(QUANTS),
        "some/gated": Repository(SINGLE, refused_files=dict.fromkeys(SINGLE, GATED)),
        "some/forbidden": Repository(refused=(403, {})),
        "some/token": Repository(refused=(401, {})),
        "some/broken": Repository(refused=(503, {})),
        "some/large": Repository(SINGLE, claimed={"model.safetensors": 10**18}),
        "some/pickle": Repository({"pytorch_model.bin": b""}),
        "some/parts": Repository({"a-00001-of-00003.gguf": b""}),
        "some/empty": Repository({"README.md": b""}),
        "some/lacking": Repository({"model.safetensors": b""}),
    }
    with serve(repositories) as hub:
        found = ask(home, hub.endpoint, *HUB.values(), "some/quants:Q8").found
        token = ask(home, hub.endpoint, "some/token", HF_TOKEN="hf_worn_out").found
    offline = ask(home, NOBODY, "some/token", HF_HUB_OFFLINE="1").found
    alone = ask(home, NOBODY, "some/token", "some/quants:Q8")
    said = {title: found[name]["message"] for title, name in HUB.items()}
    return said | {
        "The token is not accepted": token["some/token"]["message"],
        "Offline by wish": offline["some/token"]["message"],
        "No connection": alone.found["some/token"]["message"],
        "Served from the cache": alone.stderr.strip(),
    }


for heading in (*HUB, "The token is not accepted", "Offline by wish", "No connection", "Served from the cache"):
    meets(heading)(lambda place, patch, heading=heading: visited()[heading])


# ---- files ----

meets("Not a safetensors file")(hostile("weights are empty"))
meets("Cut off")(hostile("weights are cut off"))
meets("Too long")(hostile("weights hide bytes behind"))
meets("An unreadable header")(hostile("header is no json"))
meets("A missing part")(hostile("index names a missing file"))
meets("A link out of the folder")(hostile("weights are a link"))
meets("Not JSON")(hostile("config is cut off"))
meets("A damaged GGUF file")(hostile("gguf is cut off"))
meets("A GGUF file that was cut off")(hostile("gguf tensor beyond the file"))


@meets("A part of a GGUF file")
def part_of_gguf(place: Path, patch: pytest.MonkeyPatch) -> str:
    written(place / "a.gguf", split__count=3)
    return raised(lambda: load_model(place))


# ---- configuration and tensors ----

meets("An unknown family")(changed(model_type="mamba"))
meets("An unknown key")(changed(warp_factor=9))
meets("A value that is not implemented")(changed(hidden_act="softsign"))
meets("A missing value")(changed(hidden_size=None))
meets("A size beyond reason")(changed(num_hidden_layers=10**9))
meets("Missing tensors")(retensored(lambda found: {k: v for k, v in found.items() if "0.mlp.up" not in k}))
meets("Tensors left over")(retensored(lambda found: found | {"model.adapter.weight": torch.ones(2)}))
meets("A shape that does not fit")(retensored(lambda found: found | {"model.norm.weight": torch.ones(17)}))


@meets("An unknown GGUF architecture")
def unknown_architecture(place: Path, patch: pytest.MonkeyPatch) -> str:
    healthy(place / "model")
    gguf(place / "model", text("general.architecture") + STRING.to_bytes(4, "little") + text("mamba"), keys=1)
    return raised(lambda: load_model(place / "model"))


# ---- weights formats ----

meets("Widened from fp16")(retensored(lambda found: {name: each.half() for name, each in found.items()}))
meets("Stored in another precision")(retensored(lambda found: {k: v.to(torch.int8) for k, v in found.items()}))


@meets("Quantized, kept")
def kept(place: Path, patch: pytest.MonkeyPatch) -> str:
    write(place / "packed", PACKED["compressed"])
    return warned(lambda: load_model(place / "packed"))


@meets("Quantized, widened")
def widened(place: Path, patch: pytest.MonkeyPatch) -> str:
    gguf_files.write_gguf(place / "a.gguf", "llama", gguf_files.Kind.Q8_0, **SMALL)
    return warned(lambda: load_model(place / "a.gguf"))


@meets("An unknown quantization")
def unknown_quantization(place: Path, patch: pytest.MonkeyPatch) -> str:
    write(place / "packed", Case(awq(64), AWQ | {"quant_method": "bitsandbytes"}, None))
    return raised(lambda: load_model(place / "packed"))


@meets("A layout that is not read")
def unknown_layout(place: Path, patch: pytest.MonkeyPatch) -> str:
    write(place / "packed", Case(awq(64), AWQ | {"version": "gemv"}, None))
    return raised(lambda: load_model(place / "packed"))


meets("An unknown weights format")(lambda place, patch: raised(lambda: LLM("stretto-tiny", weights="int9")))
meets("An unknown dtype")(lambda place, patch: raised(lambda: LLM("stretto-tiny", dtype="fp8")))


@meets("Another format than the stored one")
def another_format(place: Path, patch: pytest.MonkeyPatch) -> str:
    quantize("stretto-tiny", place / "int8", "int8")
    return raised(lambda: load_model(place / "int8", weights="int4"))


@meets("Quantized already")
def quantized_already(place: Path, patch: pytest.MonkeyPatch) -> str:
    quantize("stretto-tiny", place / "int8", "int8")
    return raised(lambda: quantize(place / "int8", place / "again", "int8"))


@meets("The folder is taken")
def taken_folder(place: Path, patch: pytest.MonkeyPatch) -> str:
    made(place / "notes.txt")
    return raised(lambda: quantize("stretto-tiny", place, "int8"))


@meets("Weights that are no numbers")
def no_numbers(place: Path, patch: pytest.MonkeyPatch) -> str:
    healthy(place / "model")
    path = place / "model" / "model.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.full((40, 16), float("nan"))}, path)
    return raised(lambda: load_model(place / "model", weights="int8"))


# ---- memory ----


def short_of_memory(share: float) -> Provoke:
    """Meet what is said where so large a share is free of what the model needs as it is stored."""

    def provoke(place: Path, patch: pytest.MonkeyPatch) -> str:
        source = open_source("stretto-tiny", "auto")
        form = footprint.FORMATS["bf16"]
        needed = footprint.footprint(source.spec, form, form, source.own()).peak
        patch.setattr(footprint, "free_memory", lambda: int(share * needed))
        return raised(lambda: LLM("stretto-tiny"))

    return provoke


meets("It fits in another format")(short_of_memory(0.8))
meets("It does not fit")(short_of_memory(0.01))
