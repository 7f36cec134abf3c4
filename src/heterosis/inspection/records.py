"""What a survey of a family finds, as plain records that turn into JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from heterosis.inspection.differences import Difference

# "Lies within" a bound is said of a task vector when this share of its entries does.
MOST = 0.99

Verdict = Literal["good", "caution", "warn"]
Level = Literal["warn", "caution", "note", "good"]


class Advice(NamedTuple):
    """One plain sentence or two, and how much it matters."""

    level: Level
    text: str


@dataclass(frozen=True)
class Size:
    """One parent's task vector in one region, or over all of it."""

    entries: int
    mean: float
    """Mean |δ|"""
    rms: float
    largest: float
    """Largest |δ|"""
    p99: float
    """99 % of |δ| are at most this (an upper bound, at most 1.6 % too high)"""
    relative: float | None
    """||δ|| / ||θ₀||"""
    beyond_safe: int
    """Entries with |δ| beyond 0.002"""
    beyond_large: int
    """Entries with |δ| beyond 0.01"""
    zeros: int
    """Entries equal to the base's"""
    effective_density: float
    """||δ||₁² / (n ||δ||₂²)"""

    @property
    def verdict(self) -> Verdict:
        """Against the range in which the DARE paper found that most of a task vector can be dropped."""
        allowed = (1 - MOST) * self.entries
        if self.beyond_large > allowed:
            return "warn"
        return "caution" if self.beyond_safe > allowed else "good"


@dataclass(frozen=True)
class Pair:
    """Two parents' task vectors."""

    first: str
    second: str
    cosine: float | None
    conflict: float | None
    """Share of the entries that both change in which the signs differ"""
    both: int
    """Entries that both change"""
    identical: bool


@dataclass(frozen=True)
class Crowd:
    """All parents' task vectors together."""

    conflict: float | None
    """Share of the entries that two or more parents change in which not all signs agree"""
    loss: float | None
    """Share of the mass Σ|δ| that a TIES election with equal weights would discard"""


@dataclass(frozen=True)
class Region:
    """One group of tensors at one depth (layer None: outside the layers), or all of them."""

    layer: int | None
    group: str
    sizes: Mapping[str, Size]
    """By parent; a parent that has none of these tensors in the base's shape is left out"""
    pairs: Sequence[Pair]
    crowd: Crowd | None


@dataclass(frozen=True)
class Survey:
    """What `heterosis inspect` found."""

    base: str
    parents: Mapping[str, str]
    """Name and folder"""
    differences: Sequence[Difference]
    overall: Region
    layers: Sequence[Region]
    """Each layer, all its groups together"""
    regions: Sequence[Region]
    """Each group at each depth, in the order of a forward pass"""
    histograms: Mapping[str, Sequence[tuple[float, float, int]]]
    """By parent: (from, to, entries) per octave of |δ|; what is smaller than the first is counted in it, zeros too"""
    advice: Sequence[Advice]
    """What matters most comes first"""

    @property
    def verdict(self) -> Verdict:
        """The weightiest level of advice."""
        levels = {line.level for line in self.advice}
        return "warn" if "warn" in levels else "caution" if "caution" in levels else "good"

    def to_dict(self) -> dict[str, Any]:
        """The survey in what JSON knows."""
        content: dict[str, Any] = _plain(self)
        return content


def _plain(value: Any) -> Any:
    if isinstance(value, Size | Pair | Crowd | Region | Survey):
        fields = {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
        return fields | {"verdict": value.verdict} if isinstance(value, Size | Survey) else fields
    if isinstance(value, Difference | Advice):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
