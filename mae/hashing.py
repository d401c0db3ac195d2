"""Randomness without state: every draw is a hash of (seed, purpose, epoch, sample id, index).

There is no generator to save or restore: a sample's crop, flip and mask depend on nothing but
these five integers, not on the number of workers, ranks, the batch it arrives in or where a run
was interrupted. The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, 2014) in
wrapping 64-bit integer arithmetic, so CPU and GPU return the same bits.
"""

import hashlib
import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FACTOR_1 = 0xBF58476D1CE4E5B9
_FACTOR_2 = 0x94D049BB133111EB
_WORD = 1 << 64


def _signed(value: int) -> int:
    """Return the int64 that has the same 64 bits as the unsigned `value`."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own is arithmetic on int64, so clear the copied sign bits."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_FACTOR_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_FACTOR_2)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    x %= _WORD
    x = (x ^ (x >> 30)) * _FACTOR_1 % _WORD
    x = (x ^ (x >> 27)) * _FACTOR_2 % _WORD
    return x ^ (x >> 31)


def stream(seed: int, purpose: str, epoch: int = 0) -> int:
    """Return the unsigned 64-bit key of the stream (seed, purpose, epoch)."""
    key = _mix_int(seed + _GOLDEN)
    key = _mix_int(key ^ zlib.crc32(purpose.encode()) * _GOLDEN)
    return _mix_int(key ^ (epoch + 1) * _GOLDEN)


def random_bits(seed: int, purpose: str, epoch: int, ids: Tensor, count: int) -> Tensor:
    """Return `count` independent 64-bit hashes for each id: int64 (N, count) on ids' device."""
    key = _signed(stream(seed, purpose, epoch))
    index = torch.arange(1, count + 1, device=ids.device, dtype=torch.int64) * _signed(_GOLDEN)
    per_id = _mix(ids.to(torch.int64) ^ key)
    return _mix(per_id[:, None] + index[None, :])


def uniform(seed: int, purpose: str, epoch: int, ids: Tensor, count: int) -> Tensor:
    """Return uniform draws in [0, 1) for each id: float64 (N, count) on ids' device.

    The top 53 bits make the number, so that the conversion is exact on every device.
    """
    return _shift_right(random_bits(seed, purpose, epoch, ids, count), 11).double() * 2.0**-53


def permutation(seed: int, purpose: str, epoch: int, length: int) -> Tensor:
    """Return a permutation of range(length): int64 (length,), a function of its arguments."""
    keys = random_bits(seed, purpose, epoch, torch.arange(length), 1)[:, 0]
    return torch.argsort(keys, stable=True)


def text_id(text: str) -> int:
    """Return the non-negative 63-bit id of a record's name (first bytes of its sha256)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
