"""Systems whose drafts a model writes: a smaller one, or the target itself made cheaper."""

from __future__ import annotations

from collections.abc import Callable

from stretto.decoding.method import DecodingMethod
from stretto.decoding.speculative.drafter import Drafter
from stretto.decoding.speculative.drafters.early_exit import EarlyExit
from stretto.decoding.speculative.drafters.itself import SelfDrafter, Window
from stretto.decoding.speculative.drafters.model import ModelDrafter
from stretto.decoding.speculative.drafters.ngram import Anpd
from stretto.decoding.speculative.drafters.translated import TranslatedDrafter
from stretto.decoding.speculative.growth import Beam, Run
from stretto.decoding.speculative.method import Speculative
from stretto.recipes.recipe import Aboard, Recipe

TREE = 16
"""Nodes of a tree that a draft model's system sends."""

PATIENCE = 60.0
"""Seconds: catching up a long prompt takes a large draft model longer than drafts may take that are looked up."""

Build = Callable[[Aboard], DecodingMethod]


def alone(name: str, drafter: Callable[[Aboard], Drafter], rows: int, scratch: int = 1) -> Build:
    """Return how to build the method of one drafter."""
    return lambda aboard: Speculative(name, [drafter(aboard)], rows=rows, scratch=scratch, patience=PATIENCE)


def translated(aboard: Aboard) -> Drafter:
    """Return the drafter that reads the text in the draft's own tokens."""
    target, draft = aboard.tokenizers["target"], aboard.tokenizers["draft"]
    assert target is not None and draft is not None, "a foreign draft has a tokenizer"
    return TranslatedDrafter(target, draft)


def half(aboard: Aboard) -> Drafter:
    """Return early exit behind the first half of the layers. Raises ``ValueError`` for a model of one layer."""
    return EarlyExit(_layers(aboard, "early-exit", 2) // 2)


def outer(aboard: Aboard) -> Drafter:
    """Return the target without its middle third of layers. Raises ``ValueError`` for a model of fewer than three."""
    layers = _layers(aboard, "draft-and-verify", 3)
    kept = max(1, layers // 3)
    return SelfDrafter("draft-and-verify", Run(5), spans=((0, kept), (layers - kept, layers)))


def _layers(aboard: Aboard, method: str, least: int) -> int:
    layers = aboard.models["target"].layers
    if layers < least:
        raise ValueError(f"method={method!r} leaves layers out and needs {least} at least; this model has {layers}")
    return layers


DRAFTING = (
    Recipe(
        "draft-model",
        alone("draft-model", lambda aboard: ModelDrafter(growth=Run(5), name="draft-model"), rows=5),
        "draft-model",
        "exact",
        "exact-distribution",
        frozenset({"draft"}),
        source="arXiv 2211.17192, 2302.01318; drafted with the noise of choice: 2408.07978",
    ),
    Recipe(
        "draft-tree",
        alone("draft-tree", lambda aboard: ModelDrafter(growth=Beam(6, 4, 4), name="draft-tree"), rows=TREE),
        "draft-model",
        "exact",
        "exact-distribution",
        frozenset({"draft"}),
        source="arXiv 2305.09781 (SpecInfer's token tree), with one draft model",
    ),
    Recipe(
        "staged",
        alone("staged", lambda aboard: ModelDrafter(growth=Run(8), name="staged", stage=Anpd("staged-ngrams")), rows=8),
        "draft-model",
        "exact",
        "exact-distribution",
        frozenset({"draft"}),
        source="arXiv 2308.04623; n-grams of the request draft for the draft",
    ),
    Recipe(
        "slem",
        alone("slem", translated, rows=8),
        "draft-model",
        "exact",
        "exact-distribution",
        frozenset({"foreign-draft", "tokenizer"}),
        source="arXiv 2502.05202 (string-level exact match)",
    ),
    Recipe(
        "early-exit",
        alone("early-exit", half, rows=5),
        "self",
        "exact",
        "exact-greedy",
        source="arXiv 2404.16710 (LayerSkip's self-speculation), exit behind half of the layers",
    ),
    Recipe(
        "draft-and-verify",
        alone("draft-and-verify", outer, rows=5, scratch=2),
        "self",
        "exact",
        "exact-distribution",
        source="arXiv 2309.08168, the middle third of the layers left out",
    ),
    Recipe(
        "magicdec",
        alone("magicdec", lambda aboard: SelfDrafter("magicdec", Run(5), window=Window()), rows=5, scratch=2),
        "self",
        "exact",
        "exact-distribution",
        source="arXiv 2408.11049, the draft sees sink and window as in 2309.17453",
    ),
    Recipe(
        "triforce",
        alone(
            "triforce",
            lambda aboard: SelfDrafter("triforce", Run(8), window=Window(), stage=ModelDrafter(name="triforce-stage")),
            rows=8,
            scratch=3,
        ),
        "self",
        "exact",
        "exact-distribution",
        frozenset({"draft"}),
        source="arXiv 2404.11912, with sink and window in place of retrieved chunks",
    ),
    Recipe(
        "quantspec",
        alone("quantspec", lambda aboard: ModelDrafter("int4", Run(5), name="quantspec"), rows=5),
        "self",
        "exact",
        "exact-distribution",
        frozenset({"int4"}),
        {"int4": {"weights": "int4"}},
        source="arXiv 2502.10424; weights in int4, the cache of the draft in full precision",
    ),
)
