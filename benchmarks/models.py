"""Models for measuring: one that costs nothing, one of random weights in a published shape."""

from __future__ import annotations

from itertools import count

import torch

from stretto.core.batch import Batch, LaneSpec, LaneStorage, Result
from stretto.core.params import SamplingParams
from stretto.core.request import Request
from stretto.core.sampler import SamplerState
from stretto.engine.step import Engine
from stretto.models.parameters import parameter_shapes
from stretto.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from stretto.models.transformer import Transformer

_NUMBERS = count()


class NullModel:
    """The same logits for every row, so that a step costs what the loop costs."""

    name, fingerprint, width, layers, own_threads, rope_border = "null", "null", 1, 1, False, None
    lanes = (LaneSpec("main", "kv", (0,), 1, 1),)

    def __init__(self, vocab_size: int = 4096, context: int = 8192) -> None:
        self.vocab_size, self.context = vocab_size, context
        self._logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        """Nothing is stored."""

    def forward(self, batch: Batch) -> Result:
        """Return float32 [wanted rows, vocabulary]."""
        return Result(self._logits.expand(len(batch.wanted), -1))


def random_transformer(layers: int = 30, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """Return a Llama of 135 M random weights (with 30 layers): width 576, 9 heads, 3 of keys and values, tied."""
    inverse = tuple(10000.0 ** (-2 * pair / 64) for pair in range(32))
    attention = AttentionSpec(heads=9, kv_heads=3, head_size=64, scale=64**-0.5, rope=RopeSpec(inverse))
    layer = LayerSpec(attention, MlpSpec(1536), NormSpec())
    spec = ModelSpec("llama", 49152, 576, 8192, (layer,) * layers, NormSpec(), tied=True)
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.ones(shape) if len(shape) == 1 else (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        for name, shape in parameter_shapes(spec).items()
    }
    return Transformer(spec, parameters, name="target", dtype=dtype, fingerprint="random")


def request(engine: Engine, prompt: list[int], tokens: int) -> Request:
    """Return a greedy request for exactly ``tokens`` tokens, token ids only."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    state = SamplerState.begin(
        params,
        prompt,
        sample=0,
        seed=0,
        vocab_size=engine.models["target"].vocab_size,
        eos_ids=frozenset(),
        limit=tokens,
    )
    return Request(next(_NUMBERS), prompt, params, state, seed=0)
