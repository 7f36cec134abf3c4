"""Random masks from a counter, not from a stream.

u(seed, parent, tensor, element) is a pure integer hash, so a mask depends on nothing else: not on device, threads,
sharding, the order of parents or tensors, nor on what any other tensor drew. An entry is kept when u >= p, so masks
are nested in p: raising p only removes entries.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

INT32_MIN = -(2**31)
# Mixing constants of lowbias32 (C. Wellons, "Prospecting for hash functions"), as signed 32-bit numbers.
MULTIPLY_1 = 0x7FEB352D
MULTIPLY_2 = 0x846CA68B - 2**32
# 2^32 / golden ratio, odd: steps of a Weyl sequence, as a signed 32-bit number.
GOLDEN_STEP = 0x9E3779B9 - 2**32


class Key(NamedTuple):
    """64 bits that select one hash function on 32-bit counters, as two signed 32-bit numbers."""

    low: int
    high: int


def stream_key(purpose: str, seed: int, parent_digest: str, tensor_name: str, high_counter: int = 0) -> Key:
    """Key of one tensor's mask. `high_counter` is the element index above its lowest 32 bits."""
    text = "\0".join((purpose, str(seed), parent_digest, tensor_name, str(high_counter)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return Key(int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True))


def counter_hash(index: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Uniform signed 32-bit hash of int32 counters -> int32 of their shape. Arithmetic wraps modulo 2^32."""
    x = index ^ low
    x = (x ^ ((x >> 16) & 0xFFFF)) * MULTIPLY_1
    x = (x ^ ((x >> 15) & 0x1FFFF) ^ high) * MULTIPLY_2
    return x ^ ((x >> 16) & 0xFFFF)


def tie_hash(index: Tensor, key: Tensor | int) -> Tensor:
    """Signed 32-bit rank of int32 counters -> int32 of their shape, spread evenly and never equal for two counters.

    A Weyl sequence: one multiplication, where order among equals must be free of position but need not be random.
    """
    return index * GOLDEN_STEP + key


def drop_threshold(p: float) -> int:
    """The hash value at and above which an entry survives drop rate p in [0, 1)."""
    return min(int(p * 2**32), 2**32 - 1) + INT32_MIN


def counters(start: int, count: int, device: torch.device, step: int = 1) -> Tensor:
    """`count` element indices from `start`, `step` apart, modulo 2^32, as int32."""
    low = (start & 0xFFFFFFFF) + INT32_MIN
    return torch.arange(low, low + count * step, step, dtype=torch.int64, device=device).to(torch.int32)
