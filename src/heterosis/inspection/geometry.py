"""The size of task vectors and how they lie to one another: sums over entries, which add up over tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# DARE (Yu et al. 2024), section 4, "When Can DARE Be Used?": dropping 90 % and more of a task vector works where its
# entries lie within 0.002. Beyond about 0.01, as after continued pre-training, dropping a tenth already ruined a model.
SAFE, LARGE = 0.002, 0.01

# Magnitudes are counted in buckets that the float's own bits name: 64 per octave, from 2^-32 up to 2^8.
_OCTAVES, _LOWEST, _BITS = 40, -32, 6
BUCKETS = _OCTAVES << _BITS
_SHIFT = 23 - _BITS
_OFFSET = (127 + _LOWEST) << _BITS

_ROW = 4096


def total(values: Tensor) -> float:
    """Sum of float64 values [n], added row by row so that the number of threads does not change the rounding."""
    whole = values.numel() // _ROW * _ROW
    rows = values[:whole].view(-1, _ROW).sum(dim=1)
    return math.fsum([*rows.tolist(), *values[whole:].tolist()])


def _count(mask: Tensor) -> int:
    return int(torch.count_nonzero(mask))


def magnitudes(sizes: Tensor) -> Tensor:
    """How many entries fall into each bucket of magnitude. sizes float32 [n], none negative -> int64 [BUCKETS].

    The first bucket also takes zeros and what is smaller than 2^-32, the last what is larger than 2^8.
    """
    named = (sizes.view(torch.int32) >> _SHIFT) - _OFFSET
    return torch.bincount(named.clamp_(0, BUCKETS - 1), minlength=BUCKETS)


def octaves(buckets: Tensor) -> list[tuple[float, float, int]]:
    """(from, to, entries) for each octave of magnitude. buckets int64 [BUCKETS]."""
    counts = buckets.view(_OCTAVES, 1 << _BITS).sum(dim=1).tolist()
    return [(2.0 ** (_LOWEST + i), 2.0 ** (_LOWEST + i + 1), int(count)) for i, count in enumerate(counts)]


def _upper_edge(bucket: int) -> float:
    octave, step = divmod(bucket + 1, 1 << _BITS)
    return float(2.0 ** (_LOWEST + octave) * (1 + step / (1 << _BITS)))


@dataclass(frozen=True)
class Moments:
    """Sums over the entries of one task vector. Two of them add up to those of the entries of both."""

    entries: int = 0
    mass: float = 0.0
    """Σ |δ|"""
    square: float = 0.0
    """Σ δ²"""
    origin: float = 0.0
    """Σ θ₀² over the same entries"""
    largest: float = 0.0
    zeros: int = 0
    beyond_safe: int = 0
    beyond_large: int = 0
    buckets: Tensor | None = None

    def __add__(self, other: Moments) -> Moments:
        counts = [side.buckets for side in (self, other) if side.buckets is not None]
        return Moments(
            self.entries + other.entries,
            self.mass + other.mass,
            self.square + other.square,
            self.origin + other.origin,
            max(self.largest, other.largest),
            self.zeros + other.zeros,
            self.beyond_safe + other.beyond_safe,
            self.beyond_large + other.beyond_large,
            counts[0] + counts[1] if len(counts) == 2 else counts[0] if counts else None,
        )

    @property
    def mean(self) -> float:
        """Mean |δ|."""
        return self.mass / self.entries if self.entries else 0.0

    @property
    def rms(self) -> float:
        """Root of the mean square."""
        return math.sqrt(self.square / self.entries) if self.entries else 0.0

    @property
    def relative(self) -> float | None:
        """||δ|| / ||θ₀||; None where the base is zero."""
        return math.sqrt(self.square / self.origin) if self.origin > 0.0 else None

    @property
    def effective_density(self) -> float:
        """Participation ratio ||δ||₁² / (n ||δ||₂²): 1 if all entries are of one size, 1/n if only one is not zero."""
        return self.mass**2 / (self.entries * self.square) if self.square > 0.0 else 0.0

    def quantile(self, share: float) -> float:
        """The |δ| that `share` of the entries do not exceed: an upper bound, at most 1/64 above it."""
        rank = math.ceil(share * self.entries)
        if self.buckets is None or rank <= self.zeros:
            return 0.0
        bucket = int(torch.searchsorted(self.buckets.cumsum(0), rank))
        return min(_upper_edge(bucket), self.largest)


def measure(delta: Tensor, base: Tensor) -> Moments:
    """Sums over one task vector. delta, base float32 [n]. The mass is finite exactly where all of δ is."""
    sizes = delta.abs()
    wide, origin = sizes.double(), base.double()
    return Moments(
        entries=delta.numel(),
        mass=total(wide),
        square=total(wide * wide),
        origin=total(origin * origin),
        largest=float(sizes.max()) if delta.numel() else 0.0,
        zeros=_count(sizes == 0.0),
        beyond_safe=_count(sizes > SAFE),
        beyond_large=_count(sizes > LARGE),
        buckets=magnitudes(sizes),
    )


@dataclass(frozen=True)
class PairMoments:
    """Sums over the entries that two task vectors share."""

    entries: int = 0
    dot: float = 0.0
    first: float = 0.0
    """Σ δ_a²"""
    second: float = 0.0
    """Σ δ_b²"""
    both: int = 0
    """Entries that both change"""
    opposed: int = 0
    """Entries that both change, in opposite directions"""

    def __add__(self, other: PairMoments) -> PairMoments:
        return PairMoments(
            self.entries + other.entries,
            self.dot + other.dot,
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.opposed + other.opposed,
        )

    @property
    def cosine(self) -> float | None:
        """Cosine between the two; None where one of them is zero."""
        norms = math.sqrt(self.first) * math.sqrt(self.second)
        return max(-1.0, min(1.0, self.dot / norms)) if norms > 0.0 else None

    @property
    def conflict(self) -> float | None:
        """Share of the entries that both change in which their signs differ: 0.5 for unrelated ones."""
        return self.opposed / self.both if self.both else None

    @property
    def identical(self) -> bool:
        """Whether the two are one vector: then all three sums are over the same numbers."""
        return self.entries > 0 and self.dot == self.first == self.second


def measure_pair(first: Tensor, second: Tensor) -> PairMoments:
    """Sums over two task vectors of the same tensor. float32 [n] each."""
    a, b = first.double(), second.double()
    both = (first != 0.0) & (second != 0.0)
    return PairMoments(
        entries=first.numel(),
        dot=total(a * b),
        first=total(a * a),
        second=total(b * b),
        both=_count(both),
        opposed=_count(both & ((first < 0.0) != (second < 0.0))),
    )


@dataclass(frozen=True)
class CrowdMoments:
    """Sums over the entries that two or more task vectors share."""

    entries: int = 0
    mass: float = 0.0
    """Σ over entries and parents of |δ|"""
    discarded: float = 0.0
    """The part of it that points against the elected sign"""
    shared: int = 0
    """Entries that at least two parents change"""
    opposed: int = 0
    """Of those, the ones in which not all signs agree"""

    def __add__(self, other: CrowdMoments) -> CrowdMoments:
        return CrowdMoments(
            self.entries + other.entries,
            self.mass + other.mass,
            self.discarded + other.discarded,
            self.shared + other.shared,
            self.opposed + other.opposed,
        )

    @property
    def conflict(self) -> float | None:
        """Share of the entries that at least two parents change in which not all signs agree."""
        return self.opposed / self.shared if self.shared else None

    @property
    def loss(self) -> float | None:
        """Share of the task vectors' mass that the election discards."""
        return self.discarded / self.mass if self.mass > 0.0 else None


