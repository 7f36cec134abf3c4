"""Optimizers: one ask/tell protocol, one file per family.

An optimizer is a pure function of its seed and of what it was told, so a study resumes by telling it again.
"""

from heterosis.optimizers.protocol import Fitness, Genome, Optimizer

__all__ = ["Fitness", "Genome", "Optimizer", "make_optimizer"]


def make_optimizer(name: str, initial: Genome, sigma: float, population: int, seed: int) -> Optimizer:
    """An optimizer by the name that study files use."""
    if name == "cmaes":
        from heterosis.optimizers.cma import CmaEs

        return CmaEs(initial, sigma, population, seed)
    from heterosis.optimizers.optuna import OptunaSampler

    return OptunaSampler(name, initial, population, seed)
