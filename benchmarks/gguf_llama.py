"""A bf16 Llama checkpoint as GGUF, so that llama.cpp computes with the very same weights. Needs numpy and gguf."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(folder: Path, target: Path, *, kind: str = "BF16", speaks: bool = False) -> None:
    """Write the checkpoint in ``folder`` (``config.json``, one ``model.safetensors`` of bf16) to ``target``.

    ``kind``: of the matrices, ``BF16`` or ``Q8_0``. ``speaks``: with the folder's tokenizer and chat template; passes
    over token ids need none. Raises ``ValueError`` for tensors of another precision.
    """
    matrices = gguf.GGMLQuantizationType[kind]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unfinished = target.with_name(f"{target.name}.part")
    writer = gguf.GGUFWriter(str(unfinished), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    if speaks:
        _speak(writer, folder)
    else:
        writer.add_tokenizer_model("no_vocab")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, bits in _tensors(folder / "model.safetensors").items():
        ours = _name(name)
        turned = heads.get(name.split(".")[-2])
        if turned is not None:
            bits = _interleave(bits, turned)
        if bits.ndim == 1:
            writer.add_tensor(ours, _floats(bits))
        elif matrices != gguf.GGMLQuantizationType.BF16:
            writer.add_tensor(ours, quantize(_floats(bits), matrices), raw_dtype=matrices)
        else:
            as_bytes = np.ascontiguousarray(bits).view(np.uint8)
            writer.add_tensor(ours, as_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, target)


def _speak(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write a byte-level tokenizer. GGUF names ways of cutting text and none is just this one's: ``qwen2`` cuts words
    alike."""
    core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = core["model"]["vocab"] | {each["content"]: each["id"] for each in core["added_tokens"]}
    special = {each["id"] for each in core["added_tokens"] if each["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if number in special else normal for number in range(len(vocabulary))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in core["model"]["merges"]])
    writer.add_bos_token_id(vocabulary[config["bos_token"]])
    writer.add_eos_token_id(vocabulary[config["eos_token"]])
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(config["chat_template"])


def _floats(bits: Any) -> Any:
    """Return bf16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _name(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _tensors(path: Path) -> dict[str, Any]:
    """Return the tensors as uint16 arrays over the mapped file."""
    whole = np.memmap(path, mode="r")
    length = int(whole[:8].view(np.uint64)[0])
    header = json.loads(bytes(whole[8 : 8 + length]))
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{path}: {name} is {entry['dtype']}, expected BF16")
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = whole[first:last].view(np.uint16).reshape(entry["shape"])
    return found


def _interleave(matrix: Any, heads: int) -> Any:
    """Return the rows of a query or key matrix so that the two halves of each head alternate: llama.cpp's rope."""
    outputs, inputs = matrix.shape
    return matrix.reshape(heads, 2, outputs // heads // 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)
