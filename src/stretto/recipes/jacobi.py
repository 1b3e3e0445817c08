"""Systems whose drafts are the target's own parallel guesses."""

from __future__ import annotations

from stretto.decoding.speculative.drafters.jacobi import Jacobi
from stretto.decoding.speculative.drafters.lookahead import Lookahead
from stretto.decoding.speculative.method import Speculative
from stretto.recipes.recipe import Recipe

JACOBI = (
    Recipe(
        "jacobi",
        lambda aboard: Speculative("jacobi", [Jacobi(length=8)], rows=8),
        family="jacobi",
        fidelity="exact",
        claim="exact-greedy",
        source="arXiv 2305.10427",
    ),
    # 14 rows of the window and three branches of three tokens.
    Recipe(
        "lookahead",
        lambda aboard: Speculative("lookahead", [Lookahead(window=5, ngram=4, branches=3)], rows=23),
        family="jacobi",
        fidelity="exact",
        claim="exact-distribution",
        source="arXiv 2402.02057",
    ),
)
