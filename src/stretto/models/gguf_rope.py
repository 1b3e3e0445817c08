"""What a GGUF file says about rope, in the words of ``config.json``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stretto.weights.gguf import GgufFile


def describe_rope(facts: dict[str, Any], file: GgufFile, config: dict[str, Any]) -> None:
    """Take the keys of rope out of ``facts``, the architecture's metadata, and put ``config``'s in.

    Raises ``ValueError`` for a scaling that no key of ``config.json`` describes.
    """
    kind, factor = facts.pop("rope.scaling.type", "none"), facts.pop("rope.scaling.factor", None)
    factor = facts.pop("rope.scale_linear", factor)
    original = facts.pop("rope.scaling.original_context_length", None)
    if facts.get("rope.scaling.attn_factor") == 1:
        del facts["rope.scaling.attn_factor"]
    if "rope_freqs.weight" in file.entries:
        factors = file.read("rope_freqs.weight").double()
        config["rope_scaling"] = _llama3(factors, config.get("rope_theta", 10000.0), str(file.path))
    elif "rope_factors_long.weight" in file.entries:
        # The factor on the scores follows from the two lengths, in the files as in config.json.
        facts.pop("rope.scaling.attn_factor", None)
        config["original_max_position_embeddings"] = original
        config["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": file.read("rope_factors_short.weight").tolist(),
            "long_factor": file.read("rope_factors_long.weight").tolist(),
        }
    elif kind == "linear" or (kind == "none" and factor not in (None, 0, 1)):
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        told = {"factor": factor, "original_max_position_embeddings": original}
        told |= {name: facts.pop(f"rope.scaling.yarn_{name}", None) for name in ("beta_fast", "beta_slow")}
        config["rope_scaling"] = {"rope_type": "yarn"} | {key: each for key, each in told.items() if each is not None}
    elif kind != "none":
        raise ValueError(f"{file.path}: rope.scaling.type is {kind!r}, expected none, linear, yarn or longrope")


def _llama3(factors: Tensor, base: float, place: str) -> dict[str, Any]:
    """Return the description of Llama 3.1's rope (arXiv 2407.21783) that divides frequencies by ``factors`` [pairs].

    Files hold the factors alone. The largest is the description's ``factor``; one between it and 1 tells the original
    context, since all models of the kind blend from 1 to 4 turns in it.
    """
    factor = float(factors.max())
    wave = 2 * math.pi * base ** (torch.arange(len(factors), dtype=torch.float64) / len(factors))
    between = (factors > 1.0001) & (factors < factor * 0.9999)
    if between.any():
        original = float((wave * (1 + 3 * (factor / factors - 1) / (factor - 1)))[between].median())
    else:
        original = float(4 * wave[factors <= 1.0001].amax()) + 1
    original = round(original)
    blend = ((original / wave - 1) / 3).clamp(0, 1)
    expected = 1 / ((1 - blend) / factor + blend)
    if not torch.allclose(expected, factors, rtol=1e-3):
        raise ValueError(
            f"{place}: rope_freqs.weight holds factors from {float(factors.min())} to {factor} that are not those of "
            "Llama 3.1's rope, the only kind that is implemented; use the checkpoint that the file was made from"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
