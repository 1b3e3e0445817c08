"""Checkpoint families: what each calls its configuration keys and its weights. A family is a row of ``FAMILIES``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stretto.models.configuration import Configuration
from stretto.models.readers import deepseek, experts, gemma, gpt, llama
from stretto.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a weight lies in a checkpoint: in the tensor ``name``."""

    name: str
    fused: tuple[str, ...] = ()
    """The parameters that lie in that tensor one after another along the outputs, if there are several."""
    by_head: bool = False
    """Whether they do so head by head."""
    transposed: bool = False
    """Whether the matrix is stored as [in, out]."""


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
    turns_neighbours: bool = False
    """Whether rope turns the entries (2i, 2i + 1) of a head: loading brings them to i and i + pairs."""

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
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type is {name!r:.100}, expected one of {', '.join(FAMILIES)}; use a checkpoint of one "
            "of these families"
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

_HEAD_NORMS = {"query_norm": "layers.{i}.self_attn.q_norm", "key_norm": "layers.{i}.self_attn.k_norm"}
_NORMS_BEHIND = {
    "attention_after": "layers.{i}.post_attention_layernorm",
    "mlp_after": "layers.{i}.post_feedforward_layernorm",
}
_NORMS_AROUND = _NORMS_BEHIND | {"mlp_norm": "layers.{i}.pre_feedforward_layernorm"}
_ONE_NORM = {"mlp_norm": "layers.{i}.input_layernorm"}
"""Both branches read the same norm."""
_FUSED_MLP = {name: Stored("layers.{i}.mlp.gate_up_proj", ("gate", "up")) for name in ("gate", "up")}
_HEADS = ("query", "key", "value")
_LATENTS, _KEY_VALUE = ("latent", "turned"), ("latent_key", "latent_value")
_EXPERTS = {f"expert.{name}": f"layers.{{i}}.mlp.experts.{{e}}.{name}_proj" for name in ("gate", "up", "down")}
_DROPOUT = _words("embd_pdrop embedding_dropout hidden_dropout resid_pdrop residual_dropout classifier_dropout")
_ROUTING = _words("output_router_logits router_aux_loss_coef router_jitter_noise")


def _kin(
    read: Callable[[Configuration], ModelSpec], names: Mapping[str, str | Stored] | None = None, **more: Any
) -> Family:
    """Return a row whose names are Llama's but for ``names``."""
    return Family(read, {**_LLAMA_NAMES, **(names or {})}, root="model.", **more)


