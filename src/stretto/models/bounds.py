"""What a ``config.json`` may claim, held against the tensors beside it before anything is made of its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_WIDTHS = ("hidden_size", "n_embd", "head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank")
_POSITIONS = ("max_position_embeddings", "n_positions")

_MOST_EXPERTS = 1 << 17
"""In all layers together, five times as many as the largest published model has."""
_WIDEST = 1 << 20
"""Weights of a row, thirty times as many as the widest published model has: tables of that length are made at once."""
_FARTHEST = (1 << 31) - 1
"""What positions are counted in."""


def check_bounds(config: Mapping[str, Any], tensors: int, folder: Path) -> None:
    """Refuse numbers that no model with so many ``tensors`` can have, and sizes far beyond any model's.

    Raises ``ValueError`` naming the key. What is no integer is left to the family's reader.
    """
    nested = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *nested):
        layers = max((value for _, value in _integers(part, _LAYERS)), default=1)
        for keys, most, reason in (
            (_LAYERS, tensors, f"as the checkpoint holds {tensors} tensors"),
            (_EXPERTS, max(tensors, _MOST_EXPERTS) // max(layers, 1), f"in each of {layers} layers"),
            (_WIDTHS, _WIDEST, "as far beyond any model's"),
            (_POSITIONS, _FARTHEST, "as positions are 32-bit integers"),
        ):
            for key, value in _integers(part, keys):
                if value > most:
                    raise ValueError(
                        f"{folder / 'config.json'}: {key} is {value!r:.50}, expected at most {most}, {reason}; it does "
                        "not describe these weights"
                    )


def _integers(part: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for key in keys:
        if isinstance(value := part.get(key), int):
            yield key, value
