"""Systems that copy their drafts from text seen before, and drafts that a mask forces."""

from __future__ import annotations

from collections.abc import Callable

from stretto.decoding.speculative.drafter import Drafter
from stretto.decoding.speculative.drafters.copying import AggressiveDecoding
from stretto.decoding.speculative.drafters.forced import JumpForward
from stretto.decoding.speculative.drafters.ngram import Anpd, PromptLookup
from stretto.decoding.speculative.drafters.recycling import TokenRecycling
from stretto.decoding.speculative.drafters.suffix import SuffixDecoding
from stretto.decoding.speculative.drafters.trie import AlipayLookahead
from stretto.decoding.speculative.method import Speculative
from stretto.recipes.recipe import Recipe


def _row(name: str, make: Callable[[], Drafter], rows: int, claim: str, source: str) -> Recipe:
    """Return the row of one drafter alone, whose drafts have at most ``rows`` nodes."""
    return Recipe(
        name,
        lambda aboard: Speculative(name, [make()], rows=rows),
        family="retrieval",
        fidelity="exact",
        claim=claim,
        source=source,
    )


RETRIEVAL = (
    _row("prompt-lookup", PromptLookup, 10, "exact-greedy", "https://github.com/apoorvumang/prompt-lookup-decoding"),
    _row("anpd", Anpd, 6, "exact-greedy", "arXiv 2404.08698"),
    _row("aggressive", AggressiveDecoding, 16, "exact-greedy", "arXiv 2106.04970, 2205.10350"),
    _row("suffix-decoding", SuffixDecoding, 16, "exact-distribution", "arXiv 2411.04975"),
    _row("lookahead-alipay", AlipayLookahead, 16, "exact-greedy", "arXiv 2312.12728"),
    # The paper sends 80 rows; the likeliest of them are what a CPU's pass takes in for little more than one.
    _row("token-recycling", TokenRecycling, 16, "exact-greedy", "arXiv 2408.08696"),
    _row("jump-forward", JumpForward, 16, "", "arXiv 2312.07104"),
)
