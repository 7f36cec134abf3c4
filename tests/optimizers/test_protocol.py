"""One contract for all optimizers: pure functions of seed and tells, inside the bounds, and they do optimise."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from heterosis.errors import StudyError
from heterosis.optimizers import Fitness, Optimizer, make_optimizer
from heterosis.optimizers.protocol import as_numbers

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
        optimizer.tell(genomes, [Fitness.of(value(genome)) for genome in genomes])
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
        optimizer.tell(genomes, [None, *(Fitness.of(value(genome)) for genome in genomes[1:])])
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
        optimizer.tell(genomes, [Fitness.of(0.5)] * len(genomes))
    assert not optimizer.converged()


def test_cma_needs_two_genes() -> None:
    with pytest.raises(StudyError, match="at least two genes"):
        make_optimizer("cmaes", (0.5,), 1 / 6, 8, 0)


def test_the_first_candidate_of_a_sampler_is_the_initial_point() -> None:
    assert make("tpe").ask() == [(0.5, 0.4, 0.6)]


MULTI = ("tpe", "gp", "nsga2", "nsga3")


def two_hills(genome: tuple[float, ...], bound: float = 1.0) -> Fitness:
    """Two optima, at 0.2 and 0.8 in every gene; the first gene must not exceed `bound`."""
    vector = tuple(-sum((unit - top) ** 2 for unit in genome) for top in (0.2, 0.8))
    return Fitness(sum(vector) / 2, vector, (genome[0] - bound,))


def play_two(name: str, candidates: int, seed: int = 3, bound: float = 1.0) -> list[tuple[float, ...]]:
    batch = {"nsga2": 8, "nsga3": 8}.get(name, 1)
    optimizer = make_optimizer(name, (0.5, 0.4, 0.6), 1 / 6, batch, seed, objectives=2, constraints=1)
    log: list[tuple[float, ...]] = []
    while len(log) < candidates:
        genomes = optimizer.ask()
        fails = len(log) == 8  # one failure on the way
        found = [None if fails and not at else two_hills(genome, bound) for at, genome in enumerate(genomes)]
        optimizer.tell(genomes, found)
        log += genomes
    return log


@pytest.mark.parametrize("name", MULTI)
def test_several_objectives_and_constraints_replay_bit_for_bit(name: str) -> None:
    first = play_two(name, 13)
    assert play_two(name, 13) == first
    assert play_two(name, 9, seed=4)[:9] != first[:9]


@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3"])
def test_a_front_spreads_between_the_optima(name: str) -> None:
    late = [two_hills(genome).vector for genome in play_two(name, 160)[-80:]]
    assert min(vector[0] for vector in late) < -0.5 < max(vector[0] for vector in late)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3"])
def test_constraints_are_learnt(name: str) -> None:
    late = play_two(name, 160, bound=0.3)[-40:]
    free = play_two(name, 160)[-40:]
    assert sum(genome[0] <= 0.3 for genome in late) > sum(genome[0] <= 0.3 for genome in free)


def test_numbers_keep_the_order_feasible_first_then_by_violation_then_failures() -> None:
    found = [
        Fitness(0.9, (0.9,), (0.2,)),
        Fitness(0.1, (0.1,), (-1.0,)),
        None,
        Fitness(0.5, (0.5,)),
        Fitness(2.0, (2.0,), (0.3,)),
    ]
    numbers = as_numbers(found)
    assert sorted(range(5), key=lambda at: -numbers[at]) == [3, 1, 0, 4, 2]
    assert numbers[1] == 0.1


def test_numbers_order_as_deb_does_whatever_the_values() -> None:
    rng = random.Random(0)
    for _ in range(200):
        size = rng.randrange(2, 12)
        scale = 10.0 ** rng.randrange(-3, 4)
        found = [
            None
            if rng.random() < 0.2
            else Fitness(scale * rng.gauss(0, 1), (0.0,), (rng.gauss(0, 1), rng.gauss(-1, 1)))
            for _ in range(size)
        ]
        numbers = as_numbers(found)
        for one, a in zip(found, numbers, strict=True):
            for two, b in zip(found, numbers, strict=True):
                if one is not None and (two is None or before(one, two)):
                    assert a > b
                if one is None and two is None:
                    assert a == b


def before(one: Fitness, two: Fitness) -> bool:
    """Deb (2000), section 3: the better objective of two feasible ones, the feasible, the smaller violation."""
    if one.violation == two.violation == 0.0:
        return one.value > two.value
    return one.violation < two.violation


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
@pytest.mark.parametrize("level", [-100.0, 100.0])
def test_samplers_hear_of_a_failure_as_worse_than_all_before_in_everything(name: str, level: float) -> None:
    optimizer = make_optimizer(name, (0.5, 0.5), 1 / 6, 2, 0, objectives=2, constraints=1)
    for failures in ([0, 1], [], [0]):
        genomes = optimizer.ask()
        told = [Fitness(level, (level + at, level - at), (0.01 * at,)) for at in range(len(genomes))]
        optimizer.tell(genomes, [None if at in failures else fitness for at, fitness in enumerate(told)])
    trials = optimizer._study.trials  # type: ignore[attr-defined]
    assert [trial.values is None for trial in trials] == [True, True, False, False, False, False]
    failed, others = trials[4], [trials[2], trials[3], trials[5]]
    for number in range(2):
        assert failed.values[number] < min(trial.values[number] for trial in others)
    assert failed.constraints["c0"] > max(trial.constraints["c0"] for trial in others)


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
def test_constraints_on_one_objective_replay_bit_for_bit(name: str) -> None:
    def told() -> list[tuple[float, ...]]:
        optimizer = make_optimizer(name, (0.5, 0.4, 0.6), 1 / 6, BATCH.get(name, 1), 5, constraints=1)
        log: list[tuple[float, ...]] = []
        while len(log) < 13:
            genomes = optimizer.ask()
            optimizer.tell(genomes, [Fitness(value(g), (value(g),), (g[0] - 0.6,)) for g in genomes])
            log += genomes
        return log

    assert told() == told()


def test_cma_ranks_the_feasible_first() -> None:
    optimizer = make("cmaes")
    for _ in range(60):
        genomes = optimizer.ask()
        optimizer.tell(genomes, [Fitness(value(g), (value(g),), (g[0] - 0.4,)) for g in genomes])
    assert optimizer.mean() == pytest.approx((0.4, 0.8, 0.8), abs=0.05)


def test_cma_with_a_spread_replays_bit_for_bit() -> None:
    def fresh() -> Optimizer:
        return make_optimizer("cmaes", (0.5, 0.5, 0.5), 1 / 6, 8, 7, spread=(0.1, 1.0, 2.0))

    assert play(fresh(), 48) == play(fresh(), 48)


def test_a_warm_start_narrows_the_first_generation_of_cma() -> None:
    wide, narrow = (
        make_optimizer("cmaes", (0.5, 0.5, 0.5), 1 / 6, 200, 0, spread=spread).ask()
        for spread in (None, (0.1, 1.0, 1.0))
    )
    assert np.std([genome[0] for genome in narrow]) < 0.2 * np.std([genome[0] for genome in wide])
    assert np.std([genome[1] for genome in narrow]) == pytest.approx(np.std([genome[1] for genome in wide]), rel=0.2)


def test_samplers_propose_the_starts_of_a_warm_start_first() -> None:
    starts = [(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)]
    optimizer = make_optimizer("tpe", (0.5, 0.5, 0.5), 1 / 6, 1, 0, starts=starts)
    asked = []
    for _ in starts:
        asked += optimizer.ask()
        optimizer.tell(asked[-1:], [Fitness.of(0.0)])
    assert asked == starts
