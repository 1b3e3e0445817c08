"""Checkpoint families: what each calls its configuration keys and its weights. A family is a row of ``FAMILIES``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stretto.models.configuration import Configuration
from stretto.models.readers import read_gemma2, read_gpt2, read_llama, read_mixtral, read_qwen3
from stretto.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a weight lies in a checkpoint: tensor ``name``, of whose ``parts`` equal parts along the outputs it is
    number ``part``; ``transposed``: a matrix stored as [in, out]."""

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One ``model_type``. Names lack their ``.weight`` and ``.bias``; ``{i}`` and ``{e}`` are layer and expert."""

    specify: Callable[[Configuration], ModelSpec]
    names: Mapping[str, str | Stored]
    root: str
    """What every name but the head's begins with, unless the checkpoint leaves it out everywhere."""
    ignored: frozenset[str] = frozenset()
    """Keys of this family that cannot change the logits."""
    buffers: str = r"rotary_emb\.inv_freq$"
    """Pattern of tensors that older checkpoints hold and that follow from the configuration."""

    def stored(self, parameter: str) -> Stored:
        """Return where the checkpoint keeps ``parameter``, a name as in ``spec.PARAMETERS``."""
        match = re.fullmatch(r"(?:layers\.(\d+)\.)?(?:experts\.(\d+)\.)?(\w+)(?:\.(weight|bias))?", parameter)
        assert match is not None, parameter
        layer, expert, stem, kind = match.groups()
        known = self.names[f"expert.{stem}" if expert else stem]
        known = known if isinstance(known, Stored) else Stored(known)
        name = f"{known.name.format(i=layer, e=expert)}.{kind or 'weight'}"
        return replace(known, name=name, transposed=known.transposed and kind == "weight")


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the row for a ``config.json``. Raises ``ValueError`` naming the families there are."""
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type is {name!r}, expected one of {', '.join(FAMILIES)}; use a checkpoint of one of "
            "these families"
        )
    return FAMILIES[str(name)]


def specify(config: Mapping[str, Any]) -> ModelSpec:
    """Return the specification of the model that ``config``, the content of a ``config.json``, describes.

    Raises ``ValueError`` that names every key which may change the result and is not honoured.
    """
    family = family_of(config)
    reader = Configuration(config)
    for key, value in _FIXED.items():
        reader.only(key, value)
    spec = family.specify(reader)
    reader.finish(_IGNORED | family.ignored)
    return spec


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that say nothing about the logits of a decoder: bookkeeping, training, classification, defaults of sampling.
_IGNORED = _words("""
    _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout attn_implementation
    bos_token_id cache_implementation chunk_size_feed_forward do_sample dtype experts_implementation finetuning_task
    gradient_checkpointing id2label initializer_range is_decoder keys_to_ignore_at_inference label2id max_length
    min_length model_type name_or_path num_labels output_attentions output_hidden_states pad_token_id problem_type
    repetition_penalty return_dict sep_token_id task_specific_params temperature tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version unsloth_fixed unsloth_version use_cache
""")

# Keys that change the result, with the one value that is implemented.
_FIXED: dict[str, object] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "use_bfloat16": False,
}

_LLAMA_NAMES: dict[str, str | Stored] = {
    "embed": "embed_tokens",
    "norm": "norm",
    "head": "lm_head",
    "attention_norm": "layers.{i}.input_layernorm",
    "mlp_norm": "layers.{i}.post_attention_layernorm",
    "query": "layers.{i}.self_attn.q_proj",
    "key": "layers.{i}.self_attn.k_proj",
    "value": "layers.{i}.self_attn.v_proj",
    "output": "layers.{i}.self_attn.o_proj",
    "gate": "layers.{i}.mlp.gate_proj",
    "up": "layers.{i}.mlp.up_proj",
    "down": "layers.{i}.mlp.down_proj",
}

FAMILIES: dict[str, Family] = {
    "llama": Family(read_llama, _LLAMA_NAMES, root="model."),
    "qwen3": Family(
        read_qwen3,
        _LLAMA_NAMES | {"query_norm": "layers.{i}.self_attn.q_norm", "key_norm": "layers.{i}.self_attn.k_norm"},
        root="model.",
    ),
    "gemma2": Family(
        read_gemma2,
        _LLAMA_NAMES
        | {
            "attention_after": "layers.{i}.post_attention_layernorm",
            "mlp_norm": "layers.{i}.pre_feedforward_layernorm",
            "mlp_after": "layers.{i}.post_feedforward_layernorm",
        },
        root="model.",
        # An older spelling of hidden_activation and of sliding_window, which this family's models do not read.
        ignored=_words("hidden_act sliding_window_size"),
    ),
    "mixtral": Family(
        read_mixtral,
        _LLAMA_NAMES
        | {
            "router": "layers.{i}.block_sparse_moe.gate",
            "expert.gate": "layers.{i}.block_sparse_moe.experts.{e}.w1",
            "expert.up": "layers.{i}.block_sparse_moe.experts.{e}.w3",
            "expert.down": "layers.{i}.block_sparse_moe.experts.{e}.w2",
        },
        root="model.",
        ignored=_words("output_router_logits router_aux_loss_coef router_jitter_noise"),
    ),
    "gpt2": Family(
        read_gpt2,
        {
            "embed": "wte",
            "positions": "wpe",
            "norm": "ln_f",
            "head": "lm_head",
            "attention_norm": "h.{i}.ln_1",
            "mlp_norm": "h.{i}.ln_2",
            "query": Stored("h.{i}.attn.c_attn", part=0, parts=3, transposed=True),
            "key": Stored("h.{i}.attn.c_attn", part=1, parts=3, transposed=True),
            "value": Stored("h.{i}.attn.c_attn", part=2, parts=3, transposed=True),
            "output": Stored("h.{i}.attn.c_proj", transposed=True),
            "up": Stored("h.{i}.mlp.c_fc", transposed=True),
            "down": Stored("h.{i}.mlp.c_proj", transposed=True),
        },
        root="transformer.",
        ignored=_words("""
            attn_pdrop embd_pdrop n_ctx reorder_and_upcast_attn resid_pdrop summary_activation summary_first_dropout
            summary_proj_to_labels summary_type summary_use_proj
        """),
        buffers=r"\.attn\.(bias|masked_bias)$",
    ),
}
