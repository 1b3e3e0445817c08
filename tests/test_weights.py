"""Checkpoints: every tensor as it was written, in no more memory than it needs; models found by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from stretto.weights import DTYPES, Checkpoint, dtype_name, parse_dtype, resolve

STORED = [torch.float64, *DTYPES.values(), torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
STORED += [torch.float8_e4m3fn, torch.float8_e5m2]


def state(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    shapes = {"embed": (96, 64), "norm": (64,), "up": (128, 64), "down": (64, 128)}
    return {name: torch.randn(shape, generator=noise).to(dtype) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: Any = None, shard_size: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    if shard_size:
        save_torch_state_dict(tensors, folder, max_shard_size=shard_size)
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 1, 7)])
def test_every_stored_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (torch.rand(shape) * 100).to(dtype)
    checkpoint = Checkpoint(write(tmp_path, {"first": torch.ones(3, dtype=torch.uint8), "it": tensor}))
    back = checkpoint.get("it")
    assert (back.dtype, back.shape) == (dtype, tensor.shape) == (checkpoint.dtype_of("it"), checkpoint.shape("it"))
    assert torch.equal(back.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
    assert torch.equal(checkpoint.get("it", torch.float32), tensor.float())


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    whole = Checkpoint(write(tmp_path / "whole", state()))
    parts = Checkpoint(write(tmp_path / "parts", state(), shard_size="13KB"))
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert whole.names() == parts.names() == state().keys()
    assert whole.config == {"model_type": "llama"}
    for name, tensor in state().items():
        assert torch.equal(parts.get(name), tensor)
        assert torch.equal(parts.get(name, torch.float32), tensor.float())
    assert whole.fingerprint() == parts.fingerprint()
    assert "norm" in parts and "nrom" not in parts
    with pytest.raises(LookupError, match="no tensor named 'nrom'; nearest: norm"):
        parts.get("nrom")


def test_a_tensor_larger_than_one_piece_is_converted_whole(tmp_path: Path) -> None:
    tensor = torch.arange(3 * 1_500_007).view(3, -1).to(torch.int32)
    checkpoint = Checkpoint(write(tmp_path, {"first": torch.ones(3), "it": tensor}))
    assert torch.equal(checkpoint.get("it", torch.int64), tensor.long())
    assert torch.equal(checkpoint.get("it"), tensor)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_the_dominating_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {**state(dtype), "norm": torch.ones(64, dtype=torch.float64)}
    assert Checkpoint(write(tmp_path, tensors)).dtype == dtype


def test_another_dominating_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="most of its weights as int8; expected one of fp32, bf16, fp16"):
        _ = Checkpoint(write(tmp_path, state(torch.int8))).dtype


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    variants: dict[str, tuple[dict[str, torch.Tensor], Any]] = {"same": (state(), None)}
    variants["config"] = (state(), {"model_type": "llama", "rope_theta": 5})
    variants["dtype"] = (state(torch.float16), None)
    variants["name"] = ({("Up" if name == "up" else name): tensor for name, tensor in state().items()}, None)
    for name in state():
        changed = state()
        changed[name].view(-1)[-1] += 1
        variants[name] = (changed, None)
    prints = {key: Checkpoint(write(tmp_path / key, *content)).fingerprint() for key, content in variants.items()}
    assert len(set(prints.values())) == len(variants)
    assert prints["same"] == Checkpoint(write(tmp_path / "again", state())).fingerprint()


LOADERS = {
    "checkpoint": "held = {name: checkpoint.get(name, torch.float32) for name in checkpoint.names()}",
    "mapped": """
from safetensors import safe_open
with safe_open(folder + '/model.safetensors', 'pt') as file:
    held = {name: file.get_tensor(name).float() for name in file.keys()}""",
}
PEAK = """
import json, sys, torch
from pathlib import Path
from stretto.weights import Checkpoint
folder = sys.argv[1]
def peak():
    if sys.platform == 'linux':  # getrusage would count the parent's peak, which survives the start of a child
        line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint = Checkpoint(folder)