def measure_crowd(deltas: Sequence[Tensor]) -> CrowdMoments:
    """What k task vectors of one tensor would lose to each other under equal weights. k tensors float32 [n].

    TIES (Yadav et al. 2023), section 3, steps 2 and 3, untrimmed: per entry the elected sign keeps the larger of the
    positive and the negative mass, so the smaller one, (Σ|δ_k| - |Σ δ_k|) / 2, is discarded.
    """
    first = deltas[0].double()
    mass, net, high, low = first.abs(), first, deltas[0], deltas[0]
    once = deltas[0] != 0.0
    twice = torch.zeros_like(once)
    for delta in deltas[1:]:
        wide, changed = delta.double(), delta != 0.0
        mass, net = mass + wide.abs(), net + wide
        high, low = torch.maximum(high, delta), torch.minimum(low, delta)
        once, twice = once | changed, twice | (once & changed)
    return CrowdMoments(
        entries=mass.numel(),
        mass=total(mass),
        discarded=total((mass - net.abs()) / 2),
        shared=_count(twice),
        opposed=_count((high > 0.0) & (low < 0.0)),
    )


def unrelated_loss(parents: int) -> float:
    """Share of mass that an election discards among k independent normal task vectors of one size: (1 - 1/√k) / 2."""
    return (1 - 1 / math.sqrt(parents)) / 2
