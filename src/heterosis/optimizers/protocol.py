"""What an optimizer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Genome = tuple[float, ...]


class Optimizer(Protocol):
    """Proposes genomes in [0, 1]^n and learns from their values. Higher values are better."""

    def ask(self) -> list[Genome]:
        """The next generation."""
        ...

    def tell(self, genomes: Sequence[Genome], values: Sequence[float | None]) -> None:
        """Values of the generation last asked for, in its order. None: it failed, and counts as worst."""
        ...

    def mean(self) -> Genome | None:
        """The optimizer's own estimate of the best point, where it has one."""
        ...

    def converged(self) -> bool:
        """Whether further steps would be too small to matter."""
        ...


def worst_for_failures(values: Sequence[float | None]) -> list[float]:
    """Values with every failure put just below the worst success of its generation."""
    known = [value for value in values if value is not None]
    floor = min(known, default=0.0) - 1.0
    return [floor if value is None else value for value in values]
