"""Verifiers: which drafted tokens a request keeps, as a lazy walk through its tree.

``Coupled`` keeps the text of plain decoding. Those that sample (rejection in one or several rounds, k-sequential
selection, block verification) keep its distribution, and lossy ones neither.
"""

from stretto.core.verifiers.block import Block
from stretto.core.verifiers.contract import Answer, Ask, Draws, Fidelity, Verifier, Walk, Walked
from stretto.core.verifiers.coupled import Coupled
from stretto.core.verifiers.k_sequential import KSequential
from stretto.core.verifiers.lossy import Rollback, Typical
from stretto.core.verifiers.rejection import MultiRound, Rejection, WithoutReplacement

__all__ = [
    "Answer",
    "Ask",
    "Block",
    "Coupled",
    "Draws",
    "Fidelity",
    "KSequential",
    "MultiRound",
    "Rejection",
    "Rollback",
    "Typical",
    "Verifier",
    "Walk",
    "Walked",
    "WithoutReplacement",
]
