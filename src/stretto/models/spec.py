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
    beyond: tuple[float, ...] | None = None
    """Other frequencies, by which texts of more than ``border`` positions turn, all of them (LongRoPE)."""
    border: int | None = None


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what a position tells the heads is one small vector.

    Keys and values are products of the normed latent, but for the entries of a key that rope turns, which come from the
    row itself and are the same for all heads. They are cached expanded, as those of ordinary heads.
    """

    size: int
    """Entries of the latent."""
    value_size: int
    """Entries of a value, which zeros fill up to ``head_size``."""
    norm: NormSpec
    """Of the latent, and of the query's."""
    query_size: int | None = None
    """Entries of the latent that queries are products of; None: they are products of the row."""


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention: ``heads`` share ``kv_heads`` keys and values of ``head_size`` entries."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    rope: RopeSpec | None = None
    bias: bool = False
    """Biases on query, key and value, or on the products that give latents."""
    output_bias: bool = False
    head_norm: NormSpec | None = None
    """Norm of query and of key, before rope (Qwen3)."""
    norm_span: Literal["head", "all"] = "head"
    """What is normalised at once: one head, or all heads together (OLMo 2)."""
    norm_behind_rope: bool = False
    """Whether rope comes first (Hunyuan)."""
    window: int | None = None
    """A row sees itself and the window - 1 positions before it."""
    softcap: float | None = None
    """Scores become cap * tanh(score / cap) (Gemma 2)."""
    latent: LatentSpec | None = None

    @property
    def turned(self) -> int:
        """How many entries of a head rope turns."""
        return 0 if self.rope is None else 2 * len(self.rope.inverse)


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A feed-forward block: ``gated`` computes down(act(gate x) * up x), else down(act(up x))."""

    width: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"] = "silu"
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
    shared: MlpSpec | None = None
    """A block that every row goes through besides, its output added (DeepSeek-V2's shared experts, side by side)."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x + attention(norm x), then x + mlp(norm x)."""

    attention: AttentionSpec
    mlp: MlpSpec | ExpertsSpec
    norm: NormSpec | None
    """What each branch reads is normed, or x itself (OLMo 2)."""
    after: NormSpec | None = None
    """Each branch's result is normed too (Gemma 2)."""
    parallel: bool = False
    """Both branches read the same x: x + attention(norm x) + mlp(norm x) (GPT-J, GPT-NeoX). Without ``after``."""


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
    rounds_scale: bool = False
    """Whether that factor is rounded to the precision of the activations, as its family was trained (Gemma)."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    eos_ids: frozenset[int] = field(default_factory=frozenset)

    @property
    def rope_border(self) -> int | None:
        """The number of positions above which the layers turn by other frequencies, if there is one."""
        return next((each.attention.rope.border for each in self.layers if each.attention.rope is not None), None)


PARAMETERS = """Names under which the transformer looks its weights up (shapes as in torch.nn.Linear: [out, in]).

embed [vocab, width]; positions [positions, width]; norm.weight, norm.bias [width]; head [vocab, width] unless tied;
per layer ``layers.{i}.``:
  attention_norm.*, mlp_norm.*, attention_after.*, mlp_after.*        weight, bias [width], where there is such a norm
  query, key, value, output                                            .weight, .bias
  query_norm.weight, key_norm.weight                                   [head_size], or that of all heads together
  latent [latent, width], turned [turned entries, width], latent_key and latent_value [heads * head_size, latent],
    query_latent, latent_query                                         where heads read latents (``LatentSpec``);
    heads begin with the entries that rope turns, which are zeros in latent_key, and values end with zeros
  latent_norm.weight, query_latent_norm.weight                         [latent]
  gate, up, down                                                       .weight, .bias
  router.weight [experts, width]; experts.{e}.gate|up|down             .weight
  shared_gate, shared_up, shared_down                                  .weight
"""
