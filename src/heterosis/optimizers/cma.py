"""CMA-ES (Hansen & Ostermeier 2001) on pycma."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from heterosis.errors import StudyError
from heterosis.optimizers.protocol import Fitness, Genome, as_numbers

# Smallest step, as a fraction of a gene's range, that can still change a score.
SMALLEST_STEP = 1e-4


class CmaEs:
    """pycma's evolution strategy with a private random generator."""

    def __init__(self, initial: Genome, sigma: float, population: int, seed: int, spread: Genome | None = None) -> None:
        """`spread`: standard deviation of each gene in units of `sigma`; 1 for all when left out."""
        if len(initial) < 2:
            raise StudyError("optimizer: cmaes needs at least two genes. Use tpe, or free another gene.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycma warns of optional plotting packages at import
            import cma
        rng = np.random.default_rng([seed, 0xC3A])
        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "popsize": population,
            "seed": math.nan,  # leaves the global generator alone
            "randn": lambda *shape: rng.standard_normal(shape),
            "tolx": SMALLEST_STEP,
            # Scores are coarse and noisy: equal values do not mean that the search has ended.
            "tolfun": 0,
            "tolfunhist": 0,
            "tolflatfitness": math.inf,
            "tolstagnation": math.inf,
            "maxiter": math.inf,
            "verbose": -9,
        }
        if spread is not None:
            options["CMA_stds"] = list(spread)
        self._strategy: Any = cma.CMAEvolutionStrategy(list(initial), sigma, options)
        self._asked: list[Any] = []

    def ask(self) -> list[Genome]:
        """A generation from the current distribution."""
        self._asked = self._strategy.ask()
        return [tuple(float(unit) for unit in point) for point in self._asked]

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        """Update mean, step size and covariance. pycma minimises, so values change sign."""
        assert len(genomes) == len(self._asked)
        self._strategy.tell(self._asked, [-value for value in as_numbers(found)])

    def mean(self) -> Genome | None:
        """The distribution's mean, inside the bounds."""
        if not self._strategy.countiter:
            return None
        favourite = self._strategy.result.xfavorite
        return tuple(min(max(float(unit), 0.0), 1.0) for unit in favourite)

    def converged(self) -> bool:
        """Whether the step size has fallen below what changes a score."""
        return "tolx" in self._strategy.stop()
