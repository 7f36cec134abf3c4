"""What an optimizer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

Genome = tuple[float, ...]


class Fitness(NamedTuple):
    """What scoring a candidate says to an optimizer. Higher is better."""

    value: float
    """The objective as one number."""
    vector: tuple[float, ...]
    """What a multi-objective optimizer raises; `(value,)` otherwise."""
    violations: tuple[float, ...] = ()
    """How far each constraint is missed; at most 0 where it is met."""

    @classmethod
    def of(cls, value: float) -> Fitness:
        """A single objective without constraints."""
        return cls(value, (value,))

    @property
    def violation(self) -> float:
        """Sum of what is missed; 0: feasible."""
        return sum(max(0.0, amount) for amount in self.violations)

    @property
    def rank_key(self) -> tuple[float, float]:
        """Greater is better: the feasible before the rest, those by objective, these by violation (Deb 2000)."""
        missed = self.violation
        return (0.0, self.value) if missed == 0.0 else (-missed, self.value)


class Optimizer(Protocol):
    """Proposes genomes in [0, 1]^n and learns from their values. Higher values are better."""

    def ask(self) -> list[Genome]:
        """The next generation."""
        ...

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        """Fitness of the generation last asked for, in its order. None: it failed, and counts as worst."""
        ...

    def mean(self) -> Genome | None:
        """The optimizer's own estimate of the best point, where it has one."""
        ...

    def converged(self) -> bool:
        """Whether further steps would be too small to matter."""
        ...


def as_numbers(found: Sequence[Fitness | None]) -> list[float]:
    """A number for each that keeps the order: feasible by objective, then by violation, then failures."""
    feasible = [fitness.value for fitness in found if fitness is not None and fitness.violation == 0.0]
    floor = min(feasible, default=0.0) - 1.0
    missed = [fitness.violation for fitness in found if fitness is not None]
    lowest = floor - max(missed, default=0.0) - 1.0
    return [
        lowest if fitness is None else fitness.value if fitness.violation == 0.0 else floor - fitness.violation
        for fitness in found
    ]
