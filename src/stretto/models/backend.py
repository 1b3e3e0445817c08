"""Which kernels a model runs on: the native ones on a CPU that has them built, else PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stretto.core.batch import LaneSpec
from stretto.kernels import native
from stretto.kernels.quantized import Quantized
from stretto.kernels.table import REFERENCE
from stretto.models.compiled import CompiledTransformer
from stretto.models.spec import ModelSpec
from stretto.models.transformer import Transformer

AnyTransformer = Transformer | CompiledTransformer

NATIVE = "native-1"
"""Version of the native arithmetic: other bits, other name."""


def numerics(device: torch.device) -> str:
    """Return the part of the fingerprint that the backend decides: kernel version and instruction set."""
    if device.type == "cuda":
        return f"{REFERENCE.name}\n{torch.cuda.get_device_name(device)}"
    library = native.load()
    if library is None:
        return f"{REFERENCE.name}\n{torch.backends.cpu.get_cpu_capability()}"
    return f"{NATIVE}\n{library.path()}"


def build(
    spec: ModelSpec,
    parameters: Mapping[str, Tensor | Quantized],
    *,
    name: str,
    dtype: torch.dtype,
    fingerprint: str,
    device: torch.device | None = None,
    lanes: tuple[LaneSpec, ...] | None = None,
) -> AnyTransformer:
    """Return the model of ``parameters`` on the fastest kernels that ``device`` (None: the CPU) has here."""
    device = device or torch.device("cpu")
    if device.type != "cpu" or native.load() is None:
        return Transformer(
            spec, parameters, name=name, dtype=dtype, device=device, fingerprint=fingerprint, lanes=lanes
        )
    return CompiledTransformer(spec, parameters, name=name, dtype=dtype, fingerprint=fingerprint, lanes=lanes)
