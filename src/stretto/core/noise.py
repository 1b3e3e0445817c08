"""Counter-based noise: every random number of a text is a pure function of who asks for it.

A key names the request's sample, the index of the generated token, the denoising step and the stream; its 64 bits and
a token id give that token's noise, the same bits in any batch, order and device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_MASK32 = (1 << 32) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# Multipliers mod 2^32, written with a magnitude below 2^31: a product with a 32-bit number then stays inside int64, so
# that no device's overflow rule matters.
_SPREAD = 0x9E3779B1 - (1 << 32)
_MUL1, _MUL2, _MUL3 = 0xED5AD4BB - (1 << 32), 0xAC4C1B51 - (1 << 32), 0x31848BAB
_LARGEST_U = 1.0 - 2.0**-24  # the float32 below 1: keeps the smallest noise finite


class Stream(IntEnum):
    """Independent sources of noise at one place of a text."""

    CHOICE = 0
    ACCEPT = 1
    RESIDUAL = 2
    REMASK = 3
    DRAFT = 4


def _mix(x: int) -> int:
    """Mix 64 bits (the finaliser of SplitMix64: Steele, Lea and Flood, 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def prompt_hash(ids: Sequence[int]) -> int:
    """Return 64 bits of the prompt's token ids (BLAKE2b over little-endian 64-bit integers)."""
    data = np.asarray(ids, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(slots=True)  # not frozen: there are many, and those take four times as long to make
class NoiseKey:
    """The place of one choice: `base` names the sample of the request, `index` the generated token, `draw` the step."""

    base: int
    index: int
    draw: int = 0

    @staticmethod
    def base_of(seed: int, sample: int, prompt_hash: int) -> int:
        """Return the 64 bits shared by all keys of sample number `sample` of a request."""
        return _mix(_mix(_mix(seed + _GOLDEN & _MASK64) + sample * _GOLDEN & _MASK64) ^ prompt_hash)

    def bits(self, stream: Stream) -> int:
        """Return the 64 bits from which the noise of `stream` at this place is made."""
        place = _mix(self.base + self.index * _GOLDEN & _MASK64)
        return _mix(place + (self.draw << 8 | stream) * _GOLDEN & _MASK64)


def uniform(bits: int, counter: int) -> float:
    """Return number `counter` of the uniforms in [0, 1) that belong to `bits`, with 53 bits."""
    return (_mix(bits + (counter + 1) * _GOLDEN & _MASK64) >> 11) * 2.0**-53


@lru_cache(maxsize=8)
def _spread_ids(vocab: int, device: torch.device) -> Tensor:
    return (torch.arange(vocab, dtype=torch.int64, device=device) * _SPREAD) & _MASK32


def hash32(bits: Sequence[int], vocab: int, device: torch.device | str) -> Tensor:
    """Return int64 [R, V] of 32 hashed bits per key and token id.

    A xorshift-multiply mixer of three rounds (the "triple32" of Wellons, 2018) over the id. One half of the 64-bit key
    is added before the first round, the other folded in within it, ahead of a shift that spreads its top bits.
    """
    halves = torch.tensor([[b & _MASK32, b >> 32 & _MASK32] for b in bits], dtype=torch.int64).to(device)
    x = _spread_ids(vocab, torch.device(device)) + halves[:, :1]
    x &= _MASK32
    x ^= x >> 17
    x *= _MUL1
    x &= _MASK32
    x ^= halves[:, 1:]
    x ^= x >> 11
    x *= _MUL2
    x &= _MASK32
    x ^= x >> 15
    x *= _MUL3
    x &= _MASK32
    x ^= x >> 14
    return x


def gumbel(bits: Sequence[int], vocab: int, device: torch.device | str) -> Tensor:
    """Return standard Gumbel noise, float32 [R, V], for the 64-bit keys `bits` (R of them) and the token ids 0 to V-1.

    noise = -log(-log1p(-u)) with u = (h + 0.5) / 2^32 from 32 hashed bits h. Large noise belongs to small u, where
    float32 holds u in full precision; a uniform of 24 bits or fewer has no small u and visibly suppresses rare tokens.
    """
    noise = hash32(bits, vocab, device).to(torch.float32)
    noise = noise.add_(0.5).mul_(-(2.0**-32)).clamp_(min=-_LARGEST_U)
    return noise.log1p_().neg_().log_().neg_()
