"""The magnitude index: where to cut a task vector so that a given fraction of its entries stays.

The threshold is a property of (parent, tensor, density), so one index per (parent, tensor) serves every candidate of a
study. Tensors of up to 2^20 entries are sorted by (|δ|, hash of the entry's index), which has no ties. Larger ones are
counted in one pass into cells of magnitudes that agree to 1 part in 4096; within the cell that a cut falls into, the
hash alone decides, so the number kept is right to within the cell's chance: about √c / 2 of its c entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heterosis.checkpoints.pages import fresh_tensor
from heterosis.merge.masks import INT32_MIN, counters, tie_hash

# Ranks kept of a sorted tensor: all of them up to this many entries, evenly spaced ones above (spacing under 0.01 %).
RANKS = 16_384
# Entries up to which a tensor is sorted.
SORTED = 2**20
# What a cell drops of the bits of a float32: 12 of the mantissa stay.
CELL_SHIFT = 11
# Cells that start in the same n / SLOTS entries become one: the tails need no finer cells than the bulk.
SLOTS = 2**16
# Entries worked on at a time on a CPU, whose temporaries should stay in the caches, and at most elsewhere. No more than
# fit into counters of 32 bits, which are faster than those of 64.
BLOCK, CHUNK = 2**18, 2**24


def task_vector(parent: Tensor, base: Tensor) -> Tensor:
    """parent - base, two tensors of n entries -> float32 [n].

    Block by block, because whole float32 copies of the two would cost more than all else.
    """
    numel, device = base.numel(), base.device
    on_cpu = device.type == "cpu"
    delta = fresh_tensor((numel,), torch.float32) if on_cpu else torch.empty(numel, device=device)
    parent, base = parent.reshape(-1), base.reshape(-1)
    step = BLOCK if on_cpu else CHUNK
    for one, other, difference in zip(*(torch.split(x, step) for x in (parent, base, delta)), strict=True):
        torch.sub(one.to(torch.float32), other.to(torch.float32), out=difference)
    return delta


class Threshold(NamedTuple):
    """Keep |δ| > upper, and |δ| > lower where the hash is at least `cut` (signed 32-bit).

    A cut at one exact magnitude has it as `upper` and the float32 before it as `lower`.
    """

    upper: float
    lower: float
    cut: int


KEEP_ALL = Threshold(-1.0, -1.0, INT32_MIN)
KEEP_NONE = Threshold(float("inf"), float("inf"), 2**31 - 1)


class MagnitudeIndex(NamedTuple):
    """Selected ranks of a sorted task vector, or the cells of a counted one.

    A key is (magnitude bits << 32 | hash). Sorted: `keys[i]` is that of the entry with `ranks[i]` entries above it.
    In cells: `keys[i]` is the lowest of cell i, which ends below `keys[i - 1]` and has `ranks[i]` entries above it.
    Keys descend, ranks ascend.
    """

    keys: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.float64]
    numel: int
    in_cells: bool = False

    @classmethod
    def build(cls, delta: Tensor, key: int) -> MagnitudeIndex:
        """Index one task vector: delta [n] float32."""
        numel = delta.numel()
        if numel > SORTED:
            return _in_cells(*_count(delta), numel)
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
        numel = sum(part.numel for part in parts)
        if any(part.in_cells for part in parts):
            cells, number = np.unique(keys >> (32 + CELL_SHIFT), return_inverse=True)
            return _in_cells(cells[::-1], np.bincount(number, shares)[::-1], numel)
        order = np.argsort(keys, kind="stable")[::-1]
        return cls(keys[order], _above(shares[order]), numel)

    def threshold(self, density: float) -> Threshold:
        """The cut that keeps int(density * n) entries: exact up to 16,384 entries, within 0.01 % of n for all other
        sorted tensors, and for larger ones within 0.1 % even where half of all entries are equal.
        """
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
        if self.in_cells:
            return self._within_cell(kept)
        key = self._key_at(kept - 1)
        bits = key >> 32
        return Threshold(_magnitude(bits), _magnitude(bits - 1), (key & 0xFFFFFFFF) + INT32_MIN)

    def _within_cell(self, kept: int) -> Threshold:
        cell = int(np.searchsorted(self.ranks, kept - 1, side="right")) - 1
        first = self.ranks[cell]
        after = self.ranks[cell + 1] if cell + 1 < len(self.ranks) else self.numel
        passed = 1.0 - (kept - first) / (after - first)
        upper = _magnitude((int(self.keys[cell - 1]) >> 32) - 1) if cell else float("inf")
        return Threshold(upper, _magnitude((int(self.keys[cell]) >> 32) - 1), int(passed * 2**32) + INT32_MIN)

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


def _magnitude(bits: int) -> float:
    """The float32 of these bits; -1, which every magnitude exceeds, below zero's."""
    return float(np.int32(bits).view(np.float32)) if bits >= 0 else -1.0


def _above(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)[:-1]])


def _count(delta: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cells that hold entries, the largest magnitudes first, and how many each holds."""
    number = 2 ** (31 - CELL_SHIFT)
    counts = torch.zeros(number, dtype=torch.int64, device=delta.device)
    one = torch.ones(1, dtype=torch.int32, device=delta.device)
    for chunk in torch.split(delta.reshape(-1), CHUNK):
        found = torch.zeros(number, dtype=torch.int32, device=delta.device)
        for block in torch.split(chunk, BLOCK if delta.device.type == "cpu" else CHUNK):
            cells = block.abs().view(torch.int32).bitwise_right_shift_(CELL_SHIFT)
            found.index_add_(0, cells, one.expand(len(cells)))
        counts += found
    counted = counts.cpu().numpy()
    held = np.flatnonzero(counted)[::-1]
    return held, counted[held]


def _in_cells(cells: npt.NDArray[np.int64], counts: npt.NDArray[Any], numel: int) -> MagnitudeIndex:
    above = _above(counts)
    slots = (above * (SLOTS / numel)).astype(np.int64)
    first = np.flatnonzero(np.diff(slots, prepend=-1))
    last = np.append(first[1:], len(cells)) - 1
    return MagnitudeIndex(cells[last].astype(np.int64) << (32 + CELL_SHIFT), above[first], numel, in_cells=True)
