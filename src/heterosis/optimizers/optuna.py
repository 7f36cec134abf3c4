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
from optuna.study import StudyDirection
from optuna.trial import TrialState

from heterosis.optimizers.protocol import Fitness, Genome

SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    # Candidates are points in one joint space, so TPE models the genes together. With several objectives it splits
    # good from bad by hypervolume.
    "tpe": lambda seed, _: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    # With several objectives: expected hypervolume improvement, at a second or more a candidate with two objectives and
    # far more with four; TPE takes hundredths.
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
        self._told: list[Fitness] = []
        self._asked: list[optuna.Trial] = []

    def ask(self) -> list[Genome]:
        """A generation, each candidate through one joint sample."""
        self._asked = [self._study.ask(self._distributions) for _ in range(self._population)]
        return [tuple(trial.params[gene] for gene in self._names) for trial in self._asked]

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        """Complete the trials of the generation.

        A failure is worse than all that came before, in every objective and constraint; before anything was scored it
        is told as failed, from which samplers learn nothing.
        """
        assert len(genomes) == len(self._asked)
        self._told += [fitness for fitness in found if fitness is not None]
        failed = self._failed()
        for trial, fitness in zip(self._asked, (fitness or failed for fitness in found), strict=True):
            if fitness is None:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            for number in range(self._constraints):
                trial.set_constraint(f"c{number}", fitness.violations[number])
            self._study.tell(trial, fitness.vector)

    def _failed(self) -> Fitness | None:
        if not self._told:
            return None
        vector = [_beyond(column) for column in zip(*(each.vector for each in self._told), strict=True)]
        missed = [
            -_beyond([0.0, *(-max(0.0, amount) for amount in column)])
            for column in zip(*(each.violations for each in self._told), strict=True)
        ]
        return Fitness(_beyond([each.value for each in self._told]), tuple(vector), tuple(missed))

    def mean(self) -> Genome | None:
        """Samplers have no mean."""
        return None

    def converged(self) -> bool:
        """Samplers never stop by themselves."""
        return False


def _beyond(numbers: Sequence[float]) -> float:
    """Below all of them, by as much as they spread (1 if they do not): low, but no outlier that hides the rest."""
    low = min(numbers)
    return low - ((max(numbers) - low) or 1.0)
