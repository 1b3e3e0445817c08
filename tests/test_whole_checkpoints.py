"""Checkpoints as transformers writes them by default, model and tokenizer: text in, text out, as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_chat import oracle

from stretto import LLM, SamplingParams

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
# Family, format of its conversations, further keys of its configuration.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "qwen2": ("qwen", {}),
    "gemma2": (
        "gemma",
        {"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16, "tie_word_embeddings": False},
    ),
    "mistral": ("mistral", {"sliding_window": 48}),
    "phi3": ("phi3", {}),
}
TALK = [
    {"role": "user", "content": "How much is 2 + 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And é times ö?"},
]
NEW = 24


def write(folder: Path, family: str) -> tuple[Any, Any]:
    """Write a checkpoint with ``save_pretrained`` alone; return transformers' model and tokenizer."""
    form, more = CASES[family]
    tokenizer = oracle(form)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(family, **SIZES | ids | more, vocab_size=len(tokenizer))
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # trained weights are not as small as fresh ones, behind which every text is the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("family", CASES)
def test_text_in_text_out(family: str, tmp_path: Path):
    model, tokenizer = write(tmp_path, family)
    greedy = SamplingParams(temperature=0.0, max_tokens=NEW)
    llm = LLM(str(tmp_path), dtype="fp32", cache_tokens=1024)
    ids = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert llm.encode_chat(TALK) == ids
    stops = sorted(llm.tokenizer.eos_ids | llm.model.spec.eos_ids)
    for prompt, ours in (
        (ids, llm.chat(TALK, greedy)[0]),
        (tokenizer("The quick brown fox")["input_ids"], llm.generate("The quick brown fox", greedy)[0]),
    ):
        with torch.inference_mode():
            tokens = torch.tensor([prompt])
            found = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False,
                eos_token_id=stops, pad_token_id=0,
            )  # fmt: skip
        new = found[0, len(prompt) :].tolist()
        assert ours.token_ids == new and len(set(new)) > 1
        assert ours.text == tokenizer.decode([token for token in new if token not in stops], skip_special_tokens=True)
