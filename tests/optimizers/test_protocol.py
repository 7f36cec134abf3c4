"""One contract for all optimizers: pure functions of seed and tells, inside the bounds, and they do optimise."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from heterosis.errors import StudyError
from heterosis.optimizers import Optimizer, make_optimizer

NAMES = ("cmaes", "tpe", "gp", "nsga2", "random")
BATCH = {"cmaes": 8, "nsga2": 8}


def make(name: str, seed: int = 3) -> Optimizer:
    return make_optimizer(name, (0.5, 0.4, 0.6), 1 / 6, BATCH.get(name, 1), seed)


def value(genome: tuple[float, ...]) -> float:
    return -sum((unit - 0.8) ** 2 for unit in genome)


def play(optimizer: Optimizer, candidates: int) -> list[list[tuple[float, ...]]]:
    log: list[list[tuple[float, ...]]] = []
    while sum(map(len, log)) < candidates:
        genomes = optimizer.ask()
        optimizer.tell(genomes, [value(genome) for genome in genomes])
        log.append(genomes)
    return log


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_search_whatever_the_global_generators_hold(name: str) -> None:
    first = play(make(name), 16)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert play(make(name), 16) == first
    assert play(make(name, seed=4), 16) != first


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_left_alone(name: str) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    play(make(name), 12)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


@pytest.mark.parametrize("name", NAMES)
def test_genomes_stay_in_the_unit_cube(name: str) -> None:
    assert all(0.0 <= unit <= 1.0 for generation in play(make(name), 24) for genome in generation for unit in genome)


@pytest.mark.parametrize("name", ["cmaes", "tpe", "nsga2"])
def test_the_search_improves(name: str) -> None:
    log = [genome for generation in play(make(name), 120) for genome in generation]
    assert max(map(value, log[-40:])) > max(map(value, log[:8]))


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_candidate_counts_as_worst(name: str) -> None:
    optimizer = make(name)
    for _ in range(3):
        genomes = optimizer.ask()
        optimizer.tell(genomes, [None, *(value(genome) for genome in genomes[1:])])
    assert optimizer.ask()


@pytest.mark.parametrize("name", NAMES)
def test_a_generation_that_fails_altogether_does_not_end_the_search(name: str) -> None:
    optimizer = make(name)
    optimizer.tell(optimizer.ask(), [None] * BATCH.get(name, 1))
    assert optimizer.ask()


def test_cma_reports_a_mean_near_the_optimum_and_converges() -> None:
    optimizer = make("cmaes")
    assert optimizer.mean() is None
    play(optimizer, 800)
    mean = optimizer.mean()
    assert mean == pytest.approx((0.8, 0.8, 0.8), abs=1e-2)
    assert optimizer.converged()


def test_cma_does_not_stop_on_a_plateau_of_equal_scores() -> None:
    optimizer = make("cmaes")
    for _ in range(30):
        genomes = optimizer.ask()
        optimizer.tell(genomes, [0.5] * len(genomes))
    assert not optimizer.converged()


def test_cma_needs_two_genes() -> None:
    with pytest.raises(StudyError, match="at least two genes"):
        make_optimizer("cmaes", (0.5,), 1 / 6, 8, 0)


def test_the_first_candidate_of_a_sampler_is_the_initial_point() -> None:
    assert make("tpe").ask() == [(0.5, 0.4, 0.6)]
