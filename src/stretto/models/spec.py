"""What a decoder is made of, as data: one ``Transformer`` is driven by a ``ModelSpec``.

A checkpoint family is a row in the table (``families``) that fills this in from ``config.json``. Sizes are per
layer, because published models vary them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A normalisation: ``rms`` or ``layer``; ``offset`` is added to the weight (Gemma stores weight - 1)."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions: ``inverse`` frequencies (radians per position, one per rotated pair), computed by the family.

    Pairs are (i, i + size/2) of the first ``2 * len(inverse)`` entries of a head. ``attention`` multiplies cosine and
    sine (YaRN's temperature, arXiv 2309.00071).
    """

    inverse: tuple[float, ...]
    attention: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention: ``heads`` share ``kv_heads`` keys and values of ``head_size`` entries."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    rope: RopeSpec | None = None
    bias: bool = False
    """Biases on query, key and value."""
    output_bias: bool = False
    head_norm: NormSpec | None = None
    """Norm over each head of query and key, before rope (Qwen3)."""
    window: int | None = None
    """A row sees itself and the window - 1 positions before it."""
    softcap: float | None = None
    """Scores become cap * tanh(score / cap) (Gemma 2)."""


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A feed-forward block: ``gated`` computes down(act(gate x) * up x), else down(act(up x))."""

    width: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture: softmax over the router's logits, the ``chosen`` largest, their outputs added in ascending id."""

    count: int
    chosen: int
    expert: MlpSpec
    normalised: bool = True
    """Whether the chosen weights are divided by their sum."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x + attention(norm x), then x + mlp(norm x); ``after`` norms each branch's result too (Gemma 2)."""

    attention: AttentionSpec
    mlp: MlpSpec | ExpertsSpec
    norm: NormSpec
    after: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole decoder. ``positions`` > 0: learned position embeddings of that many rows (GPT-2)."""

    family: str
    vocab_size: int
    width: int
    context: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tied: bool = False
    positions: int = 0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    eos_ids: frozenset[int] = field(default_factory=frozenset)


PARAMETERS = """Names under which the transformer looks its weights up (shapes as in torch.nn.Linear: [out, in]).

embed [vocab, width]; positions [positions, width]; norm.weight, norm.bias [width]; head [vocab, width] unless tied;
per layer ``layers.{i}.``:
  attention_norm.*, mlp_norm.*, attention_after.*, mlp_after.*        weight, bias [width]
  query, key, value, output                                            .weight, .bias
  query_norm.weight, key_norm.weight                                   [head_size]
  gate, up, down                                                       .weight, .bias
  router.weight [experts, width]; experts.{e}.gate|up|down             .weight
"""