FAMILIES: dict[str, Family] = {
    "llama": _kin(llama.read_llama),
    "qwen3": _kin(llama.read_qwen3, _HEAD_NORMS),
    # An older spelling of hidden_activation and of sliding_window, which Gemma 2's models do not read.
    "gemma2": _kin(gemma.read_gemma2, _NORMS_AROUND, ignored=_words("hidden_act sliding_window_size")),
    "mixtral": _kin(
        experts.read_mixtral,
        {
            "router": "layers.{i}.block_sparse_moe.gate",
            "expert.gate": "layers.{i}.block_sparse_moe.experts.{e}.w1",
            "expert.up": "layers.{i}.block_sparse_moe.experts.{e}.w3",
            "expert.down": "layers.{i}.block_sparse_moe.experts.{e}.w2",
        },
        ignored=_ROUTING,
    ),
    "gpt2": Family(
        gpt.read_gpt2,
        {
            "embed": "wte",
            "positions": "wpe",
            "norm": "ln_f",
            "head": "lm_head",
            "attention_norm": "h.{i}.ln_1",
            "mlp_norm": "h.{i}.ln_2",
            **{name: Stored("h.{i}.attn.c_attn", _HEADS, transposed=True) for name in _HEADS},
            "output": Stored("h.{i}.attn.c_proj", transposed=True),
            "up": Stored("h.{i}.mlp.c_fc", transposed=True),
            "down": Stored("h.{i}.mlp.c_proj", transposed=True),
        },
        root="transformer.",
        ignored=_DROPOUT
        | _words("""
            attn_pdrop n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout summary_proj_to_labels
            summary_type summary_use_proj
        """),
        buffers=r"\.attn\.(bias|masked_bias)$",
    ),
    "mistral": _kin(llama.read_mistral),
    "ministral": _kin(llama.read_ministral),
    "qwen2": _kin(llama.read_qwen2),
    "qwen3_moe": _kin(
        experts.read_qwen3_moe,
        _HEAD_NORMS | _EXPERTS | {"router": "layers.{i}.mlp.gate"},
        ignored=_ROUTING | _words("max_window_layers"),
    ),
    "gemma": _kin(gemma.read_gemma),
    "gemma3_text": _kin(gemma.read_gemma3, _HEAD_NORMS | _NORMS_AROUND),
    "phi3": _kin(
        llama.read_phi3,
        _FUSED_MLP | {name: Stored("layers.{i}.self_attn.qkv_proj", _HEADS) for name in _HEADS},
        ignored=_DROPOUT | _words("auto_map original_max_position_embeddings"),  # its code is never run
    ),
    "olmo2": _kin(llama.read_olmo2, _HEAD_NORMS | _NORMS_BEHIND),
    "olmo3": _kin(llama.read_olmo3, _HEAD_NORMS | _NORMS_BEHIND),
    "exaone4": _kin(llama.read_exaone4, _HEAD_NORMS | _NORMS_BEHIND),
    "smollm3": _kin(llama.read_smollm3, ignored=_words("max_window_layers")),
    "granite": _kin(llama.read_granite),
    "cohere": _kin(llama.read_cohere, _ONE_NORM, turns_neighbours=True, ignored=_words("model_max_length")),
    "cohere2": _kin(llama.read_cohere2, _ONE_NORM, turns_neighbours=True),
    "gpt_neox": Family(
        gpt.read_gpt_neox,
        {
            "embed": "embed_in",
            "norm": "final_layer_norm",
            "head": "embed_out",
            "attention_norm": "layers.{i}.input_layernorm",
            "mlp_norm": "layers.{i}.post_attention_layernorm",
            **{name: Stored("layers.{i}.attention.query_key_value", _HEADS, by_head=True) for name in _HEADS},
            "output": "layers.{i}.attention.dense",
            "up": "layers.{i}.mlp.dense_h_to_4h",
            "down": "layers.{i}.mlp.dense_4h_to_h",
        },
        root="gpt_neox.",
        ignored=_DROPOUT,
        buffers=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
    ),
    "starcoder2": _kin(
        llama.read_starcoder2,
        {"up": "layers.{i}.mlp.c_fc", "down": "layers.{i}.mlp.c_proj"},
        # Older spellings of hidden_act and norm_epsilon, which this family's models do not read.
        ignored=_DROPOUT | _words("activation_function layer_norm_epsilon"),
    ),
    "ernie4_5": _kin(llama.read_ernie4_5, turns_neighbours=True),
    "glm": _kin(llama.read_glm, _FUSED_MLP, turns_neighbours=True),
    "glm4": _kin(
        llama.read_glm4,
        _FUSED_MLP
        | {
            "attention_after": "layers.{i}.post_self_attn_layernorm",
            "mlp_after": "layers.{i}.post_mlp_layernorm",
        },
        turns_neighbours=True,
    ),
    "helium": _kin(llama.read_helium, turns_neighbours=True),
    "hunyuan_v1_dense": _kin(
        llama.read_hunyuan,
        {"query_norm": "layers.{i}.self_attn.query_layernorm", "key_norm": "layers.{i}.self_attn.key_layernorm"},
        ignored=_words("eod_token_id"),
    ),
    "internlm3": _kin(llama.read_internlm3, ignored=_words("auto_map")),
    "seed_oss": _kin(llama.read_seed_oss, ignored=_DROPOUT),
    "arcee": _kin(llama.read_arcee),
    "nemotron": _kin(llama.read_nemotron),
    "stablelm": _kin(llama.read_stablelm, ignored=_DROPOUT),
    "deepseek_v2": _kin(
        deepseek.read_deepseek_v2,
        _EXPERTS
        | {
            "router": "layers.{i}.mlp.gate",
            **{f"shared_{name}": f"layers.{{i}}.mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
            **{name: Stored("layers.{i}.self_attn.kv_a_proj_with_mqa", _LATENTS) for name in _LATENTS},
            "latent_norm": "layers.{i}.self_attn.kv_a_layernorm",
            **{name: Stored("layers.{i}.self_attn.kv_b_proj", _KEY_VALUE, by_head=True) for name in _KEY_VALUE},
            "query_latent": "layers.{i}.self_attn.q_a_proj",
            "query_latent_norm": "layers.{i}.self_attn.q_a_layernorm",
            "latent_query": "layers.{i}.self_attn.q_b_proj",
        },
        turns_neighbours=True,
        ignored=_ROUTING | _words("auto_map aux_loss_alpha seq_aux"),  # its code is never run
    ),
}


def families_page() -> str:
    """Return ``docs/families.md``: every row of the table, in the words of its reader."""
    lines = [
        "# Families",
        "",
        f"{len(FAMILIES)} families, generated from the table (`families_page` in `models/families.py`).",
        "Each one's logits, whole and in slices, and its greedy text equal transformers' on small random checkpoints,",
        "and each key of its configuration that is altered is refused or changes the logits (`tests/test_parity.py`).",
        "Falcon 3 and other kin of Llama have its `model_type`. A family that is not here is refused by name.",
        "",
        "| `model_type` | what it is | rope turns |",
        "| --- | --- | --- |",
    ]
    for name, family in sorted(FAMILIES.items()):
        told = " ".join((family.specify.__doc__ or "").split("\n\n")[0].split())
        turned = "neighbouring entries" if family.turns_neighbours else "halves"
        lines.append(f"| `{name}` | {told} | {'-' if name == 'gpt2' else turned} |")
    return "\n".join(lines) + "\n"
