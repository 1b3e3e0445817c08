"""Systems that are a rule: which drafts of a draft model are kept, how its tree grows, who gets rows."""

from __future__ import annotations

from collections.abc import Callable

from stretto.core.verifiers import (
    Block,
    KSequential,
    MultiRound,
    Rejection,
    Rollback,
    Typical,
    Verifier,
    WithoutReplacement,
)
from stretto.decoding.method import Fidelity
from stretto.decoding.speculative.allocator import Allocator
from stretto.decoding.speculative.budgets import SmartSpec, Tetris
from stretto.decoding.speculative.drafters.model import ModelDrafter
from stretto.decoding.speculative.growth import Beam, Growth, Run
from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.shapes.dynamic import DySpec, OptTree
from stretto.decoding.speculative.shapes.static import Sequoia, Static, branching
from stretto.decoding.speculative.shapes.stopping import AnyRejection, Confidence, Fallback, Svip
from stretto.recipes.drafting import PATIENCE, TREE, Build
from stretto.recipes.recipe import Recipe

THREE_RUNS = Static((-1, -1, -1, *range(12)))
"""Three runs of five tokens side by side, as independent draws of whole drafts."""


def ruled(
    name: str,
    growth: Growth,
    rows: int,
    verifier: type[Verifier] | None = None,
    allocator: Callable[[], Allocator] | None = None,
) -> Build:
    """Return how to build a method of the draft model, its growth rule and a verifier (None: the coupled one)."""
    judge = None if verifier is None else verifier()
    draws = "coupled" if judge is None else judge.draws
    return lambda aboard: Speculative(
        name,
        [ModelDrafter(growth=growth, draws=draws, name=name)],
        verifier=judge,
        allocator=None if allocator is None else allocator(),
        rows=rows,
        patience=PATIENCE,
    )


def row(name: str, build: Build, family: str, fidelity: Fidelity, claim: str, source: str, same_as: str = "") -> Recipe:
    """Return a recipe that needs a draft model."""
    return Recipe(name, build, family, fidelity, claim, frozenset({"draft"}), same_as=same_as, source=source)


KEEPS: Fidelity = "exact-distribution"

RULES = (
    row(
        "speculative-decoding",
        ruled("speculative-decoding", Run(5), 5, Rejection),
        "sampling",
        KEEPS,
        KEEPS,
        "arXiv 2211.17192 (Leviathan et al.)",
    ),
    row(
        "speculative-sampling",
        ruled("speculative-sampling", Run(5), 5, Rejection),
        "sampling",
        KEEPS,
        KEEPS,
        "arXiv 2302.01318 (Chen et al.)",
        same_as="speculative-decoding",
    ),
    row(
        "specinfer",
        ruled("specinfer", Static(branching(1, 1, 3, 1, 1, 1, 1, 1)), 20, MultiRound),
        "sampling",
        KEEPS,
        KEEPS,
        "arXiv 2305.09781, the authors' expansion <1,1,3,1,1,1,1,1> of one draft model",
    ),
    row(
        "spectr",
        ruled("spectr", THREE_RUNS, 15, KSequential),
        "sampling",
        KEEPS,
        KEEPS,
        "arXiv 2310.15141 (k-sequential selection), three drafts of five tokens",
    ),
    row(
        "rsd-c",
        ruled("rsd-c", Static(branching(2, 2, 2)), 14, WithoutReplacement),
        "sampling",
        KEEPS,
        KEEPS,
        "arXiv 2402.14160 (constant branching)",
    ),
    row(
        "block-verification",
        ruled("block-verification", Run(8), 8, Block),
        "sampling",
        KEEPS,
        KEEPS,
        "arXiv 2403.10444",
    ),
    row(
        "sequoia",
        ruled("sequoia", Sequoia(), TREE, WithoutReplacement),
        "tree",
        KEEPS,
        KEEPS,
        "arXiv 2402.12374; the tree for a given budget, without the choice of the budget by measured times",
    ),
    row(
        "opt-tree",
        ruled("opt-tree", OptTree(), TREE),
        "tree",
        "exact",
        KEEPS,
        "arXiv 2406.17276",
    ),
    row(
        "dyspec",
        ruled("dyspec", DySpec(), TREE),
        "tree",
        "exact",
        KEEPS,
        "arXiv 2410.11744",
    ),
    row(
        "svip",
        ruled("svip", Svip(), TREE),
        "tree",
        "exact",
        KEEPS,
        "arXiv 2411.18462",
    ),
    row(
        "confidence",
        ruled("confidence", Confidence(), 20),
        "tree",
        "exact",
        KEEPS,
        "transformers: assistant_confidence_threshold",
    ),
    row(
        "any-rejection",
        ruled("any-rejection", AnyRejection(), TREE),
        "tree",
        "exact",
        KEEPS,
        "the stopping rule of arXiv 2405.19715 (SpecDec++) on the draft's own probabilities, without its trained head",
    ),
    row(
        "tetris",
        ruled("tetris", Run(12), 12, allocator=lambda: Tetris(TREE)),
        "batch",
        "exact",
        KEEPS,
        "arXiv 2502.15197",
    ),
    row(
        "smartspec",
        ruled("smartspec", Run(10), 10, allocator=lambda: SmartSpec(10)),
        "batch",
        "exact",
        KEEPS,
        "arXiv 2406.14066",
    ),
    row(
        "typical-acceptance",
        ruled("typical-acceptance", Beam(4, 3, 3), TREE, Typical),
        "lossy",
        "approximate",
        "approximate",
        "the acceptance rule of arXiv 2401.10774 (Medusa) on a draft model's tree",
    ),
    row(
        "bild",
        ruled("bild", Fallback(length=10), 10, Rollback),
        "lossy",
        "approximate",
        "approximate",
        "arXiv 2302.07863",
    ),
)
