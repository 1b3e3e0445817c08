"""Configurations are honoured or refused by name, weights are all found and all used, and what was loaded is told."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from published import PUBLISHED
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stretto.models.families import FAMILIES, specify
from stretto.models.loader import load_model
from stretto.models.spec import ExpertsSpec

LLAMA = PUBLISHED["Llama-3.1-8B"]


def test_published_configurations_are_read():
    specs = {name: specify(config) for name, config in PUBLISHED.items()}
    assert [spec.family for spec in specs.values()] == list(FAMILIES)
    assert specs["Llama-3.1-8B"].eos_ids == {128001, 128008, 128009}
    assert [layer.attention.window for layer in specs["gemma-2-9b"].layers] == [4096, None] * 21
    assert {layer.attention.window for layer in specs["Qwen3-8B"].layers} == {None}
    assert specs["gemma-2-9b"].tied and specs["gpt2"].tied and not specs["Qwen3-8B"].tied
    mixture = specs["Mixtral-8x7B-v0.1"].layers[0].mlp
    assert isinstance(mixture, ExpertsSpec) and (mixture.count, mixture.chosen, mixture.normalised) == (8, 2, True)
    ropes = [layer.attention.rope for layer in specs["gemma-3-1b-it"].layers]
    assert [len({rope}) for rope in ropes] == [1] * 26 and ropes[0] != ropes[5] == ropes[11] and ropes[0] == ropes[6]
    assert [layer.attention.rope is None for layer in specs["c4ai-command-r7b"].layers] == [
        False,
        False,
        False,
        True,
    ] * 8
    slides = [layer.attention.window is not None for layer in specs["EXAONE-4.0-32B"].layers]
    assert slides == [True, True, True, False] * 16
    assert specs["granite-3.3-2b"].layers[0].norm.eps == pytest.approx(1e-5 / 0.22**2)
    lite = specs["DeepSeek-V2-Lite"]
    assert [isinstance(layer.mlp, ExpertsSpec) for layer in lite.layers] == [False] + [True] * 26
    shared = lite.layers[1].mlp.shared
    assert shared is not None and shared.width == 2816 and lite.layers[1].mlp.expert.width == 1408
    assert lite.layers[0].attention.scale == pytest.approx(192**-0.5 * (0.0707 * math.log(40) + 1) ** 2)
    assert specs["gpt2"].layers[0].mlp.width == 3072 and specs["gpt2"].positions == specs["gpt2"].context == 1024


def test_both_spellings_of_rope_mean_the_same():
    old = specify(LLAMA)
    rope = LLAMA["rope_scaling"] | {"rope_theta": LLAMA["rope_theta"]}
    new = {key: value for key, value in LLAMA.items() if not key.startswith("rope_")} | {"rope_parameters": rope}
    oldest = LLAMA | {"rope_scaling": {("type" if k == "rope_type" else k): v for k, v in rope.items()}}
    assert specify(new) == specify(oldest) == specify(new | {"rope_scaling": oldest["rope_scaling"]}) == old


ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    LLAMA["rope_scaling"] | {"rope_theta": 500000.0},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096}
    | {"beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": False},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": None, "original_max_position_embeddings": 32768}
    | {"attention_factor": 0.9, "beta_fast": 16},
]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("size", [24, 80, 128])
def test_frequencies_equal_transformers_to_the_bit(rope: dict[str, Any], size: int):
    """At long positions a last bit matters: position 100,000 turns a relative error of 1e-7 into 0.01 radians."""
    sizes = {"head_dim": size, "max_position_embeddings": 131072}
    inverse, attention = ROPE_INIT_FUNCTIONS[rope["rope_type"]](
        checkpoints.configure("llama", rope_parameters=dict(rope), **sizes)
    )
    ours = specify({k: v for k, v in LLAMA.items() if not k.startswith("rope_")} | {"rope_parameters": rope} | sizes)
    told = ours.layers[0].attention.rope
    assert told is not None and torch.equal(torch.tensor(told.inverse), inverse)
    assert told.attention == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba', expected one of llama, qwen3, gemma2, mixtral, gpt2,"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config = {'bits': 4}"),
        ({"attention_multiplier": 0.5}, "attention_multiplier = 0.5"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', expected one of silu"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2, expected 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1.0"),
        ({"head_dim": 25}, "25 of a head's 25 entries turn, expected an even number"),
        ({"num_key_value_heads": 5}, r"num_key_value_heads is 5, expected a divisor of num_attention_heads \(32\)"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny', expected a positive number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected an integer of at least 1"),
        ({"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected a token id"),
        ({"hidden_size": None}, "hidden_size is None, expected a value"),
        ({"rope_scaling": [2.0]}, r"rope_scaling is \[2.0\], expected an object"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "factor is 2.0, expected 1.0"),
        ({"rope_scaling": {"type": "dynamic"}}, "alpha is missing, expected a value"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor is missing, expected a value"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_type is 'ntk', expected one of default"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing, expected a value"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "warp": 1}}, "rope_scaling: warp = 1"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 500000.0, expected 10000.0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'llama3', expected 'yarn'"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name(change: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        specify(LLAMA | change)


def test_rope_variants_need_sense():
    with pytest.raises(ValueError, match=r"low_freq_factor is 4.0, expected less than high_freq_factor \(4.0\)"):
        specify(LLAMA | {"rope_scaling": LLAMA["rope_scaling"] | {"low_freq_factor": 4.0}})


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("llama", lambda t: {k: v for k, v in t.items() if "1.mlp.up" not in k},
         r"lacks model.layers.1.mlp.up_proj.bias, model.layers.1.mlp.up_proj.weight, which"),
        ("llama", lambda t: t | {"model.layers.0.adapter.weight": torch.ones(2)},
         "holds model.layers.0.adapter.weight, which no part"),
        ("llama", lambda t: t | {"lm_head.weight": torch.ones(331, 48)}, "tie_word_embeddings is true, but lm_head"),
        ("llama", lambda t: t | {"model.norm.weight": torch.ones(49)},
         r"model.norm.weight has shape \[49\], expected \[48\]"),
        ("gpt2", lambda t: t | {"transformer.h.1.attn.c_attn.weight": torch.ones(216, 72)},
         r"c_attn.weight has shape \[216, 72\], expected \[72, 216\]"),
        ("mixtral", lambda t: {k: v for k, v in t.items() if "experts.3." not in k}, "lacks .*experts.3.w1"),
    ],
)  # fmt: skip
def test_tensors_missing_left_over_or_misshapen_are_named(case: str, change: Any, said: str, tmp_path: Path):
    checkpoints.make(tmp_path, case)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path)


def test_older_checkpoints_with_buffers_and_without_a_root_load(tmp_path: Path):
    """GPT-2 was published without ``transformer.`` and with its causal masks; Llama with a copy of the tied head."""
    for case in ("gpt2", "llama"):
        checkpoints.make(tmp_path / case, case)
    mask = {f"h.{i}.attn.{name}": torch.ones(8) for i in range(2) for name in ("bias", "masked_bias")}
    rewrite(tmp_path / "gpt2", lambda t: {k.removeprefix("transformer."): v for k, v in t.items()} | mask)
    copy = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(12)}
    rewrite(tmp_path / "llama", lambda t: t | copy | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert load_model(tmp_path / "gpt2").layers == load_model(tmp_path / "llama").layers == 2


def test_ends_of_text_are_those_of_both_configurations(tmp_path: Path):
    checkpoints.make(tmp_path, "llama", eos_token_id=3)
    path = tmp_path / "generation_config.json"
    assert load_model(tmp_path).spec.eos_ids == {3}
    path.write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert load_model(tmp_path).spec.eos_ids == {3, 4, 5}
    path.unlink()
    assert load_model(tmp_path).spec.eos_ids == {3}


def test_half_precision_is_widened_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoints.make(tmp_path / "fp16", "llama", dtype=torch.float16)
    checkpoints.make(tmp_path / "bf16", "llama", dtype=torch.bfloat16)
    with caplog.at_level(logging.INFO, logger="stretto"):
        assert load_model(tmp_path / "fp16").dtype == torch.float32
        assert load_model(tmp_path / "bf16").dtype == torch.bfloat16
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'fp16'} is stored in fp16, which is widened to fp32"
    ]
    with pytest.raises(ValueError, match="weights is 'int3', expected auto or one of fp32, bf16"):
        load_model(tmp_path / "bf16", weights="int3")


def test_the_fingerprint_tells_numerics_apart_and_nothing_else(tmp_path: Path):
    checkpoints.make(tmp_path / "one", "llama", dtype=torch.bfloat16)
    checkpoints.make(tmp_path / "shards", "llama", dtype=torch.bfloat16, shard="20KB")
    checkpoints.make(tmp_path / "other", "llama", dtype=torch.bfloat16, seed=2)
    rope = {"rope_parameters.rope_theta": 10001.0}
    same = {load_model(tmp_path / name).fingerprint for name in ("one", "shards")}
    same.add(load_model(tmp_path / "one", name="draft", dtype="bf16", weights="bf16").fingerprint)
    others = [
        load_model(tmp_path / "other"),
        load_model(tmp_path / "one", dtype="fp32"),
        load_model(tmp_path / "one", weights="fp32"),
        load_model(checkpoints.alter(tmp_path / "one", tmp_path / "rope", rope)),
    ]
    assert len(same) == 1 and len(same | {model.fingerprint for model in others}) == 5


PEAK = """
import sys
from pathlib import Path
from stretto.models import loader
def status(key):
    line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024
def peak():
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before = status('VmRSS')
    loader.load_model(Path(sys.argv[1]))
    return status('VmHWM') - before
loader.load_model(Path(sys.argv[2]))
print(peak())
class Eager(loader.CheckpointParameters):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        found = {name: self[name] for name in self}
        self._read = found.__getitem__
loader.CheckpointParameters = Eager
print(peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process")
def test_loading_peaks_at_the_final_size_and_the_largest_tensor(tmp_path: Path):
    """Control: reading all tensors before the first is packed breaks the bound."""
    shape = {"hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 4, "head_dim": 64}
    shape |= {"num_attention_heads": 10, "num_key_value_heads": 10, "vocab_size": 4096}
    model = checkpoints.make(tmp_path / "large", "llama", **shape)
    checkpoints.make(tmp_path / "small", "llama")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(tmp_path / "small")]
    # Below glibc's moving threshold, tensors come from a heap whose holes would count.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    lazy, eager = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()
    sizes = [parameter.nbytes for parameter in model.parameters()]
    bound = 1.1 * sum(sizes) + max(sizes)
    assert int(lazy) <= bound < int(eager)
