"""Optuna's samplers behind the same protocol.

The sampler lives in a study of its own in memory, so its state is a function of seed and tells alone; the record of
the search is kept elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from heterosis.optimizers.protocol import Fitness, Genome, as_numbers

# How far a failed candidate misses every constraint.
FAILED = 1e6

SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    # Candidates are points in one joint space, so TPE models the genes together. With several objectives it splits
    # good from bad by hypervolume.
    "tpe": lambda seed, _: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    # With several objectives: expected hypervolume improvement.
    "gp": lambda seed, _: optuna.samplers.GPSampler(seed=seed, deterministic_objective=False),
    "nsga2": lambda seed, population: optuna.samplers.NSGAIISampler(seed=seed, population_size=population),
    "nsga3": lambda seed, population: optuna.samplers.NSGAIIISampler(seed=seed, population_size=population),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
}


class OptunaSampler:
    """One of SAMPLERS."""

    def __init__(
        self,
        name: str,
        starts: Sequence[Genome],
        population: int,
        seed: int,
        objectives: int = 1,
        constraints: int = 0,
    ) -> None:
        """`starts`: the first points to propose, in this order; the random sampler proposes none."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = SAMPLERS[name](seed, population)
        self._objectives, self._constraints = objectives, constraints if name != "random" else 0
        directions = [StudyDirection.MAXIMIZE] * objectives
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._population = population
        self._names = [f"g{i:05d}" for i in range(len(starts[0]))]
        self._distributions: dict[str, BaseDistribution] = {gene: FloatDistribution(0.0, 1.0) for gene in self._names}
        if name != "random":
            for start in starts:
                self._study.enqueue_trial(dict(zip(self._names, start, strict=True)))
        self._lowest = [0.0] * objectives
        self._asked: list[optuna.Trial] = []

    def ask(self) -> list[Genome]:
        """A generation, each candidate through one joint sample."""
        self._asked = [self._study.ask(self._distributions) for _ in range(self._population)]
        return [tuple(trial.params[gene] for gene in self._names) for trial in self._asked]

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        """Complete the trials of the generation."""
        assert len(genomes) == len(self._asked)
        for trial, values, fitness in zip(self._asked, self._values(found), found, strict=True):
            missed = [FAILED] * self._constraints if fitness is None else fitness.violations[: self._constraints]
            for number, amount in enumerate(missed):
                trial.set_constraint(f"c{number}", amount)
            self._study.tell(trial, values)

    def _values(self, found: Sequence[Fitness | None]) -> list[Any]:
        """What each is told; a failure is worse than all that came before, in every objective."""
        known = [fitness.vector for fitness in found if fitness is not None]
        if self._objectives == 1 and not self._constraints:
            return as_numbers(found)
        self._lowest = [min(column) for column in zip(self._lowest, *known, strict=True)]
        worst = [low - 1.0 for low in self._lowest]
        return [worst if fitness is None else list(fitness.vector) for fitness in found]

    def mean(self) -> Genome | None:
        """Samplers have no mean."""
        return None

    def converged(self) -> bool:
        """Samplers never stop by themselves."""
        return False
