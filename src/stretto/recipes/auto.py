"""``auto``: all exact drafters aboard behind the allocator that makes each pay."""

from __future__ import annotations

from stretto.decoding.method import DecodingMethod
from stretto.decoding.speculative.drafter import Drafter
from stretto.decoding.speculative.drafters.editing import EditedCopy
from stretto.decoding.speculative.drafters.forced import JumpForward
from stretto.decoding.speculative.drafters.model import ModelDrafter
from stretto.decoding.speculative.drafters.recycling import TokenRecycling
from stretto.decoding.speculative.drafters.suffix import SuffixDecoding
from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.paying import Paying
from stretto.decoding.speculative.worthwhile import Worthwhile
from stretto.recipes.drafting import translated
from stretto.recipes.recipe import Aboard, Recipe

PATIENCE = 30.0
"""Seconds that a drafter may take in a step: a draft model catches up with long prompts, some hundred rows at once."""

ROWS = 64
"""Most drafted rows of a request in a step; the allocator sends as many as pay."""


def _auto(aboard: Aboard) -> DecodingMethod:
    """Cheap drafters come first: what they find decides whether a model is worth running."""
    paying = Paying()
    drafters: list[Drafter] = [
        JumpForward(),
        EditedCopy("copying"),
        SuffixDecoding("suffix"),
        TokenRecycling("recycling"),
    ]
    things = aboard.things()
    if "draft" in things:
        drafters.append(ModelDrafter(growth=Worthwhile(paying, "draft")))
    elif {"foreign-draft", "tokenizer"} <= things:
        drafters.append(translated(aboard))
    return Speculative("auto", drafters, allocator=paying, rows=ROWS, patience=PATIENCE)


AUTO = Recipe("auto", _auto, "auto", "exact")
