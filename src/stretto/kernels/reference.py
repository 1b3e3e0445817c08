"""The op table in plain PyTorch: the definition that every other kernel is measured against.

Row-invariant: a row's bits come from its own inputs, in an order that the number of rows, their places, the batch, the
slicing and the threads cannot change.
"""

from stretto.kernels.attention import Asked, Block, Plan, Run, attention
from stretto.kernels.elementwise import RopeTable, activate, layer_norm, rms_norm, rotate, softcap
from stretto.kernels.linear import Packed, linear, pack
from stretto.kernels.mixture import choose_experts, mixture

__all__ = [
    "Asked",
    "Block",
    "Packed",
    "Plan",
    "RopeTable",
    "Run",
    "activate",
    "attention",
    "choose_experts",
    "layer_norm",
    "linear",
    "mixture",
    "pack",
    "rms_norm",
    "rotate",
    "softcap",
]
