"""Folding: a loud channel that quiet columns read is made less loud, and its columns louder, before quantization.

Where a norm scales its channels and matrices read them, a factor may move from one to the other; likewise between the
rows of a gated block's up-projection and the columns of its down-projection. Factors are powers of two: the function
stays what it was, while the integers keep more of it (as in SmoothQuant, https://arxiv.org/abs/2211.10438, which
estimates loudness on text; here the weights alone decide, so that nothing but the checkpoint enters the numerics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.models.latent import readers_of_row
from stretto.models.spec import ExpertsSpec, LayerSpec, ModelSpec

_WIDE = (torch.float32, torch.bfloat16)
"""Precisions whose exponents go as far as fp32's."""


@dataclass(frozen=True, slots=True)
class Site:
    """Channels between their source and their readers, by names of parameters."""

    source: str
    """A norm, or an up-projection: its channels are divided by the factors."""
    readers: tuple[str, ...]
    """Matrices whose columns are multiplied by them."""
    offset: float = 0.0
    """What the norm adds to its weights."""


def sites(spec: ModelSpec) -> Iterator[Site]:
    """Yield the places of a model where factors may move. A tied head is quantized apart and counts."""
    for number, layer in enumerate(spec.layers):
        yield from _layer_sites(layer, f"layers.{number}.")
    yield Site("norm", ("head",), spec.norm.offset)


def _layer_sites(layer: LayerSpec, prefix: str) -> Iterator[Site]:
    if layer.norm:
        heads = tuple(f"{prefix}{name}.weight" for name in readers_of_row(layer.attention))
        yield Site(f"{prefix}attention_norm", heads, layer.norm.offset)
    if (latent := layer.attention.latent) is not None:
        parts = tuple(f"{prefix}latent_{name}.weight" for name in ("key", "value"))
        yield Site(f"{prefix}latent_norm", parts, latent.norm.offset)
        if latent.query_size is not None:
            yield Site(f"{prefix}query_latent_norm", (f"{prefix}latent_query.weight",), latent.norm.offset)
    mlp, blocks, router = layer.mlp, [prefix], []
    if isinstance(mlp, ExpertsSpec):
        blocks, router = [f"{prefix}experts.{number}." for number in range(mlp.count)], [f"{prefix}router.weight"]
        if mlp.shared:
            blocks.append(f"{prefix}shared_")
        mlp = mlp.expert
    inner = [f"{block}{name}.weight" for block in blocks for name in (["gate", "up"] if mlp.gated else ["up"])]
    if layer.norm:
        yield Site(f"{prefix}mlp_norm", (*router, *inner), layer.norm.offset)
    if mlp.gated:  # behind an activation a factor would change the function
        for block in blocks:
            yield Site(f"{block}up", (f"{block}down.weight",))


class Folding:
    """The factors of one model, found when a tensor that they change is asked for."""

    def __init__(self, spec: ModelSpec, read: Callable[[str], Tensor]) -> None:
        """``read`` returns a parameter as the checkpoint has it."""
        self._read = read
        self._sources: dict[str, Site] = {}
        self._readers: dict[str, Site] = {}
        for site in sites(spec):
            self._sources |= {f"{site.source}.weight": site, f"{site.source}.bias": site}
            self._readers |= dict.fromkeys(site.readers, site)
        self._found: dict[str, Tensor] = {}

    def fold(self, name: str, tensor: Tensor) -> Tensor:
        """Return the parameter ``name``, given as the checkpoint has it, with its factors.

        Matrices keep a precision that holds powers of two times as much; others become fp32 where there are factors.
        """
        if name in self._readers:
            factors = self._factors(self._readers[name], name, tensor)
            if (factors != 1).any():
                tensor = tensor * factors.to(tensor.dtype) if tensor.dtype in _WIDE else tensor.float() * factors
        if name in self._sources:
            site = self._sources[name]
            factors = self._factors(site, name, tensor)
            if (factors != 1).any():
                offset = site.offset if name.endswith(".weight") else 0.0
                divisors = factors if tensor.ndim == 1 else factors[:, None]
                if tensor.ndim > 1 and tensor.dtype in _WIDE:
                    tensor = tensor / divisors.to(tensor.dtype)
                else:
                    tensor = (tensor.float() + offset) / divisors - offset
        return tensor

    def _factors(self, site: Site, held: str, tensor: Tensor) -> Tensor:
        """Return the factors of ``site``, fp32 powers of two of at least 1, one for each channel.

        ``tensor`` is the parameter ``held`` as the checkpoint has it, which is not read again.
        """

        def raw(name: str) -> Tensor:
            return tensor if name == held else self._read(name)

        if site.source not in self._found:
            source = raw(f"{site.source}.weight")
            loud = (source.float() + site.offset).abs() if source.ndim == 1 else _peaks(source, 1).float()
            del source
            quiet = torch.stack([_peaks(raw(name), 0).float() for name in site.readers]).amax(0)
            room = torch.minimum(loud / loud.median(), quiet.median() / quiet)
            room = torch.where(room.isfinite(), room, 1.0).clamp(1, 2.0**20)
            exponents = torch.frexp(room).exponent - 1  # exact on every machine, which a logarithm is not
            self._found[site.source] = torch.ldexp(torch.ones_like(room), exponents)
        return self._found[site.source]


def _peaks(matrix: Tensor, dim: int) -> Tensor:
    """Return the largest magnitudes along ``dim``, without a copy of the matrix."""
    return torch.maximum(matrix.amax(dim), -matrix.amin(dim))