torch.ones(8, dtype=torch.bfloat16).float()
before = peak()
LOADER
final = sum(t.nbytes for t in held.values())
largest = max(t.nbytes for t in held.values())
print(json.dumps([peak() - before, final, largest]))
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="reads the peak memory of a process")
def test_loading_peaks_at_the_final_size_and_one_tensor(tmp_path: Path) -> None:
    """100 MB of bf16 widened to 200 MB of fp32, tensor by tensor. Control: pages of a mapped file stay and are seen."""
    write(tmp_path, {f"layer.{i}": torch.zeros(5_000, 1_000, dtype=torch.bfloat16) for i in range(10)})
    within = {}
    for name, loader in LOADERS.items():
        command = [sys.executable, "-c", PEAK.replace("LOADER", loader), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, final, largest = json.loads(done.stdout)
        within[name] = peak <= 1.1 * final + largest
    assert within == {"checkpoint": True, "mapped": False}


def damage(folder: Path, how: str) -> None:
    first = next(iter(sorted(folder.glob("model-*.safetensors"))))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    if how == "shard":
        first.unlink()
    elif how == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif how == "short":
        first.write_bytes(b"\x00\x01")
    elif how == "header":
        first.write_bytes((8).to_bytes(8, "little") + b"{'no': 0" + bytes(100))
    elif how == "shape":
        before = first.read_bytes()
        length = int.from_bytes(before[:8], "little")
        header = json.loads(before[8 : 8 + length])
        next(facts for name, facts in header.items() if name in state())["shape"][0] += 1
        changed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
        first.write_bytes(before[:8] + changed + before[8 + length :])
    elif how == "config":
        (folder / "config.json").write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "empty index":
        index.write_text("{}")
    else:
        content["weight_map"]["more"] = first.name if how == "unknown" else how
        index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("shard", FileNotFoundError, r"model-00001-of-0000\d.safetensors is missing"),
        ("cut", ValueError, "is cut off at byte"),
        ("short", ValueError, "not a complete safetensors file"),
        ("header", ValueError, "header that cannot be read"),
        ("shape", ValueError, "header that cannot be read .*shape"),
        ("config", ValueError, "config.json is not valid JSON"),
        ("no config", FileNotFoundError, "config.json is missing"),
        ("empty index", ValueError, "no weight_map"),
        ("unknown", ValueError, "lacks the tensor 'more'"),
        ("../other/model.safetensors", ValueError, r"names the file '\.\./other"),
        ("/etc/model.safetensors", ValueError, "names the file '/etc"),
        ("C:model.safetensors", ValueError, "names the file 'C:"),
        ("..\\model.safetensors", ValueError, "names the file"),
        ("pytorch_model.bin", ValueError, "names the file 'pytorch_model.bin'"),
    ],
)
def test_damaged_folders_say_what_is_wrong(how: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    write(tmp_path, state(), shard_size="13KB")
    damage(tmp_path, how)
    with pytest.raises(error, match=said):
        Checkpoint(tmp_path)


def test_other_formats_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        Checkpoint(tmp_path)
    torch.save(state(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only as pytorch_model\.bin, a pickle.*save_pretrained"):
        Checkpoint(tmp_path)


def test_dtype_names() -> None:
    assert {name: parse_dtype(name) for name in DTYPES} == DTYPES
    assert [dtype_name(dtype) for dtype in (*DTYPES.values(), torch.int8)] == [*DTYPES, "int8"]
    with pytest.raises(ValueError, match="weights is 'int7'; expected one of fp32, bf16, fp16"):
        parse_dtype("int7", "weights")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedded model named ``tiny`` and a working folder beside it."""
    module = sys.modules[resolve.__module__]
    write(tmp_path / "zoo" / "tiny", state())
    monkeypatch.setattr(module, "_ZOO", tmp_path / "zoo")
    (tmp_path / "work" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "zoo"


def test_models_are_found_by_name_and_folder(zoo: Path) -> None:
    assert resolve("tiny") == zoo / "tiny"
    assert resolve("./tiny") == Path("tiny")
    assert resolve(zoo) == zoo
    (zoo / "a.gguf").touch()
    assert resolve(zoo / "a.gguf") == zoo / "a.gguf"


@pytest.mark.parametrize("name", ["somebody/unknown", "./nowhere", "", "a/b/c"])
def test_an_unknown_model_says_what_was_tried(name: str, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(model: object, *_: object) -> Path:
        raise FileNotFoundError(f"404: {model}")

    monkeypatch.setattr(sys.modules[resolve.__module__], "fetch", fetch)
    with pytest.raises(FileNotFoundError, match=r"not embedded \(those are: tiny\), no folder") as caught:
        resolve(name)
    assert (f"404: {name}" in str(caught.value)) == (name == "somebody/unknown")


def test_a_file_is_not_a_model(zoo: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a file; expected the folder"):
        resolve(zoo / "tiny" / "config.json")
