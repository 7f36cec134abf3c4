"""Optimizers: one ask/tell protocol, one file per family.

An optimizer is a pure function of its seed and of what it was told, so a study resumes by telling it again.
"""

from __future__ import annotations

from collections.abc import Sequence

from heterosis.optimizers.protocol import Fitness, Genome, Optimizer

__all__ = ["Fitness", "Genome", "Optimizer", "make_optimizer"]


def make_optimizer(
    name: str,
    initial: Genome,
    sigma: float,
    population: int,
    seed: int,
    *,
    objectives: int = 1,
    constraints: int = 0,
    spread: Genome | None = None,
    starts: Sequence[Genome] = (),
) -> Optimizer:
    """An optimizer by the name that study files use.

    `objectives`, `constraints`: how many there are; CMA-ES ranks the feasible first instead of being told. `spread`:
    standard deviation of each gene in units of `sigma` (CMA-ES), `starts`: the first points to propose (the others;
    `initial` when there are none).
    """
    if name == "cmaes":
        from heterosis.optimizers.cma import CmaEs

        return CmaEs(initial, sigma, population, seed, spread)
    from heterosis.optimizers.optuna import OptunaSampler

    return OptunaSampler(name, list(starts) or [initial], population, seed, objectives, constraints)
