"""Comparisons on one scale."""

from __future__ import annotations

import numpy as np
import pytest

from heterosis.statistics import resample
from heterosis.statistics.bootstrap import Array, TaskTable, cluster_sums
from heterosis.statistics.comparison import Comparison, Scale

SCALE = Scale(lambda scores: scores["t"], lambda _: {"t": 1.0})


def comparison(values: Array, seed: int = 0, draws: int = 1000) -> Comparison:
    table = TaskTable(values, np.ones(values.shape[1]), lambda mean: mean, np.arange(values.shape[1]))
    found = resample({"t": table}, seed, draws)["t"]
    return Comparison({"t": table}, SCALE, cluster_sums(table).means, found, seed)


def coins(chances: list[float], items: int, seed: int) -> Array:
    draws: Array = (np.random.default_rng(seed).random((len(chances), items)) < np.array(chances)[:, None]).astype(
        float
    )
    return draws


def test_a_scale_reads_outcomes_in_pairs() -> None:
    values = coins([0.5], 100, 0)
    found = comparison(np.concatenate([values + 0.25, values]))
    assert tuple(found.difference(0, [1])) == pytest.approx((0.25, 0.25, 0.25))
    assert found.interval(0).estimate == pytest.approx(values.mean() + 0.25)
    assert found.smallest_difference(0, 1) == pytest.approx(0.0, abs=1e-12)
    better, worse = found.p_values(0, 1)
    assert better < 0.001 < 0.999 < worse


def test_the_least_difference_is_from_the_best_of_the_others() -> None:
    found = comparison(coins([0.7, 0.3, 0.6], 300, 1))
    least, nearest = found.least_difference(0, [1, 2]), found.difference(0, [2])
    assert least == pytest.approx(nearest, abs=0.01)
    assert found.least_difference(0, [2, 1]) == least
    assert found.least_difference(0, [2]) == pytest.approx(nearest, abs=0.005)


@pytest.mark.parametrize("parents", [[0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.45, 0.2]])
def test_the_least_difference_covers_the_truth_whether_the_others_are_alike_or_not(parents: list[float]) -> None:
    low = high = 0
    for study in range(300):
        found = comparison(coins([0.6, *parents], 80, study), study, 600).least_difference(
            0, range(1, 1 + len(parents))
        )
        low += found.low > 0.1 + 1e-12
        high += found.high < 0.1 - 1e-12
    assert low / 300 <= 0.05
    assert 0.92 <= 1 - (low + high) / 300 <= 0.98


def test_a_candidate_equals_itself() -> None:
    found = comparison(coins([0.5, 0.6], 50, 0))
    assert tuple(found.difference(0, [0])) == (0.0, 0.0, 0.0)
    assert found.p_values(0, 0) == (1.0, 1.0)
    assert found.least_difference(1, [0, 1]).estimate <= 0.0


def test_a_family_widens_intervals_and_raises_p_values() -> None:
    found = comparison(coins([0.7, 0.5, 0.5, 0.5, 0.5], 100, 3))
    alone, among = found.difference(0, [4]), found.difference(0, [4], family=[0, 1, 2, 3])
    assert among.low < alone.low
    assert among.high > alone.high
    assert found.p_values(0, 4)[0] <= found.p_values(0, 4, family=[0, 1, 2, 3])[0]
