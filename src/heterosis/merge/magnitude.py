"""The magnitude index: where to cut a task vector so that a given fraction of its entries stays.

The threshold is a property of (parent, tensor, density), so one sort per (parent, tensor) serves every candidate of a
study. Entries are ordered by (|δ|, hash of their index), which has no ties, so the kept number is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from heterosis.merge.masks import INT32_MIN, counters, tie_hash

# Ranks kept per tensor: all of them up to this many entries, evenly spaced ones above (spacing under 0.01 %).
RANKS = 16_384


class Threshold(NamedTuple):
    """Keep |δ| > value, and |δ| = value where the hash is at least `cut` (signed 32-bit)."""

    value: float
    cut: int


KEEP_ALL = Threshold(-1.0, INT32_MIN)
KEEP_NONE = Threshold(float("inf"), 2**31 - 1)


class MagnitudeIndex(NamedTuple):
    """Selected ranks of a sorted task vector.

    `keys[i]` is the (magnitude bits << 32 | hash) of the entry with `ranks[i]` entries above it; both ascend in rank.
    """

    keys: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.float64]
    numel: int

    @classmethod
    def build(cls, delta: Tensor, key: int) -> MagnitudeIndex:
        """Index one task vector: delta [n] float32."""
        numel = delta.numel()
        hashes = tie_hash(counters(0, numel, delta.device), key).cpu().numpy()
        bits = delta.abs().cpu().numpy().view(np.int32).astype(np.int64)
        ordered = np.sort((bits << 32) | (hashes.astype(np.int64) - INT32_MIN))[::-1]
        ranks = np.unique(np.linspace(0, numel - 1, min(numel, RANKS)).round().astype(np.int64))
        return cls(ordered[ranks].copy(), ranks.astype(np.float64), numel)

    @classmethod
    def union(cls, parts: Sequence[MagnitudeIndex]) -> MagnitudeIndex:
        """Index of several tensors taken as one vector: trim scope `model`, one threshold for a whole task vector."""
        keys = np.concatenate([part.keys for part in parts])
        shares = np.concatenate([np.diff(part.ranks, append=part.numel) for part in parts])
        order = np.argsort(keys, kind="stable")[::-1]
        above = np.concatenate([[0.0], np.cumsum(shares[order])[:-1]])
        return cls(keys[order], above, sum(part.numel for part in parts))

    def threshold(self, density: float) -> Threshold:
        """The cut that keeps int(density * n) entries: exact up to 16,384 entries, within 0.01 % above."""
        return self.threshold_at(int(density * self.numel))

    def band(self, density: float, gamma: float = 0.0, more: int = 0) -> tuple[Threshold, Threshold]:
        """Floor and ceiling that leave out the int(gamma * n) largest entries and keep the int(density * n) next.

        Where the two exceed the whole, fewer of the largest are left out. `more` is added to a number to keep that is
        neither none nor all.
        """
        kept = int(density * self.numel)
        kept += more if density > 0.0 and kept < self.numel else 0
        above = min(int(gamma * self.numel), self.numel - kept)
        return self.threshold_at(above + kept), self.threshold_at(above)

    def threshold_at(self, kept: int) -> Threshold:
        """The cut that keeps so many entries."""
        if kept >= self.numel:
            return KEEP_ALL
        if kept == 0:
            return KEEP_NONE
        key = self._key_at(kept - 1)
        return Threshold(float(np.int32(key >> 32).view(np.float32)), (key & 0xFFFFFFFF) + INT32_MIN)

    def _key_at(self, rank: int) -> int:
        right = int(np.searchsorted(self.ranks, rank))
        if right == len(self.ranks):
            return int(self.keys[-1])
        if self.ranks[right] == rank or right == 0:
            return int(self.keys[right])
        left = right - 1
        share = (rank - self.ranks[left]) / (self.ranks[right] - self.ranks[left])
        high, low = int(self.keys[left]), int(self.keys[right])
        return high - int((high - low) * share)
