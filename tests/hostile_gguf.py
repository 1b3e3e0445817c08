"""GGUF files that mean harm: more cases of ``hostile``."""

from __future__ import annotations

import struct
from pathlib import Path

from hostile import case

HUGE = 1 << 60
STRING, ARRAY = 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(folder: Path, content: bytes, tensors: int = 0, keys: int = 0) -> None:
    """Put a GGUF file of version 3 in the place of the safetensors."""
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + content)


@case("not a GGUF file that can be read")
def gguf_is_empty(folder: Path) -> None:
    gguf(folder, b"")
    (folder / "model.gguf").write_bytes(b"")


@case("not a GGUF file that can be read")
def gguf_is_cut_off(folder: Path) -> None:
    gguf(folder, text("general.architecture")[:-3], keys=1)


@case("not a GGUF file that can be read .*1152921504606846976 tensors")
def gguf_of_many_tensors(folder: Path) -> None:
    gguf(folder, b"", tensors=HUGE)


@case("not a GGUF file that can be read .*a text of 1152921504606846976 bytes")
def gguf_of_a_long_text(folder: Path) -> None:
    gguf(folder, text("general.name") + struct.pack("<IQ", STRING, HUGE), keys=1)


@case("not a GGUF file that can be read .*an array of 1152921504606846976 entries")
def gguf_of_a_long_array(folder: Path) -> None:
    gguf(folder, text("general.list") + struct.pack("<IIQ", ARRAY, 4, HUGE), keys=1)


@case("not a GGUF file that can be read .*an array of 4000000 entries")
def gguf_of_4_million_tokens(folder: Path) -> None:
    model = text("tokenizer.ggml.model") + struct.pack("<I", STRING) + text("gpt2")
    tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, 4_000_000) + bytes(32_000_000)
    split = text("tokenizer.ggml.pre") + struct.pack("<I", STRING) + text("qwen2")
    gguf(folder, model + split + tokens, keys=3)


@case("not a GGUF file that can be read .*unknown kind 9")
def gguf_of_nested_arrays(folder: Path) -> None:
    gguf(folder, text("general.list") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100_000, keys=1)


@case(r"is cut off inside token_embd\.weight")
def gguf_tensor_beyond_the_file(folder: Path) -> None:
    architecture = text("general.architecture") + struct.pack("<I", STRING) + text("llama")
    gguf(folder, architecture + text("token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0), 1, 1)


@case(r"is cut off inside token_embd\.weight")
def gguf_tensor_far_away(folder: Path) -> None:
    architecture = text("general.architecture") + struct.pack("<I", STRING) + text("llama")
    gguf(folder, architecture + text("token_embd.weight") + struct.pack("<IQQIQ", 2, 16, 16, 0, 1 << 63), 1, 1)
