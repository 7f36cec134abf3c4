"""Optuna's samplers behind the same protocol.

The sampler lives in a study of its own in memory, so its state is a function of seed and tells alone; the record of
the search is kept elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler

from heterosis.optimizers.protocol import Fitness, Genome, as_numbers

SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    # Candidates are points in one joint space, so TPE models the genes together.
    "tpe": lambda seed, _: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "gp": lambda seed, _: optuna.samplers.GPSampler(seed=seed, deterministic_objective=False),
    "nsga2": lambda seed, population: optuna.samplers.NSGAIISampler(seed=seed, population_size=population),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
}


class OptunaSampler:
    """One of SAMPLERS."""

    def __init__(self, name: str, initial: Genome, population: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = SAMPLERS[name](seed, population)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._population = population
        self._names = [f"g{i:05d}" for i in range(len(initial))]
        self._distributions: dict[str, BaseDistribution] = {gene: FloatDistribution(0.0, 1.0) for gene in self._names}
        if name != "random":
            self._study.enqueue_trial(dict(zip(self._names, initial, strict=True)))
        self._asked: list[optuna.Trial] = []

    def ask(self) -> list[Genome]:
        """A generation, each candidate through one joint sample."""
        self._asked = [self._study.ask(self._distributions) for _ in range(self._population)]
        return [tuple(trial.params[gene] for gene in self._names) for trial in self._asked]

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        """Complete the trials of the generation."""
        assert len(genomes) == len(self._asked)
        for trial, value in zip(self._asked, as_numbers(found), strict=True):
            self._study.tell(trial, value)

    def mean(self) -> Genome | None:
        """Samplers have no mean."""
        return None

    def converged(self) -> bool:
        """Samplers never stop by themselves."""
        return False
