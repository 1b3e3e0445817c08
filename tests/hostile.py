"""Checkpoints that mean harm: each case spoils a healthy one, and says what a person must be told about it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1_000_000_000
DATA = 20_800
"""Bytes of the healthy checkpoint's tensors."""
Header = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """``spoil`` changes a healthy checkpoint; ``said`` is a pattern of the refusal; ``does`` what is tried."""

    spoil: Callable[[Path], None]
    said: str
    does: str


CASES: dict[str, Case] = {}


def case(said: str, does: str = "load") -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[spoil.__name__.replace("_", " ")] = Case(spoil, said, does)
        return spoil

    return keep


CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "tie_word_embeddings": False, "hidden_act": "silu", "eos_token_id": None,
}  # fmt: skip
LAYER = {
    "input_layernorm": (16,), "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "post_attention_layernorm": (16,), "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
}  # fmt: skip


def healthy(folder: Path) -> None:
    """Write a Llama of two layers with a tokenizer of forty tokens and a chat template."""
    folder.mkdir(parents=True)
    config(folder)
    layers = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
    shapes = {"model.embed_tokens": (40, 16), **layers, "model.norm": (16,), "lm_head": (40, 16)}
    header: Header = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[f"{name}.weight"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    shard(folder, header)
    letters = {letter: place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz .,:!?\n<>|/0123")}
    dump(folder / "tokenizer.json", {"version": "1.0", "model": {"type": "BPE", "vocab": letters, "merges": []}})
    dump(folder / "tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"})


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def config(folder: Path, **changes: Any) -> None:
    dump(folder / "config.json", CONFIG | changes)


def shard(folder: Path, header: Header | bytes, data: int = DATA, length: int | None = None) -> None:
    """Write ``header`` and ``data`` zeros, which take no room on the disk; ``length`` is what the file claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + data)


def header_of(folder: Path) -> Header:
    content = (folder / "model.safetensors").read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def spoil_tensor(folder: Path, **changes: Any) -> None:
    """Change what the header says about the second tensor of the file."""
    header = header_of(folder)
    header["model.layers.0.self_attn.q_proj.weight"].update(changes)
    shard(folder, header)


def index(folder: Path, file: Any) -> None:
    dump(folder / "model.safetensors.index.json", {"weight_map": dict.fromkeys(header_of(folder), file)})


def link(path: Path, target: str | Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# Paths


@case(r"names the file '\.\./secret\.safetensors'")
def index_climbs_out(folder: Path) -> None:
    index(folder, "../secret.safetensors")


@case(r"names the file '/etc/secret\.safetensors'")
def index_is_absolute(folder: Path) -> None:
    index(folder, "/etc/secret.safetensors")


@case("names the file 'C:")
def index_names_a_drive(folder: Path) -> None:
    index(folder, "C:\\secret.safetensors")


@case("names the file '7'")
def index_names_a_number(folder: Path) -> None:
    index(folder, 7)


@case("model-7.safetensors is missing")
def index_names_a_missing_file(folder: Path) -> None:
    index(folder, "model-7.safetensors")


@case("lacks the tensor")
def index_names_a_missing_tensor(folder: Path) -> None:
    places = dict.fromkeys([*header_of(folder), "more"], "model.safetensors")
    dump(folder / "model.safetensors.index.json", {"weight_map": places})


@case("is a link to .*secret.safetensors, which leaves the folder")
def weights_are_a_link(folder: Path) -> None:
    secret = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    link(folder / "model.safetensors", secret)


@case("is a link to .*secret.txt, which leaves the folder")
def tokenizer_is_a_link(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("{}")
    link(folder / "tokenizer_config.json", "../secret.txt")


@case("is a link to /dev/zero, which leaves the folder")
def weights_are_a_device(folder: Path) -> None:
    link(folder / "model.safetensors", "/dev/zero")


# Tensors


@case("not a complete safetensors file")
def weights_are_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@case("is cut off at byte")
def weights_are_cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@case("goes on for 100 bytes")
def weights_hide_bytes_behind(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(100))


@case("not a complete safetensors file")
def header_exceeds_the_file(folder: Path) -> None:
    shard(folder, b"{}", length=1 << 63)


@case("header of 1000000000 bytes")
def header_of_a_gigabyte(folder: Path) -> None:
    shard(folder, b"{}", data=2 * GB, length=GB)


@case("header that cannot be read")
def header_is_no_json(folder: Path) -> None:
    shard(folder, b"\x80\x02}q\x00.")


@case("nested too deeply")
def header_is_nested(folder: Path) -> None:
    shard(folder, b'{"a":' + b"[" * 1_000_000)


@case("stands there twice")
def header_names_a_tensor_twice(folder: Path) -> None:
    text = json.dumps(header_of(folder))
    shard(folder, text.replace("layers.1.", "layers.0.").encode())


def many_tensors(folder: Path, count: int) -> None:
    entries = ",".join(f'"{i:06}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    shard(folder, f"{{{entries}, {json.dumps(header_of(folder))[1:]}".encode())


@case("which no part of its config.json calls for")
def header_of_90000_tensors(folder: Path) -> None:
    many_tensors(folder, 90_000)


@case("holds more than 100000 tensors")
def header_of_400000_tensors(folder: Path) -> None:
    many_tensors(folder, 400_000)


@case("headers of over 50000000 bytes in all")
def header_in_many_files(folder: Path) -> None:
    shard(folder, b"{}" + b" " * 20_000_000, data=0)
    names = [f"model-{i}.safetensors" for i in range(50)]
    for name in names:
        os.link(folder / "model.safetensors", folder / name)
    dump(folder / "model.safetensors.index.json", {"weight_map": {name: name for name in names}})


@case("begins inside the tensor before it")
def tensors_overlap(folder: Path) -> None:
    header = header_of(folder)
    first, second = list(header)[2:4]
    spoil = header[second]["data_offsets"], header[first]["data_offsets"]
    header[second]["data_offsets"] = [spoil[1][0] + 4, spoil[1][0] + 4 + spoil[0][1] - spoil[0][0]]
    shard(folder, header)


@case("leaves bytes before it unused")
def tensors_leave_a_hole(folder: Path) -> None:
    header = header_of(folder)
    del header["model.layers.0.input_layernorm.weight"]
    shard(folder, header)


@case("is cut off at byte")
def tensor_beyond_the_file(folder: Path) -> None:
    header = header_of(folder)
    end = header["lm_head.weight"]["data_offsets"][1]
    header["more"] = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [end, end + (4 << 40)]}
    shard(folder, header)


@case("lies at bytes")
def tensor_ends_before_it_begins(folder: Path) -> None:
    spoil_tensor(folder, data_offsets=[1024, -1024])


@case(r"has shape \[-16, -16\]")
def tensor_of_negative_size(folder: Path) -> None:
    spoil_tensor(folder, shape=[-16, -16])


@case("lies at bytes")
def tensor_whose_size_overflows(folder: Path) -> None:
    spoil_tensor(folder, shape=[1 << 63, 1 << 63, 4])


@case(r"has shape \[16.0, 16.0\]")
def tensor_of_broken_size(folder: Path) -> None:
    spoil_tensor(folder, shape=[16.0, 16.0])


@case("lies at bytes")
def tensor_of_a_million_axes(folder: Path) -> None:
    spoil_tensor(folder, shape=[1] * 1_000_000 + [256])


@case("has dtype 'F128', expected one of")
def tensor_of_unknown_dtype(folder: Path) -> None:
    spoil_tensor(folder, dtype="F128")


@case("header that cannot be read")
def tensor_that_is_a_list(folder: Path) -> None:
    shard(folder, header_of(folder) | {"more": []})  # type: ignore[dict-item]  # that is the point


@case("a pickle, which can run any code")
def weights_are_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


# Configuration


@case("config.json is missing")
def config_is_missing(folder: Path) -> None:
    (folder / "config.json").unlink()


@case("config.json holds")
def config_is_a_list(folder: Path) -> None:
    dump(folder / "config.json", [CONFIG])


@case("config.json is not valid JSON")
def config_is_cut_off(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG)[:-30])


@case(r"config.json has 2000(\.0)? MB, expected at most")
def config_of_two_gigabytes(folder: Path) -> None:
    os.truncate(folder / "config.json", 2 * GB)


@case("config.json has 60.* MB, expected at most")
def config_of_60_megabytes(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": [' + "{}," * 20_000_000 + "0]}")


@case("config.json nests deeper|nested too deeply")
def config_is_nested(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 500_000)


@case("the key 'hidden_size' stands there twice")
def config_says_it_twice(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG)[:-1] + ', "hidden_size": 8}')


@case("model_type is 'evil'")
def config_brings_code(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("raise SystemExit('it ran')")
    config(folder, model_type="evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})


def number(key: str, value: Any, said: str, **more: Any) -> None:
    """Add a case: one number of the configuration is ``value``."""
    name = f"{key} is {value!r:.24}"
    CASES[name] = Case(lambda folder: config(folder, **{key: value}, **more), said, "load")


number("model_type", ["llama"], "model_type is")
number("num_hidden_layers", GB, "num_hidden_layers is 1000000000, expected at most 21")
number("num_hidden_layers", 2.5, "num_hidden_layers is 2.5, expected an integer")
number("num_hidden_layers", -2, "num_hidden_layers is -2, expected an integer")
number("num_local_experts", GB, "num_local_experts is 1000000000, expected at most", model_type="mixtral")
number("vocab_size", GB, r"has shape \[40, 16\], expected \[1000000000, 16\]")
number("hidden_size", 1000 * GB, "hidden_size is 1000000000000, expected at most")
number("hidden_size", "16" * 1_000_000, "hidden_size is '1616.{,200}, expected an integer")
number("intermediate_size", 10**18, r"expected \[1000000000000000000, 16\]")
number("head_dim", 0, "head_dim is 0, expected an integer")
number("head_dim", 1000 * GB, "head_dim is 1000000000000, expected at most")
number("num_key_value_heads", 3, "num_key_value_heads is 3, expected a divisor")
number("num_attention_heads", 0, "num_attention_heads is 0, expected an integer")
number("max_position_embeddings", 1000 * GB, "max_position_embeddings is 1000000000000, expected at most")
number("rope_theta", float("nan"), "rope_theta is nan, expected a positive number")
number("rms_norm_eps", float("inf"), "rms_norm_eps is inf, expected a positive number")
number("rope_theta", 10**400, "rope_theta is 1000.*, expected a positive number")
number("rope_scaling", {"rope_type": "linear", "factor": 0}, "factor is 0, expected a positive number")
